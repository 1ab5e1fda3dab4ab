//! The replay window against a set of all counters seen.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

#[test]
fn a_counter_is_accepted_once() {
    let window = ReplayWindow::default();
    for counter in [0, 1, 5, 3, 100, 99, 64, 63] {
        assert_eq!(window.mark(counter), Ok(()), "{counter}");
        assert_eq!(window.mark(counter), Err(Reason::Replayed), "{counter}");
    }
}

#[test]
fn the_window_is_exactly_8192_wide() {
    let window = ReplayWindow::default();
    assert_eq!(window.mark(20_000), Ok(()));
    assert_eq!(window.check(20_000 - WINDOW), Err(Reason::CounterTooOld));
    assert_eq!(window.mark(20_001 - WINDOW), Ok(()));
    assert_eq!(window.mark(20_001 - WINDOW), Err(Reason::Replayed));
}

#[test]
fn a_far_jump_forgets_the_old_lap_and_nothing_else() {
    let window = ReplayWindow::default();
    for counter in 0..WINDOW {
        assert_eq!(window.mark(counter), Ok(()));
    }
    let far = WINDOW * 5 + 17;
    assert_eq!(window.mark(far), Ok(()));
    for counter in far + 1 - WINDOW..far {
        assert_eq!(window.check(counter), Ok(()), "{counter}");
    }
}

#[test]
fn the_top_of_the_range_neither_wraps_nor_panics() {
    let window = ReplayWindow::default();
    assert_eq!(window.mark(7), Ok(()));
    assert_eq!(window.mark(u64::MAX - 1), Ok(()));
    assert_eq!(window.mark(u64::MAX - 1), Err(Reason::Replayed));
    assert_eq!(window.mark(7), Err(Reason::CounterTooOld));
}

#[test]
fn checking_alone_moves_nothing() {
    let window = ReplayWindow::default();
    assert_eq!(window.check(1 << 40), Ok(()));
    assert_eq!(window.mark(0), Ok(()));
}

proptest! {
    /// Against a set that remembers everything.
    #[test]
    fn the_window_agrees_with_a_set(steps in prop::collection::vec((0u64..20_000, 0u64..3), 1..600)) {
        let window = ReplayWindow::default();
        let (mut seen, mut highest, mut base) = (HashSet::new(), None::<u64>, 0u64);
        for (offset, leap) in steps {
            base += leap * 3_000;
            let counter = base + offset;
            let expected = match highest {
                Some(top) if counter + WINDOW <= top => Err(Reason::CounterTooOld),
                _ if seen.contains(&counter) => Err(Reason::Replayed),
                _ => Ok(()),
            };
            prop_assert_eq!(window.mark(counter), expected);
            if expected.is_ok() {
                seen.insert(counter);
                highest = highest.max(Some(counter));
            }
        }
    }
}
