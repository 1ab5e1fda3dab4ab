//! Bounded queues between the threads of the data plane: what one cannot deal with itself and hands to another.
//! Only the slow path locks one; packets that stay with their worker never come near.
//!
//! ```text
//!   insisted   commands, answers, facts that are said once      all of it each time, first
//!   known      what only peers and local programs can cause     all of it each time
//!   strange    what anybody on the wire can send                a few each time, last
//! ```
//!
//! Each of the lower two lanes is bounded, and so is what one peer or source may have waiting in it: a fixed share, and no
//! more than is free. However many flood a lane together, each leaves room for as much as it holds itself (a dynamic
//! threshold, as in shared-memory switches): they crowd out neither the others in it nor another lane.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

/// What a mailbox must know of an entry.
pub(super) trait Mail {
    /// By what its sender is told from others: what has an equal one counts together.
    type Sender: Hash;

    /// Whether anybody on the wire can cause it, and whose it is.
    fn sender(&self) -> (Lane, Self::Sender);
}

/// Where an entry waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Only an admitted peer or a local program can cause it.
    Known,
    /// Anybody can send it.
    Strange,
}

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Entries in the known lane.
    pub(super) known: usize,
    /// Entries in the strange lane.
    pub(super) strange: usize,
    /// One in so many of a lane's entries may be of one sender, and none that holds as many as are free.
    pub(super) share: usize,
}

/// Entries of the strange lane that are taken at once: each may cost the reader a key agreement, and what is known comes
/// before the next few.
const STRANGE_AT_ONCE: usize = 32;
/// Counters per lane. Senders are told apart by a keyed hash, so that nobody can choose whom to share a counter with.
const SENDERS: usize = 256;

/// A queue with one reader, who waits on a condition variable or on a descriptor.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    /// `None` once the reader is gone.
    lanes: Mutex<Option<Lanes<T>>>,
    filled: Condvar,
    descriptor: OwnedFd,
    hasher: RandomState,
}

#[derive(Debug)]
struct Lanes<T> {
    insisted: VecDeque<T>,
    known: Bounded<T>,
    strange: Bounded<T>,
}

#[derive(Debug)]
struct Bounded<T> {
    /// With the counter of its sender.
    queue: VecDeque<(usize, T)>,
    waiting: Box<[usize; SENDERS]>,
    limit: usize,
    share: usize,
}

impl<T> Bounded<T> {
    fn new(limit: usize, share: usize) -> Self {
        let share = limit.div_ceil(share.max(1));
        Self { queue: VecDeque::new(), waiting: Box::new([0; SENDERS]), limit, share }
    }

    fn push(&mut self, sender: usize, item: T) -> bool {
        let Some(waiting) = self.waiting.get_mut(sender) else { return false };
        let free = self.limit.saturating_sub(self.queue.len());
        if *waiting >= self.share.min(free) {
            return false;
        }
        *waiting += 1;
        self.queue.push_back((sender, item));
        true
    }

    fn take(&mut self, at_most: usize, into: &mut VecDeque<T>) {
        for (sender, item) in self.queue.drain(..at_most.min(self.queue.len())) {
            if let Some(waiting) = self.waiting.get_mut(sender) {
                *waiting -= 1;
            }
            into.push_back(item);
        }
    }
}

impl<T> Lanes<T> {
    fn is_empty(&self) -> bool {
        self.insisted.is_empty() && self.known.queue.is_empty() && self.strange.queue.is_empty()
    }

    fn take(&mut self, into: &mut VecDeque<T>) {
        into.append(&mut self.insisted);
        self.known.take(usize::MAX, into);
        self.strange.take(STRANGE_AT_ONCE, into);
    }
}

