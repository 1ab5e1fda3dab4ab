//! The path becomes narrower under a running TCP stream: it goes on, and the sender's node learns what fits.
//!
//! ```text
//!   coordinator   web-1   bank-1   router          bank-1 and web-1 reach each other through router's only device,
//!      |            |        |       |              whose route to web-1 becomes narrower and says so by ICMP,
//!   ===+============+========+=======+====          or which is a liar that says so although nothing changed
//!                   ^
//!                   or: the wire's own port to web-1 becomes narrower and drops in silence what does not fit
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use netlink_packet_route::route::{RouteAttribute, RouteMetric};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use socket2::{Domain, Protocol, Socket, Type};
use warren_netns_tests::host::{Host, UNDERLAY, device, netlink};
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;

use super::strangers::target;
use super::{BANK, POLICY, WEB, claim, drops};

/// What the path takes in the end, of IP packets.
const NARROW: u32 = 1400;
/// A read that waits longer is a stream that has stopped. How long one stands still at most is the simulation's to show, on a
/// clock that a busy machine does not hold up; here it is printed.
const STOPPED: Duration = IN_FORCE;
/// How long the stream runs before and after the change.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(6);
/// At most 16 MB a second.
pub(super) const CHUNK: usize = 16 * 1024;
const PAUSE: Duration = Duration::from_millis(1);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim(
            "path_mtu::over_ipv6_full_packets_fit_ethernet_and_a_device_that_takes_less_says_what_it_takes",
            full_packets,
        ),
        claim("path_mtu::a_router_that_takes_less_is_found_out_and_the_stream_goes_on", router_says),
        claim("path_mtu::forged_icmp_makes_no_fragments_and_no_packet_smaller", forged_icmp),
        claim("path_mtu::a_path_that_drops_in_silence_over_ipv4_is_found_out_and_the_stream_goes_on", silent_v4),
        claim("path_mtu::a_path_that_drops_in_silence_over_ipv6_is_found_out_and_the_stream_goes_on", silent_v6),
    ]
}

/// Both nodes, reached at one underlay address only; `more` is added to their configuration of the tunnel.
fn two_nodes(v4: bool, more: &str) -> Result<(Mesh, Node, Node)> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let mut start = |name: &str, workload: &str| {
        let mut node = mesh.enrol(name, workload)?;
        let address = if v4 { IpAddr::from(node.host.v4) } else { node.host.v6.into() };
        node.configure(&format!("tunnel: {{ addresses: [\"{address}\"]{more} }}\n"))?;
        node.start()?;
        anyhow::Ok(node)
    };
    let (web, bank) = (start("web-1", WEB)?, start("bank-1", BANK)?);
    Ok((mesh, web, bank))
}

/// A stream from bank-1 to web-1.
pub(super) struct Stream {
    read: TcpStream,
    ends: Arc<AtomicBool>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
    }
}

impl Stream {
    pub(super) fn begin(web: &Node, bank: &Node) -> Result<Self> {
        let at = bank.at(8080)?;
        let listener = bank.host.namespace.run(|| TcpListener::bind(at).with_context(|| format!("bind {at}")))?;
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                while !told.load(Ordering::SeqCst) && stream.write_all(&[7; CHUNK]).is_ok() {
                    std::thread::sleep(PAUSE);
                }
            }
        });
        let mut read = None;
        eventually("web-1 reaches bank-1", IN_FORCE, || {
            read = web.host.connect(at, STOPPED).ok();
            Ok(read.is_some())
        })?;
        let read = read.context("connected")?;
        read.set_read_timeout(Some(STOPPED))?;
        Ok(Self { read, ends })
    }

    /// Reads for `time`; the bytes.
    pub(super) fn read_for(&mut self, time: Duration) -> Result<usize> {
        let (begun, mut bytes, mut buffer) = (Instant::now(), 0, vec![0; 64 * 1024]);
        let (mut last, mut longest) = (begun, Duration::ZERO);
        while begun.elapsed() < time {
            let length = self.read.read(&mut buffer).with_context(|| {
                format!("the stream stood still for {STOPPED:?}, {:?} after the change", begun.elapsed())
            })?;
            ensure!(length > 0, "the stream ended");
            bytes += length;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        let _ = writeln!(std::io::stderr(), "the stream stood still for {longest:?} at most");
        Ok(bytes)
    }
}

