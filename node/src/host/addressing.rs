//! Links, addresses and routes over rtnetlink: what is there, and the single changes that warren makes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_ROUTE;
use warren_engine::output::packets_per_train;

use super::netlink::{Attributes, Channel, FLAG_CREATE, FLAG_REPLACE, KernelError, Request};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
/// `RT_SCOPE_UNIVERSE`: valid beyond the link.
const RT_SCOPE_UNIVERSE: u8 = 0;
/// `IFA_F_DADFAILED`, `IFA_F_DEPRECATED` and `IFA_F_TENTATIVE`.
const IFA_F_UNUSABLE: u8 = 0x08 | 0x20 | 0x40;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_GSO_MAX_SEGS: u16 = 40;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
const IFF_UP: u32 = 1;
/// The index of the loopback device in every namespace.
const LOOPBACK: u32 = 1;

/// Packets that wait in each queue of the TUN device for the worker. What is beyond them the kernel drops, and counts as
/// TX drops of the device. A TUN takes a packet off its sender's account the moment it is queued, so that a TCP
/// connection is slowed down by its window and by these drops only: the queue is the longest delay that the host itself
/// adds. 500 are a turn of the worker at two million small packets a second, which a shorter queue would lose, and at the
/// most 32 MiB of super-packets, 50 ms of a tunnel at 5 Gbit/s. Said and not left to the system, whose default a
/// distribution may raise.
const TX_QUEUE: u32 = 500;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u32 = 254;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTN_UNREACHABLE: u8 = 7;
const RTM_F_CLONED: u32 = 0x200;

/// The routing protocol number that marks a route as warren's (`proto 87` in `ip route`). The kernel gives it no
/// meaning; the number is outside those that iproute2 names.
const PROTOCOL: u8 = 87;

/// A block of addresses: first address and length in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix {
    pub(super) first: IpAddr,
    pub(super) length: u8,
}

impl Prefix {
    pub(super) fn host(address: IpAddr) -> Self {
        Self { first: address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether `other` lies inside this block.
    pub(super) fn covers(self, other: Self) -> bool {
        let same = match (self.first, other.first) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (u32::from(a) ^ u32::from(b)).checked_shr(32 - u32::from(self.length)).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (u128::from(a) ^ u128::from(b)).checked_shr(128 - u32::from(self.length)).unwrap_or(0) == 0
            }
            _ => return false,
        };
        same && self.length <= other.length
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Towards {
    /// Out of the device with this index.
    Device(u32),
    /// Nowhere: the sender gets an ICMP error.
    Unreachable,
    /// To this host itself, on the device with this index.
    Local(u32),
    /// Anything warren never makes (several next hops, blackhole, throw, ...).
    Other,
}

/// A route as warren sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) prefix: Prefix,
    pub(super) towards: Towards,
    /// Lower wins.
    pub(super) metric: u32,
    /// The source address for connections that choose none.
    pub(super) source: Option<IpAddr>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.towards {
            Towards::Device(index) => write!(f, "route {} to device {index} metric {}", self.prefix, self.metric),
            Towards::Local(index) => write!(f, "local {} on device {index}", self.prefix),
            Towards::Unreachable => write!(f, "unreachable {} metric {}", self.prefix, self.metric),
            Towards::Other => write!(f, "route {} metric {}", self.prefix, self.metric),
        }
    }
}

/// A route with what distinguishes warren's own from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SeenRoute {
    pub(super) route: Route,
    pub(super) ours: bool,
    pub(super) main_table: bool,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) mtu: u32,
}

/// The host's links, addresses and routes, in the namespace of the thread that opened it.
pub(super) struct Addressing(Channel);

impl Addressing {
    pub(super) fn open() -> Result<Self, KernelError> {
        Channel::open(NETLINK_ROUTE).map(Self)
    }

    /// The device with this index; `ENODEV` when there is none.
    pub(super) fn link(&mut self, index: u32) -> Result<Link, KernelError> {
        let mut found = None;
        self.0.get(Request::new(RTM_GETLINK, 0, &link_header(index, 0, 0)), |kind, payload| {
            if kind == RTM_NEWLINK {
                found = parse_link(payload);
            }
        })?;
        found.ok_or(KernelError { errno: libc::ENODEV, request: 0, text: String::new() })
    }

    /// Brings the loopback device up, which is down in a new namespace.
    pub(super) fn bring_up_loopback(&mut self) -> Result<(), KernelError> {
        self.0.call(Request::new(RTM_NEWLINK, 0, &link_header(LOOPBACK, IFF_UP, IFF_UP))).map(drop)
    }

