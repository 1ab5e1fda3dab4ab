//! The host's desired state on real kernels: every claim in network namespaces of its own.
//!
//! ```text
//!   host a (the node)                host b (a neighbour without warren)
//!    warren0  fd12:3456:789a::a       |
//!             10.77.0.10              |
//!    eth0     198.51.100.1           eth0  198.51.100.2
//!     |                               |
//!   ==+===============================+====   wire0
//! ```

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "everything here is a test")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use libtest_mimic::{Arguments, Failed, Trial};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use rustix::net::{AddressFamily, SocketType};
use warren_netns_tests::host::{self as lab_host, netlink};
use warren_netns_tests::lab::Lab;
use warren_node::data_plane::io::InnerIo;
use warren_node::data_plane::offload::{Offloads, Switches};
use warren_node::data_plane::tun::{self, Tun, TunError};
use warren_node::host::{Desired, GUARD_TABLE, Host, HostError, HostEvent, HostInstance, Keeper};
use warren_node::selectors::Members;
use warren_proto::overlay::{Overlay, OverlayAddresses};

const DEVICE: &str = "warren0";
const PREFIX_V6: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);
const PREFIX_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 0);
/// Long enough for anything that happens on one machine without a fault.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long silence must last to count; the way it would be broken is shown to work first.
const SILENCE: Duration = Duration::from_millis(400);

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    warren_netns_tests::namespace::enter()?;
    libtest_mimic::run(
        &arguments,
        vec![
            claim("applying_twice_changes_nothing", applying_twice_changes_nothing),
            claim("an_address_that_is_set_takes_packets", an_address_that_is_set_takes_packets),
            claim("any_sequence_of_states_ends_in_the_last_one", any_sequence_of_states_ends_in_the_last_one),
            claim("reverting_leaves_only_the_unreachable_routes", reverting_leaves_only_the_unreachable_routes),
            claim("without_an_address_the_overlay_is_unreachable", without_an_address_the_overlay_is_unreachable),
            claim("what_somebody_flushes_comes_back", what_somebody_flushes_comes_back),
            claim("a_changed_guard_is_noticed_and_put_right", a_changed_guard_is_noticed_and_put_right),
            claim("a_neighbour_reaches_no_overlay_address", a_neighbour_reaches_no_overlay_address),
            claim("a_neighbour_cannot_pose_as_an_overlay_address", a_neighbour_cannot_pose_as_an_overlay_address),
            claim("nobody_on_the_host_sends_as_a_peer", nobody_on_the_host_sends_as_a_peer),
            claim("after_a_crash_overlay_traffic_does_not_leave", after_a_crash_overlay_traffic_does_not_leave),
            claim("a_more_specific_route_does_not_lead_around", a_more_specific_route_does_not_lead_around),
            claim("a_second_node_in_the_namespace_is_refused", a_second_node_in_the_namespace_is_refused),
            claim("a_removed_device_is_named_and_ends_the_keeping", a_removed_device_is_named_and_ends_the_keeping),
            claim("an_overlay_that_the_host_uses_is_refused", an_overlay_that_the_host_uses_is_refused),
            claim("a_default_of_no_ipv6_does_not_bind_the_tunnel", a_default_of_no_ipv6_does_not_bind_the_tunnel),
            claim("without_the_capability_the_node_names_it", without_the_capability_the_node_names_it),
            claim("a_device_name_that_is_taken_or_wrong_is_named", a_device_name_that_is_taken_or_wrong_is_named),
        ],
    )
    .exit()
}

fn claim(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:?}"))))
}

fn own() -> OverlayAddresses {
    addresses(10)
}

fn addresses(number: u8) -> OverlayAddresses {
    OverlayAddresses {
        v6: Ipv6Addr::from(u128::from(PREFIX_V6) | u128::from(number)),
        v4: Some(Ipv4Addr::from(u32::from(PREFIX_V4) | u32::from(number))),
    }
}

fn everybodys(addresses: OverlayAddresses) -> HostInstance {
    HostInstance { addresses, members: Members::Rest }
}

