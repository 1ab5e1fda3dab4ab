//! A sender that was tampered with speaks as somebody else inside its own, admitted session: the destination alone decides.
//!
//! ```text
//!   coordinator (stopped)   web-1 (tampered)   mobile-1 (whose address it borrows)   bank-1
//!   ========================================================================================
//! ```
//!
//! web-1 runs the real program, which would never send from an address that is not its own. So its own certificate is replaced
//! by one that names the borrowed address; the destination was sent the real one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::forge::{CaDirectory, OwnInstance};
use warren_netns_tests::host::Outcome;
use warren_netns_tests::mesh::{IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;
use warren_proto::OverlayAddresses;

use super::{BANK, POLICY, WEB, claim, drops, must_answer, serve, wait_until_allowed};

pub(crate) fn trials() -> Vec<Trial> {
    vec![claim("spoofing::a_tampered_sender_delivers_nothing_from_an_inner_address_that_is_not_its_own", borrowed)]
}

const MOBILE: &str = "shop/mobile";

/// How long an answer is waited for that must not come.
const SILENCE: Duration = Duration::from_secs(1);

/// [`POLICY`] with a third workload, which alone may use the port `unused`.
fn policy() -> String {
    let mobile = "---\nkind: Service\nname: shop/mobile\n---\nkind: Service\nname: lab/rogue\n";
    let policy = POLICY.replace("---\nkind: Service\nname: lab/rogue\n", mobile);
    let allow = "  mobile-uses-it:\n    from: [shop/mobile]\n    ports: [unused]\ndeny:";
    policy.replace("deny:", allow)
}

fn addresses(node: &Node) -> Result<OverlayAddresses> {
    let all = node.addresses()?;
    let v6 = all.iter().find_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None });
    let v4 = all.iter().find_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None });
    Ok(OverlayAddresses { v6: v6.context("no IPv6 overlay address")?, v4 })
}

fn borrowed() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(&policy(), &[])?.expect(0)?;
    let mut web = mesh.node("web-1", WEB)?;
    let bank = mesh.node("bank-1", BANK)?;
    let mobile = mesh.node("mobile-1", MOBILE)?;
    serve(&bank)?;
    wait_until_allowed(&web, &bank)?;
    let real = addresses(&web)?;
    let theirs = addresses(&mobile)?;
    for address in bank.addresses()? {
        eventually("mobile-1 reaches its port", IN_FORCE, || {
            Ok(mobile.host.tcp((address, 7000).into(), b"question", SILENCE)?.0 == Outcome::Connected)
        })?;
    }
    // Nothing may tell the nodes what the tampered one claims to be.
    mesh.coordinator.stop()?;
    web.stop()?;
    let ca = CaDirectory::at(mesh.coordinator.directory().join("ca"));
    // What would be heard if a packet got through, whatever policy says of its port.
    let heard = bank.host.namespace.run(|| Ok(UdpSocket::bind("[::]:7777")?))?;
    heard.set_nonblocking(true)?;

    let nobody = Ipv6Addr::from_bits(theirs.v6.to_bits() ^ 0xffff);
    let borrowed = [
        ("another workload's", theirs),
        ("an address that nobody has", OverlayAddresses { v6: nobody, v4: theirs.v4 }),
    ];
    for (what, addresses) in borrowed {
        let mut own = OwnInstance::open(&web.state())?;
        own.claim(addresses, &ca)?;
        own.save()?;
        web.start()?;
        let shown = web.addresses()?;
        ensure!(shown.contains(&addresses.v6.into()), "web-1 was not tampered with: {shown:?}");
        let before = drops(&bank, "source-not-peers")?;
        for to in bank.addresses()?.into_iter().filter(|to| to.is_ipv6() || addresses.v4.is_some()) {
            // Also the port that its own identity may use: what it says it is counts for nothing.
            for port in [7000, 8080] {
                let (outcome, _) = web.host.tcp((to, port).into(), b"question", SILENCE)?;
                ensure!(outcome == Outcome::Silence, "{what}, to {to} port {port}: {outcome:?}");
            }
            let (outcome, answer) = web.host.udp(SocketAddr::new(to, 7777), b"spoofed", SILENCE)?;
            ensure!(outcome == Outcome::Silence, "{what}, UDP to {to}: {outcome:?}, {answer:?}");
        }
        // The session is a good one: it is the packets inside that are refused.
        let status = bank.say(&["status", "-o", "json"])?.expect(0)?.json()?;
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        let peer = peers.iter().find(|peer| peer["workload"] == WEB).context("bank-1 does not know web-1")?;
        ensure!(peer["session"] == "up", "no session: {peer:#}");
        let counted = drops(&bank, "source-not-peers")? - before;
        ensure!(counted >= 4, "{what}: only {counted} packets were counted under source-not-peers");
        let mut buffer = [0; 16];
        ensure!(heard.recv_from(&mut buffer).is_err(), "{what}: a packet was delivered");
        let from_it = |flow: &serde_json::Value| {
            let source = super::text(flow, "sourceAddress").parse::<SocketAddr>().ok();
            flow["verdict"] == "allowed" && source.is_some_and(|source| source.ip() == IpAddr::from(nobody))
        };
        ensure!(!bank.flows("allowed")?.iter().any(from_it), "{what}: a flow was let in");
        web.stop()?;
    }

    // As itself it is let in again: the refusals were about the address.
    let mut own = OwnInstance::open(&web.state())?;
    own.claim(real, &ca)?;
    own.save()?;
    web.start()?;
    wait_until_allowed(&web, &bank)?;
    // And the one whose address was borrowed was never disturbed.
    for address in bank.addresses()? {
        let (outcome, _) = mobile.host.tcp((address, 7000).into(), b"question", SILENCE)?;
        ensure!(outcome == Outcome::Connected, "mobile-1: {outcome:?}");
    }
    must_answer(&web, bank.at(8080)?)
}
