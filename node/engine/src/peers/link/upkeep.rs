//! What happens to a link as time passes: sessions end, the peer hears that this end lives, silence is noticed.
//! Workers note traffic without telling, so a link with a session is looked after every few seconds.

use std::sync::Arc;
use std::time::Duration;

use warren_proto::Reason;

use super::{LinkState, send_sealed};
use crate::Now;
use crate::peers::outlet::Outlet;
use crate::session::REFUSE_AFTER;

/// How often sessions are looked after; bounds how late the slow half sees what workers noted.
pub(super) const WATCH_EVERY: Duration = Duration::from_millis(2500);
/// boringtun's timers, for plain peers only.
pub(super) const PLAIN_TICK: Duration = Duration::from_millis(250);
/// After data came in and nothing went out for so long, an empty packet says that this end lives (WireGuard's
/// Keepalive-Timeout).
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// After data went out and nothing came in for so long, the peer may have lost the session: Keepalive-Timeout plus
/// Rekey-Timeout.
const SILENCE: Duration = Duration::from_secs(15);

impl LinkState {
    pub(super) fn watch(&mut self, out: &mut Outlet, now: Now) {
        self.close_ended(out, now);
        self.keep_alive(out, now);
        for tunnel in &mut self.tunnels {
            let age = tunnel.handshaken.map(|at| now.monotonic.saturating_sub(at));
            if !self.plain && age.is_some_and(|age| age >= REFUSE_AFTER) {
                tunnel.noise.forget_sessions();
                tunnel.handshaken = None;
            }
        }
        let busy = self.current.is_some()
            || !self.retired.is_empty()
            || self.tunnels.iter().any(|tunnel| tunnel.handshaken.is_some());
        self.next_watch = busy.then_some(now.monotonic + WATCH_EVERY);
    }

    /// Closes sessions that are past their time, their count or a certificate's end.
    pub(super) fn close_ended(&mut self, out: &mut Outlet, now: Now) {
        if let Some(current) = &self.current
            && current.session.is_over(now)
        {
            let ended = now.unix >= current.session.valid_until();
            self.close_current(if ended { Reason::CertificateEnded } else { Reason::SessionExpired }, out);
        }
        for at in (0..self.retired.len()).rev() {
            if self.retired[at].session.is_over(now)
                && let Some(over) = self.retired.remove(at)
            {
                out.close_session(&over.session);
            }
        }
    }

    /// Says that this end lives where the peer waits to hear it, and finds out whether the peer does.
    fn keep_alive(&mut self, out: &mut Outlet, now: Now) {
        let Some(current) = &self.current else { return };
        let session = Arc::clone(&current.session);
        let since = |moment: Duration| now.monotonic.saturating_sub(moment);
        let (sent, received) = (session.last_sent(), session.last_received());
        let owing = session.last_data_received() > sent;
        self.owing_since = owing.then(|| self.owing_since.unwrap_or(now.monotonic));
        let overdue = self.owing_since.is_some_and(|begun| since(begun) + WATCH_EVERY > ANSWER_WITHIN);
        let wanted = out.config.keepalive.is_some_and(|every| since(sent.unwrap_or_default()) + WATCH_EVERY > every);
        if (overdue || wanted)
            && let Some(endpoint) = self.path.endpoint()
        {
            send_sealed(&session, &[], self.cell.mtu(), endpoint, out, now);
            self.owing_since = None;
        }
        let unanswered = session.last_data_sent() > received;
        let begun = self.unanswered_since.filter(|begun| received.is_none_or(|received| received < *begun));
        self.unanswered_since = unanswered.then(|| begun.unwrap_or(now.monotonic));
        if self.unanswered_since.is_some_and(|begun| since(begun) >= SILENCE) {
            self.want_session(out, now);
        }
    }

    pub(super) fn tick(&mut self, out: &mut Outlet, now: Now) {
        self.next_tick = (self.plain && !self.tunnels.is_empty()).then_some(now.monotonic + PLAIN_TICK);
        let Some(endpoint) = self.path.endpoint().or_else(|| self.path.candidate(0)) else { return };
        for tunnel in &mut self.tunnels {
            if let Some(datagram) = tunnel.noise.tick() {
                out.send(endpoint, datagram);
            }
        }
    }
}