fn desired(tun: &Tun) -> Desired {
    Desired {
        overlay: Overlay { v6: (PREFIX_V6, 48), v4: Some((PREFIX_V4, 16)) },
        instances: vec![everybodys(own())],
        openings: Vec::new(),
        device: tun.index,
        mtu: 1420,
    }
}

fn open() -> Result<Tun> {
    tun::open(DEVICE, 2, &Offloads::new(Switches::ON)).context("open the TUN device")
}

/// Runs `work` in a host of a lab of its own.
fn on_a_host<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    Lab::new()?.host("a")?.namespace.run(work)
}

fn block_on<T, F: Future<Output = Result<T>>>(work: F) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

async fn address_messages(device: u32) -> Result<Vec<AddressMessage>> {
    let all: Vec<_> = netlink().await?.address().get().execute().try_collect().await?;
    Ok(all.into_iter().filter(|message| message.header.index == device).collect())
}

/// The addresses on a device, read by other means than the code under test.
fn addresses_on(device: u32) -> Result<BTreeSet<IpAddr>> {
    block_on(async {
        let messages = address_messages(device).await?;
        let address = |attribute: &AddressAttribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        };
        Ok(messages.iter().filter_map(|message| message.attributes.iter().find_map(address)).collect())
    })
}

async fn route_messages() -> Result<Vec<RouteMessage>> {
    let handle = netlink().await?;
    // One after the other: a netlink socket reads one table at a time.
    let v4 = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let mut all: Vec<_> = v4.try_collect().await?;
    let v6 = handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute();
    all.extend(v6.try_collect::<Vec<_>>().await?);
    Ok(all)
}

/// Destination and metric of the `unreachable` routes.
fn unreachable_routes() -> Result<BTreeSet<(IpAddr, u32)>> {
    let messages = block_on(route_messages())?;
    Ok(messages
        .iter()
        .filter(|message| message.header.kind == RouteType::Unreachable)
        .filter_map(|message| Some((destination(message)?, metric(message))))
        .collect())
}

fn destination(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

fn metric(message: &RouteMessage) -> u32 {
    let priority = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    };
    message.attributes.iter().find_map(priority).unwrap_or(0)
}

/// Deletes an nftables table of family `inet`.
fn delete_table(name: &str) -> Result<()> {
    delete_in_nftables(2, name)
}

/// Deletes every rule of an nftables table of family `inet`.
fn delete_rules(name: &str) -> Result<()> {
    delete_in_nftables(8, name)
}

/// Switches an nftables table of family `inet` off, and leaves it where it is.
fn switch_off_table(name: &str) -> Result<()> {
    // Attribute 2, the table's flags: 1 is NFT_TABLE_F_DORMANT.
    change_in_nftables(0, name, &[8, 0, 2, 0, 0, 0, 0, 1])
}

fn delete_in_nftables(what: u16, name: &str) -> Result<()> {
    change_in_nftables(what, name, &[])
}

