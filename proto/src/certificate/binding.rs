//! What ties a tunnel key to a certificate: the TunnelBinding extension and the capability bits in it.

use std::fmt;

use crate::reason::{Reason, Refusal};
use crate::{InstanceId, NodeId};

/// What a node is able or obliged to do, as bits signed into its tunnel certificates, so that the wire cannot talk
/// them down.
///
/// The low half holds abilities: a reader that does not know one leaves it unused. The high half holds marks
/// that change how the certificate must be treated: a reader that does not know one refuses the certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Capabilities(u64);

impl Capabilities {
    /// None.
    pub const NONE: Self = Self(0);
    /// The node speaks the key exchange with ML-KEM-768.
    pub const ML_KEM: Self = Self(1);
    /// The node's processor has AES instructions: AES-256-GCM is its faster suite.
    pub const AES: Self = Self(1 << 1);
    /// A plain WireGuard device, registered by an administrator: application packets go through the handshake tunnel.
    pub const PLAIN: Self = Self(1 << 32);

    const KNOWN_MARKS: u64 = Self::PLAIN.0;
    const ABILITIES: u64 = u32::MAX as u64;

    /// The bits as a node sent them in a request: abilities only, for a mark is never the node's to claim.
    #[must_use]
    pub const fn claimed(bits: u64) -> Self {
        Self(bits & Self::ABILITIES)
    }

    /// The bits as a certificate carries them; `None` when they hold a mark that this version does not know.
    #[must_use]
    pub const fn certified(bits: u64) -> Option<Self> {
        if bits & !Self::ABILITIES & !Self::KNOWN_MARKS == 0 { Some(Self(bits)) } else { None }
    }

    /// As sent and certified.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether every bit of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capabilities({:#x})", self.0)
    }
}

/// The content of a tunnel certificate's own extension: one tunnel key, one instance, one node.
///
/// ```text
/// TunnelBinding ::= SEQUENCE {
///     version       INTEGER (1),
///     x25519        OCTET STRING (SIZE(32)),
///     instance      OCTET STRING (SIZE(16)),
///     node          OCTET STRING (SIZE(16)),
///     capabilities  OCTET STRING (SIZE(8)) }  -- big-endian bits
/// ```
///
/// Every field has a fixed size, so there is one encoding and the parser compares headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelBinding {
    /// X25519 public key of the tunnel (RFC 7748), the static key of its handshakes.
    pub tunnel_key: [u8; 32],
    /// The running copy that the key belongs to.
    pub instance: InstanceId,
    /// The node that holds the key.
    pub node: NodeId,
    /// What that node can do.
    pub capabilities: Capabilities,
}

const VERSION: u8 = 1;
const LENGTH: usize = 85;

impl TunnelBinding {
    /// The DER encoding.
    #[must_use]
    pub fn to_der(&self) -> Vec<u8> {
        let mut der = vec![0x30, (LENGTH - 2) as u8, 0x02, 1, VERSION, 0x04, 32];
        der.extend_from_slice(&self.tunnel_key);
        der.extend_from_slice(&[0x04, 16]);
        der.extend_from_slice(self.instance.as_bytes());
        der.extend_from_slice(&[0x04, 16]);
        der.extend_from_slice(self.node.as_bytes());
        der.extend_from_slice(&[0x04, 8]);
        der.extend_from_slice(&self.capabilities.bits().to_be_bytes());
        der
    }

    /// Reads the one encoding there is; anything else is refused.
    pub fn from_der(der: &[u8]) -> Result<Self, Refusal> {
        let refuse = |what: &str| Refusal::new(Reason::CertificateMalformed, format!("tunnel binding: {what}"));
        if let [0x30, _, 0x02, 1, version, ..] = der
            && *version != VERSION
        {
            return Err(refuse(&format!("version {version} is not known to this node")));
        }
        let mut rest = der;
        let mut field = |header: &[u8], length: usize| {
            let body = rest.strip_prefix(header)?;
            let (field, behind) = body.split_at_checked(length)?;
            rest = behind;
            Some(field)
        };
        let fields = (|| {
            field(&[0x30, (LENGTH - 2) as u8], 0)?;
            field(&[0x02, 1, VERSION], 0)?;
            let tunnel_key: [u8; 32] = field(&[0x04, 32], 32)?.try_into().ok()?;
            let instance = InstanceId::try_from(field(&[0x04, 16], 16)?).ok()?;
            let node = NodeId::try_from(field(&[0x04, 16], 16)?).ok()?;
            let bits = u64::from_be_bytes(field(&[0x04, 8], 8)?.try_into().ok()?);
            Some((tunnel_key, instance, node, bits))
        })();
        let Some((tunnel_key, instance, node, bits)) = fields else {
            return Err(refuse("it is not the encoding of version 1"));
        };
        if !rest.is_empty() {
            return Err(refuse("bytes follow it"));
        }
        let capabilities = Capabilities::certified(bits)
            .ok_or_else(|| refuse(&format!("capability bits {bits:#x} hold a mark that this node does not know")))?;
        Ok(Self { tunnel_key, instance, node, capabilities })
    }
}

