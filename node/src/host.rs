//! The desired state of the operating system: overlay addresses and MTU on the TUN device, routes into it, an
//! `unreachable` route behind them, and the nftables guard, so that overlay traffic has no way around the tunnel.
//!
//! [`Host::apply`] reads what is there, changes only what differs and may be called any number of times.
//! [`Host::revert`] takes everything back except the `unreachable` routes. Those stay on purpose, after a stop as
//! after a crash: without them a program that still talks to an overlay address would send in clear by the default
//! route. They have the worst metric there is, so any other route for the prefix wins; `ip route del unreachable`
//! removes them when warren is uninstalled.

mod addressing;
mod apart;
mod bpf;
mod cgroups;
mod guard;
mod keeper;
mod netlink;
mod nftables;
mod programs;
mod separation;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use warren_proto::overlay::{Overlay, OverlayAddresses};

use crate::selectors::Members;
use addressing::{Addressing, Prefix, Route, SeenRoute, Towards};
use apart::{Receivers, Sources};
use cgroups::Cgroups;
use nftables::{Nftables, Table};

pub use guard::GUARD_TABLE;
pub use keeper::{HostEvent, Keeper, Refused};
pub use netlink::KernelError;
pub use separation::SEPARATION_TABLE;

/// Below the metric of ordinary routes: the overlay's prefix leads into the tunnel.
const TUNNEL_METRIC: u32 = 50;
/// The worst metric there is: counts only when nothing else leads to the overlay.
const UNREACHABLE_METRIC: u32 = u32::MAX;

/// How long the kernel may take to make an IPv6 address its own after it was added.
const LOCAL_ROUTE_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for meanwhile.
const LOCAL_ROUTE_INTERVAL: Duration = Duration::from_millis(2);

/// Addresses of this namespace that another host could dial, on every device but the TUN with this index.
pub fn dialable_addresses(tun: u32) -> Result<Vec<IpAddr>, KernelError> {
    Addressing::open()?.dialable(tun)
}

/// Brings the loopback device of the calling thread's network namespace up.
pub fn bring_up_loopback() -> Result<(), KernelError> {
    Addressing::open()?.bring_up_loopback()
}

/// What the host is to look like while the node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The prefixes that lead into the tunnel.
    pub overlay: Overlay,
    /// This host's instances, those with members by ties first, in the configuration's order. With none nothing leads into the
    /// tunnel: the overlay is unreachable.
    pub instances: Vec<HostInstance>,
    /// What policy lets pass between two of them. Between different instances everything else is refused; replies pass.
    pub openings: Vec<LocalOpening>,
    /// Interface index of the TUN device.
    pub device: u32,
    /// Largest inner packet in bytes.
    pub mtu: u32,
}

/// One instance on this host: its addresses, and whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInstance {
    /// Its overlay addresses.
    pub addresses: OverlayAddresses,
    /// The processes that may use them.
    pub members: Members,
}

/// What one instance of this host may open towards another, at layer 4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalOpening {
    /// Who opens it, by its place in [`Desired::instances`].
    pub from: usize,
    /// Towards whom, likewise; never the same.
    pub to: usize,
    /// What.
    pub allows: Allows,
}

/// A kind of packet that opens a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allows {
    /// A TCP connection to one of these ports.
    Tcp(RangeInclusive<u16>),
    /// A datagram to one of these ports.
    Udp(RangeInclusive<u16>),
    /// An ICMP echo request.
    Echo,
}

impl Desired {
    /// Every instance's addresses.
    fn addresses(&self) -> impl Iterator<Item = &OverlayAddresses> {
        self.instances.iter().map(|instance| &instance.addresses)
    }
}

/// What [`Host::apply`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// One phrase per change, for the log; empty when everything was as desired.
    pub made: Vec<String>,
    /// What works less well than it could, new since the last time.
    pub notes: Vec<String>,
    /// All that changed is which cgroups are meant: a unit came, went or started again.
    pub followed: bool,
    /// IPv6 is switched off on this host: only the IPv4 half of the overlay works.
    pub ipv6_off: bool,
}