/// One nfnetlink batch with one change, by table name, as anybody with the capability can send it.
fn change_in_nftables(what: u16, name: &str, more: &[u8]) -> Result<()> {
    let message = |kind: u16, flags: u16, sequence: u32, header: [u8; 4], attribute: &[u8]| {
        let length = 20 + attribute.len();
        let mut bytes = u32::try_from(length).unwrap().to_ne_bytes().to_vec();
        bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        bytes.extend([sequence.to_ne_bytes(), [0; 4]].concat());
        bytes.extend(header);
        bytes.extend(attribute);
        bytes
    };
    let mut attribute = u16::try_from(name.len() + 5)?.to_ne_bytes().to_vec();
    attribute.extend(1_u16.to_ne_bytes());
    attribute.extend(name.as_bytes());
    attribute.push(0);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute.extend(more);
    let (request, acknowledge) = (1, 5);
    let batch = [
        message(16, request, 1, [0, 0, 0, 10], &[]),
        message(10 << 8 | what, acknowledge, 2, [1, 0, 0, 0], &attribute),
        message(17, request, 3, [0, 0, 0, 10], &[]),
    ]
    .concat();
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send_to(&batch, &netlink_sys::SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match i32::from_ne_bytes(answer[16..20].try_into()?) {
        0 => Ok(()),
        code => bail!("change table {name}: {}", std::io::Error::from_raw_os_error(-code)),
    }
}

fn applying_twice_changes_nothing() -> Result<()> {
    on_a_host(|| {
        let tun = open()?;
        let mut host = Host::claim()?;
        let first = host.apply(&desired(&tun))?;
        ensure!(!first.made.is_empty() && !first.ipv6_off);
        let second = host.apply(&desired(&tun))?;
        ensure!(second.made.is_empty(), "the second time changed {:?}", second.made);
        ensure!(addresses_on(tun.index)? == own().iter().collect(), "{:?}", addresses_on(tun.index)?);
        let routes = BTreeSet::from([(IpAddr::V6(PREFIX_V6), u32::MAX), (IpAddr::V4(PREFIX_V4), u32::MAX)]);
        ensure!(unreachable_routes()? == routes, "{:?}", unreachable_routes()?);
        Ok(())
    })
}

/// The kernel makes the local route of an IPv6 address from its queue of work, some time after the address.
fn an_address_that_is_set_takes_packets() -> Result<()> {
    on_a_host(|| {
        let tun = open()?;
        let mut host = Host::claim()?;
        for number in 1..100 {
            host.apply(&Desired { instances: vec![everybodys(addresses(number))], ..desired(&tun) })?;
            let routes = std::fs::read_to_string("/proc/thread-self/net/ipv6_route")?;
            let route = format!("{:032x} 80 ", addresses(number).v6.to_bits());
            ensure!(routes.lines().any(|line| line.starts_with(&route)), "{number}: no local route:\n{routes}");
        }
        Ok(())
    })
}

fn any_sequence_of_states_ends_in_the_last_one() -> Result<()> {
    on_a_host(|| {
        let tun = open()?;
        let mut host = Host::claim()?;
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut choose = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for step in 0..40 {
            let mut state = desired(&tun);
            state.instances = (1..6).filter(|_| choose(2) == 0).map(|number| everybodys(addresses(number))).collect();
            state.mtu = [1280, 1420, 8920][usize::try_from(choose(3))?];
            if choose(3) == 0 {
                state.overlay.v4 = None;
                state.instances.iter_mut().for_each(|each| each.addresses.v4 = None);
            }
            if choose(4) == 0 {
                state.overlay.v6.0 = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0);
            }
            host.apply(&state)?;
            let again = host.apply(&state)?;
            ensure!(again.made.is_empty(), "step {step}: {state:?} was not reached: {:?}", again.made);
            let wanted: BTreeSet<_> = state.instances.iter().flat_map(|each| each.addresses.iter()).collect();
            ensure!(addresses_on(tun.index)? == wanted, "step {step}");
            ensure!(unreachable_routes()?.len() == 1 + usize::from(state.overlay.v4.is_some()), "step {step}");
        }
        host.revert()?;
        ensure!(addresses_on(tun.index)?.is_empty());
        Ok(())
    })
}

fn reverting_leaves_only_the_unreachable_routes() -> Result<()> {
    on_a_host(|| {
        let tun = open()?;
        let mut host = Host::claim()?;
        host.apply(&desired(&tun))?;
        host.revert()?;
        host.revert().context("a second time")?;
        ensure!(addresses_on(tun.index)?.is_empty());
        ensure!(delete_table(GUARD_TABLE).is_err(), "the guard is still there");
        drop((host, tun));
        ensure!(unreachable_routes()?.len() == 2);
        let overlay = Overlay { v6: (PREFIX_V6, 48), v4: Some((PREFIX_V4, 16)) };
        let left =
            block_on(route_messages())?.iter().filter_map(destination).filter(|to| overlay.contains(*to)).count();
        ensure!(left == 2);
        // The next start takes what the last one left as its own.
        let (tun, mut host) = (open()?, Host::claim()?);
        let changes = host.apply(&desired(&tun))?;
        ensure!(!changes.made.iter().any(|change| change.starts_with("unreachable")), "{:?}", changes.made);
        Ok(())
    })
}

