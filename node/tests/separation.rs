//! Several instances on one host, kept apart by the kernel: real programs in cgroups of their own, in a namespace of their own.
//!
//! ```text
//!   host a:  warren0  …::1  10.77.0.1   web    cgroup …/web.service
//!                     …::2  10.77.0.2   bank   cgroup …/bank.service
//!                     …::3  10.77.0.3   the rest of this host
//! ```
//!
//! What needs cgroups takes real root, and says so elsewhere.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "everything here is a test")]

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use rtnetlink::LinkUnspec;
use warren_netns_tests::agent::{self, Agent};
use warren_netns_tests::cgroup::{Cgroup, fresh_path};
use warren_netns_tests::host::{Host as LabHost, netlink};
use warren_netns_tests::lab::Lab;
use warren_netns_tests::processes::eventually;
use warren_node::data_plane::offload::{Offloads, Switches};
use warren_node::data_plane::tun::{self, Tun};
use warren_node::host::{
    Allows, Desired, Host, HostError, HostEvent, HostInstance, Keeper, LocalOpening, SEPARATION_TABLE,
};
use warren_node::selectors::{CgroupTie, Members, Tie};
use warren_proto::overlay::{Overlay, OverlayAddresses};

const PREFIX_V6: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);
const PREFIX_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 0);
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(10);
/// Places in [`World::desired`].
const WEB: usize = 0;
const BANK: usize = 1;
const REST: usize = 2;
/// An instance of another host.
const PEER: usize = 40;

fn main() -> Result<()> {
    agent::be_one_if_asked();
    let arguments = Arguments::from_args();
    warren_netns_tests::namespace::enter()?;
    libtest_mimic::run(
        &arguments,
        vec![
            claim("rules_stand_before_addresses_and_change_nothing_twice", rules_come_first),
            claim("an_address_of_nobody_is_closed_to_everybody", an_address_of_nobody_is_closed),
            claim("a_program_uses_its_own_address_and_no_other", own_address_only),
            claim("a_foreign_listener_hears_nothing", a_foreign_listener_hears_nothing),
            claim("between_instances_passes_what_is_opened_and_nothing_else", openings),
            claim("over_udp_passes_an_answer_to_what_was_asked_and_no_more", answers_over_udp),
            claim("a_datagram_in_fragments_is_heard", fragments),
            claim("another_network_namespace_is_not_judged", another_namespace),
            claim("a_program_that_names_no_source_has_its_own_instances", own_source),
            claim("a_user_is_told_from_another", users),
            claim("a_tie_follows_a_cgroup_that_is_made_anew", a_tie_follows),
            claim("what_somebody_deletes_comes_back", what_somebody_deletes_comes_back),
            claim("a_program_in_a_cgroup_not_seen_yet_is_nobody", not_seen_yet),
            claim("what_cannot_be_told_apart_is_refused_by_name", refused_by_name),
            claim("what_fails_leaves_receivers_judged", what_fails_leaves_receivers_judged),
            claim("the_most_instances_with_many_openings_are_kept_apart", the_most_instances),
        ],
    )
    .exit()
}

fn claim(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:?}"))))
}

fn addresses(number: u8) -> OverlayAddresses {
    OverlayAddresses {
        v6: Ipv6Addr::from(u128::from(PREFIX_V6) | u128::from(number)),
        v4: Some(Ipv4Addr::from(u32::from(PREFIX_V4) | u32::from(number))),
    }
}

/// The instance's address of each family, with the service's port.
fn services(number: usize) -> [SocketAddr; 2] {
    let [v6, v4] = addresses_of(number);
    [(v6, PORT).into(), (v4, PORT).into()]
}

fn addresses_of(number: usize) -> [IpAddr; 2] {
    let addresses = addresses(u8::try_from(number + 1).unwrap());
    [addresses.v6.into(), addresses.v4.unwrap().into()]
}