/// Why the host could not be brought into the desired state. Each text ends in the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The process may not change the network configuration.
    #[error(
        "changing addresses, routes and nftables is not permitted here; run warren as root, or give it CAP_NET_ADMIN \
         (systemd: AmbientCapabilities=CAP_NET_ADMIN; containers: --cap-add NET_ADMIN)"
    )]
    NotPermitted,
    /// The kernel cannot hold the guard.
    #[error(
        "the kernel refuses the nftables guard ({0}), and without it overlay addresses could be reached around the \
         tunnel; load nf_tables (modprobe nf_tables nft_fib_inet) on the host, kernel 5.12 or newer"
    )]
    NoNftables(KernelError),
    /// The kernel cannot tell whose a socket is.
    #[error("this host's instances cannot be kept apart: {0}; or leave one instance on this host")]
    NoSeparation(String),
    /// Another node runs in this network namespace.
    #[error(
        "another warren node runs in this network namespace, and a namespace holds one; see `warren status`, stop it \
         with `warren down`, or start this one in a namespace of its own"
    )]
    NamespaceTaken,
    /// The TUN device is gone.
    #[error(
        "the TUN device (index {0}) is gone; somebody removed it or moved it to another namespace: start the node again"
    )]
    DeviceGone(u32),
    /// Something else uses addresses of the overlay.
    #[error(
        "the overlay's prefix {prefix} is in use on this host by `{by}`; remove that, or give the mesh another prefix"
    )]
    PrefixInUse {
        /// The overlay's prefix.
        prefix: String,
        /// The route that lies inside it.
        by: String,
    },
    /// Neither half of the overlay can work.
    #[error(
        "IPv6 is switched off on {device} and the mesh has no IPv4 prefix; set net.ipv6.conf.{device}.disable_ipv6=0 \
         (containers: --sysctl net.ipv6.conf.all.disable_ipv6=0)"
    )]
    NoAddressFamily {
        /// Name of the TUN device.
        device: String,
    },
    /// The kernel refused one change.
    #[error("{what}: {error}; compare with `ip address`, `ip route` and `nft list ruleset`, then start the node again")]
    Refused {
        /// What was to be done.
        what: String,
        /// The kernel's answer.
        error: KernelError,
    },
    /// The keeper has given up.
    #[error("the host's network state is no longer kept; start the node again")]
    NotKept,
}

impl HostError {
    fn refused(what: impl Into<String>) -> impl FnOnce(KernelError) -> Self {
        let what = what.into();
        move |error| match error.errno {
            libc::EPERM | libc::EACCES => Self::NotPermitted,
            _ => Self::Refused { what, error },
        }
    }
}

/// The network state of one namespace, claimed for this process.
pub struct Host {
    addressing: Addressing,
    nftables: Nftables,
    /// Holds the claim for as long as it lives.
    _claim: Nftables,
    cgroups: Cgroups,
    applied: Option<Desired>,
    /// What the separation counted in the tables that it no longer stands in.
    refused_before: Vec<(OverlayAddresses, u64)>,
    /// The separation as it was last put in place.
    separation: Option<Table>,
    /// The programs that choose a source, by the cgroup that they are in.
    sources: BTreeMap<u64, Sources>,
    /// The program that looks at receivers, and for whom.
    receivers: Option<Receivers>,
    /// What was noted already.
    noted: BTreeSet<String>,
}

impl Host {
    /// Claims the calling thread's network namespace for this node. The claim ends with the value, or with the
    /// process.
    pub fn claim() -> Result<Self, HostError> {
        let addressing = Addressing::open().map_err(HostError::refused("open an rtnetlink socket"))?;
        let mut claim = Nftables::open().map_err(HostError::NoNftables)?;
        claim.claim().map_err(|error| match (error.errno, error.request) {
            (libc::EEXIST, _) | (libc::EPERM, 1..) => HostError::NamespaceTaken,
            (libc::EPERM | libc::EACCES, _) => HostError::NotPermitted,
            _ => HostError::NoNftables(error),
        })?;
        let nftables = Nftables::open().map_err(HostError::NoNftables)?;
        let cgroups = Cgroups::open();
        Ok(Self {
            addressing,
            nftables,
            _claim: claim,
            cgroups,
            applied: None,
            refused_before: Vec::new(),
            separation: None,
            sources: BTreeMap::new(),
            receivers: None,
            noted: BTreeSet::new(),
        })
    }

