//! The daemon: names every task, starts them in one order and stops them in another.
//!
//! ```text
//! start: state -> clock -> mesh (from disk) -> namespace, TUN, UDP -> local API -> control link -> renewal -> tunnel
//! stop:  tunnel (sessions, addresses, routes) -> link, renewal, local API -> mesh (disk) -> state
//! ```
//!
//! It starts closed and ends closed: before the first verified policy nothing passes, a task that ends unasked ends the
//! daemon, and what is left behind are the `unreachable` routes that keep overlay traffic off the underlay.

mod kept;
pub mod meter;
pub mod reload;
pub mod surface;
pub mod tunnel;
mod whois;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};
use warren_proto::WorkloadName;
use warren_proto::reason::{Reason, Refusal};

use crate::certificates::key_store::KeyStore;
use crate::certificates::renewal::{Renewal, Slot, Standing, capabilities};
use crate::certificates::svids::{self, SvidKeeper};
use crate::clock::{self, Clock};
use crate::config::Config;
use crate::control_client::session::{Control, Facts, LinkState};
use crate::flow_log::FlowLog;
use crate::host::dialable_addresses;
use crate::local_api::server::LocalApi;
use crate::mesh::{Mesh, MeshHandle, Start};
use crate::metrics;
use crate::placement::Placement;
use crate::snapshot;
use crate::state_dir::StateDir;
use crate::stop::{self, Stop, Stopper};
use crate::telemetry::SetLevel;
use crate::underlay;
use crate::workload_api::{self, WorkloadApi};
use meter::Meter;
use reload::{Live, Reloader, Reread};
use surface::Surface;

/// A clean stop must fit into what supervisors allow (systemd 90 s, Kubernetes 30 s).
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// How often the wall clock is compared with the boot clock.
const CLOCK_CHECK: Duration = Duration::from_secs(10);
/// How often this host's own addresses are looked at.
const ADDRESS_CHECK: Duration = Duration::from_secs(15);
/// Certificates wanted at once: renewal asks one after the other.
const WANTED: usize = 4;