/// A host with three instances.
struct World {
    a: LabHost,
    tun: Tun,
    paths: [String; 2],
    cgroups: Vec<Cgroup>,
    desired: Desired,
    lab: Lab,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl World {
    fn new() -> Result<Self> {
        let mut lab = Lab::new()?;
        let a = lab.host("a")?;
        let offloads = Offloads::new(Switches::ON);
        let tun = a.namespace.run(|| tun::open("warren0", 1, &offloads).context("open the TUN device"))?;
        // A unit's name is found wherever it is, so that it must be nobody else's.
        let unit = format!("bank-{}-{}.service", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let paths = ["web.service", &unit].map(fresh_path);
        let tied = |path: &String| Members::Ties(vec![Tie { uid: None, cgroup: Some(CgroupTie::Path(path.clone())) }]);
        let unit = Members::Ties(vec![Tie { uid: None, cgroup: Some(unit_of(&paths[BANK])) }]);
        let members = [tied(&paths[WEB]), unit, Members::Rest];
        let instances =
            members.into_iter().zip(1..).map(|(members, n)| HostInstance { addresses: addresses(n), members });
        let desired = Desired {
            overlay: Overlay { v6: (PREFIX_V6, 48), v4: Some((PREFIX_V4, 16)) },
            instances: instances.collect(),
            openings: Vec::new(),
            device: tun.index,
            mtu: 1420,
        };
        Ok(Self { a, tun, paths, cgroups: Vec::new(), desired, lab })
    }

    /// The same; `None` where nobody sees the cgroups, which is refused by name.
    fn with_hierarchy() -> Result<Option<Self>> {
        let world = Self::new()?;
        if warren_netns_tests::cgroup::is_mounted() {
            return Ok(Some(world));
        }
        let mut host = world.claimed()?;
        world.refused(&mut host, "not mounted here as a whole")?;
        let _ = writeln!(std::io::stderr(), "skipped: seeing the cgroups takes real root");
        Ok(None)
    }

    /// The instances are not kept, for that reason.
    fn refused(&self, host: &mut Host, why: &str) -> Result<()> {
        match host.apply(&self.desired) {
            Err(HostError::NoSeparation(said)) if said.contains(why) => Ok(()),
            other => bail!("{other:?}"),
        }
    }

    /// The same with its cgroups; `None` where nobody may make them.
    fn with_cgroups() -> Result<Option<Self>> {
        let mut world = Self::new()?;
        for path in world.paths.clone() {
            let Some(cgroup) = Cgroup::make(&path)? else {
                let _ = writeln!(std::io::stderr(), "skipped: making cgroups takes real root");
                return Ok(None);
            };
            world.cgroups.push(cgroup);
        }
        Ok(Some(world))
    }

    fn open(&mut self, from: usize, to: usize, allows: Allows) {
        self.desired.openings.push(LocalOpening { from, to, allows });
    }

    fn claimed(&self) -> Result<Host> {
        self.a.namespace.run(|| Ok(Host::claim()?))
    }

    fn apply(&self, host: &mut Host) -> Result<Vec<String>> {
        self.a.namespace.run(|| Ok(host.apply(&self.desired)?.made))
    }

    fn agent(&self, of: usize, name: &str) -> Result<Agent> {
        Agent::start(&self.a.namespace, self.cgroups.get(of), name)
    }
}

/// The tie by the unit's name, which is found in whatever slice it is.
fn unit_of(path: &str) -> CgroupTie {
    CgroupTie::Unit(path.rsplit('/').next().unwrap_or_default().to_owned())
}

/// Refusals counted for an instance.
fn refused(host: &mut Host, number: usize) -> Result<u64> {
    let all = host.refused()?;
    let own = addresses(u8::try_from(number + 1)?);
    Ok(all.iter().find(|(addresses, _)| *addresses == own).map_or(0, |(_, packets)| *packets))
}

fn rules_come_first() -> Result<()> {
    let Some(world) = World::with_hierarchy()? else { return Ok(()) };
    let mut host = world.claimed()?;
    let made = world.apply(&mut host)?;
    let at =
        |what: &str| made.iter().position(|change| change.contains(what)).with_context(|| format!("{what}: {made:?}"));
    let rules = at(SEPARATION_TABLE)?;
    for number in [WEB, BANK, REST] {
        for address in addresses_of(number) {
            ensure!(rules < at(&format!("address {address}/"))?, "{made:?}");
        }
    }
    let again = world.apply(&mut host)?;
    ensure!(again.is_empty(), "the second time changed {again:?}");
    // Who leaves loses the address before the rules that keep it.
    let mut fewer = world.desired.clone();
    fewer.instances.remove(WEB);
    let made = world.a.namespace.run(|| Ok(host.apply(&fewer)?.made))?;
    let at = |what: &str| made.iter().position(|change| change.contains(what));
    let gone = at(&format!("address {}/128 removed", addresses(1).v6)).context("the address stays")?;
    ensure!(Some(gone) < at(SEPARATION_TABLE), "{made:?}");
    // One alone for everybody needs no rule.
    fewer.instances.remove(0);
    let made = world.a.namespace.run(|| Ok(host.apply(&fewer)?.made))?;
    ensure!(made.iter().any(|change| change.contains(&format!("{SEPARATION_TABLE} removed"))), "{made:?}");
    world.a.namespace.run(|| Ok(host.revert()?))
}

fn an_address_of_nobody_is_closed() -> Result<()> {
    // No cgroup is there: web and bank are nobody's.
    let Some(world) = World::with_hierarchy()? else { return Ok(()) };
    let mut host = world.claimed()?;
    world.apply(&mut host)?;
    let (mut program, mut listener) = (world.agent(REST, "rest")?, world.agent(REST, "listener")?);
    listener.serve((Ipv6Addr::UNSPECIFIED, PORT).into())?;
    for (own, (nobodys, far)) in services(REST).into_iter().zip(services(WEB).into_iter().zip(addresses_of(WEB))) {
        let answer = program.connect(None, own)?;
        ensure!(answer == format!("listener sees {}", own.ip()), "the rest to itself: {answer}");
        let before = refused(&mut host, WEB)?;
        for answer in [program.connect(Some(far), own)?, program.connect(None, nobodys)?] {
            ensure!(answer == "refused", "{nobodys}: {answer}");
        }
        for answer in [program.ask_udp(Some(far), own)?, program.ask_udp(Some(far), nobodys)?] {
            ensure!(answer == "not permitted", "{nobodys}: {answer}");
        }
        ensure!(refused(&mut host, WEB)? >= before + 4, "{:?}", host.refused()?);
        // And a call to a peer, which is refused in the peer's name.
        let peer = SocketAddr::from((addresses_of(PEER)[usize::from(own.is_ipv4())], PORT));
        ensure!(program.connect(Some(far), peer)? == "refused", "to {peer}");
        // Even from an address of its own, and from none of the overlay.
        ensure!(program.connect(Some(own.ip()), nobodys)? == "refused");
        let loopback: IpAddr = if own.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        let heard = listener.heard()?;
        let answer = program.try_connect(Some(loopback), nobodys)?;
        ensure!(
            answer == "refused" || answer == "silence" || answer.contains("os error 22"),
            "from loopback: {answer}"
        );
        ensure!(listener.heard()? == heard, "a listener heard what was for {nobodys}");
    }
    Ok(())
}

fn own_address_only() -> Result<()> {
    let Some(mut world) = World::with_cgroups()? else { return Ok(()) };
    for from in [WEB, BANK] {
        world.open(from, REST, Allows::Tcp(PORT..=PORT));
        world.open(from, REST, Allows::Udp(PORT..=PORT));
    }
    let mut host = world.claimed()?;
    world.apply(&mut host)?;
    let mut listener = world.agent(REST, "rest")?;
    services(REST).into_iter().try_for_each(|at| listener.serve(at))?;
    for own in [WEB, BANK] {
        let mut program = world.agent(own, "program")?;
        for (family, to) in services(REST).into_iter().enumerate() {
            let mine = addresses_of(own)[family];
            let seen = format!("rest sees {mine}");
            for answer in [program.connect(Some(mine), to)?, program.ask_udp(Some(mine), to)?] {
                ensure!(answer == seen, "own address {mine}: {answer}");
            }
            for other in [WEB, BANK, REST].into_iter().filter(|other| *other != own) {
                let (theirs, before) = (addresses_of(other)[family], refused(&mut host, other)?);
                let answers = [program.connect(Some(theirs), to)?, program.ask_udp(Some(theirs), to)?];
                ensure!(answers == ["refused", "not permitted"], "as {theirs}: {answers:?}");
                ensure!(refused(&mut host, other)? >= before + 2, "not counted: {:?}", host.refused()?);
            }
        }
    }
    Ok(())
}

fn a_foreign_listener_hears_nothing() -> Result<()> {
    let Some(mut world) = World::with_cgroups()? else { return Ok(()) };
    for to in [WEB, REST] {
        world.open(BANK, to, Allows::Tcp(PORT..=PORT));
        world.open(BANK, to, Allows::Udp(PORT..=PORT));
    }
    let mut host = world.claimed()?;
    world.apply(&mut host)?;
    let mut caller = world.agent(BANK, "bank")?;
    // One listens on every address; what is for another instance than its own is as if nobody listened.
    for (listening, other) in [(REST, WEB), (WEB, REST)] {
        let mut listener = world.agent(listening, "listener")?;
        listener.serve((Ipv6Addr::UNSPECIFIED, PORT).into())?;
        for (family, (theirs, own)) in services(other).into_iter().zip(services(listening)).enumerate() {
            let source = addresses_of(BANK)[family];
            let before = (listener.heard()?, refused(&mut host, other)?);
            ensure!(caller.connect(Some(source), theirs)? == "refused", "{theirs}");
            let answer = caller.try_udp(Some(source), theirs)?;
            ensure!(answer == "silence" || answer == "refused", "{theirs}: {answer}");
            ensure!(listener.heard()? == before.0, "a foreign listener heard what was for {theirs}");
            ensure!(refused(&mut host, other)? >= before.1 + 2, "not counted: {:?}", host.refused()?);
            let answer = caller.connect(Some(source), own)?;
            ensure!(answer == format!("listener sees {source}"), "its own traffic: {answer}");
            // What a service on every address answers with is for the route to say, and may be no address of its own.
            caller.try_udp(Some(source), own)?;
            eventually("it hears its own traffic", PATIENCE, || Ok(listener.heard()? == before.0 + 2))?;
        }
    }
    Ok(())
}

fn own_source() -> Result<()> {
    let Some(mut world) = World::with_cgroups()? else { return Ok(()) };
    for from in [WEB, BANK] {
        world.open(from, REST, Allows::Tcp(PORT..=PORT));
        world.open(from, REST, Allows::Udp(PORT..=PORT));
    }
    let mut host = world.claimed()?;
    world.apply(&mut host)?;
    let mut listener = world.agent(REST, "rest")?;
    services(REST).into_iter().try_for_each(|at| listener.serve(at))?;
    for own in [WEB, BANK] {
        let mut program = world.agent(own, "program")?;
        let ([v6, v4], [to_v6, to_v4]) = (addresses_of(own), services(REST));
        let IpAddr::V4(far) = to_v4.ip() else { bail!("{to_v4}") };
        // As programs do that know IPv6 only.
        let mapped = SocketAddr::from((far.to_ipv6_mapped(), PORT));
        for (to, mine) in [(to_v6, v6), (to_v4, v4), (mapped, v4)] {
            let answers = [program.connect(None, to)?, program.ask_udp(None, to)?];
            ensure!(answers == [format!("rest sees {mine}"), format!("rest sees {mine}")], "{to}: {answers:?}");
        }
        // Towards others than the overlay the programs choose nothing.
        let elsewhere = SocketAddr::from((world.a.v4, PORT));
        world.a.serve_tcp(elsewhere, b"elsewhere").or_else(|error| if own == BANK { Ok(()) } else { Err(error) })?;
        ensure!(program.connect(None, elsewhere)? == "elsewhere");
    }
    Ok(())
}

const USERS: [u32; 2] = [47_101, 47_102];
const FAR: u8 = 100;
const ELSEWHERE: u8 = 120;

fn users() -> Result<()> {
    if warren_netns_tests::namespace::is_user_namespace()? {
        let _ = writeln!(std::io::stderr(), "skipped: being several users takes real root");
        return Ok(());
    }
    let mut world = World::new()?;
    // Before Linux 6.15 the program that looks at users does so on the whole machine: by addresses that no other test has.
    for (instance, number) in world.desired.instances.iter_mut().zip(1..) {
        instance.addresses = addresses(FAR + number);
    }
    let addresses_of = |number: usize| addresses_of(usize::from(FAR) + number);
    let services = |number: usize| services(usize::from(FAR) + number);
    for (instance, user) in world.desired.instances.iter_mut().zip(USERS) {
        instance.members = Members::Ties(vec![Tie { uid: Some(user), cgroup: None }]);
    }
    for (from, to) in [(WEB, BANK), (BANK, WEB), (WEB, REST)] {
        world.open(from, to, Allows::Tcp(PORT..=PORT));
        world.open(from, to, Allows::Udp(PORT..=PORT));
    }
    let mut host = world.claimed()?;
    world.apply(&mut host)?;
    ensure!(world.apply(&mut host)?.is_empty(), "the second time changed something");
    let agent = |of: usize| Agent::start_as(&world.a.namespace, None, "listener", USERS.get(of).copied().unwrap_or(0));
    for (calling, listening, others) in [(WEB, BANK, [WEB, REST]), (BANK, WEB, [BANK, REST])] {
        let (mut caller, mut listener) = (agent(calling)?, agent(listening)?);
        listener.serve((Ipv6Addr::UNSPECIFIED, PORT).into())?;
        for family in [0, 1] {
            let (mine, to) = (addresses_of(calling)[family], services(listening)[family]);
            let heard = listener.heard()?;
            let answer = caller.connect(Some(mine), to)?;
            ensure!(answer == format!("listener sees {mine}"), "{answer}");
            caller.try_udp(Some(mine), to)?;
            eventually("it hears its own traffic", PATIENCE, || Ok(listener.heard()? == heard + 2))?;
            // A foreign source.
            let theirs = addresses_of(listening)[family];
            let answers = [caller.connect(Some(theirs), to)?, caller.ask_udp(Some(theirs), to)?];
            ensure!(answers == ["refused", "not permitted"], "as {theirs}: {answers:?}");
            // A foreign listener.
            for other in others {
                caller.try_connect(Some(mine), services(other)[family])?;
                caller.try_udp(Some(mine), services(other)[family])?;
            }
            ensure!(listener.heard()? == heard + 2, "a foreign listener heard what was for another");
        }
    }
    Ok(())
}

fn openings() -> Result<()> {
    let Some(mut world) = World::with_cgroups()? else { return Ok(()) };
    let mut host = world.claimed()?;
    world.apply(&mut host)?;
    let (mut web, mut bank) = (world.agent(WEB, "web")?, world.agent(BANK, "bank")?);
    let above = |at: SocketAddr| SocketAddr::from((at.ip(), at.port() + 1));
    for at in services(BANK) {
        bank.serve(at)?;
        bank.serve(above(at))?;
    }
    for at in services(WEB) {
        web.serve(at)?;
    }
    for (family, to) in services(BANK).into_iter().enumerate() {
        let source = Some(addresses_of(WEB)[family]);
        ensure!(web.connect(source, to)? == "refused", "nothing is opened");
        ensure!(web.try_udp(source, to)? != format!("bank sees {}", addresses_of(WEB)[family]));
    }
    world.open(WEB, BANK, Allows::Tcp(PORT..=PORT));
    world.apply(&mut host)?;
    for (family, to) in services(BANK).into_iter().enumerate() {
        let (source, back) = (addresses_of(WEB)[family], addresses_of(BANK)[family]);
        let seen = format!("bank sees {source}");
        ensure!(web.connect(Some(source), to)? == seen, "what is opened passes");
        ensure!(web.connect(Some(source), above(to))? == "refused", "another port");
        ensure!(web.try_udp(Some(source), to)? != seen, "another protocol");
        ensure!(bank.connect(Some(back), services(WEB)[family])? == "refused", "the other way");
        ensure!(web.connect(Some(source), services(WEB)[family])? == format!("web sees {source}"), "each to itself");
    }
    world.desired.openings.clear();
    world.open(WEB, BANK, Allows::Udp(PORT..=PORT + 1));
    world.apply(&mut host)?;
    for (family, to) in services(BANK).into_iter().enumerate() {
        let source = addresses_of(WEB)[family];
        for to in [to, above(to)] {
            ensure!(web.ask_udp(Some(source), to)? == format!("bank sees {source}"), "what is opened passes");
        }
        ensure!(web.connect(Some(source), to)? == "refused", "what was opened before is closed");
    }
    Ok(())
}

fn answers_over_udp() -> Result<()> {
    let Some(mut world) = World::with_cgroups()? else { return Ok(()) };
    world.open(WEB, BANK, Allows::Udp(PORT..=PORT));
    let mut host = world.claimed()?;
    world.apply(&mut host)?;
    ensure!(world.apply(&mut host)?.is_empty(), "the second time changed something");
    let (mut web, mut bank) = (world.agent(WEB, "web")?, world.agent(BANK, "bank")?);
    let at = |address: SocketAddr, above: u16| SocketAddr::from((address.ip(), PORT + above));
    for (opened, home) in services(BANK).into_iter().zip(services(WEB)) {
        let (service, asking) = (at(home, 1), at(home, 2));
        web.serve(service)?;
        // Whoever may be called at a port has no way from it.
        let heard = web.heard()?;
        bank.try_udp_from(opened, service)?;
        ensure!(web.heard()? == heard, "{service} heard {opened}, which nobody asked");
        // What is asked opens the way back to where it was asked from, and nowhere else.
        web.try_udp_from(asking, opened)?;
        web.serve(asking)?;
        bank.try_udp_from(opened, service)?;
        bank.try_udp_from(at(opened, 1), asking)?;
        ensure!(web.heard()? == heard, "heard of what nobody asked");
        ensure!(bank.ask_udp_from(opened, asking)? == format!("web sees {}", opened.ip()), "an answer does not pass");
        ensure!(web.heard()? == heard + 1);
    }
    Ok(())
}

fn fragments() -> Result<()> {
    let Some(mut world) = World::with_cgroups()? else { return Ok(()) };
    world.open(REST, WEB, Allows::Udp(PORT..=PORT));
    let mut host = world.claimed()?;
    world.apply(&mut host)?;
    let mut listener = world.agent(WEB, "web")?;
    world.a.namespace.run_async(|| async {
        let small = LinkUnspec::new_with_index(1).mtu(1280).build();
        Ok(netlink().await?.link().change(small).execute().await?)
    })?;
    for (family, to) in services(WEB).into_iter().enumerate() {
        listener.serve(to)?;
        let heard = listener.heard()?;
        world.a.namespace.run(|| {
            let sent = UdpSocket::bind((addresses_of(REST)[family], 0))?.send_to(&[7; 3000], to)?;
            ensure!(sent == 3000);
            Ok(())
        })?;
        eventually("the datagram arrives", PATIENCE, || Ok(listener.heard()? == heard + 1))?;
    }
    Ok(())
}

fn another_namespace() -> Result<()> {
    if warren_netns_tests::namespace::is_user_namespace()? {
        let _ = writeln!(std::io::stderr(), "skipped: being several users takes real root");
        return Ok(());
    }
    let mut world = World::new()?;
    let container = world.lab.host("container")?;
    for (instance, number) in world.desired.instances.iter_mut().zip(1..) {
        instance.addresses = addresses(ELSEWHERE + number);
    }
    for (instance, user) in world.desired.instances.iter_mut().zip(USERS) {
        instance.members = Members::Ties(vec![Tie { uid: Some(user), cgroup: None }]);
    }
    let mut host = world.claimed()?;
    world.apply(&mut host)?;
    // A container of another mesh, where the same addresses are somebody else's.
    let mut stranger = Agent::start_as(&container.namespace, None, "stranger", USERS[BANK])?;
    for address in addresses_of(usize::from(ELSEWHERE) + WEB) {
        container.namespace.run_async(|| async {
            let length = if address.is_ipv4() { 32 } else { 128 };
            Ok(netlink().await?.address().add(1, address, length).execute().await?)
        })?;
        let at = SocketAddr::from((address, PORT));
        eventually("the address is there", PATIENCE, || Ok(stranger.serve(at).is_ok()))?;
        let seen = format!("stranger sees {address}");
        let answers = [stranger.connect(None, at)?, stranger.ask_udp(None, at)?];
        ensure!(answers == [seen.clone(), seen], "{answers:?}");
    }
    Ok(())
}

fn not_seen_yet() -> Result<()> {
    let Some(mut world) = World::with_cgroups()? else { return Ok(()) };
    for (from, to) in [(BANK, REST), (REST, BANK)] {
        world.open(from, to, Allows::Tcp(PORT..=PORT));
        world.open(from, to, Allows::Udp(PORT..=PORT));
    }
    let mut host = world.claimed()?;
    world.apply(&mut host)?;
    let mut service = world.agent(BANK, "bank")?;
    services(BANK).into_iter().try_for_each(|at| service.serve(at))?;
    // The unit starts again, and a unit beside it for the first time; nobody has looked since.
    world.cgroups.remove(WEB).remove()?;
    world.cgroups.insert(WEB, Cgroup::make(&world.paths[WEB])?.context("made before")?);
    let beside = world.paths[WEB].replace("web.service", "beside.service");
    let beside = Cgroup::make(&beside)?.context("made before")?;
    let agents = [(&world.cgroups[WEB], "again"), (&beside, "beside")];
    for (cgroup, name) in agents {
        let mut program = Agent::start(&world.a.namespace, Some(cgroup), name)?;
        let before = refused(&mut host, REST)?;
        for (family, to) in services(BANK).into_iter().enumerate() {
            for source in [None, Some(addresses_of(REST)[family]), Some(addresses_of(WEB)[family])] {
                let answers = [program.try_connect(source, to)?, program.try_udp(source, to)?];
                ensure!(answers == ["refused", "not permitted"], "{name} as {source:?}: {answers:?}");
            }
        }
        // Towards other hosts the route would have it be the rest.
        for far in addresses_of(usize::from(FAR)) {
            let answers = [program.try_connect(None, (far, PORT).into())?, program.try_udp(None, (far, PORT).into())?];
            ensure!(answers == ["refused", "not permitted"], "{name} to {far}: {answers:?}");
        }
        ensure!(refused(&mut host, REST)? >= before + 8, "not counted: {:?}", host.refused()?);
        // And hears nothing.
        services(REST).into_iter().try_for_each(|at| program.serve(at))?;
        for (family, to) in services(REST).into_iter().enumerate() {
            let source = Some(addresses_of(BANK)[family]);
            ensure!(service.try_connect(source, to)? == "refused", "{name} listens at {to}");
            service.try_udp(source, to)?;
        }
        ensure!(program.heard()? == 0, "{name} hears what is for the rest");
        program.end()?;
    }
    ensure!(service.heard()? == 0, "somebody came through");
    // Once looked at, one is the unit and the other one of the rest.
    world.apply(&mut host)?;
    let mut program = Agent::start(&world.a.namespace, Some(&beside), "beside")?;
    for (family, to) in services(BANK).into_iter().enumerate() {
        let own = addresses_of(REST)[family];
        let answer = program.connect(Some(own), to)?;
        ensure!(answer == format!("bank sees {own}"), "{answer}");
    }
    program.end()?;
    drop(beside);
    Ok(())
}

/// Has this thread lose every capability but that to configure networks.
fn keep_network_administration_alone() -> Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    let alone = CapabilitySet::NET_ADMIN;
    let sets = CapabilitySets { effective: alone, permitted: alone, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).context("drop capabilities")
}

fn tie_by_user(world: &mut World) {
    for (instance, user) in world.desired.instances.iter_mut().zip(USERS) {
        instance.members = Members::Ties(vec![Tie { uid: Some(user), cgroup: None }]);
    }
}

fn refused_by_name() -> Result<()> {
    let Some(mut world) = World::with_hierarchy()? else { return Ok(()) };
    let nowhere = || -> Result<()> {
        use nix::mount::{MntFlags, umount2};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).context("unshare the mounts")?;
        umount2(warren_netns_tests::cgroup::MOUNT, MntFlags::MNT_DETACH).context("unmount the cgroups")
    };
    let without = |world: &World| {
        world.a.namespace.run(|| {
            nowhere()?;
            world.refused(&mut Host::claim()?, "--cgroupns host")
        })
    };
    without(&world)?;
    tie_by_user(&mut world);
    without(&world)?;
    world.a.namespace.run(|| {
        keep_network_administration_alone()?;
        world.refused(&mut Host::claim()?, "CAP_BPF")
    })?;
    drop(world.tun);
    Ok(())
}