/// Whether an X25519 public key is of low order: agreement with it gives zero for every private key (RFC 7748,
/// section 6.1), so it would bind a tunnel to nobody. All encodings of such points are found. An agreement would tell as
/// well, at two hundred times the price, and handshake messages are asked before anything else is spent on them.
#[must_use]
pub fn is_low_order(tunnel_key: &[u8; 32]) -> bool {
    // Agreement ignores the top bit.
    let mut coordinate = *tunnel_key;
    coordinate[31] &= 0x7f;
    LOW_ORDER.contains(&coordinate)
}

/// Every spelling below 2^255, little-endian, of the u-coordinates that eight times a point takes to the neutral element: the
/// curve's eight such points have 0, one of 1 and -1, and the two long ones; its twist's four have 0 and the other of 1 and -1.
/// The prime is 2^255 - 19, so that 0 and 1 have a second spelling there.
const LOW_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    spelled(0x01, 0x00, 0x00),
    spelled(0xec, 0xff, 0x7f),
    spelled(0xed, 0xff, 0x7f),
    spelled(0xee, 0xff, 0x7f),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
        0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
        0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
];

const fn spelled(low: u8, middle: u8, high: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = low;
    bytes[31] = high;
    bytes
}

/// Whether an X25519 public key is written the one way in which agreement writes it: below 2^255 - 19 and so
/// with the top bit clear (RFC 7748, section 5). A key with a second spelling could be claimed twice.
#[must_use]
pub fn is_canonical(tunnel_key: &[u8; 32]) -> bool {
    let [low, middle @ .., high] = tunnel_key;
    *high < 0x7f || (*high == 0x7f && (middle.iter().any(|byte| *byte != 0xff) || *low < 0xed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binding() -> TunnelBinding {
        TunnelBinding {
            tunnel_key: [7; 32],
            instance: InstanceId::from_bytes([1; 16]),
            node: NodeId::from_bytes([2; 16]),
            capabilities: Capabilities::ML_KEM.with(Capabilities::AES),
        }
    }

    #[test]
    fn a_binding_cut_off_or_followed_by_bytes_or_of_another_version_is_refused() {
        let der = binding().to_der();
        assert_eq!(der.len(), LENGTH);
        assert_eq!(TunnelBinding::from_der(&der), Ok(binding()));
        for length in 0..der.len() {
            assert!(TunnelBinding::from_der(&der[..length]).is_err());
        }
        assert!(TunnelBinding::from_der(&[&der[..], &[0]].concat()).is_err());
        let mut newer = der;
        newer[4] = 2;
        assert!(TunnelBinding::from_der(&newer).expect_err("refused").detail.contains("version 2"));
    }

    #[test]
    fn an_unknown_ability_is_kept_and_an_unknown_mark_refused() {
        let ability = TunnelBinding { capabilities: Capabilities::claimed(1 << 31), ..binding() };
        assert_eq!(TunnelBinding::from_der(&ability.to_der()), Ok(ability));
        let mut der = binding().to_der();
        der[LENGTH - 8] = 0x80;
        assert!(TunnelBinding::from_der(&der).is_err());
    }

    /// What makes a key of low order: agreement with it gives zero.
    fn agrees_on_nothing(key: &[u8; 32]) -> bool {
        [[0x40; 32], [0x58; 32]].map(|secret| x25519_dalek::x25519(secret, *key)) == [[0; 32]; 2]
    }

    #[test]
    fn every_spelling_of_a_low_order_key_is_found_and_its_neighbours_are_not() {
        for spelling in LOW_ORDER {
            for top in [0, 0x80] {
                let mut key = spelling;
                key[31] |= top;
                assert!(is_low_order(&key) && agrees_on_nothing(&key), "{key:x?}");
                for near in [key[0].wrapping_add(1), key[0].wrapping_sub(1), key[0] ^ 0x80] {
                    key[0] = near;
                    assert_eq!(is_low_order(&key), agrees_on_nothing(&key), "{key:x?}");
                }
            }
        }
        // All that has two spellings, and some around it.
        for low in 0..=255 {
            for (middle, high) in [(0x00, 0x00), (0x00, 0x80), (0xff, 0x7f), (0xff, 0xff)] {
                let key = spelled(low, middle, high);
                assert_eq!(is_low_order(&key), agrees_on_nothing(&key), "{key:x?}");
            }
        }
    }

    #[test]
    fn a_node_cannot_claim_the_plain_mark() {
        assert!(!Capabilities::claimed(u64::MAX).contains(Capabilities::PLAIN));
    }

    proptest! {
        #[test]
        fn keys_are_of_low_order_when_agreement_says_so(key: [u8; 32]) {
            prop_assert_eq!(is_low_order(&key), agrees_on_nothing(&key));
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_what_parses_encodes_to_itself(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            if let Ok(binding) = TunnelBinding::from_der(&bytes) {
                prop_assert_eq!(binding.to_der(), bytes);
            }
        }

        #[test]
        fn every_binding_reads_back(key: [u8; 32], instance: [u8; 16], node: [u8; 16], bits: u32) {
            let binding = TunnelBinding {
                tunnel_key: key,
                instance: InstanceId::from_bytes(instance),
                node: NodeId::from_bytes(node),
                capabilities: Capabilities::claimed(bits.into()),
            };
            prop_assert_eq!(TunnelBinding::from_der(&binding.to_der()), Ok(binding));
        }
    }
}
