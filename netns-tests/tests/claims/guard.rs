//! No way around the tunnel: overlay addresses take packets from the tunnel alone, and overlay traffic leaves
//! through it or not at all.
//!
//! ```text
//!   coordinator   web-1 ====tunnel==== bank-1        neighbour
//!   ============================================================
//!                                         ^------------- routes the overlay prefix to bank-1's eth0
//! ```

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::host::Outcome;
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;

use super::{ANSWER_TEXT, BANK, WEB, claim, wait_until_allowed, web_and_bank};

const SILENCE: Duration = Duration::from_secs(2);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("guard::a_neighbour_that_routes_to_an_overlay_address_reaches_nothing", neighbour),
        claim("guard::with_the_node_killed_overlay_traffic_does_not_leave_in_clear", killed),
        claim("guard::after_a_reboot_a_node_without_certificates_or_coordinator_is_closed", rebooted),
        claim("guard::an_enrolled_node_that_was_never_told_anything_is_closed", never_told),
        claim("guard::a_stopped_node_leaves_overlay_traffic_unreachable", stopped),
    ]
}

fn neighbour() -> Result<()> {
    let (mut mesh, web, bank) = web_and_bank(&["--overlay-v4", "10.77.0.0/16"])?;
    wait_until_allowed(&web, &bank)?;
    let neighbour = mesh.lab.host("neighbour")?;
    for address in bank.addresses()? {
        match address {
            IpAddr::V4(_) => neighbour.route(address, bank.host.v4.into())?,
            IpAddr::V6(_) => neighbour.route(address, bank.host.v6.into())?,
        }
        for port in [8080, 7000] {
            let (outcome, _) = neighbour.tcp((address, port).into(), b"question", SILENCE)?;
            ensure!(outcome == Outcome::Silence, "the neighbour got {outcome:?} from {address}:{port}");
            let (outcome, _) = neighbour.udp((address, port).into(), b"question", SILENCE)?;
            ensure!(outcome == Outcome::Silence, "the neighbour got {outcome:?} from UDP {address}:{port}");
        }
    }
    super::must_answer(&web, bank.at(8080)?)
}

fn killed() -> Result<()> {
    let (mesh, mut web, bank) = web_and_bank(&["--overlay-v4", "10.77.0.0/16"])?;
    wait_until_allowed(&web, &bank)?;
    let addresses = bank.addresses()?;
    web.kill()?;
    let capture = mesh.lab.capture()?;
    for address in &addresses {
        let (outcome, _) = web.host.tcp((*address, 8080).into(), ANSWER_TEXT, SILENCE)?;
        ensure!(outcome != Outcome::Connected, "{address} answered without a node");
        web.host.udp((*address, 8080).into(), ANSWER_TEXT, Duration::from_millis(200))?;
    }
    // Neither a SYN nor a datagram to an overlay address in clear.
    for address in addresses {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        ensure!(capture.frames_with(&octets) == 0, "a packet to {address} left in clear");
    }
    Ok(())
}

fn rebooted() -> Result<()> {
    let (mut mesh, mut web, bank) = web_and_bank(&["--overlay-v4", "10.77.0.0/16"])?;
    wait_until_allowed(&web, &bank)?;
    let addresses = bank.addresses()?;
    web.stop()?;
    mesh.coordinator.stop()?;
    // The disk of before in a network namespace that knows nothing of it; the instance has not outlived the outage.
    let mut again = Node::on(mesh.lab.host("web-1-again")?, WEB)?;
    std::fs::rename(web.state(), again.state())?;
    std::fs::remove_file(again.state().join("instance"))?;
    let attempt = |from: &Node, to: IpAddr| from.host.udp((to, 8080).into(), ANSWER_TEXT, Duration::from_millis(200));
    for address in &addresses {
        let (outcome, _) = attempt(&again, *address)?;
        ensure!(outcome == Outcome::Silence, "{address} does not leave by the default route: {outcome:?}");
    }
    again.start_unready()?;
    for address in &addresses {
        eventually("the host is closed", IN_FORCE, || Ok(attempt(&again, *address)?.0 == Outcome::Unreachable))?;
    }
    // The coordinator is back: the node gets an instance and opens.
    mesh.coordinator.start()?;
    wait_until_allowed(&again, &bank)
}

fn never_told() -> Result<()> {
    let mut mesh = Mesh::new(&["--overlay-v4", "10.77.0.0/16"])?;
    let bank = mesh.node("bank-1", BANK)?;
    let mut web = mesh.enrol("web-1", WEB)?;
    mesh.coordinator.stop()?;
    let attempt = |to: IpAddr| web.host.udp((to, 8080).into(), ANSWER_TEXT, Duration::from_millis(200));
    let addresses = bank.addresses()?;
    for address in &addresses {
        let (outcome, _) = attempt(*address)?;
        ensure!(outcome == Outcome::Silence, "{address} does not leave by the default route: {outcome:?}");
    }
    web.start_unready()?;
    let attempt = |to: IpAddr| web.host.udp((to, 8080).into(), ANSWER_TEXT, Duration::from_millis(200));
    for address in &addresses {
        eventually("the host is closed", IN_FORCE, || Ok(attempt(*address)?.0 == Outcome::Unreachable))?;
    }
    Ok(())
}

fn stopped() -> Result<()> {
    let (_mesh, mut web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let api = bank.at(8080)?;
    web.stop()?;
    let (outcome, _) = web.host.tcp(api, b"question", SILENCE)?;
    ensure!(outcome == Outcome::Unreachable, "{outcome:?}");
    web.start()?;
    wait_until_allowed(&web, &bank)
}