/// Runs the node until SIGTERM, SIGINT, `warren down` or a fatal fault. `Ok` is a clean stop.
pub async fn run(config: Config, level: SetLevel, reread: Reread) -> Result<(), Refusal> {
    // No core dump and no debugger of the same user gets at the keys in memory.
    if let Err(errno) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        warn!("this process can be dumped: {}", std::io::Error::from(errno));
    }
    let state = Arc::new(StateDir::open(&config.state_dir)?);
    let store = KeyStore::new(&state);
    let Some(identity) = store.node()? else {
        return Err(Refusal::new(
            Reason::NotFound,
            format!("this host is not enrolled: {} holds no identity", config.state_dir.display()),
        )
        .hint("warren enrol --token-file FILE"));
    };
    let floor = snapshot::read_floor(&state)?;
    let clock = Arc::new(Clock::new(clock::read, floor.time));
    if let Some(behind) = clock.behind() {
        warn!(
            behind_seconds = behind.as_secs(), used = %clock.now().unix, next = "set the clock: timedatectl set-ntp true",
            "the wall clock is behind what was verified before; time goes on from there"
        );
    }
    let placement = Arc::new(Placement::of(config.workload.as_ref(), &config.workloads));
    let slots = Slot::of(&placement, &identity.workloads, &store.instances()?);
    let (mesh, handle) = Mesh::open(Start {
        trust_domain: identity.trust_domain.clone(),
        node: identity.node_id,
        workloads: workloads_of(&slots, &identity.workloads),
        bundle: identity.trust_bundle()?,
        instances: slots.iter().filter_map(Slot::held).cloned().collect(),
        state: state.clone(),
        clock: clock.clone(),
    })?;
    let claimed = tunnel::claim(&config.tunnel)?;
    let local_api = LocalApi::bind(&config.socket)?;
    let metrics = config.metrics.map(metrics::Server::bind).transpose()?;
    let workload_api = config.workload_api.as_deref().map(WorkloadApi::bind).transpose()?;
    info!(
        node = %identity.node_id, trust_domain = %identity.trust_domain, device = claimed.facts.device,
        port = claimed.facts.port, "starting, closed"
    );

    let (stopper, stop) = stop::channel();
    let stopper = Arc::new(stopper);
    let (link_state, link) = watch::channel(LinkState::Down { since: clock.now().unix, cause: None });
    let known = Facts { data_port: claimed.facts.port, addresses: config.tunnel.addresses.clone() };
    let (report, facts) = watch::channel(known);
    let device = claimed.index();
    let (wanted, wanted_by) = mpsc::channel(WANTED);
    let overlay = identity.overlay;
    let (identity, identity_watch) = watch::channel(Arc::new(identity));
    let (ready, ready_watch) = watch::channel(false);
    let (tell_standing, standing) = watch::channel(Standing::default());
    let (questions, asked) = mpsc::unbounded_channel();
    let flows = Arc::new(FlowLog::default());
    let (addresses, configured) = watch::channel(config.tunnel.addresses.clone());
    let (coordinators, dialled) = watch::channel(config.control_addresses.clone());
    let reloader = Reloader::new(config.clone(), reread, Live { level, addresses, coordinators });
    let (svid_keeper, svids) = SvidKeeper::new(svids::Around {
        node: identity_watch.borrow().node_id,
        wanted: wanted.clone(),
        link: link.clone(),
        bundle: handle.bundle(),
        view: handle.view(),
        clock: clock.clone(),
    });
    let counts = Arc::new(workload_api::Counts::default());
    let offer = workload_api::Offer {
        assignments: config.workloads.clone().into(),
        svids: svids.clone(),
        bundle: handle.bundle(),
        counts: counts.clone(),
    };
    let surface = Arc::new(Surface {
        identity: identity_watch.clone(),
        view: handle.view(),
        link: link.clone(),
        ready: ready_watch.clone(),
        tunnel: claimed.facts.clone(),
        data_plane: questions,
        flows: flows.clone(),
        clock: clock.clone(),
        stopper: stopper.clone(),
        started: clock.now().monotonic,
        meter: Meter::default(),
        reloader,
        placement: placement.clone(),
        standing: standing.clone(),
        assignments: config.workloads.clone().into(),
        workload_api: config.workload_api.map(|socket| surface::Served { socket, svids, counts }),
    });

    let mesh = mesh.start();
    let mut tasks = Tasks::default();
    tasks.spawn("reload", reload_on_hangup(surface.clone(), stop.clone()));
    let measured = surface.clone();
    let until = stop.clone();
    tasks.spawn("meter", ends_well(async move { measured.measure(until).await }));
    if let Some(metrics) = metrics {
        tasks.spawn("metrics", ends_well(metrics.run(surface.clone(), stop.clone())));
    }
    tasks.spawn("local-api", ends_well(local_api.run(surface, stop.clone())));
    if let Some(api) = workload_api {
        tasks.spawn("svids", ends_well(svid_keeper.run(stop.clone())));
        tasks.spawn("workload-api", ends_well(api.run(offer, stop.clone())));
    }
    let control = Control {
        identity: identity_watch,
        addresses: dialled,
        mesh: handle.clone(),
        clock: clock.clone(),
        facts,
        wanted: wanted_by,
        state: link_state,
        process: rand::random(),
        stop: stop.clone(),
    };
    tasks.spawn("control-link", ends_well(control.run()));
    let renewal = Renewal {
        state: state.clone(),
        capabilities: capabilities(config.tunnel.suite),
        slots,
        standing: tell_standing,
        identity,
        wanted,
        link,
        mesh: handle.clone(),
        clock: clock.clone(),
        stop: stop.clone(),
    };
    tasks.spawn("renewal", ends_well(renewal.run()));
    tasks.spawn("clock", ends_well(watch_clock(clock.clone(), stop.clone())));
    tasks.spawn("addresses", ends_well(watch_addresses(report, configured, device, stop.clone())));
    tasks.spawn("notify", ends_well(notify(ready_watch, handle.clone(), stop.clone())));
    let around = tunnel::Around {
        mesh: handle.clone(),
        overlay,
        placement,
        standing,
        flows,
        clock,
        questions: asked,
        ready,
        stop: stop.clone(),
    };
    tasks.spawn("tunnel", tunnel::run(claimed, around));

    let ended = supervise(&mut tasks, &stopper, &stop).await;
    // The owner of what is known ends last: when every handle is gone.
    drop(handle);
    if tokio::time::timeout(STOP_WITHIN, mesh).await.is_err() {
        error!("what is known was not written in time");
    }
    drop(state);
    match &ended {
        Ok(()) => info!("stopped"),
        Err(refusal) => error!(reason = refusal.reason.name(), next = refusal.hint, "stopped: {refusal}"),
    }
    ended
}

/// The identities that this host is to have, as far as they are known: the only one granted where none is named.
fn workloads_of(slots: &[Slot], granted: &[WorkloadName]) -> BTreeSet<WorkloadName> {
    let only = match granted {
        [only] => Some(only),
        _ => None,
    };
    slots.iter().filter_map(|slot| slot.workload().or(only)).cloned().collect()
}

