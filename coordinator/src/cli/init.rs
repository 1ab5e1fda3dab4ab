//! `warren-coordinator init`: a mesh from nothing, or nothing at all.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use warren_proto::{Overlay, TrustDomain, wire};

use super::{block_on, load, print};
use crate::admin_api::first_run_token;
use crate::ca::{Authority, CaParameters, pem};
use crate::clock::{self, WallClock};
use crate::config::{Config, duration};
use crate::failure::{Exit, Failure};
use crate::registry::{Caller, Registry};
use crate::server::{CA_DIRECTORY, CLOCK_FILE, ROOT_FILE, ca_failure, ca_passphrase, store_failure, store_options};
use crate::state::records::{AdminToken, MeshSettings};
use crate::store::{Seams, SledStore, Store};

#[derive(Debug, Args)]
pub(super) struct Init {
    /// The directory to make: store, CA, configuration. It must not exist, or be empty.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The trust domain: the name that every identity begins with.
    #[arg(long, value_name = "NAME")]
    domain: String,
    /// UDP address for enrolment and the nodes' links.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// TCP address of the admin API.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8444")]
    admin_listen: SocketAddr,
    /// Where nodes reach this coordinator; repeat for several. Needed when --listen is every address.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<String>,
    /// This coordinator's name.
    #[arg(long, value_name = "NAME", default_value = "coordinator")]
    name: String,
    /// The overlay's IPv6 prefix, a ULA /48; a random one unless given.
    #[arg(long, value_name = "PREFIX")]
    overlay_v6: Option<String>,
    /// The overlay's IPv4 prefix, or "none". It must not be in use on any host.
    #[arg(long, value_name = "PREFIX", default_value = "10.77.0.0/16")]
    overlay_v4: String,
    /// Lifetime of tunnel certificates, 5m to 90d. Nodes renew at half of it.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    certificate_lifetime: Duration,
    /// Between two signed heartbeats to each node.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration)]
    heartbeat: Duration,
    /// Without a heartbeat for so long a node admits no new peer.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    stale_after: Duration,
    /// Seal the CA's private keys under the passphrase in this file, which `serve` then needs as well.
    #[arg(long, value_name = "FILE")]
    ca_passphrase_file: Option<PathBuf>,
    /// Accept a file system whose syncs cannot be trusted.
    #[arg(long)]
    any_file_system: bool,
}

impl Init {
    pub(super) fn run(&self) -> Result<Exit, Failure> {
        let settings = self.settings()?;
        let made = self.make_directory()?;
        let written = self.fill(settings);
        if written.is_err() {
            // All of it is ours: the directory was empty.
            clear(&self.dir, made);
        }
        let config = written?;
        print(&self.next_steps(&config))
    }

    fn settings(&self) -> Result<MeshSettings, Failure> {
        let usage = |what: String| Failure::new(Exit::Usage, what);
        let trust_domain: TrustDomain =
            self.domain.parse().map_err(|error| usage(format!("--domain {:?}: {error}", self.domain)))?;
        let v6 = self.overlay_v6.clone().unwrap_or_else(|| {
            let [a, b, c, d, e] = rand::random::<[u8; 5]>();
            format!("fd{a:02x}:{b:02x}{c:02x}:{d:02x}{e:02x}::/48")
        });
        let v4 = if self.overlay_v4 == "none" { String::new() } else { self.overlay_v4.clone() };
        let overlay = Overlay::from_wire(&wire::Overlay { v6, v4 })?;
        let seconds = |name: &str, time: Duration| {
            u32::try_from(time.as_secs()).map_err(|_| usage(format!("--{name}: longer than a lifetime can be")))
        };
        let lifetime = seconds("certificate-lifetime", self.certificate_lifetime)?;
        Ok(MeshSettings {
            trust_domain,
            overlay,
            tunnel_certificate_lifetime: lifetime,
            // A node that was away for a weekend is to find its way back without a token.
            node_certificate_lifetime: lifetime.max(7 * 24 * 3600),
            max_certificate_lifetime: lifetime,
            stale_after: seconds("stale-after", self.stale_after)?,
        })
    }