fn what_fails_leaves_receivers_judged() -> Result<()> {
    if warren_netns_tests::namespace::is_user_namespace()? {
        let _ = writeln!(std::io::stderr(), "skipped: being several users takes real root");
        return Ok(());
    }
    let mut world = World::new()?;
    // By addresses that no other test has, as in `users`.
    for (instance, number) in world.desired.instances.iter_mut().zip(1..) {
        instance.addresses = addresses(2 * FAR + number);
    }
    tie_by_user(&mut world);
    world.open(BANK, REST, Allows::Tcp(PORT..=PORT));
    let mut host = world.claimed()?;
    world.apply(&mut host)?;
    world.desired.instances.swap(WEB, BANK);
    world.a.namespace.run(|| {
        keep_network_administration_alone()?;
        world.refused(&mut host, "CAP_BPF")
    })?;
    let mut listener = Agent::start_as(&world.a.namespace, None, "listener", USERS[WEB])?;
    let mut caller = Agent::start_as(&world.a.namespace, None, "caller", USERS[BANK])?;
    listener.serve((Ipv6Addr::UNSPECIFIED, PORT).into())?;
    let far = |number: usize| addresses_of(2 * usize::from(FAR) + number);
    for (own, to) in far(BANK).into_iter().zip(far(REST)) {
        caller.try_connect(Some(own), (to, PORT).into())?;
    }
    ensure!(listener.heard()? == 0, "a foreign listener heard what was for the rest");
    Ok(())
}

