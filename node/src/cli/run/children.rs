//! The children of `warren run`, adopted orphans included: the one place that waits for them.

use rustix::process::{Pid, WaitOptions, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A child that ended, as its code would be shown by a shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) pid: Pid,
    pub(super) code: u8,
}

/// Says who ended.
pub(super) struct Children {
    changes: Option<Signal>,
}

/// 128 and the signal's number.
pub(super) fn code_of_signal(number: i32) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX).saturating_add(128)
}

impl Children {
    pub(super) fn new() -> Self {
        // Without it the children are looked at now and then.
        Self { changes: signal(SignalKind::child()).ok() }
    }

    /// The next child that ends, or has ended.
    pub(super) async fn next(&mut self) -> Ended {
        loop {
            if let Some(ended) = reap() {
                return ended;
            }
            match &mut self.changes {
                Some(changes) => drop(changes.recv().await),
                None => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
    }

    /// Every child there is, but for `node`.
    #[allow(clippy::unused_self, reason = "asks about the same children")]
    pub(super) fn living(&self, node: Option<Pid>) -> Vec<Pid> {
        let text = super::children_of_all_threads();
        let all = text.split_whitespace().filter_map(|word| Pid::from_raw(word.parse().ok()?));
        all.filter(|pid| Some(*pid) != node).collect()
    }
}

/// One child that has ended, if there is one.
fn reap() -> Option<Ended> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let exited = status.exit_status().map(|code| u8::try_from(code).unwrap_or(u8::MAX));
                let code = exited.or_else(|| status.terminating_signal().map(code_of_signal));
                // Neither: a child that was only stopped or continued.
                if let Some(code) = code {
                    return Some(Ended { pid, code });
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}
