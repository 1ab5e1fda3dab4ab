//! The anti-replay window (RFC 6479): which counters of one receiving session were seen.
//!
//! The window belongs to one worker, the one that the session's receiver index names; only that worker
//! calls [`ReplayWindow::check`] and [`ReplayWindow::mark`]. Its words are atomics so that the session around
//! it can be shared, and so that no lock is taken per packet.

use std::sync::atomic::{AtomicU64, Ordering};

use warren_proto::Reason;

/// How far behind the newest counter a packet may arrive, in packets.
pub const WINDOW: u64 = 8192;

const WORD_BITS: u64 = 64;
/// One word more than the window, so that moving on by less than a word forgets nothing still inside it.
const WORDS: usize = (WINDOW / WORD_BITS) as usize + 1;

/// Counters seen, as a ring of bits.
#[derive(Debug)]
pub struct ReplayWindow {
    /// One past the highest counter marked.
    next: AtomicU64,
    seen: Box<[AtomicU64]>,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: AtomicU64::new(0), seen: (0..WORDS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl ReplayWindow {
    /// Whether a packet with this counter may be worth decrypting. Changes nothing: a forged packet must not
    /// move the window.
    pub fn check(&self, counter: u64) -> Result<(), Reason> {
        let next = self.next.load(Ordering::Relaxed);
        if counter >= next {
            return Ok(());
        }
        if next - counter > WINDOW {
            return Err(Reason::CounterTooOld);
        }
        let seen = self.word(counter / WORD_BITS).load(Ordering::Relaxed) & bit(counter) != 0;
        if seen { Err(Reason::Replayed) } else { Ok(()) }
    }

    /// Records an authenticated packet's counter. Refuses what [`Self::check`] refuses.
    pub fn mark(&self, counter: u64) -> Result<(), Reason> {
        self.check(counter)?;
        let next = self.next.load(Ordering::Relaxed);
        if counter >= next {
            // Words between the old head and the new one hold bits of a lap ago.
            let head = next.saturating_sub(1) / WORD_BITS;
            let stale = (counter / WORD_BITS).saturating_sub(head).min(WORDS as u64);
            for step in 1..=stale {
                self.word(head.wrapping_add(step)).store(0, Ordering::Relaxed);
            }
            self.next.store(counter.saturating_add(1), Ordering::Relaxed);
        }
        let word = self.word(counter / WORD_BITS);
        word.store(word.load(Ordering::Relaxed) | bit(counter), Ordering::Relaxed);
        Ok(())
    }

    fn word(&self, index: u64) -> &AtomicU64 {
        &self.seen[(index % WORDS as u64) as usize]
    }
}

const fn bit(counter: u64) -> u64 {
    1 << (counter % WORD_BITS)
}

#[cfg(test)]
mod tests;
