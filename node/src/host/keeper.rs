//! Keeps the host in its desired state: a thread that listens to the kernel's notifications about links, addresses,
//! routes and nftables, and applies the state again whenever something changed, and at intervals in any case.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use warren_proto::overlay::OverlayAddresses;

use super::netlink::Listener;
use super::{Changes, Desired, Host, HostError};

// Multicast groups of linux/rtnetlink.h and linux/netfilter/nfnetlink.h.
const GROUPS_ROUTE: [u32; 5] = [1, 5, 7, 9, 11];
const GROUPS_NFTABLES: [u32; 1] = [7];
/// Finds what no notification told, such as a changed sysctl.
const VERIFY_INTERVAL: Duration = Duration::from_secs(30);
/// Against somebody who undoes every repair: after this many in a row the next waits for `REPAIR_PAUSE`.
const REPAIRS_IN_A_ROW: u32 = 20;
const REPAIR_PAUSE: Duration = Duration::from_secs(1);
/// A repair may fail because somebody is still changing things: it is tried this often before the node gives up,
const ATTEMPTS: u32 = 10;
/// with this long in between unless another change is noticed earlier.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(200);

/// What the keeper tells the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostEvent {
    /// Somebody had changed something; it is as desired again. One phrase per change.
    Repaired(Vec<String>),
    /// A cgroup that is an instance's came, went or was made anew, and the instance follows it.
    Followed,
    /// The state cannot be kept, and no repair is tried any more; the node must stop carrying traffic.
    Failed(HostError),
}

/// The packets that were refused so far by instance, once the keeper has looked.
pub type Refused = mpsc::Receiver<Result<Vec<(OverlayAddresses, u64)>, HostError>>;

enum Command {
    Apply(Desired, mpsc::SyncSender<Result<Changes, HostError>>),
    Refused(mpsc::SyncSender<Result<Vec<(OverlayAddresses, u64)>, HostError>>),
    Stop(mpsc::SyncSender<Result<(), HostError>>),
    Release(mpsc::SyncSender<Host>),
}

/// A handle on the thread that keeps the state. Dropping it without [`stop`](Self::stop) ends the thread and leaves
/// the state as it is, as a crash does.
pub struct Keeper {
    /// `None` once the thread has been told to end.
    commands: Option<mpsc::Sender<Command>>,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// A desired state that was ordered.
#[derive(Debug)]
pub struct Ordered(mpsc::Receiver<Result<Changes, HostError>>);

impl Ordered {
    /// Blocks until it holds, or cannot.
    pub fn wait(self) -> Result<Changes, HostError> {
        self.0.recv().unwrap_or(Err(HostError::NotKept))
    }
}

impl Keeper {
    /// Applies `desired`, then keeps it. `events` is called on the keeper's thread.
    pub fn start(
        mut host: Host,
        desired: Desired,
        events: impl Fn(HostEvent) + Send + 'static,
    ) -> Result<(Self, Changes), HostError> {
        let failed =
            |what| move |error: rustix::io::Errno| HostError::refused(what)(std::io::Error::from(error).into());
        // The listeners come first: what changes after this line is noticed.
        let listeners = [
            Listener::open(NETLINK_ROUTE, &GROUPS_ROUTE).map_err(HostError::refused("listen to rtnetlink"))?,
            Listener::open(NETLINK_NETFILTER, &GROUPS_NFTABLES).map_err(HostError::refused("listen to nftables"))?,
        ];
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed("create an eventfd"))?;
        let woken = wake.try_clone().map_err(|error| HostError::refused("copy an eventfd")(error.into()))?;
        let changes = host.apply(&desired)?;
        let (commands, received) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("warren-host".into())
            .spawn(move || Watch { host, desired, listeners, woken, received }.run(&events))
            .map_err(|error| HostError::refused("start a thread")(error.into()))?;
        Ok((Self { commands: Some(commands), wake, thread: Some(thread) }, changes))
    }

    fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // A keeper that has ended is noticed by the missing answer.
            let _ = commands.send(command);
        }
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Changes the desired state and waits until it holds.
    pub fn apply(&self, desired: Desired) -> Result<Changes, HostError> {
        self.order(desired).wait()
    }

    /// Changes the desired state without waiting: the kernel may take its time, and an async task must not.
    #[must_use]
    pub fn order(&self, desired: Desired) -> Ordered {
        let (answer, answered) = mpsc::sync_channel(1);
        self.send(Command::Apply(desired, answer));
        Ordered(answered)
    }

    /// Asks what the separation of instances refused so far ([`Host::refused`]); the answer comes by itself, or never when
    /// nothing is kept any more.
    #[must_use]
    pub fn refused(&self) -> Refused {
        let (answer, answered) = mpsc::sync_channel(1);
        self.send(Command::Refused(answer));
        answered
    }

    /// Ends the keeping and leaves the state as it is: closed for the overlay, whatever has become of the device.
    pub fn release(self) -> Result<Host, HostError> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.send(Command::Release(answer));
        answered.recv().map_err(|_| HostError::NotKept)
    }

    /// Ends the keeping and takes the state back ([`Host::revert`]).
    pub fn stop(self) -> Result<(), HostError> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.send(Command::Stop(answer));
        answered.recv().unwrap_or(Err(HostError::NotKept))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.commands = None;
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watch {
    host: Host,
    desired: Desired,
    listeners: [Listener; 2],
    woken: OwnedFd,
    received: mpsc::Receiver<Command>,
}

impl Watch {
    fn run(mut self, events: &dyn Fn(HostEvent)) {
        let (mut repairs, mut failures, mut given_up) = (0, 0, false);
        let mut calm_since = Instant::now();
        loop {
            let verify = self.wait(if failures == 0 { VERIFY_INTERVAL } else { ATTEMPT_INTERVAL });
            loop {
                match self.received.try_recv() {
                    Ok(Command::Apply(_, answer)) if given_up => {
                        let _ = answer.send(Err(HostError::NotKept));
                    }
                    Ok(Command::Apply(desired, answer)) => {
                        let outcome = self.host.apply(&desired);
                        if outcome.is_ok() {
                            self.desired = desired;
                        }
                        let _ = answer.send(outcome);
                    }
                    Ok(Command::Refused(answer)) => {
                        let _ = answer.send(self.host.refused());
                    }
                    Ok(Command::Stop(answer)) => {
                        let _ = answer.send(self.host.revert());
                        return;
                    }
                    Ok(Command::Release(answer)) => {
                        let _ = answer.send(self.host);
                        return;
                    }
                    Err(mpsc::TryRecvError::Empty) => break,
                    // The handle went without a word: leave everything closed as it is.
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            if !verify || given_up {
                continue;
            }
            match self.host.apply(&self.desired) {
                Ok(changes) if changes.made.is_empty() => failures = 0,
                Ok(changes) if changes.followed => {
                    failures = 0;
                    events(HostEvent::Followed);
                }
                Ok(changes) => {
                    failures = 0;
                    events(HostEvent::Repaired(changes.made));
                    if calm_since.elapsed() > REPAIR_PAUSE {
                        repairs = 0;
                    }
                    calm_since = Instant::now();
                    repairs += 1;
                    if repairs > REPAIRS_IN_A_ROW {
                        std::thread::sleep(REPAIR_PAUSE);
                    }
                }
                Err(HostError::Refused { .. }) if failures < ATTEMPTS => failures += 1,
                Err(error) => {
                    given_up = true;
                    failures = 0;
                    events(HostEvent::Failed(error));
                }
            }
        }
    }

    /// Waits for a command or a reason to verify; whether there is one.
    fn wait(&mut self, at_most: Duration) -> bool {
        let [routes, nftables] = &self.listeners;
        let mut descriptors = vec![
            PollFd::new(&self.woken, PollFlags::IN),
            PollFd::from_borrowed_fd(routes.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(nftables.as_fd(), PollFlags::IN),
        ];
        descriptors.extend(self.host.notices().map(|notices| PollFd::from_borrowed_fd(notices, PollFlags::IN)));
        let timeout = Timespec { tv_sec: at_most.as_secs().cast_signed(), tv_nsec: at_most.subsec_nanos().into() };
        let ready = poll(&mut descriptors, Some(&timeout));
        let commanded = descriptors.first().is_some_and(|woken| !woken.revents().is_empty());
        if commanded {
            let _ = rustix::io::read(&self.woken, &mut [0_u8; 8]);
        }
        let noticed = self.listeners.iter_mut().fold(false, |noticed, listener| listener.drain() | noticed);
        let noticed = self.host.take_notices() | noticed;
        noticed || ready == Ok(0)
    }
}
