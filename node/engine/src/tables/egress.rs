//! The session that packets to a peer are sealed with, and the order of packets while workers take it up.
//!
//! Without a session, workers hand packets to the slow half, which seals them later and sends them from its own thread.
//! Were workers given the session at once, what they seal would overtake what is still on its way to the slow half. So
//! each packet that is handed over is counted ([`UnderWay`]), and workers get the session when the count is zero:
//!
//! ```text
//!           slow half: session ready,            count is zero
//!   closed  what waited is sent        draining ---------------> open
//!     ^ ----------------------------->   |                        ^
//!     |                                  | too many came since    | count is zero
//!     |                                  +------------> shut -----+
//!     +--- session gone, from anywhere
//! ```
//!
//! *Shut* takes no packet: under a load that the slow half cannot keep up with, the count would never be zero. What comes
//! then is dropped for as long as the slow half needs for what it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::{ArcSwapOption, Guard};

use super::{Generation, Link};
use crate::session::DataSession;

/// Workers seal with the session.
const OPEN: u32 = 1;
/// Open when nothing is under way any more.
const DRAINING: u32 = 2;
/// Draining, and nothing more may come.
const SHUT: u32 = 4;
/// One packet under way; the bits above the states count them.
const ONE: u32 = 8;

#[derive(Debug)]
pub(super) struct Egress {
    session: ArcSwapOption<DataSession>,
    /// A state and a count in one word, so that the state changes with the count and no packet comes between.
    gate: AtomicU32,
}

impl Default for Egress {
    fn default() -> Self {
        Self { session: ArcSwapOption::empty(), gate: AtomicU32::new(0) }
    }
}

impl Egress {
    /// What workers seal with.
    pub(super) fn session(&self) -> Guard<Option<Arc<DataSession>>> {
        // In this order: a session that was put here while the gate was closed is not used before it opens.
        let session = self.session.load();
        if self.gate.load(Ordering::SeqCst) & OPEN == 0 { Guard::from_inner(None) } else { session }
    }

    /// Workers seal with nothing from now on; the session that they are to have next.
    pub(super) fn close(&self, next: Option<Arc<DataSession>>) {
        self.gate.fetch_and(!(OPEN | DRAINING | SHUT), Ordering::SeqCst);
        self.session.store(next);
    }

    /// Workers go on with another session, if they seal with one now and nothing is under way.
    pub(super) fn renew(&self, session: &Arc<DataSession>) -> bool {
        let is_clear = self.gate.load(Ordering::SeqCst) == OPEN;
        if is_clear {
            self.session.store(Some(Arc::clone(session)));
        }
        is_clear
    }

    /// Lets workers have the session as soon as nothing is under way.
    pub(super) fn open(&self) {
        self.change(|gate| opened_if_empty(gate & !OPEN | DRAINING));
    }

    /// Lets nothing more come until workers have the session.
    pub(super) fn shut(&self) {
        self.change(|gate| if gate & DRAINING == 0 { gate } else { gate | SHUT });
    }

    fn enter(&self) -> bool {
        let counted = |gate: u32| (gate & SHUT == 0).then(|| gate.checked_add(ONE)).flatten();
        self.gate.fetch_update(Ordering::SeqCst, Ordering::SeqCst, counted).is_ok()
    }

    fn leave(&self) {
        self.change(|gate| opened_if_empty(gate.saturating_sub(ONE)));
    }

    fn change(&self, to: impl Fn(u32) -> u32) {
        let _ = self.gate.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |gate| Some(to(gate)));
    }
}

const fn opened_if_empty(gate: u32) -> u32 {
    if gate < ONE && gate & DRAINING != 0 { OPEN } else { gate }
}

/// A packet that a worker hands to the slow half. As long as one exists, nothing that a worker seals may overtake it.
#[derive(Debug)]
pub struct UnderWay {
    link: Arc<Link>,
    judged: Generation,
}

impl UnderWay {
    /// Counts a packet that was judged by the tables of `judged`; none when the link takes no more just now.
    #[must_use]
    pub fn begin(link: &Arc<Link>, judged: Generation) -> Option<Self> {
        link.egress.enter().then(|| Self { link: Arc::clone(link), judged })
    }

    /// The way that it is to go.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The generation that it was judged by.
    #[must_use]
    pub const fn judged(&self) -> Generation {
        self.judged
    }
}

impl Clone for UnderWay {
    fn clone(&self) -> Self {
        // It counts already, so it counts on, whatever more may come.
        self.link.egress.change(|gate| gate.saturating_add(ONE));
        Self { link: Arc::clone(&self.link), judged: self.judged }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.link.egress.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};
    use std::time::Duration;

