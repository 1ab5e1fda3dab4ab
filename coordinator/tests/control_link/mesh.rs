//! A coordinator on loopback, on a clock that only the test moves.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use warren_coordinator::ca::{Authority, CaParameters};
use warren_coordinator::clock::{Source, WallClock};
use warren_coordinator::distribution::{LinkSettings, Links, Listener};
use warren_coordinator::registry::{Applied, Caller, NewJoinToken, PolicyRefused, Registry, Submission, read_trust};
use warren_coordinator::state::records::MeshSettings;
use warren_coordinator::store::{Options, Seams, SledStore};
use warren_proto::join_token::JoinToken;
use warren_proto::policy::SourceFile;
use warren_proto::{Overlay, TrustBundle, UnixTime};

/// When the tests' clock starts.
pub(crate) const START: UnixTime = UnixTime(1_800_000_000);

/// Long enough for anything that is to happen, on a machine under load.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// web may call api; nobody else anything.
pub(crate) const POLICY: &str = "\
kind: Set
name: all
owns: [shop, bank, mesh]
---
kind: Mesh
name: bank.example
---
kind: Namespace
name: shop
---
kind: Namespace
name: bank
---
kind: Service
name: shop/web
---
kind: Service
name: shop/other
---
kind: Service
name: bank/api
ports:
  api: { port: 8080, protocol: tcp }
allow:
  desk: { from: [shop/web], ports: [api] }
";

/// What a client must know of a coordinator.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) bundle: TrustBundle,
    /// The clients' clock.
    pub(crate) now: UnixTime,
}

pub(crate) struct Mesh {
    pub(crate) registry: Arc<Registry>,
    pub(crate) links: Arc<Links>,
    target: Target,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
    following: JoinHandle<()>,
    time: Arc<Mutex<UnixTime>>,
    directory: tempfile::TempDir,
}

impl std::ops::Deref for Mesh {
    type Target = Target;

    fn deref(&self) -> &Target {
        &self.target
    }
}

fn settings() -> MeshSettings {
    MeshSettings {
        trust_domain: "bank.example".parse().unwrap(),
        overlay: Overlay {
            v6: ("fd12:3456:789a::".parse().unwrap(), 48),
            v4: Some(("10.77.0.0".parse().unwrap(), 16)),
        },
        tunnel_certificate_lifetime: 86_400,
        node_certificate_lifetime: 7 * 86_400,
        max_certificate_lifetime: 86_400,
        stale_after: 600,
    }
}

fn parameters() -> CaParameters {
    let MeshSettings { trust_domain, overlay, .. } = settings();
    CaParameters { trust_domain, coordinator: "alpha".to_owned(), overlay }
}

fn options(directory: &tempfile::TempDir) -> Options {
    let mut options = Options::new(directory.path());
    (options.keep_free, options.keep_free_percent, options.ballast, options.any_file_system) = (0, 0, 0, true);
    options
}

impl Mesh {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::init(&directory.path().join("ca"), &parameters(), START).unwrap();
        let store = SledStore::create(options(&directory), Seams::default()).unwrap();
        let mesh = Self::over(directory, store, authority, START).await;
        mesh.registry.create_mesh(&Caller::new("test"), settings()).await.unwrap();
        mesh
    }

    async fn over(directory: tempfile::TempDir, store: SledStore, authority: Authority, now: UnixTime) -> Self {
        let time = Arc::new(Mutex::new(now));
        let source: Source = {
            let time = Arc::clone(&time);
            Arc::new(move || *time.lock().unwrap())
        };
        let clock = WallClock::open(&directory.path().join("clock"), source).unwrap();
        let advertised = vec!["192.0.2.1:8443".to_owned()];
        let registry = Registry::open(Arc::new(store), authority, Arc::new(clock), advertised).await.unwrap();
        let following = {
            let registry = Arc::clone(&registry);
            tokio::spawn(async move { registry.follow().await })
        };
        let links = Arc::new(Links::default());
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener =
            Listener::bind(loopback, Arc::clone(&registry), Arc::clone(&links), LinkSettings::default()).unwrap();
        let bundle = registry.authority().bundle().clone();
        let target = Target { address: listener.local_address().unwrap(), bundle, now: START };
        let stop = watch::Sender::new(false);
        let asked = stop.subscribe();
        let serving = tokio::spawn(async move { listener.run(asked).await });
        Self { registry, links, target, stop, serving, following, time, directory }
    }

    /// Stops cleanly and starts again on what lies on the disk, on another port.
    pub(crate) async fn restart(self) -> Self {
        let Self { registry, links, stop, serving, following, time, directory, .. } = self;
        let now = *time.lock().unwrap();
        stop.send_replace(true);
        serving.await.unwrap();
        following.abort();
        let _ = following.await;
        drop((registry, links));
        let store = SledStore::open(options(&directory), Seams::default()).unwrap();
        let trust = read_trust(&store).await.unwrap();
        let authority = Authority::open(&directory.path().join("ca"), &parameters(), trust.as_ref(), now).unwrap();
        Self::over(directory, store, authority, now).await
    }

    pub(crate) fn pass(&self, by: Duration) {
        let mut time = self.time.lock().unwrap();
        *time = time.plus(by);
    }

    pub(crate) async fn token(&self, uses: u32, workloads: &[&str]) -> JoinToken {
        let new = NewJoinToken {
            lifetime: Duration::from_secs(3600),
            uses,
            workloads: workloads.iter().map(|name| name.parse().unwrap()).collect(),
            note: String::new(),
        };
        let (_, text) = self.registry.create_join_token(&Caller::new("test"), new).await.unwrap();
        JoinToken::parse(&text).unwrap()
    }

    pub(crate) async fn apply(&self, policy: &str) -> Result<Applied, PolicyRefused> {
        let files = vec![SourceFile { name: "policy.yaml".to_owned(), text: policy.to_owned() }];
        let submission = Submission { files, allow_delete: 10, if_match: None, dry_run: false };
        self.registry.apply_policy(&Caller::new("test"), submission).await
    }

    /// Waits until every connected node has acknowledged all that concerns it.
    pub(crate) async fn settled(&self) {
        let mut moved = self.links.moved();
        let all = async {
            loop {
                moved.borrow_and_update();
                let state = self.registry.state();
                let missing = self.links.unacknowledged(&state, state.generation(), self.registry.now());
                if missing.pending.is_empty() {
                    return;
                }
                moved.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("every node acknowledges");
    }
}
