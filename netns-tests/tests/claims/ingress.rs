//! Who is let in at the tunnel's ingress, who is not, and what each side is told.
//!
//! ```text
//!   coordinator   web-1                bank-1                rogue-1
//!                 shop/web-frontend    bank/banking-api      lab/rogue
//!                        |  8080 allowed (desk-reads)           |  linked to nothing
//!                        |  9000 denied (no-admin)              |
//!                        |  7000 no rule                        |
//!   ==================================================================
//! ```

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::host::{ANSWER, Outcome};

use super::{BANK, ROGUE, WEB, claim, must_answer, text, wait_until_allowed, web_and_bank};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("ingress::an_allowed_caller_is_let_in_over_both_families_tcp_udp_and_icmp", allowed),
        claim("ingress::a_denied_caller_sees_a_reset_or_an_icmp_and_the_rule_is_named_with_file_and_line", denied),
        claim("ingress::without_a_rule_the_reason_is_no_rule", no_rule),
        claim("ingress::an_unlinked_caller_is_refused_by_its_own_node", no_grant),
        claim("ingress::a_program_with_another_source_address_is_refused_at_once", spoofed_source),
    ]
}

fn allowed() -> Result<()> {
    let (_mesh, web, bank) = web_and_bank(&["--overlay-v4", "10.77.0.0/16"])?;
    wait_until_allowed(&web, &bank)?;
    let addresses = bank.addresses()?;
    ensure!(addresses.iter().any(std::net::IpAddr::is_ipv4) && addresses.iter().any(std::net::IpAddr::is_ipv6));
    for address in addresses {
        must_answer(&web, (address, 8080).into())?;
        let (outcome, answer) = web.host.udp((address, 8080).into(), b"datagram", ANSWER)?;
        ensure!((outcome, answer.as_slice()) == (Outcome::Connected, b"datagram".as_slice()), "UDP to {address}");
        // Echo is let in because some rule lets this caller in at some port.
        web.say(&["ping", &address.to_string()])?.expect(0)?;
    }
    Ok(())
}

fn denied() -> Result<()> {
    let (_mesh, web, bank) = web_and_bank(&["--overlay-v4", "10.77.0.0/16"])?;
    wait_until_allowed(&web, &bank)?;
    for address in bank.addresses()? {
        let (outcome, _) = web.host.tcp((address, 9000).into(), b"question", ANSWER)?;
        ensure!(outcome == Outcome::Refused, "TCP to {address}: {outcome:?}");
        let (outcome, _) = web.host.udp((address, 9000).into(), b"datagram", ANSWER)?;
        ensure!(matches!(outcome, Outcome::Refused | Outcome::Unreachable), "UDP to {address}: {outcome:?}");
    }
    let flow = bank.wait_for_denied("the denial", |flow| flow["port"] == 9000)?;
    ensure!(text(&flow, "source") == WEB && text(&flow, "destination") == BANK, "{flow:#}");
    ensure!(text(&flow, "rule").contains("no-admin") && text(&flow, "reason") == "denied-by-rule", "{flow:#}");
    ensure!(text(&flow, "file").ends_with("mesh.yaml") && flow["line"].as_u64() > Some(1), "{flow:#}");
    Ok(())
}

fn no_rule() -> Result<()> {
    let (_mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let (outcome, _) = web.host.tcp(bank.at(7000)?, b"question", ANSWER)?;
    ensure!(outcome == Outcome::Refused, "{outcome:?}");
    let flow = bank.wait_for_denied("the denial", |flow| flow["port"] == 7000)?;
    ensure!(text(&flow, "reason") == "no-rule" && text(&flow, "source") == WEB, "{flow:#}");
    Ok(())
}

fn no_grant() -> Result<()> {
    let (mut mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let rogue = mesh.node("rogue-1", ROGUE)?;
    let before = bank.flows("denied")?.len();
    let (outcome, _) = rogue.host.tcp(bank.at(8080)?, b"question", ANSWER)?;
    ensure!(matches!(outcome, Outcome::Refused | Outcome::Unreachable), "{outcome:?}");
    let flow = rogue.wait_for_denied("the caller's own refusal", |flow| text(flow, "reason") == "no-grant")?;
    ensure!(text(&flow, "source") == ROGUE, "{flow:#}");
    ensure!(bank.flows("denied")?.len() == before, "the destination must never hear of it");
    Ok(())
}

fn spoofed_source() -> Result<()> {
    let (_mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    // An address inside the overlay that is not this instance's own.
    let own = web.addresses()?[0];
    let std::net::IpAddr::V6(own) = own else { anyhow::bail!("the first address is IPv6") };
    let mut octets = own.octets();
    octets[15] ^= 1;
    let sent = web.host.udp_from(std::net::Ipv6Addr::from(octets), bank.at(8080)?, b"spoofed");
    // By the guard, before the tunnel sees it.
    let refused = sent.err().and_then(|error| error.downcast_ref::<std::io::Error>().map(std::io::Error::kind));
    ensure!(refused == Some(std::io::ErrorKind::PermissionDenied), "{refused:?}");
    let api = bank.at(8080)?;
    must_answer(&web, api)
}