    /// Sets the device's MTU and brings it up. The kernel is told to give it no link-local address: a TUN has no
    /// neighbours, and router solicitations would reach the tunnel only to be dropped there.
    pub(super) fn bring_up(&mut self, index: u32, mtu: u32) -> Result<(), KernelError> {
        let quiet = Request::new(RTM_NEWLINK, 0, &link_header(index, 0, 0)).with_nested(IFLA_AF_SPEC, |families| {
            families.with_nested(libc::AF_INET6 as u16, |v6| v6.with(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]))
        });
        match self.0.call(quiet) {
            // Without IPv6 there is nothing to keep quiet.
            Err(error) if !matches!(error.errno, libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => return Err(error),
            _ => {}
        }
        let up = Request::new(RTM_NEWLINK, 0, &link_header(index, IFF_UP, IFF_UP))
            .with(IFLA_MTU, &mtu.to_ne_bytes())
            .with(IFLA_TXQLEN, &TX_QUEUE.to_ne_bytes());
        self.0.call(up)?;
        // One super-packet then leaves as one train, and not as one and a stub. Where the kernel does not let itself be
        // told, that costs speed only.
        let segments = u32::try_from(packets_per_train(mtu as usize)).unwrap_or(1).max(1);
        let limit =
            Request::new(RTM_NEWLINK, 0, &link_header(index, 0, 0)).with(IFLA_GSO_MAX_SEGS, &segments.to_ne_bytes());
        let _ = self.0.call(limit);
        Ok(())
    }

    /// The addresses on the device with this index.
    pub(super) fn addresses(&mut self, index: u32) -> Result<Vec<Prefix>, KernelError> {
        self.0.dump(&Request::new(RTM_GETADDR, 0, &[0; 8]), |payload| {
            let header = payload.get(..8)?;
            let device = u32::from_ne_bytes(header.get(4..8)?.try_into().ok()?);
            let attributes = Attributes(payload.get(8..)?);
            let first = address(attributes.find(IFA_LOCAL).or_else(|| attributes.find(IFA_ADDRESS))?)?;
            (device == index).then_some(Prefix { first, length: header[1] })
        })
    }

    /// Addresses that another host could dial: of global scope and in use, on every device but `except`.
    pub(super) fn dialable(&mut self, except: u32) -> Result<Vec<IpAddr>, KernelError> {
        self.0.dump(&Request::new(RTM_GETADDR, 0, &[0; 8]), |payload| {
            let &[_family, _length, flags, scope, ..] = payload.first_chunk::<8>()?;
            let device = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
            let attributes = Attributes(payload.get(8..)?);
            let found = address(attributes.find(IFA_LOCAL).or_else(|| attributes.find(IFA_ADDRESS))?)?;
            let usable = flags & IFA_F_UNUSABLE == 0 && scope == RT_SCOPE_UNIVERSE && !found.is_loopback();
            (usable && device != except).then_some(found)
        })
    }

    /// Adds an address without a route of its own (warren's routes say where the overlay is) and without
    /// duplicate detection (nobody on a TUN could answer).
    pub(super) fn add_address(&mut self, index: u32, address: Prefix) -> Result<(), KernelError> {
        let request = address_request(RTM_NEWADDR, FLAG_CREATE | FLAG_REPLACE, index, address);
        self.0.call(request.with(IFA_FLAGS, &(IFA_F_NODAD | IFA_F_NOPREFIXROUTE).to_ne_bytes()))
    }

    pub(super) fn remove_address(&mut self, index: u32, address: Prefix) -> Result<(), KernelError> {
        self.0.call(address_request(RTM_DELADDR, 0, index, address))
    }

    /// Every route of every table.
    pub(super) fn routes(&mut self) -> Result<Vec<SeenRoute>, KernelError> {
        self.0.dump(&Request::new(RTM_GETROUTE, 0, &[0; 12]), parse_route)
    }

    /// Adds the route, in the place of one with the same prefix and metric.
    pub(super) fn add_route(&mut self, route: &Route) -> Result<(), KernelError> {
        self.0.call(route_request(RTM_NEWROUTE, FLAG_CREATE | FLAG_REPLACE, route))
    }

    pub(super) fn remove_route(&mut self, route: &Route) -> Result<(), KernelError> {
        self.0.call(route_request(RTM_DELROUTE, 0, route))
    }
}

fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let flags = u32::from_ne_bytes(payload.get(8..12)?.try_into().ok()?);
    let attributes = Attributes(payload.get(16..)?);
    Some(Link {
        name: attributes.text(IFLA_IFNAME)?.to_owned(),
        up: flags & IFF_UP != 0,
        mtu: attributes.number(IFLA_MTU)?,
    })
}

fn family(address: IpAddr) -> u8 {
    // Both constants are far below 256.
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(raw: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(raw)
        .map(|raw| IpAddr::V4(Ipv4Addr::from(raw)))
        .or_else(|_| <[u8; 16]>::try_from(raw).map(|raw| IpAddr::V6(Ipv6Addr::from(raw))))
        .ok()
}

fn address_request(kind: u16, flags: u16, index: u32, address: Prefix) -> Request {
    let mut header = [family(address.first), address.length, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let raw = bytes(address.first);
    Request::new(kind, flags, &header).with(IFA_LOCAL, &raw).with(IFA_ADDRESS, &raw)
}

fn route_request(kind: u16, flags: u16, route: &Route) -> Request {
    let (route_type, scope, device) = match route.towards {
        Towards::Device(index) if route.prefix.first.is_ipv4() => (RTN_UNICAST, RT_SCOPE_LINK, Some(index)),
        Towards::Device(index) | Towards::Local(index) => (RTN_UNICAST, 0, Some(index)),
        Towards::Unreachable | Towards::Other => (RTN_UNREACHABLE, 0, None),
    };
    let header = [
        family(route.prefix.first),
        route.prefix.length,
        0,
        0,
        RT_TABLE_MAIN as u8,
        PROTOCOL,
        scope,
        route_type,
        0,
        0,
        0,
        0,
    ];
    let mut request = Request::new(kind, flags, &header)
        .with(RTA_DST, &bytes(route.prefix.first))
        .with(RTA_PRIORITY, &route.metric.to_ne_bytes());
    if let Some(index) = device {
        request = request.with(RTA_OIF, &index.to_ne_bytes());
    }
    if let Some(source) = route.source {
        request = request.with(RTA_PREFSRC, &bytes(source));
    }
    request
}

fn parse_route(payload: &[u8]) -> Option<SeenRoute> {
    let header = payload.get(..12)?;
    let attributes = Attributes(payload.get(12..)?);
    let flags = u32::from_ne_bytes(header.get(8..12)?.try_into().ok()?);
    let (route_family, length, table, protocol, route_type) = (header[0], header[1], header[4], header[5], header[7]);
    if flags & RTM_F_CLONED != 0 {
        return None;
    }
    let unspecified = match i32::from(route_family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let first = match attributes.find(RTA_DST) {
        Some(raw) => address(raw)?,
        None => unspecified,
    };
    let towards = match (route_type, attributes.number(RTA_OIF)) {
        (RTN_UNICAST, Some(index)) => Towards::Device(index),
        (RTN_LOCAL, Some(index)) => Towards::Local(index),
        (RTN_UNREACHABLE, _) => Towards::Unreachable,
        _ => Towards::Other,
    };
    let route = Route {
        prefix: Prefix { first, length },
        towards,
        metric: attributes.number(RTA_PRIORITY).unwrap_or(0),
        source: attributes.find(RTA_PREFSRC).and_then(address),
    };
    let main_table = attributes.number(RTA_TABLE).unwrap_or_else(|| u32::from(table)) == RT_TABLE_MAIN;
    Some(SeenRoute { route, ours: protocol == PROTOCOL && main_table, main_table })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str, length: u8) -> Prefix {
        Prefix { first: text.parse().expect("address"), length }
    }

    #[test]
    fn a_prefix_covers_itself_and_what_lies_inside() {
        let overlay = prefix("fd12:3456:789a::", 48);
        assert!(overlay.covers(overlay));
        assert!(overlay.covers(prefix("fd12:3456:789a:1::", 64)));
        assert!(!overlay.covers(prefix("fd12:3456:789b::", 64)));
        assert!(!overlay.covers(prefix("fd12::", 16)));
        assert!(!overlay.covers(prefix("10.0.0.0", 8)));
        assert!(prefix("0.0.0.0", 0).covers(prefix("10.0.0.0", 8)));
        assert!(prefix("10.77.0.0", 16).covers(prefix("10.77.255.255", 32)));
        assert!(!prefix("10.77.0.0", 16).covers(prefix("10.78.0.0", 32)));
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = parse_route(&payload);
            let _ = parse_link(&payload);
        }
    }
}