    /// Brings the host into the desired state. Guard, separation and `unreachable` routes come before the addresses they are
    /// for, and addresses that go do so before them, so that no step of the way is open.
    pub fn apply(&mut self, desired: &Desired) -> Result<Changes, HostError> {
        let mut changes = Changes::default();
        let prefixes = prefixes(&desired.overlay);
        let routes = self.routes()?;
        if self.applied.as_ref().is_none_or(|applied| applied.overlay != desired.overlay) {
            refuse_overlap(&prefixes, &routes, desired)?;
        }
        self.apply_guard(&guard::table(&prefixes, desired.device), &mut changes)?;
        self.link(desired.device)?;
        self.remove_addresses(desired, true, &mut changes)?;
        let before = changes.made.len();
        let followed = self.apply_separation(desired, &mut changes)?;
        let separated = changes.made.len() - before;
        self.apply_unreachable(&prefixes, &routes, &mut changes)?;
        let v6 = self.apply_link(desired, &mut changes)?;
        if !v6 && desired.overlay.v4.is_none() {
            let device = self.link(desired.device)?.name;
            return Err(HostError::NoAddressFamily { device });
        }
        changes.ipv6_off = !v6;
        self.remove_addresses(desired, v6, &mut changes)?;
        self.add_addresses(desired, v6, &mut changes)?;
        self.apply_tunnel_routes(desired, v6, &mut changes)?;
        changes.followed = followed && changes.made.len() == separated;
        self.applied = Some(desired.clone());
        Ok(changes)
    }

    /// Takes back what [`apply`](Self::apply) did, except the `unreachable` routes. Addresses and routes go before
    /// the guard: at no moment is an overlay address reachable without it. A device that is gone took them along.
    pub fn revert(&mut self) -> Result<(), HostError> {
        let Some(applied) = self.applied.take() else { return Ok(()) };
        let nothing = Desired { instances: Vec::new(), openings: Vec::new(), ..applied };
        let device_there = self.link(nothing.device).is_ok();
        if device_there {
            let mut changes = Changes::default();
            for seen in self.routes()?.iter().filter(|seen| leads_to(seen, nothing.device)) {
                self.remove_route(&seen.route, &mut changes)?;
            }
            self.remove_addresses(&nothing, true, &mut changes)?;
        }
        self.remove_separation(&mut Changes::default())?;
        self.nftables.remove(GUARD_TABLE).map_err(HostError::refused("remove the nftables guard"))?;
        Ok(())
    }