/// Runs a stream, lets `narrow` change the path under it, and says what bank-1's node then knows of the path.
fn goes_on(web: &Node, bank: &mut Node, narrow: impl FnOnce() -> Result<()>) -> Result<u32> {
    let mut stream = Stream::begin(web, bank)?;
    ensure!(stream.read_for(BEFORE)? > CHUNK);
    let before = known(bank)?.len();
    narrow()?;
    ensure!(stream.read_for(AFTER)? > CHUNK);
    eventually("bank-1 knows what fits", IN_FORCE, || Ok(known(bank)?.len() > before))?;
    ensure!(stream.read_for(BEFORE)? > CHUNK);
    ensure!(drops(bank, "packet-too-big")? > 0, "what is too long is counted");
    known(bank)?.last().copied().context("a size")
}

/// The sizes that the node's log names.
fn known(node: &mut Node) -> Result<Vec<u32>> {
    let log = node.process()?.log_text();
    let lines = log.lines().filter(|line| line.contains("the path takes packets of another size"));
    let sizes = lines.filter_map(|line| {
        let digits = line.split("mtu").nth(1)?.chars().skip_while(|c| !c.is_ascii_digit());
        digits.take_while(char::is_ascii_digit).collect::<String>().parse().ok()
    });
    Ok(sizes.collect())
}

/// Sealed, a packet of 1420 bytes is as long as Ethernet takes over IPv6, for its padding ends there.
fn full_packets() -> Result<()> {
    let (_mesh, web, mut bank) = two_nodes(false, "")?;
    let mut stream = Stream::begin(&web, &bank)?;
    ensure!(stream.read_for(BEFORE)? > CHUNK);
    ensure!(known(&mut bank)?.is_empty(), "{:?}", known(&mut bank)?);
    let status = bank.say(&["status", "-o", "json"])?.expect(0)?.stdout;
    ensure!(!status.contains("Message too long"), "{status}");
    bank.host.namespace.run_async(|| async {
        let handle = netlink().await?;
        let underlay = device(&handle, UNDERLAY).await?;
        Ok(handle.link().change(LinkUnspec::new_with_index(underlay).mtu(NARROW).build()).execute().await?)
    })?;
    ensure!(stream.read_for(BEFORE)? > CHUNK);
    eventually("bank-1 knows what fits", IN_FORCE, || Ok(!known(&mut bank)?.is_empty()))?;
    ensure!(known(&mut bank)? == [NARROW - 40 - 8 - 32], "{:?}", known(&mut bank)?);
    ensure!(drops(&bank, "packet-too-big")? > 0, "what is too long is counted");
    Ok(())
}

fn router_says() -> Result<()> {
    let (mut mesh, web, mut bank) = two_nodes(true, "")?;
    let router = mesh.lab.host("router")?;
    set(&router, "conf/all/forwarding", "1")?;
    for device in ["all", UNDERLAY] {
        set(&router, &format!("conf/{device}/send_redirects"), "0")?;
    }
    web.host.route(bank.host.v4.into(), router.v4.into())?;
    bank.host.route(web.host.v4.into(), router.v4.into())?;
    let to = web.host.v4;
    let size = goes_on(&web, &mut bank, || {
        router.namespace.run_async(|| async move {
            let handle = netlink().await?;
            let underlay = device(&handle, UNDERLAY).await?;
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, 32)
                .output_interface(underlay)
                .scope(netlink_packet_route::route::RouteScope::Link);
            let mut message = route.build();
            message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(NARROW)]));
            Ok(handle.route().add(message).execute().await?)
        })
    })?;
    // Less IPv4, UDP, header and tag of ours. How closely: see `silent`.
    ensure!((1280..=NARROW - 20 - 8 - 32).contains(&size), "{size}");
    Ok(())
}

