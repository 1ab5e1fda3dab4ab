//! The running coordinator: which parts there are, in which order they start and stop.
//!
//! Start: store, CA, registry, both ports, ready. Stop: no new connections, goodbye to every node, admin API, clock's
//! floor, store. A store that fails ends the process: what is in memory may differ from the disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use warren_proto::UnixTime;

use crate::admin_api::{self, Api};
use crate::ca::rotation::TrustRoots;
use crate::ca::{Authority, CaError, CaParameters, KeyFiles, Passphrase, pem};
use crate::clock::{self, WallClock};
use crate::config::Config;
use crate::distribution::{LinkSettings, Links, Listener, ListenerError};
use crate::failure::{Exit, Failure};
use crate::registry::{Registry, read_settings, read_trust};
use crate::status;
use crate::store::{OpenError, Options, Seams, SledStore, Store};

/// File under the state directory that holds the clock's floor.
pub const CLOCK_FILE: &str = "clock";
/// File under the state directory with the root that signs, PEM, for administrators' commands.
pub const ROOT_FILE: &str = "root.pem";
/// The systemd credential that holds the passphrase of the CA's keys.
const CREDENTIAL: &str = "ca-passphrase";
/// Directory of the CA under the state directory.
pub const CA_DIRECTORY: &str = "ca";

/// How often the clock's floor is written down.
const CLOCK: Duration = Duration::from_secs(60);
/// How often ended records are looked for.
const SWEEP: Duration = Duration::from_secs(600);
/// Revisions whose changes and commit ids the store keeps: hours of a large mesh, for whoever repeats a request.
const FEED: u64 = 10_000;
/// How often the CA's own certificates are looked at; they are renewed at half of their life, which is days.
const RENEWAL: Duration = Duration::from_secs(3600);
/// How often the certificates of plain devices are looked at: they may live five minutes.
const PEERS: Duration = Duration::from_secs(20);
/// How long a clean stop may take in all; systemd would wait longer, nodes need not.
const STOP: Duration = Duration::from_secs(8);

/// Where the store of a configuration lies and how it behaves.
#[must_use]
pub fn store_options(config: &Config) -> Options {
    let mut options = Options::new(&config.directory);
    options.any_file_system = config.any_file_system;
    options.keep_free = config.keep_free;
    options
}

/// Opens the store, with the next step for each way in which it can fail.
pub fn open_store(config: &Config) -> Result<SledStore, Failure> {
    SledStore::open(store_options(config), Seams::default()).map_err(|error| store_failure(&error))
}

/// The passphrase of the CA's keys: in the file that the configuration names, else the systemd credential; none where
/// there is neither.
pub fn ca_passphrase(config: &Config) -> Result<Option<Passphrase>, Failure> {
    if let Some(path) = &config.ca_passphrase_file {
        return read_passphrase(path).map(Some);
    }
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|place| PathBuf::from(place).join(CREDENTIAL));
    credential.filter(|path| path.exists()).map(|path| read_passphrase(&path)).transpose()
}

/// Reads a passphrase. Its words are nowhere in what is said of a failure.
pub fn read_passphrase(path: &Path) -> Result<Passphrase, Failure> {
    Passphrase::read(path)
        .map_err(|error| Failure::new(Exit::Failed, format!("the CA's passphrase in {}: {error}", path.display())))
}

/// What a CA that does not open means to a script. Its words name the next step.
#[must_use]
pub fn ca_failure(error: &CaError) -> Failure {
    let exit = match error {
        CaError::Sealed { .. } | CaError::NotSealed { .. } | CaError::WrongPassphrase { .. } => Exit::NotPermitted,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("the certificate authority: {error}"))
}

/// The CA of a configuration, its keys opened with the passphrase where they are sealed.
pub fn open_authority(
    config: &Config,
    parameters: &CaParameters,
    trust: Option<&TrustRoots>,
    now: UnixTime,
) -> Result<Authority, Failure> {
    let passphrase = ca_passphrase(config)?;
    let keys = KeyFiles::open(&config.directory.join(CA_DIRECTORY), passphrase.as_ref());
    let opened = keys.and_then(|keys| Authority::open_with(Arc::new(keys), parameters, trust, now));
    opened.map_err(|error| ca_failure(&error))
}

