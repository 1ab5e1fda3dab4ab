//! Who a packet is from, and whose it is: the steps before policy is asked.
//!
//! *Attribute*: the local instance that owns the source address of a packet from the TUN. *Route*: the peer that
//! owns its destination. *Identify*: an opened packet's source address belongs, by the longest match over all
//! peers, to the very peer whose session carried it, and its destination to that session's local instance. Each
//! step's result is a type that only this module makes.

use std::net::IpAddr;

use warren_proto::Reason;

use crate::Now;
use crate::packet::Inner;
use crate::tables::{Local, LocalIndex, Peer, PeerIndex, PeerLink, Tables};

/// A packet of a local program, with the instance it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Attributed<'t, 'p> {
    inner: Inner<'p>,
    local: &'t Local,
}

/// A packet of a local program, with the way it has to go.
#[derive(Debug, Clone, Copy)]
pub struct Routed<'t, 'p> {
    inner: Inner<'p>,
    local: &'t Local,
    peer: &'t Peer,
    link: &'t PeerLink,
}

/// A peer's packet, whose addresses are proven to be the peer's and a local instance's.
#[derive(Debug, Clone, Copy)]
pub struct Identified<'a> {
    inner: Inner<'a>,
    local: &'a Local,
    peer: &'a Peer,
}

/// Why a packet of a local program has no way, with the peer it was for where that is known.
#[derive(Debug, Clone, Copy)]
pub struct NoWay<'a> {
    /// The reason.
    pub reason: Reason,
    /// The owner of the destination.
    pub peer: Option<&'a Peer>,
}

/// Finds the local instance that may send from the packet's source address.
pub fn attribute<'t, 'p>(tables: &'t Tables, inner: Inner<'p>) -> Result<Attributed<'t, 'p>, Reason> {
    let local = tables.local_at(inner.source).ok_or(Reason::NotAttributed)?;
    Ok(Attributed { inner, local })
}

impl<'t, 'p> Attributed<'t, 'p> {
    /// The packet.
    #[must_use]
    pub const fn inner(&self) -> &Inner<'p> {
        &self.inner
    }

    /// Its sender.
    #[must_use]
    pub const fn local(&self) -> &'t Local {
        self.local
    }

    /// Finds the peer that owns the destination, and the link to it.
    pub fn route(self, tables: &'t Tables, now: Now) -> Result<Routed<'t, 'p>, NoWay<'t>> {
        let destination = self.inner.destination;
        let no_way = |reason, peer| Err(NoWay { reason, peer });
        if !is_host(destination) {
            return no_way(Reason::NotUnicast, None);
        }
        if tables.local_at(destination).is_some() {
            return no_way(Reason::LocalLoop, None);
        }
        let Some(peer) = tables.peer_at(destination).map(AsRef::as_ref) else {
            return no_way(Reason::NoGrant, None);
        };
        if now.unix >= peer.valid_until {
            return no_way(Reason::NoPeer, Some(peer));
        }
        match peer.link(self.local.index) {
            Some(link) => Ok(Routed { inner: self.inner, local: self.local, peer, link }),
            None => no_way(Reason::NoGrant, Some(peer)),
        }
    }
}

impl<'t, 'p> Routed<'t, 'p> {
    /// The packet.
    #[must_use]
    pub const fn inner(&self) -> &Inner<'p> {
        &self.inner
    }

    /// Its sender.
    #[must_use]
    pub const fn local(&self) -> &'t Local {
        self.local
    }

    /// Its receiver.
    #[must_use]
    pub const fn peer(&self) -> &'t Peer {
        self.peer
    }

    /// The way to it.
    #[must_use]
    pub const fn link(&self) -> &'t PeerLink {
        self.link
    }
}

impl<'a> Identified<'a> {
    /// The packet.
    #[must_use]
    pub const fn inner(&self) -> &Inner<'a> {
        &self.inner
    }

    /// Its receiver.
    #[must_use]
    pub const fn local(&self) -> &'a Local {
        self.local
    }

    /// Its sender.
    #[must_use]
    pub const fn peer(&self) -> &'a Peer {
        self.peer
    }
}

/// Checks that a packet which authenticated as `peer`'s for `local` speaks for no one else and to no one else.
pub fn identify<'a>(
    tables: &'a Tables,
    peer: PeerIndex,
    local: LocalIndex,
    inner: Inner<'a>,
    now: Now,
) -> Result<Identified<'a>, Reason> {
    let peer = tables.peer(peer).map(AsRef::as_ref).ok_or(Reason::PeerRevoked)?;
    if now.unix >= peer.valid_until {
        return Err(Reason::CertificateExpired);
    }
    let owner = tables.routes.longest_match(inner.source);
    if !is_host(inner.source) || owner != Some(&peer.index) || tables.local_at(inner.source).is_some() {
        return Err(Reason::SourceNotPeers);
    }
    let local = tables.local_at(inner.destination).filter(|owner| owner.index == local);
    Ok(Identified { inner, local: local.ok_or(Reason::DestinationNotLocal)?, peer })
}

/// Whether one host can be meant: not multicast, broadcast, loopback, link-local, unspecified, `0/8`, or an
/// IPv4 address in IPv6 clothes.
fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, ..] = address.octets();
            first != 0 && first < 224 && !address.is_loopback() && !address.is_link_local()
        }
        IpAddr::V6(address) => {
            let embeds_v4 = address.segments()[..5] == [0; 5];
            !embeds_v4 && !address.is_multicast() && !address.is_unicast_link_local()
        }
    }
}