    /// What becomes readable when a cgroup that may be an instance's has come or gone.
    fn notices(&self) -> Option<BorrowedFd<'_>> {
        self.cgroups.notices()
    }

    /// Takes those notices; whether there were any.
    fn take_notices(&self) -> bool {
        self.cgroups.drain()
    }

    fn link(&mut self, device: u32) -> Result<addressing::Link, HostError> {
        self.addressing.link(device).map_err(|error| match error.errno {
            libc::ENODEV => HostError::DeviceGone(device),
            _ => HostError::refused("read the TUN device")(error),
        })
    }

    fn routes(&mut self) -> Result<Vec<SeenRoute>, HostError> {
        self.addressing.routes().map_err(HostError::refused("read the routes"))
    }

    fn apply_guard(&mut self, guard: &Table, changes: &mut Changes) -> Result<(), HostError> {
        let there = self.nftables.read(GUARD_TABLE).map_err(HostError::refused("read the nftables guard"))?;
        if there.map(|there| there.table).as_ref() != Some(guard) {
            self.nftables.install(guard).map_err(|error| match error.errno {
                libc::EPERM | libc::EACCES => HostError::NotPermitted,
                _ => HostError::NoNftables(error),
            })?;
            changes.made.push(format!("nftables table {GUARD_TABLE} installed"));
        }
        Ok(())
    }

    fn apply_unreachable(
        &mut self,
        prefixes: &[Prefix],
        routes: &[SeenRoute],
        changes: &mut Changes,
    ) -> Result<(), HostError> {
        let wanted = prefixes.iter().map(|prefix| Route {
            prefix: *prefix,
            towards: Towards::Unreachable,
            metric: UNREACHABLE_METRIC,
            source: None,
        });
        let wanted: Vec<_> = wanted.filter(|route| route.prefix.first.is_ipv4() || ipv6_exists()).collect();
        for route in &wanted {
            if !routes.iter().any(|seen| seen.ours && seen.route == *route) {
                self.add_route(route, changes)?;
            }
        }
        // Of a mesh that this host left.
        for seen in routes.iter().filter(|seen| seen.ours && seen.route.towards == Towards::Unreachable) {
            if !wanted.contains(&seen.route) {
                self.remove_route(&seen.route, changes)?;
            }
        }
        Ok(())
    }

    /// Brings the device up; whether IPv6 works on it.
    fn apply_link(&mut self, desired: &Desired, changes: &mut Changes) -> Result<bool, HostError> {
        let link = self.link(desired.device)?;
        let v6 = ipv6_exists() && enable_ipv6(&link.name);
        if !link.up || link.mtu != desired.mtu {
            self.addressing
                .bring_up(desired.device, desired.mtu)
                .map_err(HostError::refused(format!("bring up {} with MTU {}", link.name, desired.mtu)))?;
            changes.made.push(format!("{} is up, MTU {}", link.name, desired.mtu));
        }
        Ok(v6)
    }

    fn remove_addresses(&mut self, desired: &Desired, v6: bool, changes: &mut Changes) -> Result<(), HostError> {
        let there = self.addresses(desired.device)?;
        for address in there.difference(&wanted_addresses(desired, v6)) {
            match self.addressing.remove_address(desired.device, *address) {
                // Gone meanwhile, together with another that it hung on.
                Err(error) if error.errno == libc::EADDRNOTAVAIL => {}
                outcome => outcome.map_err(HostError::refused(format!("remove address {address}")))?,
            }
            changes.made.push(format!("address {address} removed"));
        }
        Ok(())
    }

    /// Adds what is missing, and waits until it takes packets.
    fn add_addresses(&mut self, desired: &Desired, v6: bool, changes: &mut Changes) -> Result<(), HostError> {
        let wanted = wanted_addresses(desired, v6);
        for address in wanted.difference(&self.addresses(desired.device)?) {
            self.addressing
                .add_address(desired.device, *address)
                .map_err(HostError::refused(format!("add address {address}")))?;
            changes.made.push(format!("address {address} added"));
        }
        self.await_local_routes(desired.device, &wanted)
    }

    fn addresses(&mut self, device: u32) -> Result<BTreeSet<Prefix>, HostError> {
        let addresses = self.addressing.addresses(device).map_err(HostError::refused("read the addresses"))?;
        Ok(addresses.into_iter().collect())
    }

    /// Waits until the kernel takes packets for these addresses: the local route of an IPv6 address comes some time after the
    /// address itself, and until then what is for it counts as an error.
    fn await_local_routes(&mut self, device: u32, addresses: &BTreeSet<Prefix>) -> Result<(), HostError> {
        let deadline = std::time::Instant::now() + LOCAL_ROUTE_PATIENCE;
        loop {
            let local: BTreeSet<_> = self
                .routes()?
                .into_iter()
                .filter(|seen| matches!(seen.route.towards, Towards::Local(_)))
                .map(|seen| seen.route.prefix)
                .collect();
            let Some(missing) = addresses.difference(&local).next() else { return Ok(()) };
            if std::time::Instant::now() >= deadline {
                // Whatever took the route away: the address comes anew with the next attempt, and its route with it.
                let _ = self.addressing.remove_address(device, *missing);
                let error = KernelError { errno: libc::ETIMEDOUT, request: 0, text: String::new() };
                return Err(HostError::Refused { what: format!("wait until {missing} takes packets"), error });
            }
            std::thread::sleep(LOCAL_ROUTE_INTERVAL);
        }
    }

    fn apply_tunnel_routes(&mut self, desired: &Desired, v6: bool, changes: &mut Changes) -> Result<(), HostError> {
        // The source of a program that chooses none: it is right for the rest, and refused to all others.
        let rest = desired.instances.iter().find(|instance| instance.members == Members::Rest);
        let only = match desired.instances.as_slice() {
            [only] => Some(only),
            _ => rest,
        };
        let only = only.map(|instance| instance.addresses);
        let wanted: Vec<_> = prefixes(&desired.overlay)
            .into_iter()
            .filter(|prefix| !desired.instances.is_empty() && (prefix.first.is_ipv4() || v6))
            .map(|prefix| Route {
                prefix,
                towards: Towards::Device(desired.device),
                metric: TUNNEL_METRIC,
                source: only.and_then(|only| only.iter().find(|each| each.is_ipv4() == prefix.first.is_ipv4())),
            })
            .collect();
        let there = self.routes()?;
        for seen in there.iter().filter(|seen| leads_to(seen, desired.device)) {
            if !(seen.ours && wanted.contains(&seen.route)) {
                self.remove_route(&seen.route, changes)?;
            }
        }
        for route in &wanted {
            if !there.iter().any(|seen| seen.ours && seen.route == *route) {
                self.add_route(route, changes)?;
            }
        }
        Ok(())
    }

    fn add_route(&mut self, route: &Route, changes: &mut Changes) -> Result<(), HostError> {
        self.addressing.add_route(route).map_err(HostError::refused(format!("add {route}")))?;
        changes.made.push(format!("{route} added"));
        Ok(())
    }

    fn remove_route(&mut self, route: &Route, changes: &mut Changes) -> Result<(), HostError> {
        match self.addressing.remove_route(route) {
            Err(error) if error.errno == libc::ESRCH => return Ok(()),
            outcome => outcome.map_err(HostError::refused(format!("remove {route}")))?,
        }
        changes.made.push(format!("{route} removed"));
        Ok(())
    }
}