/// What a store that does not open means to a script. Its words name the next step.
#[must_use]
pub fn store_failure(error: &OpenError) -> Failure {
    let exit = match error {
        OpenError::Missing(_) => Exit::NotFound,
        OpenError::Exists(_) | OpenError::Locked(_) => Exit::Conflict,
        _ => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

/// A coordinator with both ports open, ready to serve.
#[derive(Debug)]
pub struct Server {
    registry: Arc<Registry>,
    links: Arc<Links>,
    listener: Arc<Listener>,
    admin: TcpListener,
    clock: Arc<WallClock>,
    config: Config,
}

impl Server {
    /// Opens everything. Nothing is served before [`Server::run`].
    pub async fn open(config: Config) -> Result<Self, Failure> {
        let io_failure = |what: String, error: &io::Error| Failure::new(Exit::Failed, format!("{what}: {error}"));
        let store = open_store(&config)?;
        let (settings, trust) = (read_settings(&store).await?, read_trust(&store).await?);
        let clock_file = config.directory.join(CLOCK_FILE);
        let clock = WallClock::open(&clock_file, clock::system())
            .map_err(|error| io_failure(format!("the clock's floor in {}", clock_file.display()), &error))?;
        let parameters = CaParameters {
            trust_domain: settings.trust_domain,
            coordinator: config.name.clone(),
            overlay: settings.overlay,
        };
        let authority = open_authority(&config, &parameters, trust.as_ref(), clock.now())?;
        let clock = Arc::new(clock);
        let store: Arc<dyn Store> = Arc::new(store);
        let registry = Registry::open(store, authority, Arc::clone(&clock), config.advertise.clone()).await?;
        let links = Arc::new(Links::default());
        let settings = LinkSettings { heartbeat: config.heartbeat };
        let listener = Listener::bind(config.listen, Arc::clone(&registry), Arc::clone(&links), settings)
            .map_err(|error| port_failure(&error))?;
        let admin = TcpListener::bind(config.admin_listen).await.map_err(|error| {
            let next = match error.kind() {
                io::ErrorKind::AddrInUse => format!(
                    "see who has it with `ss -ltnp sport = :{}`, or set another `admin_listen`",
                    config.admin_listen.port()
                ),
                _ => "set another `admin_listen` address".to_owned(),
            };
            io_failure(format!("cannot open TCP {}", config.admin_listen), &error).next(next)
        })?;
        Ok(Self { registry, links, listener: Arc::new(listener), admin, clock, config })
    }

    /// Serves until `stopping` turns true, or the store fails. `ready` is called when both ports accept.
    pub async fn run(self, stopping: watch::Receiver<bool>, ready: impl FnOnce()) -> Result<(), Failure> {
        let Self { registry, links, listener, admin, clock, config } = self;
        // The parts stop on their own signal, so that a failed store stops them as well.
        let stop = watch::Sender::new(false);
        let mut parts: JoinSet<Result<(), Failure>> = JoinSet::new();
        // What the parts stand on ends after them: a command under way is answered when the feed brings it back.
        let mut below: JoinSet<Result<(), Failure>> = JoinSet::new();
        let feed = Arc::clone(&registry);
        below.spawn(async move {
            feed.follow().await;
            Ok(())
        });
        let quic = (Arc::clone(&listener), stop.subscribe());
        parts.spawn(async move {
            quic.0.run(quic.1).await;
            Ok(())
        });
        let api = Api::new(Arc::clone(&registry), Arc::clone(&links), host_names(&config.advertise));
        let admin_stop = stop.subscribe();
        parts.spawn(async move {
            admin_api::serve(admin, api, admin_stop).await;
            Ok(())
        });
        match status::Socket::bind(&config.directory) {
            Ok(socket) => {
                let report = (Arc::clone(&registry), Arc::clone(&links), stop.subscribe());
                parts.spawn(async move {
                    socket.serve(&report.0, &report.1, report.2).await;
                    Ok(())
                });
            }
            // A path too long for a Unix socket, for example: no reason to leave the nodes alone.
            Err(error) => tracing::warn!(%error, "`warren-coordinator status` will not find this coordinator"),
        }
        let kept = (Arc::clone(&registry), Arc::clone(&clock));
        let root_file = config.directory.join(ROOT_FILE);
        below.spawn(async move {
            maintain(kept.0, kept.1, root_file).await;
            Ok(())
        });
        ready();
        let mut asked = stopping;
        let ended = tokio::select! {
            // The feed ends because the store has failed: that is what to say.
            biased;
            _ = async { asked.wait_for(|stopping| *stopping).await.map(|_| ()) } => Ok(()),
            why = registry.failed() => Err(Failure::new(Exit::Failed, format!("the store has failed: {why}"))
                .next("start it again: the store recovers what was acknowledged, or says why it cannot")),
            failure = first_end(&mut parts) => Err(failure),
            failure = first_end(&mut below) => Err(failure),
        };
        tracing::info!("stopping");
        stop.send_replace(true);
        if timeout(STOP, async { while parts.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!("not every part stopped in time");
        }
        parts.abort_all();
        below.abort_all();
        if let Err(error) = clock.persist() {
            tracing::warn!(%error, "the clock's floor could not be written");
        }
        ended
    }
}

/// Waits for the first of `parts` to end: none ends by itself, and a hole in the coordinator must not look like a running
/// one.
async fn first_end(parts: &mut JoinSet<Result<(), Failure>>) -> Failure {
    match parts.join_next().await {
        Some(Ok(Err(failure))) => failure,
        _ => Failure::new(Exit::Failed, "a part of the coordinator ended; see its log"),
    }
}

/// The names under which administrators may call the admin API, beside its addresses.
fn host_names(advertised: &[String]) -> Vec<String> {
    advertised.iter().filter_map(|address| Some(address.rsplit_once(':')?.0.to_owned())).collect()
}

fn port_failure(error: &ListenerError) -> Failure {
    Failure::new(Exit::Failed, error.to_string()).next(error.hint())
}

/// Periodic work: the clock's floor, ended records, the CA's own certificates.
async fn maintain(registry: Arc<Registry>, clock: Arc<WallClock>, root_file: PathBuf) {
    let every = |period| {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    };
    let (mut floor, mut sweep, mut renewal, mut peers) = (every(CLOCK), every(SWEEP), every(RENEWAL), every(PEERS));
    let mut authority = registry.authority_moved();
    // A process that was killed may have left it behind.
    keep_root_file(&registry, &root_file);
    loop {
        tokio::select! {
            _ = floor.tick() => {
                let behind = clock.behind();
                if behind > Duration::from_secs(5) {
                    tracing::warn!(behind_seconds = behind.as_secs(), "this host's clock is behind; see `timedatectl`");
                }
                if let Err(error) = clock.persist() {
                    tracing::warn!(%error, "the clock's floor could not be written");
                }
            }
            _ = sweep.tick() => forget(&registry).await,
            _ = renewal.tick() => renew(&registry).await,
            _ = peers.tick() => renew_peers(&registry).await,
            Ok(()) = authority.changed() => {
                keep_root_file(&registry, &root_file);
                renew_peers(&registry).await;
            }
        }
    }
}

async fn forget(registry: &Registry) {
    loop {
        match registry.sweep().await {
            Ok(true) => {}
            Ok(false) => break,
            Err(refusal) => {
                tracing::warn!(%refusal, "ended records could not be forgotten");
                break;
            }
        }
    }
    if let Err(refusal) = registry.trim_feed(FEED).await {
        tracing::warn!(%refusal, "the store's feed could not be trimmed");
    }
}

/// Devices do not ask for their certificates: nobody there knows of them.
async fn renew_peers(registry: &Registry) {
    match registry.renew_peers().await {
        Ok(0) => {}
        Ok(renewed) => tracing::info!(renewed, "certificates of plain devices were renewed"),
        Err(refusal) => tracing::warn!(%refusal, "the certificate of a plain device could not be renewed"),
    }
}

/// Administrators' commands on this machine know the coordinator by this file: it holds the root that signs.
fn keep_root_file(registry: &Registry, path: &Path) {
    let text = pem(registry.authority().root_der());
    if std::fs::read_to_string(path).is_ok_and(|held| held == text) {
        return;
    }
    let new = path.with_extension("pem.new");
    match std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path)) {
        Ok(()) => tracing::info!(file = %path.display(), "the root's certificate was written"),
        Err(error) => tracing::warn!(file = %path.display(), %error, "the root's certificate could not be written"),
    }
}

async fn renew(registry: &Registry) {
    let (authority, now) = (registry.authority(), registry.now());
    match tokio::task::spawn_blocking(move || authority.renewed(now)).await {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(renewed))) => {
            registry.replace_authority(renewed);
            tracing::info!("the coordinator's own certificates were renewed");
        }
        Ok(Err(error)) => tracing::error!(%error, "the coordinator's own certificates could not be renewed"),
        Err(error) => tracing::error!(%error, "renewing the coordinator's own certificates failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_ends_or_crashes_ends_the_coordinator() {
        let mut parts = JoinSet::new();
        parts.spawn(async { Ok(()) });
        assert_eq!(first_end(&mut parts).await.exit, Exit::Failed);
        parts.spawn(async { panic!("a fault") });
        parts.spawn(std::future::pending());
        assert_eq!(first_end(&mut parts).await.exit, Exit::Failed);
    }
}