fn the_most_instances() -> Result<()> {
    let Some(mut world) = World::with_hierarchy()? else { return Ok(()) };
    let tied = |number: u8| {
        let path = format!("/warren-test-none.slice/{number}.service");
        Members::Ties(vec![Tie { uid: None, cgroup: Some(CgroupTie::Path(path)) }])
    };
    world.desired.instances = (1..=64).map(|n| HostInstance { addresses: addresses(n), members: tied(n) }).collect();
    for from in 0..64 {
        for to in (0..64).filter(|to| *to != from).take(8) {
            world.open(from, to, Allows::Tcp(PORT..=PORT));
        }
    }
    let mut host = world.claimed()?;
    let made = world.apply(&mut host)?;
    ensure!(made.iter().any(|change| change.contains(SEPARATION_TABLE)), "{made:?}");
    let again = world.apply(&mut host)?;
    ensure!(again.is_empty(), "the second time changed {again:?}");
    Ok(())
}

fn keep(world: &World) -> Result<(Keeper, mpsc::Receiver<HostEvent>)> {
    let (events, received) = mpsc::channel();
    world.a.namespace.run(|| {
        let (keeper, _) = Keeper::start(Host::claim()?, world.desired.clone(), move |event| drop(events.send(event)))?;
        Ok((keeper, received))
    })
}