fn without_an_address_the_overlay_is_unreachable() -> Result<()> {
    let mut lab = Lab::new()?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    a.namespace.run(|| {
        let (tun, mut host) = (open()?, Host::claim()?);
        let closed = Desired { instances: Vec::new(), ..desired(&tun) };
        host.apply(&closed)?;
        ensure!(host.apply(&closed)?.made.is_empty());
        for (peer, gateway) in addresses(20).iter().zip([IpAddr::V6(b.v6), IpAddr::V4(b.v4)]) {
            let to = SocketAddr::from((peer, 9));
            let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let error = UdpSocket::bind((any, 0))?.send_to(b"in clear", to).expect_err("no way out");
            ensure!(matches!(error.raw_os_error(), Some(libc::EHOSTUNREACH | libc::ENETUNREACH)), "{to}: {error}");
            // Not even by a route that somebody made for it: the guard stands too.
            block_on(route_through(peer, gateway))?;
            let error = UdpSocket::bind((any, 0))?.send_to(b"in clear", to).expect_err("no way around");
            ensure!(error.raw_os_error() == Some(libc::EPERM), "{to}: {error}");
        }
        // With its address the host has a way into the tunnel.
        host.apply(&desired(&tun))?;
        let peer = addresses(21).v6;
        UdpSocket::bind((own().v6, 0))?.send_to(b"into the tunnel", (peer, 9)).context("by the tunnel")?;
        Ok(())
    })
}

/// Starts a keeper that reports what it repaired.
fn keep(tun: &Tun) -> Result<(Keeper, mpsc::Receiver<HostEvent>)> {
    let (events, received) = mpsc::channel();
    let host = Host::claim()?;
    let (keeper, _) = Keeper::start(host, desired(tun), move |event| drop(events.send(event)))?;
    Ok((keeper, received))
}

/// Waits until repairs have mentioned `what`.
fn repaired(events: &mpsc::Receiver<HostEvent>, what: &str) -> Result<()> {
    loop {
        match events.recv_timeout(PATIENCE).with_context(|| format!("nobody repaired {what:?}"))? {
            HostEvent::Repaired(changes) if changes.iter().any(|change| change.contains(what)) => return Ok(()),
            HostEvent::Repaired(_) | HostEvent::Followed => {}
            HostEvent::Failed(error) => bail!("{error}"),
        }
    }
}

fn what_somebody_flushes_comes_back() -> Result<()> {
    on_a_host(|| {
        let tun = open()?;
        let (keeper, events) = keep(&tun)?;
        block_on(async {
            let handle = netlink().await?;
            for message in address_messages(tun.index).await? {
                handle.address().del(message).execute().await?;
            }
            Ok(())
        })?;
        repaired(&events, "address fd12:3456:789a::a/128 added")?;
        block_on(async {
            let handle = netlink().await?;
            for message in route_messages().await?.into_iter().filter(|each| metric(each) == u32::MAX) {
                handle.route().del(message).execute().await?;
            }
            Ok(())
        })?;
        repaired(&events, "unreachable")?;
        delete_table(GUARD_TABLE)?;
        repaired(&events, GUARD_TABLE)?;
        block_on(async {
            let down = LinkUnspec::new_with_index(tun.index).down().build();
            Ok(netlink().await?.link().change(down).execute().await?)
        })?;
        repaired(&events, "is up")?;
        let again = keeper.apply(desired(&tun))?;
        ensure!(again.made.is_empty(), "{:?}", again.made);
        ensure!(addresses_on(tun.index)? == own().iter().collect(), "{:?}", addresses_on(tun.index)?);
        keeper.stop()?;
        ensure!(addresses_on(tun.index)?.is_empty());
        Ok(())
    })
}

fn a_changed_guard_is_noticed_and_put_right() -> Result<()> {
    on_a_host(|| {
        let tun = open()?;
        let (keeper, events) = keep(&tun)?;
        // The table and its chains still stand, and let everything through.
        delete_rules(GUARD_TABLE)?;
        repaired(&events, GUARD_TABLE)?;
        switch_off_table(GUARD_TABLE)?;
        repaired(&events, GUARD_TABLE)?;
        // Another prefix is another guard.
        let mut other = desired(&tun);
        other.overlay.v6.1 = 64;
        let changes = keeper.apply(other.clone())?;
        ensure!(changes.made.iter().any(|change| change.contains(GUARD_TABLE)), "{:?}", changes.made);
        ensure!(keeper.apply(other)?.made.is_empty());
        keeper.stop()?;
        Ok(())
    })
}

