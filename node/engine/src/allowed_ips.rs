//! Allowed IPs: one device-wide longest-prefix table, asked for the route of a packet that leaves and for the
//! rightful owner of an inner source address. One table for both, so that a peer with a covering prefix can
//! never speak as the peer with the more specific one.

use std::net::{IpAddr, Ipv6Addr};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

/// A longest-prefix map. Host addresses, which are nearly all there is, cost one hash look-up; each further
/// prefix length in use costs one more.
#[derive(Debug, Clone)]
pub struct AllowedIps<V> {
    v4: Vec<Length<V>>,
    v6: Vec<Length<V>>,
}

/// The networks of one prefix length, keyed by their address bits.
#[derive(Debug, Clone)]
struct Length<V> {
    bits: u8,
    networks: HashMap<u128, V, RandomState>,
}

impl<V> Default for AllowedIps<V> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

impl<V> AllowedIps<V> {
    /// Maps `address/bits` to `value` and returns what it was mapped to. Host bits are ignored; a length beyond
    /// the family's means a host address.
    pub fn insert(&mut self, address: IpAddr, bits: u8, value: V) -> Option<V> {
        let (key, bits) = (network(address, bits), bits.min(width(address)));
        let lengths = match address {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        };
        // Longest first, so that the first hit of a look-up is the answer.
        let at = lengths.partition_point(|length| length.bits > bits);
        if lengths.get(at).is_none_or(|length| length.bits != bits) {
            lengths.insert(at, Length { bits, networks: HashMap::default() });
        }
        lengths[at].networks.insert(key, value)
    }

    /// The value of the longest prefix that holds `address`. An IPv4-mapped IPv6 address matches only what was
    /// inserted as IPv6.
    #[must_use]
    pub fn longest_match(&self, address: IpAddr) -> Option<&V> {
        let lengths = match address {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        lengths.iter().find_map(|length| length.networks.get(&network(address, length.bits)))
    }
}

const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The address with the host bits cleared, right-aligned.
fn network(address: IpAddr, bits: u8) -> u128 {
    let (value, width) = match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (Ipv6Addr::to_bits(address), 128),
    };
    let host_bits = width - u32::from(bits).min(width);
    value.checked_shr(host_bits).and_then(|value| value.checked_shl(host_bits)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