fn a_tie_follows() -> Result<()> {
    let Some(mut world) = World::with_cgroups()? else { return Ok(()) };
    world.open(WEB, REST, Allows::Tcp(PORT..=PORT));
    let (keeper, events) = keep(&world)?;
    let mut listener = world.agent(REST, "rest")?;
    listener.serve((Ipv6Addr::UNSPECIFIED, PORT).into())?;
    let (source, to) = (Some(addresses_of(WEB)[0]), services(REST)[0]);
    let seen = format!("rest sees {}", addresses_of(WEB)[0]);
    for _ in 0..3 {
        let mut program = world.agent(WEB, "web")?;
        eventually("the program has its address", PATIENCE, || Ok(program.connect(source, to)? == seen))?;
        program.end()?;
        world.cgroups.remove(WEB).remove()?;
        followed(&events)?;
        let mut stranger = Agent::start(&world.a.namespace, None, "stranger")?;
        ensure!(stranger.connect(source, to)? == "refused", "the address of a unit that has stopped is open");
        world.cgroups.insert(WEB, Cgroup::make(&world.paths[WEB])?.context("made before")?);
        followed(&events)?;
    }
    keeper.stop()?;
    drop(world.tun);
    Ok(())
}

/// Waits until the keeper says that it followed a cgroup, and repaired nothing.
fn followed(events: &mpsc::Receiver<HostEvent>) -> Result<()> {
    match events.recv_timeout(PATIENCE).context("nobody follows")? {
        HostEvent::Followed => Ok(()),
        other => bail!("{other:?}"),
    }
}