/// A stranger on the wire tells both hosts, time and again while a stream runs, that what they send to each other does not
/// fit, and quotes the tunnel's own datagrams as it should.
fn forged_icmp() -> Result<()> {
    const LIE: u16 = 600;
    let (mut mesh, web, mut bank) = two_nodes(true, "")?;
    let liar = mesh.lab.host("router")?;
    let mut stream = Stream::begin(&web, &bank)?;
    ensure!(stream.read_for(BEFORE)? > CHUNK);
    let (web_port, bank_port) = (target(&web)?.0.port(), target(&bank)?.0.port());
    let reassembled = fragments(&web)?;
    for _ in 0..5 {
        for (of, to) in [(&bank, &web), (&web, &bank)] {
            let ports = if std::ptr::eq(of, &bank) { (bank_port, web_port) } else { (web_port, bank_port) };
            let message = too_big((of.host.v4, ports.0), (to.host.v4, ports.1), LIE);
            let victim = SocketAddr::from((of.host.v4, 0));
            liar.namespace.run(|| {
                let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).context("open a raw socket")?;
                raw.send_to(&message, &victim.into()).context("send ICMP").map(|_| ())
            })?;
        }
        ensure!(stream.read_for(BEFORE / 5)? > CHUNK);
    }
    ensure!(snmp(&bank, "Icmp", "InDestUnreachs")? >= 5, "bank-1 heard the liar");
    ensure!(fragments(&web)? == reassembled, "datagrams came in fragments");
    ensure!(known(&mut bank)?.is_empty(), "{:?}", known(&mut bank)?);
    ensure!(drops(&bank, "packet-too-big").unwrap_or(0) == 0, "programs were told a lie");
    Ok(())
}

/// ICMP "fragmentation needed" (RFC 1191) about a UDP datagram with "don't fragment".
fn too_big(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), mtu: u16) -> Vec<u8> {
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend([0x45, 0, 5, 200, 0, 1, 0x40, 0, 63, 17, 0, 0]);
    message.extend(from.0.octets());
    message.extend(to.0.octets());
    for field in [from.1, to.1, 1480, 0] {
        message.extend(field.to_be_bytes());
    }
    let words = message.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    let folded = (words & 0xffff) + (words >> 16);
    let sum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// Fragments that a host put together.
fn fragments(node: &Node) -> Result<u64> {
    snmp(node, "Ip", "ReasmReqds")
}

/// A counter of the host's IP stack.
fn snmp(node: &Node, table: &str, counter: &str) -> Result<u64> {
    let text = node
        .host
        .namespace
        .run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").context("read the counters"))?;
    let start = format!("{table}: ");
    let mut rows = text.lines().filter_map(|line| line.strip_prefix(&start)).map(|row| row.split(' '));
    let (names, values) = (rows.next().context("names")?, rows.next().context("values")?);
    let mut found = names.zip(values).filter(|(name, _)| *name == counter);
    Ok(found.next().with_context(|| format!("{table}/{counter}"))?.1.parse()?)
}

fn silent_v4() -> Result<()> {
    silent(true, NARROW - 20 - 8 - 32)
}

fn silent_v6() -> Result<()> {
    silent(false, NARROW - 40 - 8 - 32)
}

fn silent(v4: bool, fits: u32) -> Result<()> {
    // A bridge lets trains pass whole whatever its ports' MTU; a wire would not.
    let (mesh, web, mut bank) = two_nodes(v4, ", offload: { gso: false }")?;
    // The coordinator's host came first, then web-1.
    let size = goes_on(&web, &mut bank, || {
        mesh.lab.wire.run_async(|| async {
            let handle = netlink().await?;
            let port = device(&handle, "port2").await?;
            Ok(handle.link().change(LinkUnspec::new_with_index(port).mtu(NARROW).build()).execute().await?)
        })
    })?;
    // How closely is for the simulation to show: on a busy machine a late answer is one that did not come.
    ensure!((1280..=fits).contains(&size), "{size} of {fits}");
    Ok(())
}

fn set(host: &Host, key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv4/{key}");
    host.namespace.run(|| std::fs::write(&path, value).with_context(|| format!("write {path}")))
}