/// Sends one datagram from a fresh socket at `from`.
fn send(from: IpAddr, to: SocketAddr) -> Result<()> {
    UdpSocket::bind((from, 0)).context("bind")?.send_to(b"hello", to).context("send")?;
    Ok(())
}

fn hears(socket: &UdpSocket, within: Duration) -> Result<bool> {
    socket.set_read_timeout(Some(within))?;
    Ok(socket.recv_from(&mut [0; 64]).is_ok())
}

/// A host route to `destination` through `gateway`.
async fn route_through(destination: IpAddr, gateway: IpAddr) -> Result<()> {
    let message = match (destination, gateway) {
        (IpAddr::V4(destination), IpAddr::V4(gateway)) => {
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(destination, 32).gateway(gateway).build()
        }
        (IpAddr::V6(destination), IpAddr::V6(gateway)) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(destination, 128).gateway(gateway).build()
        }
        _ => bail!("both of one family"),
    };
    Ok(netlink().await?.route().add(message).execute().await?)
}

/// Gives the host `address` as its own, usable at once.
async fn add_to_loopback(address: IpAddr) -> Result<()> {
    let handle = netlink().await?;
    let loopback = lab_host::device(&handle, "lo").await?;
    let mut request = handle.address().add(loopback, address, if address.is_ipv4() { 32 } else { 128 });
    request.message_mut().header.flags = AddressHeaderFlags::Nodad;
    Ok(request.execute().await?)
}

fn a_neighbour_reaches_no_overlay_address() -> Result<()> {
    let mut lab = Lab::new()?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let (tun, mut host) = a.namespace.run(|| Ok((open()?, Host::claim()?)))?;
    a.namespace.run(|| Ok(host.apply(&desired(&tun))?))?;
    for (address, gateway) in own().iter().zip([IpAddr::V6(a.v6), IpAddr::V4(a.v4)]) {
        b.namespace.run(|| block_on(route_through(address, gateway)))?;
        let service = a.namespace.run(|| Ok(UdpSocket::bind((address, 0))?))?;
        let (service_at, from) =
            (service.local_addr()?, if address.is_ipv4() { IpAddr::V4(b.v4) } else { IpAddr::V6(b.v6) });
        b.namespace.run(|| send(from, service_at))?;
        ensure!(!hears(&service, SILENCE)?, "{address} was reached from the wire");
        // The same without the guard, to know that this is what stopped it.
        a.namespace.run(|| delete_table(GUARD_TABLE))?;
        b.namespace.run(|| send(from, service_at))?;
        ensure!(hears(&service, PATIENCE)?, "the attempt does not reach {address} even without the guard");
        a.namespace.run(|| Ok(host.apply(&desired(&tun))?))?;
        // A program on the host itself still may.
        a.namespace.run(|| send(address, service_at))?;
        ensure!(hears(&service, PATIENCE)?, "a local program cannot reach {address}");
    }
    Ok(())
}

fn a_neighbour_cannot_pose_as_an_overlay_address() -> Result<()> {
    let mut lab = Lab::new()?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let (tun, mut host) = a.namespace.run(|| Ok((open()?, Host::claim()?)))?;
    a.namespace.run(|| Ok(host.apply(&desired(&tun))?))?;
    let service = a.namespace.run(|| Ok(UdpSocket::bind((a.v6, 0))?))?;
    let service_at = service.local_addr()?;
    let forged = IpAddr::V6(addresses(20).v6);
    b.namespace.run_async(|| add_to_loopback(forged))?;
    // The neighbours know each other before: else the guard would stop the answer to the solicitation that bears the forged
    // source, and the packet would never be sent.
    b.namespace.run(|| send(IpAddr::V6(b.v6), service_at))?;
    ensure!(hears(&service, PATIENCE)?, "the service is out of reach");
    b.namespace.run(|| send(forged, service_at))?;
    ensure!(!hears(&service, SILENCE)?, "a packet with a forged overlay source came in");
    a.namespace.run(|| delete_table(GUARD_TABLE))?;
    b.namespace.run(|| send(forged, service_at))?;
    ensure!(hears(&service, PATIENCE)?, "the attempt does not work even without the guard");
    Ok(())
}