    /// True when the directory was not there before.
    fn make_directory(&self) -> Result<bool, Failure> {
        let failed = |error: io::Error| {
            let exit = if error.kind() == io::ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Failed };
            Failure::new(exit, format!("{}: {error}", self.dir.display()))
        };
        match fs::read_dir(&self.dir) {
            Ok(mut entries) => match entries.next() {
                None => Ok(false),
                Some(_) => {
                    let what = format!("{} is not empty; it is left as it is", self.dir.display());
                    Err(Failure::new(Exit::Conflict, what)
                        .next("choose another --dir, or serve the mesh that is there"))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(failed)?;
                Ok(true)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn fill(&self, settings: MeshSettings) -> Result<Config, Failure> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| Failure::new(Exit::Failed, format!("{path}: {error}"))
        };
        let directory = std::path::absolute(&self.dir).map_err(failed(&self.dir))?;
        fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(failed(&directory))?;
        let file = directory.join("coordinator.yaml");
        let passphrase = self.ca_passphrase_file.as_deref().map(std::path::absolute).transpose();
        let passphrase = passphrase.map_err(failed(&directory))?;
        write_new(&file, self.configuration(passphrase.as_deref()).as_bytes(), 0o644).map_err(failed(&file))?;
        let config = load(&file)?;
        let clock_file = directory.join(CLOCK_FILE);
        let clock = WallClock::open(&clock_file, clock::system()).map_err(failed(&clock_file))?;
        clock.persist().map_err(failed(&clock_file))?;
        let parameters = CaParameters {
            trust_domain: settings.trust_domain.clone(),
            coordinator: config.name.clone(),
            overlay: settings.overlay,
        };
        let passphrase = ca_passphrase(&config)?;
        let ca = directory.join(CA_DIRECTORY);
        let authority = Authority::init_sealed(&ca, passphrase.as_ref(), &parameters, clock.now())
            .map_err(|error| ca_failure(&error))?;
        let root = directory.join(ROOT_FILE);
        write_new(&root, pem(authority.root_der()).as_bytes(), 0o644).map_err(failed(&root))?;
        let store =
            SledStore::create(store_options(&config), Seams::default()).map_err(|error| store_failure(&error))?;
        let (token, text) = first_run_token(clock.now());
        block_on(found(store, authority, clock, &config, settings, token))?;
        let token_file = directory.join("first-run-token");
        let text = zeroize::Zeroizing::new(format!("{}\n", text.as_str()));
        write_new(&token_file, text.as_bytes(), 0o600).map_err(failed(&token_file))?;
        Ok(config)
    }

    fn configuration(&self, passphrase: Option<&Path>) -> String {
        let passphrase = passphrase.map(|path| format!("ca_passphrase_file: {:?}\n", path.display().to_string()));
        let advertise: Vec<_> = self.advertise.iter().map(|address| format!("{address:?}")).collect();
        format!(
            "# Written by `warren-coordinator init`. Every key: `warren-coordinator reference`.\n\
             name: {}\nlisten: \"{}\"\nadvertise: [{}]\nadmin_listen: \"{}\"\nheartbeat: {}s\n{}\
             store:\n  any_file_system: {}\n",
            self.name,
            self.listen,
            advertise.join(", "),
            self.admin_listen,
            self.heartbeat.as_secs().max(1),
            passphrase.unwrap_or_default(),
            self.any_file_system,
        )
    }

    fn next_steps(&self, config: &Config) -> String {
        let dir = config.directory.display();
        format!(
            "The mesh {domain} is ready in {dir}.\n\n\
             Next:\n  \
               warren-coordinator serve --config {dir}/coordinator.yaml\n  \
               export WARREN_COORDINATOR=https://{admin} WARREN_ROOT={dir}/root.pem WARREN_ADMIN_TOKEN_FILE=admin.token\n  \
               warren admin claim --first-run-token-file {dir}/first-run-token > admin.token\n  \
               warren token create --for shop/web-frontend > web.token\n\n\
             Keep {dir}/ca/root apart from this machine once it is backed up: the root's key signs the CA's own\n\
             certificates only, and is asked for when those are renewed.\n",
            domain = self.domain,
            admin = config.admin_listen,
        )
    }
}

/// The first records of the store: the mesh, and the one-time token for its first administrator.
async fn found(
    store: SledStore,
    authority: Authority,
    clock: WallClock,
    config: &Config,
    settings: MeshSettings,
    token: AdminToken,
) -> Result<(), Failure> {
    let caller = Caller::new("init");
    with_registry(store, authority, clock, config, async |registry| {
        registry.create_mesh(&caller, settings).await?;
        registry.create_admin_token(&Caller::new("init"), token, None).await?;
        Ok(())
    })
    .await
}

/// Gives `commands` a registry of a store that nobody serves, and closes the store behind them.
pub(super) async fn with_registry(
    store: SledStore,
    authority: Authority,
    clock: WallClock,
    config: &Config,
    commands: impl AsyncFnOnce(&Registry) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let store: Arc<dyn Store> = Arc::new(store);
    let registry = Registry::open(store, authority, Arc::new(clock), config.advertise.clone()).await?;
    let following = {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move { registry.follow().await })
    };
    let done = commands(&registry).await;
    following.abort();
    // Ends when the task has let go of the registry, and with it of the store.
    let _ = following.await;
    done
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Undoes what a failed `init` wrote.
fn clear(directory: &Path, with_itself: bool) {
    if with_itself {
        let _ = fs::remove_dir_all(directory);
        return;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
}
