//! Longest-prefix match against a linear search.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

#[test]
fn the_more_specific_prefix_owns_the_address() {
    let mut table = AllowedIps::default();
    table.insert(address("10.0.0.0"), 8, "gateway");
    table.insert(address("10.1.2.3"), 32, "host");
    table.insert(address("fd00::"), 8, "wide");
    table.insert(address("fd00::1"), 128, "narrow");
    assert_eq!(table.longest_match(address("10.1.2.3")), Some(&"host"));
    assert_eq!(table.longest_match(address("10.1.2.4")), Some(&"gateway"));
    assert_eq!(table.longest_match(address("11.1.2.4")), None);
    assert_eq!(table.longest_match(address("fd00::1")), Some(&"narrow"));
    assert_eq!(table.longest_match(address("fd00::2")), Some(&"wide"));
}

#[test]
fn families_never_answer_for_each_other() {
    let mut table = AllowedIps::default();
    table.insert(address("0.0.0.0"), 0, 4);
    assert_eq!(table.longest_match(address("::ffff:10.0.0.1")), None);
    table.insert(address("::"), 0, 6);
    assert_eq!(table.longest_match(address("::ffff:10.0.0.1")), Some(&6));
    assert_eq!(table.longest_match(address("10.0.0.1")), Some(&4));
}

fn some_address() -> impl Strategy<Value = IpAddr> {
    // Few distinct bits, so that prefixes nest and collide.
    prop_oneof![
        (0u32..64).prop_map(|n| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | n | (n << 14)))),
        (0u128..64).prop_map(|n| IpAddr::V6(Ipv6Addr::from((0xfd << 120) | n | (n << 60)))),
    ]
}

proptest! {
    /// Against a list that is searched from end to end.
    #[test]
    fn look_ups_agree_with_a_list(
        entries in prop::collection::vec((some_address(), 0u8..=128), 0..40),
        probes in prop::collection::vec(some_address(), 1..40),
    ) {
        let (mut table, mut list) = (AllowedIps::default(), Vec::<(IpAddr, u8, usize)>::new());
        for (value, (address, bits)) in entries.into_iter().enumerate() {
            let bits = bits.min(width(address));
            table.insert(address, bits, value);
            list.retain(|(other, length, _)| {
                !(other.is_ipv4() == address.is_ipv4() && *length == bits && network(*other, bits) == network(address, bits))
            });
            list.push((address, bits, value));
        }
        for probe in probes {
            let naive = list
                .iter()
                .filter(|(address, bits, _)| {
                    address.is_ipv4() == probe.is_ipv4() && network(*address, *bits) == network(probe, *bits)
                })
                .max_by_key(|(_, bits, _)| *bits)
                .map(|(_, _, value)| value);
            prop_assert_eq!(table.longest_match(probe), naive);
        }
    }
}