/// Binding an address of IPv6 that is no local one takes no privilege.
fn nobody_on_the_host_sends_as_a_peer() -> Result<()> {
    on_a_host(|| {
        let (tun, mut host) = (open()?, Host::claim()?);
        host.apply(&desired(&tun))?;
        for to in [IpAddr::V6(Ipv6Addr::LOCALHOST), own().v6.into()] {
            let service = UdpSocket::bind((to, 0))?;
            service.set_read_timeout(Some(PATIENCE))?;
            let (peer, itself) = (addresses(20).v6, UdpSocket::bind((own().v6, 0))?);
            let poses = rustix::net::socket(AddressFamily::INET6, SocketType::DGRAM, None)?;
            rustix::net::sockopt::set_ipv6_freebind(&poses, true)?;
            rustix::net::bind(&poses, &SocketAddr::from((peer, 0)))?;
            let outcome = UdpSocket::from(poses).send_to(b"forged", service.local_addr()?);
            let error = outcome.err().with_context(|| format!("{to} is sent what bears {peer}"))?;
            ensure!(error.raw_os_error() == Some(libc::EPERM), "{to}: {error}");
            itself.send_to(b"true", service.local_addr()?)?;
            let mut heard = [0; 16];
            let (length, from) = service.recv_from(&mut heard)?;
            ensure!((&heard[..length], from) == (b"true", itself.local_addr()?), "{from}");
        }
        Ok(())
    })
}

fn after_a_crash_overlay_traffic_does_not_leave() -> Result<()> {
    on_a_host(|| {
        let peers: Vec<_> = addresses(20).iter().map(|address| SocketAddr::from((address, 9))).collect();
        let attempt = |to: &SocketAddr| {
            let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            UdpSocket::bind((any, 0))?.send_to(b"in clear", to)
        };
        for to in &peers {
            attempt(to).context("before the node ran, the default route takes it")?;
        }
        let (tun, mut host) = (open()?, Host::claim()?);
        host.apply(&desired(&tun))?;
        for to in &peers {
            attempt(to).context("while the node runs, the tunnel takes it")?;
        }
        // Nothing is reverted: the devices go as they go with a killed process.
        drop((host, tun));
        for to in &peers {
            let error = attempt(to).expect_err("no way out");
            ensure!(matches!(error.raw_os_error(), Some(libc::EHOSTUNREACH | libc::ENETUNREACH)), "{to}: {error}");
        }
        Ok(())
    })
}

fn a_more_specific_route_does_not_lead_around() -> Result<()> {
    let mut lab = Lab::new()?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let (tun, mut host) = a.namespace.run(|| Ok((open()?, Host::claim()?)))?;
    a.namespace.run(|| Ok(host.apply(&desired(&tun))?))?;
    for (peer, gateway) in addresses(20).iter().zip([IpAddr::V6(b.v6), IpAddr::V4(b.v4)]) {
        let sink = b.namespace.run(|| {
            block_on(add_to_loopback(peer))?;
            Ok(UdpSocket::bind((peer, 0))?)
        })?;
        let sink_at = sink.local_addr()?;
        a.namespace.run(|| block_on(route_through(peer, gateway)))?;
        let underlay = if peer.is_ipv4() { IpAddr::V4(a.v4) } else { IpAddr::V6(a.v6) };
        // The kernel may already refuse the sender; what counts is what arrives.
        let _ = a.namespace.run(|| send(underlay, sink_at));
        ensure!(!hears(&sink, SILENCE)?, "a packet to {peer} left by the wire");
        a.namespace.run(|| delete_table(GUARD_TABLE))?;
        a.namespace.run(|| send(underlay, sink_at))?;
        ensure!(hears(&sink, PATIENCE)?, "the attempt does not work even without the guard");
        a.namespace.run(|| Ok(host.apply(&desired(&tun))?))?;
    }
    Ok(())
}

