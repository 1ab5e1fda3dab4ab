//! The overlay's address space: a ULA /48 and, where wanted, an IPv4 prefix.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::reason::{Reason, Refusal};

/// The prefixes that overlay addresses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Overlay {
    /// First address and length of the IPv6 prefix; a ULA /48 (RFC 4193).
    pub v6: (Ipv6Addr, u8),
    /// First address and length of the IPv4 prefix, if the mesh has one.
    pub v4: Option<(Ipv4Addr, u8)>,
}

/// The addresses of one instance: always an IPv6 one, an IPv4 one where the mesh has a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OverlayAddresses {
    /// Inside [`Overlay::v6`].
    pub v6: Ipv6Addr,
    /// Inside [`Overlay::v4`].
    pub v4: Option<Ipv4Addr>,
}

impl OverlayAddresses {
    /// Each address, IPv6 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(IpAddr::V6(self.v6)), self.v4.map(IpAddr::V4)].into_iter().flatten()
    }
}

impl Overlay {
    /// Whether `address` lies inside the prefix of its family.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V6(address) => (u128::from(address) & mask6(self.v6.1)) == u128::from(self.v6.0),
            IpAddr::V4(address) => {
                self.v4.is_some_and(|(first, length)| (u32::from(address) & mask4(length)) == u32::from(first))
            }
        }
    }

    /// Checks what came over the wire: a ULA /48, an IPv4 prefix between /8 and /30, no host bits.
    pub fn from_wire(raw: &crate::wire::Overlay) -> Result<Self, Refusal> {
        let refuse = |field: &str, text: &str, want: &str| {
            Refusal::new(Reason::InvalidField, format!("overlay.{field} {text:?} is not {want}"))
        };
        let v6 = parse_v6(&raw.v6).ok_or_else(|| refuse("v6", &raw.v6, "a ULA prefix such as fd12:3456:789a::/48"))?;
        let v4 = match raw.v4.as_str() {
            "" => None,
            text => Some(
                parse_v4(text)
                    .ok_or_else(|| refuse("v4", text, "an IPv4 prefix between /8 and /30 such as 10.77.0.0/16"))?,
            ),
        };
        Ok(Self { v6, v4 })
    }

    /// As sent over the wire.
    #[must_use]
    pub fn to_wire(&self) -> crate::wire::Overlay {
        crate::wire::Overlay {
            v6: format!("{}/{}", self.v6.0, self.v6.1),
            v4: self.v4.map(|(first, length)| format!("{first}/{length}")).unwrap_or_default(),
        }
    }
}

fn mask6(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

fn mask4(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

fn parse_v6(text: &str) -> Option<(Ipv6Addr, u8)> {
    let (address, length) = text.split_once('/')?;
    let (address, length) = (address.parse::<Ipv6Addr>().ok()?, length.parse::<u8>().ok()?);
    let unique_local = address.octets()[0] == 0xfd;
    (unique_local && length == 48 && u128::from(address) & !mask6(length) == 0).then_some((address, length))
}

fn parse_v4(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, length) = text.split_once('/')?;
    let (address, length) = (address.parse::<Ipv4Addr>().ok()?, length.parse::<u8>().ok()?);
    let usable = (8..=30).contains(&length) && !address.is_loopback() && !address.is_multicast();
    (usable && u32::from(address) & !mask4(length) == 0).then_some((address, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(v6: &str, v4: &str) -> Result<Overlay, Refusal> {
        Overlay::from_wire(&crate::wire::Overlay { v6: v6.into(), v4: v4.into() })
    }

    #[test]
    fn addresses_outside_the_prefix_are_not_contained() {
        let overlay = overlay("fd12:3456:789a::/48", "10.77.0.0/16").expect("valid");
        for (address, inside) in [
            ("fd12:3456:789a::1", true),
            ("fd12:3456:789a:ffff::1", true),
            ("fd12:3456:789b::1", false),
            ("::ffff:10.77.0.1", false),
            ("10.77.255.255", true),
            ("10.78.0.0", false),
        ] {
            assert_eq!(overlay.contains(address.parse().expect("address")), inside, "{address}");
        }
        assert_eq!(Overlay::from_wire(&overlay.to_wire()), Ok(overlay));
    }

    #[test]
    fn prefixes_with_host_bits_or_of_other_kinds_are_refused_by_field() {
        for (v6, v4) in [
            ("fd12:3456:789a::1/48", ""),
            ("2001:db8::/48", ""),
            ("fd12:3456:789a::/64", ""),
            ("", ""),
            ("fd12:3456:789a::/48", "10.77.0.1/16"),
            ("fd12:3456:789a::/48", "127.0.0.0/8"),
            ("fd12:3456:789a::/48", "10.0.0.0/31"),
        ] {
            let refusal = overlay(v6, v4).expect_err("refused");
            assert!(refusal.detail.contains(if v4.is_empty() { "overlay.v6" } else { "overlay.v4" }));
        }
    }
}