/// Waits for a reason to stop, gives the word, and waits for every task.
async fn supervise(tasks: &mut Tasks, stopper: &Stopper, stop: &Stop) -> Result<(), Refusal> {
    let fault = |error: std::io::Error| Refusal::new(Reason::Internal, format!("signals cannot be taken: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
    let mut ended = tokio::select! {
        // Once the word is given tasks end, and that is well.
        biased;
        () = stop.stopped() => { info!("asked to stop"); Ok(()) }
        _ = terminate.recv() => { info!("SIGTERM: stopping"); Ok(()) }
        _ = interrupt.recv() => { info!("SIGINT: stopping"); Ok(()) }
        (name, outcome) = tasks.next() => {
            // Nothing ends by itself; a hole in the daemon must not look like a running one.
            outcome.and_then(|()| Err(Refusal::new(Reason::Internal, format!("the task {name} has ended by itself"))))
        }
    };
    // An error here means that no supervisor listens.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    stopper.stop();
    let stopped = tokio::time::timeout(STOP_WITHIN, async {
        while !tasks.set.is_empty() {
            let (name, outcome) = tasks.next().await;
            if let Err(refusal) = outcome {
                error!(task = name, reason = refusal.reason.name(), "{refusal}");
                ended = ended.clone().and(Err(refusal));
            }
        }
    });
    if stopped.await.is_err() {
        let late = Refusal::new(Reason::Internal, format!("not every task stopped within {} s", STOP_WITHIN.as_secs()));
        ended = ended.and(Err(late));
    }
    ended
}

/// Tasks by name.
#[derive(Default)]
struct Tasks {
    set: JoinSet<(&'static str, Result<(), Refusal>)>,
}

impl Tasks {
    fn spawn(&mut self, name: &'static str, work: impl Future<Output = Result<(), Refusal>> + Send + 'static) {
        self.set.spawn(async move { (name, work.await) });
    }

    /// The next task that ends; never when none is left.
    async fn next(&mut self) -> (&'static str, Result<(), Refusal>) {
        match self.set.join_next().await {
            Some(Ok(ended)) => ended,
            Some(Err(error)) => ("a task", Err(Refusal::new(Reason::Internal, format!("a task crashed: {error}")))),
            None => std::future::pending().await,
        }
    }
}

async fn ends_well(work: impl Future<Output = ()>) -> Result<(), Refusal> {
    work.await;
    Ok(())
}

/// SIGHUP is the old word for `warren reload`; without a listener it would end the daemon.
async fn reload_on_hangup(surface: Arc<Surface>, stop: Stop) -> Result<(), Refusal> {
    let mut hangup = signal(SignalKind::hangup())
        .map_err(|error| Refusal::new(Reason::Internal, format!("signals cannot be taken: {error}")))?;
    loop {
        tokio::select! {
            _ = hangup.recv() => if let Err(refusal) = surface.reload() {
                error!(reason = refusal.reason.name(), next = refusal.hint, "SIGHUP: {refusal}");
            },
            () = stop.stopped() => return Ok(()),
        }
    }
}

/// Reports where this host can be dialled: what is configured, else every address of its own; and again when that has
/// changed.
async fn watch_addresses(
    report: watch::Sender<Facts>,
    mut configured: watch::Receiver<Vec<IpAddr>>,
    device: u32,
    stop: Stop,
) {
    let mut ticks = tokio::time::interval(ADDRESS_CHECK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // The sender lives as long as the local API; its end is the daemon's.
            Ok(()) = configured.changed() => {}
            () = stop.stopped() => return,
        }
        let told = configured.borrow().clone();
        let addresses = if told.is_empty() { dialable(device) } else { Ok(told) };
        match addresses {
            Ok(addresses) => {
                report.send_if_modified(|facts| {
                    let changed = facts.addresses != addresses;
                    facts.addresses = addresses;
                    changed
                });
            }
            Err(error) => warn!("this host's addresses cannot be listed: {error}"),
        }
    }
}

/// This host's addresses that another host could dial; `device` is the overlay's and none of them.
fn dialable(device: u32) -> Result<Vec<IpAddr>, String> {
    // A device of another namespace may have the same index here.
    let left_out = if underlay::is_apart() { 0 } else { device };
    let listed = underlay::run(move || dialable_addresses(left_out)).map_err(|error| error.to_string())?;
    listed.map_err(|error| error.to_string())
}

/// Names a clock that was set: certificates are judged by it, and people look elsewhere first.
async fn watch_clock(clock: Arc<Clock>, stop: Stop) {
    let mut ticks = tokio::time::interval(CLOCK_CHECK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => if let Some(jump) = clock.jump() {
                warn!(
                    expected = %jump.expected, found = %jump.found, used = %clock.now().unix,
                    next = "compare the clock: warren check clock", "the wall clock was set"
                );
            },
            () = stop.stopped() => return,
        }
    }
}

/// Tells the supervisor: ready, how things stand, and that the daemon still turns.
async fn notify(mut ready: watch::Receiver<bool>, mesh: MeshHandle, stop: Stop) {
    let mut every = 0;
    let half = if sd_notify::watchdog_enabled(false, &mut every) {
        Duration::from_micros(every / 2).max(Duration::from_millis(100))
    } else {
        Duration::from_secs(3600)
    };
    let mut beats = tokio::time::interval(half);
    let mut told = false;
    loop {
        tokio::select! {
            _ = beats.tick() => {
                // The owner of what is known answers, or the watchdog bites.
                if mesh.turns().await {
                    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
                }
            }
            changed = ready.changed(), if !told => {
                if changed.is_err() {
                    return;
                }
                if *ready.borrow_and_update() {
                    told = true;
                    info!("ready");
                    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
                }
            }
            () = stop.stopped() => return,
        }
    }
}