fn a_second_node_in_the_namespace_is_refused() -> Result<()> {
    on_a_host(|| {
        let first = Host::claim()?;
        ensure!(matches!(Host::claim(), Err(HostError::NamespaceTaken)));
        ensure!(delete_table("warren_node").is_err(), "somebody else could take the claim away");
        drop(first);
        Host::claim().context("after the first has gone")?;
        Ok(())
    })
}

fn a_removed_device_is_named_and_ends_the_keeping() -> Result<()> {
    on_a_host(|| {
        let mut tun = open()?;
        let (keeper, events) = keep(&tun)?;
        block_on(async { Ok(netlink().await?.link().del(tun.index).execute().await?) })?;
        let gone = HostError::DeviceGone(tun.index);
        loop {
            match events.recv_timeout(PATIENCE)? {
                HostEvent::Failed(error) => break ensure!(error == gone, "{error}"),
                HostEvent::Repaired(_) | HostEvent::Followed => {}
            }
        }
        let error = tun.queues[0].receive(&mut [0; 100]).expect_err("no device");
        ensure!(error.raw_os_error() == Some(libc::EBADFD), "{error}");
        ensure!(keeper.apply(desired(&tun)) == Err(HostError::NotKept));
        keeper.stop().context("what is left of the state is taken back")?;
        ensure!(delete_table(GUARD_TABLE).is_err(), "the guard is still there");
        ensure!(unreachable_routes()?.len() == 2, "closed, not open");
        Ok(())
    })
}

fn an_overlay_that_the_host_uses_is_refused() -> Result<()> {
    on_a_host(|| {
        let tun = open()?;
        let mut state = desired(&tun);
        state.overlay.v4 = Some((Ipv4Addr::new(198, 51, 0, 0), 16));
        state.instances[0].addresses.v4 = Some(Ipv4Addr::new(198, 51, 7, 7));
        let error = Host::claim()?.apply(&state).expect_err("the underlay lies inside");
        ensure!(matches!(&error, HostError::PrefixInUse { prefix, .. } if prefix == "198.51.0.0/16"), "{error}");
        ensure!(addresses_on(tun.index)?.is_empty() && unreachable_routes()?.is_empty(), "nothing was changed");
        Ok(())
    })
}

fn a_default_of_no_ipv6_does_not_bind_the_tunnel() -> Result<()> {
    on_a_host(|| {
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
        let tun = open()?;
        let changes = Host::claim()?.apply(&desired(&tun))?;
        ensure!(!changes.ipv6_off);
        ensure!(addresses_on(tun.index)? == own().iter().collect(), "{:?}", addresses_on(tun.index)?);
        Ok(())
    })
}

fn without_the_capability_the_node_names_it() -> Result<()> {
    on_a_host(|| {
        // Capabilities belong to the thread, and this one ends with the claim.
        let nothing = rustix::thread::CapabilitySet::empty();
        let sets = rustix::thread::CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing };
        rustix::thread::set_capabilities(None, sets)?;
        let error = Host::claim().err().context("claimed")?;
        ensure!(error == HostError::NotPermitted && error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        let error = tun::open(DEVICE, 1, &Offloads::new(Switches::ON)).expect_err("opened");
        ensure!(matches!(error, TunError::NotPermitted(_)) && error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        Ok(())
    })
}

fn a_device_name_that_is_taken_or_wrong_is_named() -> Result<()> {
    on_a_host(|| {
        let _tun = open()?;
        ensure!(
            matches!(tun::open(DEVICE, 2, &Offloads::new(Switches::ON)), Err(TunError::Exists(name)) if name == DEVICE)
        );
        ensure!(
            matches!(tun::open("eth0", 1, &Offloads::new(Switches::ON)), Err(TunError::Exists(name)) if name == "eth0")
        );
        for wrong in ["", "a/b", "sixteen-letters-", "..", "a b"] {
            ensure!(
                matches!(tun::open(wrong, 1, &Offloads::new(Switches::ON)), Err(TunError::InvalidName(_))),
                "{wrong:?}"
            );
        }
        Ok(())
    })
}