fn prefixes(overlay: &Overlay) -> Vec<Prefix> {
    let v6 = Prefix { first: IpAddr::V6(overlay.v6.0), length: overlay.v6.1 };
    let v4 = overlay.v4.map(|(first, length)| Prefix { first: IpAddr::V4(first), length });
    [Some(v6), v4].into_iter().flatten().collect()
}

fn usable(addresses: &OverlayAddresses, v6: bool) -> impl Iterator<Item = IpAddr> + use<> {
    addresses.iter().filter(move |address| address.is_ipv4() || v6)
}

fn wanted_addresses(desired: &Desired, v6: bool) -> BTreeSet<Prefix> {
    desired.addresses().flat_map(|each| usable(each, v6)).map(Prefix::host).collect()
}

/// Whether the route is one of the main table out of the TUN device: all of those are warren's to decide, except
/// the multicast and link-local ones that the kernel makes by itself.
fn leads_to(seen: &SeenRoute, device: u32) -> bool {
    let kernels_own = match seen.route.prefix.first {
        IpAddr::V6(first) => first.is_multicast() || first.is_unicast_link_local(),
        IpAddr::V4(first) => first.is_multicast(),
    };
    seen.main_table && seen.route.towards == Towards::Device(device) && !kernels_own
}

/// Refuses an overlay whose addresses the host already uses otherwise: the tunnel would cut off that network, or
/// that network would take packets from the tunnel.
fn refuse_overlap(prefixes: &[Prefix], routes: &[SeenRoute], desired: &Desired) -> Result<(), HostError> {
    let own: Vec<_> = desired.addresses().flat_map(OverlayAddresses::iter).map(Prefix::host).collect();
    for seen in routes {
        let route = &seen.route;
        let elsewhere = match route.towards {
            Towards::Device(device) => device != desired.device,
            Towards::Local(device) => device != desired.device && !own.contains(&route.prefix),
            Towards::Unreachable => false,
            Towards::Other => seen.main_table,
        };
        if let Some(prefix) = prefixes.iter().find(|prefix| elsewhere && prefix.covers(route.prefix)) {
            return Err(HostError::PrefixInUse { prefix: prefix.to_string(), by: route.to_string() });
        }
    }
    Ok(())
}

fn ipv6_exists() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Switches IPv6 on for our own device where the system's default is off (containers); whether it is on now.
fn enable_ipv6(device: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
    let on = || std::fs::read_to_string(&path).is_ok_and(|value| value.trim() == "0");
    on() || (std::fs::write(&path, "0").is_ok() && on())
}