    use warren_proto::UnixTime;

    use super::*;
    use crate::Now;
    use crate::session::{SessionParameters, Suite};
    use crate::tables::{LocalIndex, PeerIndex};

    fn link() -> (Arc<Link>, Arc<DataSession>) {
        let (local, peer) = (LocalIndex(1), PeerIndex(2));
        let session = DataSession::new(&SessionParameters {
            suite: Suite::Aes256Gcm,
            send_key: &[1; 32],
            receive_key: &[2; 32],
            local_index: 3,
            remote_index: 4,
            local,
            peer,
            valid_until: UnixTime(u64::MAX),
            established: Now { monotonic: Duration::ZERO, unix: UnixTime(0) },
        });
        (Arc::new(Link::new(local, peer, 1420, 2)), Arc::new(session.expect("keys")))
    }

    fn under_way(link: &Arc<Link>) -> UnderWay {
        UnderWay::begin(link, 1).expect("room")
    }

    #[test]
    fn workers_get_a_session_when_the_last_packet_before_it_has_left() {
        let (link, session) = link();
        let (first, second) = (under_way(&link), under_way(&link));
        link.set_egress(Some(session));
        assert!(link.egress().is_none(), "two packets would be overtaken");
        drop(first);
        let copy = second.clone();
        drop(second);
        assert!(link.egress().is_none(), "one packet would be overtaken");
        let late = under_way(&link);
        drop(copy);
        assert!(link.egress().is_none(), "so would one that came meanwhile");
        drop(late);
        assert!(link.egress().is_some());
    }

    #[test]
    fn a_shut_link_takes_nothing_more_and_opens_when_it_is_empty() {
        let (link, session) = link();
        let packet = under_way(&link);
        link.shut_egress();
        drop(under_way(&link));
        link.set_egress(Some(session));
        link.shut_egress();
        assert!(UnderWay::begin(&link, 1).is_none(), "it would never be empty");
        drop(packet.clone());
        assert!(link.egress().is_none());
        drop(packet);
        assert!(link.egress().is_some());
        drop(under_way(&link));
        assert!(link.egress().is_some(), "packets that the session refuses change nothing");
    }

    #[test]
    fn a_session_that_ended_meanwhile_is_not_opened_by_what_was_under_way() {
        let (link, session) = link();
        let packet = under_way(&link);
        link.set_egress(Some(Arc::clone(&session)));
        link.set_egress(None);
        drop(packet);
        assert!(link.egress().is_none());
        let packet = under_way(&link);
        assert!(!link.renew_egress(&session), "there is nothing to renew");
        link.set_egress(Some(Arc::clone(&session)));
        assert!(!link.renew_egress(&session), "a packet is under way");
        drop(packet);
        assert!(link.renew_egress(&session) && link.egress().is_some());
    }

    /// Two workers and the slow half on threads of their own: each worker's packets leave in the order it made them in,
    /// those that the slow half sends and those that it sends itself.
    #[test]
    fn threads_that_take_up_a_session_overtake_nothing() {
        const EACH: u32 = 400;
        let (link, session) = link();
        for round in 0..50_usize {
            link.set_egress(None);
            let wire = Mutex::new(Vec::new());
            let send = |worker: u32, number: u32| wire.lock().expect("unpoisoned").push((worker, number));
            std::thread::scope(|scope| {
                let (hand_over, handed) = mpsc::channel();
                for worker in 0..2 {
                    let (hand_over, link, send) = (hand_over.clone(), &link, &send);
                    scope.spawn(move || {
                        for number in 0..EACH {
                            let open = || link.egress().is_some();
                            let under_way = if open() { None } else { UnderWay::begin(link, 1) };
                            match under_way {
                                _ if open() => send(worker, number),
                                Some(under_way) => hand_over.send((under_way, worker, number)).expect("a reader"),
                                // Shut: this one is dropped.
                                None => std::thread::yield_now(),
                            }
                        }
                    });
                }
                drop(hand_over);
                for (at, (under_way, worker, number)) in handed.iter().enumerate() {
                    send(worker, number);
                    drop(under_way);
                    if at == round {
                        link.set_egress(Some(Arc::clone(&session)));
                    } else if at == 2 * round + 20 {
                        link.shut_egress();
                    }
                }
            });
            let wire = wire.into_inner().expect("unpoisoned");
            for worker in 0..2 {
                let sent: Vec<_> = wire.iter().filter(|(of, _)| *of == worker).map(|(_, number)| *number).collect();
                assert!(sent.is_sorted(), "worker {worker} overtook itself: {sent:?}");
            }
            assert!(link.egress().is_some(), "and the way is open in the end");
        }
    }
}