impl<T: Mail> Mailbox<T> {
    /// An empty one.
    pub(super) fn new(limits: Limits) -> io::Result<Self> {
        let Limits { known, strange, share } = limits;
        let lanes = Lanes {
            insisted: VecDeque::new(),
            known: Bounded::new(known, share),
            strange: Bounded::new(strange, share),
        };
        Ok(Self {
            lanes: Mutex::new(Some(lanes)),
            filled: Condvar::new(),
            descriptor: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            hasher: RandomState::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Lanes<T>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over `item` unless its lane is full, or its sender's share of it; whether it was taken.
    pub(super) fn offer(&self, item: T) -> bool {
        let (lane, sender) = item.sender();
        let sender = (self.hasher.hash_one(sender) % SENDERS as u64) as usize;
        let mut guard = self.lock();
        let Some(lanes) = guard.as_mut() else { return false };
        let was_empty = lanes.is_empty();
        let taken = match lane {
            Lane::Known => lanes.known.push(sender, item),
            Lane::Strange => lanes.strange.push(sender, item),
        };
        drop(guard);
        if taken && was_empty {
            self.wake();
        }
        taken
    }

    /// Hands over what must not be lost and what few exist of: commands, answers, facts that are said once. When the
    /// reader is gone it is dropped.
    pub(super) fn insist(&self, item: T) {
        if let Some(lanes) = self.lock().as_mut() {
            lanes.insisted.push_back(item);
        }
        self.wake();
    }

    /// The reader is gone: what waits is dropped, and nothing is taken any more.
    pub(super) fn close(&self) {
        *self.lock() = None;
    }

    /// Lets the reader look, whether or not there is anything.
    pub(super) fn wake(&self) {
        self.filled.notify_one();
        // It can fail only when the counter is at its end, and then the descriptor is readable already.
        let _ = rustix::io::write(&self.descriptor, &1_u64.to_ne_bytes());
    }

    /// How many entries wait that the next [`take`](Self::take) gives for certain: all but the strange ones.
    pub(super) fn len(&self) -> usize {
        self.lock().as_ref().map_or(0, |lanes| lanes.insisted.len() + lanes.known.queue.len())
    }

    /// Moves what waits to the end of `into`, the strange lane's in part.
    pub(super) fn take(&self, into: &mut VecDeque<T>) {
        let mut guard = self.lock();
        let Some(lanes) = guard.as_mut() else { return };
        lanes.take(into);
        let left = !lanes.is_empty();
        drop(guard);
        if left {
            // Whoever waits on the descriptor has silenced it.
            self.wake();
        }
    }

    /// As [`take`](Self::take), once there is something or `at_most` has passed.
    pub(super) fn wait_and_take(&self, into: &mut VecDeque<T>, at_most: Duration) {
        let lanes = self.lock();
        let (mut lanes, _) = self
            .filled
            .wait_timeout_while(lanes, at_most, |lanes| lanes.as_ref().is_some_and(Lanes::is_empty))
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(lanes) = lanes.as_mut() {
            lanes.take(into);
        }
    }

    /// Readable after each [`wake`](Self::wake) until [`silence`](Self::silence).
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Call before [`take`](Self::take): what comes later makes the descriptor readable again.
    pub(super) fn silence(&self) {
        let _ = rustix::io::read(&self.descriptor, &mut [0_u8; 8]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    impl Mail for Arc<()> {
        type Sender = u8;

        fn sender(&self) -> (Lane, u8) {
            (Lane::Known, 0)
        }
    }

    /// Of a sender, in a lane.
    #[derive(Debug, Clone, PartialEq)]
    struct Letter(Lane, u32, u32);

    impl Mail for Letter {
        type Sender = u32;

        fn sender(&self) -> (Lane, u32) {
            (self.0, self.1)
        }
    }

    const LIMITS: Limits = Limits { known: 64, strange: 64, share: 4 };

    fn mailbox() -> Mailbox<Letter> {
        Mailbox::new(LIMITS).expect("mailbox")
    }

    fn take(mailbox: &Mailbox<Letter>) -> Vec<Letter> {
        let mut taken = VecDeque::new();
        mailbox.wait_and_take(&mut taken, Duration::ZERO);
        taken.into()
    }

    #[test]
    fn a_full_lane_takes_no_more_but_what_must_not_be_lost() {
        let mailbox = mailbox();
        let offered = (0..1000).filter(|sender| mailbox.offer(Letter(Lane::Known, *sender, 0))).count();
        assert_eq!(offered, LIMITS.known);
        mailbox.insist(Letter(Lane::Known, 1, 7));
        assert_eq!(mailbox.len(), LIMITS.known + 1);
        let taken = take(&mailbox);
        assert_eq!(
            (taken.len(), &taken[0]),
            (LIMITS.known + 1, &Letter(Lane::Known, 1, 7)),
            "first what must not wait"
        );
        assert!(mailbox.offer(Letter(Lane::Known, 1, 0)), "there is room again");
        assert_eq!(mailbox.len(), 1);
    }

    #[test]
    fn junk_of_strangers_takes_nothing_from_what_is_known() {
        let mailbox = mailbox();
        let junk = |mailbox: &Mailbox<Letter>| {
            (0..10_000).filter(|source| mailbox.offer(Letter(Lane::Strange, *source, 0))).count()
        };
        assert_eq!(junk(&mailbox), LIMITS.strange);
        let mut answered = 0;
        for turn in 0..100 {
            assert!(mailbox.offer(Letter(Lane::Known, 1, turn)), "a packet that waits for a session has room");
            let taken = take(&mailbox);
            assert_eq!(taken[0], Letter(Lane::Known, 1, turn), "and comes before the junk");
            answered += taken.len() - 1;
            assert!(taken.len() - 1 <= STRANGE_AT_ONCE);
            junk(&mailbox);
        }
        assert_eq!(answered, 100 * STRANGE_AT_ONCE, "strangers are not starved either");
    }

    #[test]
    fn one_sender_holds_no_more_than_its_share_of_a_lane() {
        for lane in [Lane::Known, Lane::Strange] {
            let mailbox = mailbox();
            let flood = (0..1000).filter(|number| mailbox.offer(Letter(lane, 1, *number))).count();
            assert_eq!(flood, 64 / LIMITS.share);
            // Hardly one of twenty meets the flooder's counter.
            let others = (2..22).filter(|sender| mailbox.offer(Letter(lane, *sender, 0))).count();
            assert!(others >= 18, "{others} of 20 others had room in {lane:?}");
            while !take(&mailbox).is_empty() {}
            assert!(mailbox.offer(Letter(lane, 1, 0)), "what was taken counts no more");
        }
    }

    #[test]
    fn senders_who_flood_a_lane_together_leave_room_for_every_other() {
        const REAL: Limits = Limits { known: 4096, strange: 4096, share: 16 };
        for lane in [Lane::Known, Lane::Strange] {
            for flooders in [16, 40] {
                let mailbox = Mailbox::new(REAL).expect("mailbox");
                for number in 0..1000 {
                    for sender in 0..flooders {
                        mailbox.offer(Letter(lane, sender, number));
                    }
                }
                // Some meet a flooder's counter.
                let others = (1000..1040).filter(|sender| mailbox.offer(Letter(lane, *sender, 0))).count();
                assert!(others >= 20, "{others} of 40 others had room in {lane:?} beside {flooders}");
            }
        }
    }

    #[test]
    fn what_one_sender_offers_keeps_its_order() {
        let mailbox = mailbox();
        let mut seen = Vec::new();
        for number in 0..500 {
            mailbox.offer(Letter(Lane::Strange, number % 3, number));
            if number % 7 == 0 {
                seen.extend(take(&mailbox));
            }
        }
        for sender in 0..3 {
            let numbers: Vec<_> = seen.iter().filter(|letter| letter.1 == sender).map(|letter| letter.2).collect();
            assert!(numbers.len() > 20 && numbers.is_sorted(), "{numbers:?}");
        }
    }

    #[test]
    fn a_reader_on_the_descriptor_is_told_that_more_waits() {
        let mailbox = mailbox();
        let offered = (0..64).filter(|source| mailbox.offer(Letter(Lane::Strange, *source, 0))).count();
        assert!(offered > STRANGE_AT_ONCE);
        let (mut taken, mut turns) = (VecDeque::new(), 0);
        while rustix::io::read(mailbox.descriptor(), &mut [0_u8; 8]).is_ok() {
            mailbox.take(&mut taken);
            turns += 1;
        }
        assert!(turns >= 2 && take(&mailbox).is_empty(), "{turns} turns took {}", taken.len());
    }

    #[test]
    fn a_closed_mailbox_drops_what_it_holds_and_what_comes() {
        let mailbox = Mailbox::new(LIMITS).expect("mailbox");
        let item = Arc::new(());
        mailbox.insist(Arc::clone(&item));
        mailbox.close();
        mailbox.insist(Arc::clone(&item));
        assert!(!mailbox.offer(Arc::clone(&item)));
        assert_eq!(Arc::strong_count(&item), 1);
    }

    #[test]
    fn a_reader_is_woken_from_another_thread() {
        let mailbox = mailbox();
        std::thread::scope(|scope| {
            scope.spawn(|| mailbox.offer(Letter(Lane::Known, 0, 7)));
            let mut taken = VecDeque::new();
            mailbox.wait_and_take(&mut taken, Duration::from_secs(60));
            assert_eq!(taken, [Letter(Lane::Known, 0, 7)]);
        });
    }
}
