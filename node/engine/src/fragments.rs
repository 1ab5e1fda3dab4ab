//! Fragments: all parts of a datagram share the verdict of its first part, the only one that shows ports.
//!
//! A later part whose first part was not let pass is dropped; so is what overlaps a part already seen (RFC
//! 5722), and with it the rest of that datagram. The host puts datagrams together; nothing is held here.

use std::net::IpAddr;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use warren_proto::Reason;

use crate::packet::{Fragment, Inner};
use crate::tables::{Generation, PeerIndex};

/// How long the parts of a datagram may follow its first one.
const LIFETIME: Duration = Duration::from_secs(30);
/// Datagrams in parts at once, per worker.
const MAX_DATAGRAMS: usize = 512;
/// A peer may have this share of them at most, so that one who completes none does not shut the others out.
const PEER_SHARE: usize = 4;
/// Parts of one datagram: 64 KiB in parts of IPv6's smallest MTU are 53.
const MAX_PARTS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    peer: PeerIndex,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

/// A datagram whose first part passed.
#[derive(Debug)]
struct Datagram {
    generation: Generation,
    began: Duration,
    /// Half-open byte ranges seen.
    parts: [(u32, u32); MAX_PARTS],
    count: usize,
    seen: u32,
    /// Known once the last part was seen.
    length: Option<u32>,
}

impl Datagram {
    /// Notes a part, if it overlaps none and lies within the datagram.
    fn note(&mut self, from: u32, to: u32, last: bool) -> Result<(), Reason> {
        let overlaps = self.parts[..self.count].iter().any(|(start, end)| from < *end && *start < to);
        let beyond = self.length.is_some_and(|length| to > length || last);
        let cuts_off = last && self.parts[..self.count].iter().any(|(_, end)| *end > to);
        if overlaps || beyond || cuts_off || self.count == MAX_PARTS {
            return Err(Reason::OverlappingFragment);
        }
        self.parts[self.count] = (from, to);
        self.count += 1;
        self.seen += to - from;
        if last {
            self.length = Some(to);
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.length == Some(self.seen)
    }
}

/// The datagrams under way through one worker. Parts of a datagram reach the same worker: those from a peer by
/// their session's receiver index, those from the host by the TUN's queue hash, which leaves ports out.
#[derive(Debug, Default)]
pub(crate) struct Fragments {
    datagrams: HashMap<Key, Datagram, RandomState>,
}

impl Fragments {
    /// Remembers a first part that passed at `generation`. For an identification still in use, both datagrams
    /// are given up.
    pub(crate) fn begin(
        &mut self,
        inner: &Inner<'_>,
        peer: PeerIndex,
        generation: Generation,
        now: Duration,
    ) -> Result<(), Reason> {
        let Fragment::First { id } = inner.fragment else { return Ok(()) };
        let key = key(inner, peer, id);
        if let Some(earlier) = self.datagrams.remove(&key)
            && !earlier.is_complete()
            && now.saturating_sub(earlier.began) < LIFETIME
        {
            return Err(Reason::OverlappingFragment);
        }
        if self.datagrams.len() >= MAX_DATAGRAMS || self.has_its_share(peer) {
            self.datagrams
                .retain(|_, datagram| !datagram.is_complete() && now.saturating_sub(datagram.began) < LIFETIME);
            if self.datagrams.len() >= MAX_DATAGRAMS || self.has_its_share(peer) {
                return Err(Reason::UnknownFragment);
            }
        }
        let mut datagram =
            Datagram { generation, began: now, parts: [(0, 0); MAX_PARTS], count: 0, seen: 0, length: None };
        datagram.note(0, length(inner), false)?;
        self.datagrams.insert(key, datagram);
        Ok(())
    }

    fn has_its_share(&self, peer: PeerIndex) -> bool {
        const SHARE: usize = MAX_DATAGRAMS / PEER_SHARE;
        self.datagrams.len() >= SHARE && self.datagrams.keys().filter(|key| key.peer == peer).count() >= SHARE
    }

    /// Lets a later part pass if its first part did, at this very generation.
    pub(crate) fn follow(
        &mut self,
        inner: &Inner<'_>,
        peer: PeerIndex,
        generation: Generation,
        now: Duration,
    ) -> Result<(), Reason> {
        let Fragment::Later { id, offset, last } = inner.fragment else { return Ok(()) };
        let key = key(inner, peer, id);
        let datagram = self.datagrams.get_mut(&key).ok_or(Reason::UnknownFragment)?;
        if datagram.generation != generation || now.saturating_sub(datagram.began) >= LIFETIME {
            self.datagrams.remove(&key);
            return Err(Reason::UnknownFragment);
        }
        let offset = u32::from(offset);
        let noted = datagram.note(offset, offset + length(inner), last);
        if noted.is_err() {
            self.datagrams.remove(&key);
        }
        noted
    }
}

fn key(inner: &Inner<'_>, peer: PeerIndex, id: u32) -> Key {
    Key { peer, source: inner.source, destination: inner.destination, protocol: inner.protocol, id }
}

fn length(inner: &Inner<'_>) -> u32 {
    u32::try_from(inner.payload().len()).unwrap_or(u32::MAX / 2)
}

#[cfg(test)]
mod tests;