fn what_somebody_deletes_comes_back() -> Result<()> {
    let Some(world) = World::with_hierarchy()? else { return Ok(()) };
    let (keeper, events) = keep(&world)?;
    let mut program = world.agent(REST, "rest")?;
    let (theirs, to) = (Some(addresses_of(WEB)[0]), services(REST)[0]);
    ensure!(program.ask_udp(theirs, to)? == "not permitted");
    let counted = || -> Result<u64> {
        let refused = keeper.refused().recv_timeout(PATIENCE)??;
        Ok(refused.iter().map(|(_, packets)| packets).sum())
    };
    let before = counted()?;
    ensure!(before > 0, "nothing was counted");
    world.a.namespace.run(|| delete_table(SEPARATION_TABLE))?;
    loop {
        match events.recv_timeout(PATIENCE).context("nobody repaired it")? {
            HostEvent::Repaired(changes) if changes.iter().any(|change| change.contains(SEPARATION_TABLE)) => break,
            HostEvent::Repaired(_) | HostEvent::Followed => {}
            HostEvent::Failed(error) => bail!("{error}"),
        }
    }
    ensure!(program.ask_udp(theirs, to)? == "not permitted", "the rules are back and let everything through");
    ensure!(counted()? >= 1);
    keeper.stop()?;
    ensure!(world.a.namespace.run(|| delete_table(SEPARATION_TABLE)).is_err(), "the rules are still there");
    Ok(())
}

/// Deletes an nftables table of family `inet`, as anybody with the capability can.
fn delete_table(name: &str) -> Result<()> {
    let message = |kind: u16, flags: u16, sequence: u32, body: &[u8]| {
        let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        bytes.extend([sequence.to_ne_bytes(), [0; 4]].concat());
        bytes.extend(body);
        bytes
    };
    let mut body = vec![1, 0, 0, 0];
    body.extend(u16::try_from(name.len() + 5)?.to_ne_bytes());
    body.extend(1_u16.to_ne_bytes());
    body.extend(name.as_bytes());
    body.push(0);
    body.resize(body.len().next_multiple_of(4), 0);
    let batch =
        [message(16, 1, 1, &[0, 0, 0, 10]), message(10 << 8 | 2, 5, 2, &body), message(17, 1, 3, &[0, 0, 0, 10])];
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send_to(&batch.concat(), &netlink_sys::SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match i32::from_ne_bytes(answer[16..20].try_into()?) {
        0 => Ok(()),
        code => bail!("delete {name}: {}", std::io::Error::from_raw_os_error(-code)),
    }
}
