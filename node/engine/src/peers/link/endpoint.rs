//! Where a link's datagrams go: what was reported and what was authenticated.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Effort, Established, LinkState};
use crate::Now;
use crate::peers::outlet::Outlet;
use crate::session::DataSession;

impl LinkState {
    /// Where the peer is said to be. A new address is tried at once by an effort under way.
    pub(crate) fn report_endpoints(&mut self, addresses: &[SocketAddr], now: Now) {
        if self.path.report(addresses) {
            self.hold_until = Duration::ZERO;
            if let Effort::Initiating { next, .. } = &mut self.effort {
                *next = now.monotonic;
            }
        }
    }

    pub(crate) fn is_reached_at(&self, address: SocketAddr) -> bool {
        self.path.knows(address)
    }

    /// The peer seems to send on a session that this end does not hold. Where there is none, a handshake tells it so;
    /// forged, this costs one session with an admitted peer.
    pub(crate) fn handle_stray(&mut self, out: &mut Outlet, now: Now) {
        if self.current.is_none() && !self.plain {
            self.want_session(out, now);
        }
    }

    /// A worker opened a message of the session in use that came from elsewhere.
    pub(crate) fn handle_moved(&mut self, session: &Arc<DataSession>, from: SocketAddr, now: Now) {
        let in_use = |established: &Established| Arc::ptr_eq(&established.session, session);
        let confirming = matches!(&self.effort, Effort::Confirming { established, .. } if in_use(established));
        let accepting = self.accepting.as_ref().is_some_and(|accepting| in_use(&accepting.established));
        if confirming || accepting || self.current.as_ref().is_some_and(in_use) {
            self.authenticate_path(from, now);
        }
    }

    pub(super) fn authenticate_path(&mut self, from: SocketAddr, now: Now) {
        if self.path.authenticate(from, now.monotonic) {
            self.cell.set_endpoint(Some(from));
            self.forget_path_mtu();
        }
    }
}
