//! Cutting a live flow: the flow log hears of it, and a TCP connection is reset at both ends.

use std::net::SocketAddr;

use crate::admission;
use crate::flows::{CutFlow, Side};
use crate::output::Outbox;
use crate::packet::{ACK, RST, TCP};
use crate::records::Observation;
use crate::refusals::Segment;

use super::{Desk, Moment};

impl Desk {
    pub(super) fn cut(&mut self, moment: Moment<'_>, cut: &CutFlow, outbox: &mut Outbox) {
        let Moment { tables, now, .. } = moment;
        let (key, local) = (&cut.key, tables.local(cut.local));
        let peer = tables.peer(key.peer()).map(AsRef::as_ref);
        let judgement = admission::judge_anew(tables, key, cut.local, cut.opened_by, now);
        let (source, destination) = match cut.opened_by {
            Side::Local => (key.local(), key.remote()),
            Side::Peer => (key.remote(), key.local()),
        };
        let seen = Observation {
            sender: cut.opened_by,
            local,
            peer,
            source,
            destination,
            protocol: key.protocol(),
            verdict: Err(cut.reason),
            audit: false,
            rule: judgement.rule,
        };
        self.records.observe(&seen, tables.policy.as_deref(), now.unix);
        if key.protocol() != TCP {
            return;
        }
        let segment = |from: SocketAddr, to: SocketAddr, sequence, acknowledgement| Segment {
            from_port: from.port(),
            to_port: to.port(),
            sequence,
            acknowledgement,
            flags: RST | ACK,
        };
        let (near, far) = (key.local(), key.remote());
        let to_local = segment(far, near, cut.local_next, cut.peer_next);
        if let Some(length) = to_local.write(far.ip(), near.ip(), &mut self.refusal) {
            self.counters.count_refusal();
            outbox.deliver_own(&self.refusal[..length]);
        }
        let to_peer = segment(near, far, cut.peer_next, cut.local_next);
        if let Some(peer) = peer
            && let Some(link) = peer.link(cut.local)
            && let Some(length) = to_peer.write(near.ip(), far.ip(), &mut self.refusal)
        {
            self.answer_peer(peer, &link.link, length, now, outbox);
        }
    }
}
