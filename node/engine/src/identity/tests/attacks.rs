//! What somebody who is determined might send.

use proptest::prelude::*;

use super::*;

/// Every encoding of the points whose order divides the cofactor, on the curve and its twist, with and without
/// the top bit.
fn low_order_keys() -> Vec<[u8; 32]> {
    let canonical = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    let decoded = canonical.map(|text| {
        let mut key = [0; 32];
        for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).expect("text"), 16).expect("hexadecimal");
        }
        key
    });
    let with_top_bit = decoded.map(|mut key| {
        key[31] |= 0x80;
        key
    });
    [decoded, with_top_bit].concat()
}

#[test]
fn no_encoding_of_a_low_order_key_is_admitted() {
    for key in low_order_keys() {
        assert_eq!(reason_against(|peer| peer.tunnel_key = key), Reason::KeyLowOrder, "{key:02x?}");
    }
}

#[test]
fn a_workloads_own_svid_admits_no_tunnel() {
    let mesh = TestMesh::new();
    let mut svid = TestMesh::template(&web());
    svid.extended_key_usages.truncate(2);
    // As it is issued, with no address and no tunnel key; and with both, as somebody would want it to be.
    let with_binding = mesh.chain(&svid);
    svid.subject_alt_names.truncate(1);
    svid.custom_extensions.clear();
    let as_issued = mesh.chain(&svid);
    warren_proto::certificate::WorkloadSvid::parse(&as_issued[0]).expect("a good SVID");
    for chain in [as_issued, with_binding] {
        let refusal = judge(&mesh, &TestNode::default(), &chain).expect_err("refused");
        assert_eq!(refusal.reason, Reason::CertificatePurpose);
    }
}

#[test]
fn a_key_with_a_second_spelling_is_refused_so_that_it_cannot_be_claimed_twice() {
    let mut high_bit = [9; 32];
    high_bit[31] |= 0x80;
    let mut above_the_prime = [0xff; 32];
    above_the_prime[0] = 0xf6;
    above_the_prime[31] = 0x7f;
    for key in [high_bit, above_the_prime] {
        assert_eq!(reason_against(|peer| peer.tunnel_key = key), Reason::CertificateProfile);
    }
}

#[test]
fn a_chain_of_ten_thousand_certificates_costs_nothing_to_refuse() {
    let mesh = TestMesh::new();
    let mut chain = mesh.chain(&TestMesh::template(&web()));
    chain.extend(std::iter::repeat_n(mesh.issuing.der.clone(), 10_000));
    assert_eq!(judge(&mesh, &TestNode::default(), &chain).expect_err("refused").reason, Reason::RecordTooLarge);
    let large = [Bytes::from(vec![0x30; 8 * 1024 + 1])];
    assert_eq!(judge(&mesh, &TestNode::default(), &large).expect_err("refused").reason, Reason::RecordTooLarge);
    let together = vec![Bytes::from(vec![0x30; 8 * 1024]); 3];
    assert_eq!(judge(&mesh, &TestNode::default(), &together).expect_err("refused").reason, Reason::RecordTooLarge);
    assert_eq!(judge(&mesh, &TestNode::default(), &[]).expect_err("refused").reason, Reason::CertificateMalformed);
}

#[test]
fn authorities_that_sign_each_other_in_a_circle_lead_nowhere() {
    let mesh = TestMesh::new();
    let [a, b] = ["a", "b"].map(|name| TestMesh::authority(TRUST_DOMAIN, name, None));
    let (params_a, params_b) = (a.clone(), b.clone());
    let (a, b) = (TestCa::root(a), TestCa::root(b));
    let a_by_b = b.sign(&params_a, a.issuer.key());
    let b_by_a = a.sign(&params_b, b.issuer.key());
    let leaf = a.sign(&TestMesh::template(&web()), &KeyPair::generate().expect("key"));
    let refusal = judge(&mesh, &TestNode::default(), &[leaf, a_by_b, b_by_a]).expect_err("refused");
    assert_eq!(refusal.reason, Reason::UntrustedIssuer);
}

#[test]
fn a_certificate_followed_by_bytes_or_with_a_negative_serial_number_is_refused() {
    let mesh = TestMesh::new();
    let chain = mesh.chain(&TestMesh::template(&web()));
    let followed = [Bytes::from([&chain[0][..], &[0]].concat()), chain[1].clone()];
    let refusal = judge(&mesh, &TestNode::default(), &followed).expect_err("refused");
    assert_eq!(refusal.reason, Reason::CertificateMalformed);
    let mut negative = chain[0].to_vec();
    let at = negative.windows(3).position(|window| window == [0x02, 16, 0x40]).expect("the serial number");
    negative[at + 2] |= 0x80;
    let refusal = judge(&mesh, &TestNode::default(), &[negative.into(), chain[1].clone()]).expect_err("refused");
    assert_eq!(refusal.reason, Reason::CertificateMalformed);
}

