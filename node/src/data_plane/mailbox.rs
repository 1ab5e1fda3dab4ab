//! Bounded queues between the threads of the data plane: what one cannot deal with itself and hands to another.
//! Only the slow path locks one; packets that stay with their worker never come near.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

/// A queue with one reader, who waits on a condition variable or on a descriptor.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    /// `None` once the reader is gone.
    queue: Mutex<Option<VecDeque<T>>>,
    filled: Condvar,
    descriptor: OwnedFd,
    limit: usize,
}

impl<T> Mailbox<T> {
    /// An empty one that takes up to `limit` entries.
    pub(super) fn new(limit: usize) -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::new(Some(VecDeque::new())),
            filled: Condvar::new(),
            descriptor: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            limit,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<VecDeque<T>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over `item` unless the queue is full; whether it was taken.
    pub(super) fn offer(&self, item: T) -> bool {
        let mut guard = self.lock();
        let Some(queue) = guard.as_mut().filter(|queue| queue.len() < self.limit) else { return false };
        queue.push_back(item);
        let first = queue.len() == 1;
        drop(guard);
        if first {
            self.wake();
        }
        true
    }

    /// Hands over what must not be lost and what few exist of: commands, answers, facts that are said once. When the
    /// reader is gone it is dropped.
    pub(super) fn insist(&self, item: T) {
        if let Some(queue) = self.lock().as_mut() {
            queue.push_back(item);
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

    /// How many entries wait.
    pub(super) fn len(&self) -> usize {
        self.lock().as_ref().map_or(0, VecDeque::len)
    }

    /// Moves everything that waits to the end of `into`.
    pub(super) fn take(&self, into: &mut VecDeque<T>) {
        if let Some(queue) = self.lock().as_mut() {
            into.append(queue);
        }
    }

    /// As [`take`](Self::take), once there is something or `at_most` has passed.
    pub(super) fn wait_and_take(&self, into: &mut VecDeque<T>, at_most: Duration) {
        let queue = self.lock();
        let (mut queue, _) = self
            .filled
            .wait_timeout_while(queue, at_most, |queue| queue.as_ref().is_some_and(VecDeque::is_empty))
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queue.as_mut() {
            into.append(queue);
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
    use super::*;

    #[test]
    fn a_full_mailbox_takes_no_more_but_what_must_not_be_lost() {
        let mailbox = Mailbox::new(2).expect("mailbox");
        assert!(mailbox.offer(1) && mailbox.offer(2) && !mailbox.offer(3));
        mailbox.insist(4);
        let mut taken = VecDeque::new();
        mailbox.wait_and_take(&mut taken, Duration::MAX);
        assert_eq!(taken, [1, 2, 4]);
        assert!(mailbox.offer(5));
        assert_eq!(mailbox.len(), 1);
    }

    #[test]
    fn a_closed_mailbox_drops_what_it_holds_and_what_comes() {
        let mailbox = Mailbox::new(2).expect("mailbox");
        let item = std::sync::Arc::new(());
        mailbox.insist(std::sync::Arc::clone(&item));
        mailbox.close();
        mailbox.insist(std::sync::Arc::clone(&item));
        assert!(!mailbox.offer(std::sync::Arc::clone(&item)));
        assert_eq!(std::sync::Arc::strong_count(&item), 1);
    }

    #[test]
    fn a_reader_is_woken_from_another_thread() {
        let mailbox = Mailbox::new(1).expect("mailbox");
        std::thread::scope(|scope| {
            scope.spawn(|| mailbox.offer(7));
            let mut taken = VecDeque::new();
            mailbox.wait_and_take(&mut taken, Duration::from_secs(60));
            assert_eq!(taken, [7]);
        });
    }
}
