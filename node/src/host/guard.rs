//! The guard: one nftables table that lets overlay addresses take packets from the tunnel only. What comes from or goes to
//! the overlay may enter and leave by the TUN device and by loopback, and what this host sends bears an address of its own; everything
//! else is dropped and counted.

use std::net::IpAddr;

use super::addressing::Prefix;
use super::nftables::{
    Chain, FAMILY_V4, FAMILY_V6, Header, LOOPBACK, Meta, Operation, PRIORITY_AFTER_NAT, Step, Table, Verdict,
};

/// The table's name in `nft list tables`; family `inet`.
pub const GUARD_TABLE: &str = "warren_guard";
/// Before connection tracking and address translation (`raw`): a dropped packet leaves no trace in either.
const PRIORITY: i32 = -300;
/// After everything else has had its say about where a packet leaves.
const PRIORITY_LAST: i32 = 300;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
const TCP: u8 = 6;
/// The flag of TCP (RFC 9293, section 3.1).
const RST: u8 = 0x04;

/// The guard for these overlay prefixes and the TUN device with this index.
pub(super) fn table(prefixes: &[Prefix], device: u32) -> Table {
    let drop = |way: Meta, destination: bool| {
        prefixes.iter().map(move |prefix| {
            let elsewhere = vec![
                Step::LoadMeta(way as u32),
                Step::Compare { operation: Operation::Differs as u32, value: device.to_ne_bytes().to_vec() },
                Step::Compare { operation: Operation::Differs as u32, value: LOOPBACK.to_ne_bytes().to_vec() },
            ];
            [elsewhere, within(prefix, destination), vec![Step::Count, Step::Verdict(Verdict::Drop)]].concat()
        })
    };
    // Nobody on the host sends as a peer, by loopback either: binding a foreign address of IPv6 takes no privilege. Resets pass:
    // the packet filter refuses a program its connection in the name of who it calls.
    let foreign = prefixes.iter().map(|prefix| {
        let steps = [
            within(prefix, false),
            vec![
                Step::LoadSourceType,
                Step::Compare { operation: Operation::Differs as u32, value: LOCAL.to_ne_bytes().to_vec() },
                Step::Count,
                Step::Verdict(Verdict::Drop),
            ],
        ];
        steps.concat()
    });
    let sent = std::iter::once(rule_of_resets()).chain(foreign).collect();
    let chain = |name: &str, hook, priority, rules| Chain::new(name, Some((hook, priority)), rules);
    let (entered, leaves) = (Meta::InDevice, Meta::OutDevice);
    let chains = vec![
        // A forged source would pass as a peer's with a service that listens on every address.
        chain("arriving", 0, PRIORITY, drop(entered, true).chain(drop(entered, false)).collect()),
        chain("delivered", 1, PRIORITY_AFTER_NAT, drop(entered, true).collect()),
        // Packets of containers and virtual machines on this host must not borrow its identity.
        chain("forwarded", 2, PRIORITY_AFTER_NAT, drop(entered, true).collect()),
        chain("sent", 3, PRIORITY, sent),
        chain("leaving", 4, PRIORITY_LAST, drop(leaves, true).collect()),
    ];
    Table { name: GUARD_TABLE, sets: Vec::new(), ids: Vec::new(), chains }
}

/// The packet's source or destination lies in the prefix.
fn within(prefix: &Prefix, destination: bool) -> Vec<Step> {
    let v4 = prefix.first.is_ipv4();
    let address = match prefix.first {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    // Offsets of the source and destination address in the IPv4 (RFC 791) and IPv6 (RFC 8200) headers.
    let offset = match (destination, v4) {
        (false, true) => 12,
        (true, true) => 16,
        (false, false) => 8,
        (true, false) => 24,
    };
    vec![
        Step::LoadMeta(Meta::Family as u32),
        Step::Compare { operation: Operation::Equal as u32, value: vec![if v4 { FAMILY_V4 } else { FAMILY_V6 }] },
        Step::LoadHeader { base: Header::Network as u32, offset, length: address.len() as u32 },
        Step::Mask(mask(prefix.length, address.len())),
        Step::Compare { operation: Operation::Equal as u32, value: address },
    ]
}

fn rule_of_resets() -> Vec<Step> {
    vec![
        Step::LoadMeta(Meta::Protocol as u32),
        Step::Compare { operation: Operation::Equal as u32, value: vec![TCP] },
        Step::LoadHeader { base: Header::Transport as u32, offset: 13, length: 1 },
        Step::Mask(vec![RST]),
        Step::Compare { operation: Operation::Equal as u32, value: vec![RST] },
        Step::Verdict(Verdict::Accept),
    ]
}

fn mask(length: u8, size: usize) -> Vec<u8> {
    (0..size)
        .map(|position| !0xff_u8.checked_shr(u32::from(length).saturating_sub(8 * position as u32)).unwrap_or(0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_prefixs_length() {
        assert_eq!(mask(48, 16)[..], [[0xff; 6].as_slice(), &[0; 10]].concat());
        assert_eq!(mask(17, 4), [0xff, 0xff, 0x80, 0]);
        assert_eq!(mask(0, 4), [0; 4]);
        assert_eq!(mask(32, 4), [0xff; 4]);
    }

    #[test]
    fn the_guard_stands_wherever_a_packet_of_the_overlay_can_pass() {
        let prefixes = [("fd00::", 48), ("10.77.0.0", 16)]
            .map(|(first, length)| Prefix { first: first.parse().expect("address"), length });
        let stands: Vec<_> = table(&prefixes, 7)
            .chains
            .into_iter()
            .map(|chain| (chain.name, chain.base.expect("base").0, chain.rules.len()))
            .collect();
        // NF_INET_PRE_ROUTING for both directions; LOCAL_IN and FORWARD after destination translation; LOCAL_OUT is not
        // enough, POST_ROUTING sees what is forwarded too. One rule for each prefix and direction, and one
        // for resets.
        let expected =
            [("arriving", 0, 4), ("delivered", 1, 2), ("forwarded", 2, 2), ("sent", 3, 3), ("leaving", 4, 2)];
        assert_eq!(stands, expected.map(|(name, hook, rules)| (name.to_owned(), hook, rules)));
    }
}