#[test]
fn no_single_flipped_bit_is_admitted() {
    let mesh = TestMesh::new();
    let node = TestNode::default();
    let chain = mesh.chain(&TestMesh::template(&web()));
    for at in 0..chain[0].len() {
        let mut leaf = chain[0].to_vec();
        leaf[at] ^= 1 << (at % 8);
        judge(&mesh, &node, &[leaf.into(), chain[1].clone()]).expect_err("a flipped bit");
    }
}

#[test]
fn a_signature_in_its_other_valid_form_does_not_slip_past_a_revocation() {
    let mesh = TestMesh::new();
    let chain = mesh.chain(&TestMesh::template(&web()));
    let twin = [Bytes::from(with_other_signature(&chain[0])), chain[1].clone()];
    assert_ne!(twin[0], chain[0], "another sequence of bytes, and so another hash");
    let good = judge(&mesh, &TestNode::default(), &twin).expect("anybody can make the twin, and it is as good");
    for target in [
        RevocationTarget::Serial {
            issuer_key_id: good.issuer_key_id().as_bytes().to_vec(),
            serial: good.serial().as_bytes().to_vec(),
        },
        RevocationTarget::TunnelKey([9; 32]),
    ] {
        let node = TestNode { revocations: revoking(target), ..TestNode::default() };
        for chain in [&chain[..], &twin] {
            assert_eq!(judge(&mesh, &node, chain).expect_err("refused").reason, Reason::Revoked);
        }
    }
}

/// The certificate with (r, n - s) for its ECDSA P-256 signature (r, s).
fn with_other_signature(der: &[u8]) -> Vec<u8> {
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6,
        0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    fn field(der: &[u8]) -> (usize, &[u8]) {
        // Tag, then a length of one to three bytes.
        let (header, length) = match der[1] {
            short @ 0..=0x7f => (2, usize::from(short)),
            0x81 => (3, usize::from(der[2])),
            _ => (4, usize::from(u16::from_be_bytes([der[2], der[3]]))),
        };
        (header + length, &der[header..header + length])
    }
    fn wrapped(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = match content.len() {
            short @ 0..=0x7f => vec![short as u8],
            medium @ 0x80..=0xff => vec![0x81, medium as u8],
            long => vec![0x82, (long >> 8) as u8, long as u8],
        };
        [&[tag][..], &length, content].concat()
    }
    let (_, certificate) = field(der);
    let (tbs_length, _) = field(certificate);
    let (algorithm_length, _) = field(&certificate[tbs_length..]);
    let (_, bits) = field(&certificate[tbs_length + algorithm_length..]);
    let (_, pair) = field(&bits[1..]);
    let (r_length, _) = field(pair);
    let (_, s) = field(&pair[r_length..]);
    let mut magnitude = [0; 32];
    let digits = &s[s.len().saturating_sub(32)..];
    magnitude[32 - digits.len()..].copy_from_slice(digits);
    let mut other = [0; 32];
    let mut borrow = 0;
    for at in (0..32).rev() {
        let difference = i16::from(ORDER[at]) - i16::from(magnitude[at]) - borrow;
        borrow = i16::from(difference < 0);
        other[at] = difference.rem_euclid(256) as u8;
    }
    let start = other.iter().position(|byte| *byte != 0).expect("not zero");
    let sign = if other[start] & 0x80 != 0 { &[0][..] } else { &[] };
    let integer = wrapped(0x02, &[sign, &other[start..]].concat());
    let pair = wrapped(0x30, &[&pair[..r_length], &integer].concat());
    let bits = wrapped(0x03, &[&[0][..], &pair].concat());
    wrapped(0x30, &[&certificate[..tbs_length + algorithm_length], &bits].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_are_refused_and_never_panic(
        chain in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..5)
    ) {
        let mesh = shared_mesh();
        let chain: Vec<_> = chain.into_iter().map(Bytes::from).collect();
        prop_assert!(judge(mesh, &TestNode::default(), &chain).is_err());
    }

    #[test]
    fn a_certificate_with_some_bytes_replaced_never_panics(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mesh = shared_mesh();
        let chain = mesh.chain(&TestMesh::template(&web()));
        let mut leaf = chain[0].to_vec();
        for (at, byte) in changes {
            let at = at.index(leaf.len());
            leaf[at] = byte;
        }
        let _ = judge(mesh, &TestNode::default(), &[leaf.clone().into(), chain[1].clone()]);
        leaf.truncate(cut.index(leaf.len()));
        prop_assert!(judge(mesh, &TestNode::default(), &[leaf.into(), chain[1].clone()]).is_err());
    }
}

fn shared_mesh() -> &'static TestMesh {
    static MESH: std::sync::OnceLock<TestMesh> = std::sync::OnceLock::new();
    MESH.get_or_init(TestMesh::new)
}
