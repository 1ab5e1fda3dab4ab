//! Manifests and heartbeats under other hands than the signer's.

use ed25519_dalek::pkcs8::EncodePublicKey;
use ed25519_dalek::{Signer, SigningKey};
use rcgen::SubjectPublicKeyInfo;
use warren_proto::peer_map::signing_input;
use warren_proto::wire;

use super::*;
use crate::identity::{VerifiedBody, verify_signed_object};

struct TestSigner {
    key: SigningKey,
    certificate: Bytes,
}

fn template(identity: &str) -> CertificateParams {
    let mut params = TestMesh::template(&web());
    params.subject_alt_names = vec![uri(identity)];
    params.extended_key_usages = vec![own(oid::MANIFEST_SIGNER)];
    params.custom_extensions.clear();
    params
}

fn signer_by(issuer: &TestCa, params: &CertificateParams) -> TestSigner {
    let key = SigningKey::from_bytes(&rand::random());
    let spki = key.verifying_key().to_public_key_der().expect("encodes");
    let spki = SubjectPublicKeyInfo::from_der(spki.as_bytes()).expect("decodes");
    TestSigner { key, certificate: issuer.sign(params, &spki) }
}

impl TestSigner {
    fn new(mesh: &TestMesh) -> Self {
        signer_by(&mesh.root, &template("spiffe://bank.example/signer/alpha"))
    }

    fn sign(&self, body: &[u8]) -> wire::SignedObject {
        wire::SignedObject {
            body: body.to_vec(),
            signature: self.key.sign(&signing_input(body)).to_bytes().to_vec(),
            signer: Some(wire::CertificateChain { certificates: vec![self.certificate.to_vec()] }),
        }
    }
}

fn reason(mesh: &TestMesh, object: &wire::SignedObject) -> Reason {
    verify_signed_object(object, &mesh.bundle(), NOW).expect_err("refused").reason
}

#[test]
fn an_object_by_a_certified_signer_is_believed_as_it_was_sent() {
    let mesh = TestMesh::new();
    let object = TestSigner::new(&mesh).sign(b"body");
    let verified: VerifiedBody = verify_signed_object(&object, &mesh.bundle(), NOW).expect("verified");
    assert_eq!(verified.as_bytes(), b"body");
    assert_eq!(verified.signer().name(), "alpha");
}

#[test]
fn a_changed_body_or_signature_does_not_verify() {
    let mesh = TestMesh::new();
    let object = TestSigner::new(&mesh).sign(b"body");
    let mut changed = object.clone();
    changed.body = b"bodY".to_vec();
    assert_eq!(reason(&mesh, &changed), Reason::ManifestSignature);
    for at in 0..object.signature.len() {
        let mut changed = object.clone();
        changed.signature[at] ^= 1;
        assert_eq!(reason(&mesh, &changed), Reason::ManifestSignature);
    }
    for length in [0, 63, 65] {
        let mut changed = object.clone();
        changed.signature.resize(length, 0);
        assert_eq!(reason(&mesh, &changed), Reason::ManifestSignature);
    }
}

#[test]
fn a_signature_without_the_context_or_in_a_second_form_does_not_verify() {
    let mesh = TestMesh::new();
    let signer = TestSigner::new(&mesh);
    let mut object = signer.sign(b"body");
    object.signature = signer.key.sign(b"body").to_bytes().to_vec();
    assert_eq!(reason(&mesh, &object), Reason::ManifestSignature);
    // S + L is the same signature to a lenient verifier.
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut object = signer.sign(b"body");
    let mut carry = 0;
    for (byte, order) in object.signature[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(order) + carry;
        *byte = sum as u8;
        carry = sum >> 8;
    }
    assert_eq!(reason(&mesh, &object), Reason::ManifestSignature);
}

#[test]
fn a_signer_that_no_root_of_ours_certified_directly_is_refused() {
    let (mesh, stranger) = (TestMesh::new(), TestMesh::new());
    let alpha = "spiffe://bank.example/signer/alpha";
    let refused = [
        signer_by(&stranger.root, &template(alpha)),
        signer_by(&mesh.root, &template("spiffe://other.example/signer/alpha")),
        signer_by(&mesh.root, &template("spiffe://bank.example/coordinator/alpha")),
        signer_by(&mesh.root, &template("spiffe://bank.example/ns/shop/sa/web")),
    ];
    for signer in refused {
        assert_eq!(reason(&mesh, &signer.sign(b"body")), Reason::ManifestSigner);
    }
    let by_intermediate = signer_by(&mesh.issuing, &template(alpha));
    let mut object = by_intermediate.sign(b"body");
    if let Some(chain) = &mut object.signer {
        chain.certificates.push(mesh.issuing.der.to_vec());
    }
    assert_eq!(reason(&mesh, &object), Reason::ManifestSigner);
    let mut without_purpose = template(alpha);
    without_purpose.extended_key_usages = vec![own(oid::MESH_TUNNEL)];
    assert_eq!(reason(&mesh, &signer_by(&mesh.root, &without_purpose).sign(b"body")), Reason::ManifestSigner);
    let mut ended = template(alpha);
    ended.not_after = moment(NOW);
    assert_eq!(reason(&mesh, &signer_by(&mesh.root, &ended).sign(b"body")), Reason::ManifestSigner);
    let mut unsigned = TestSigner::new(&mesh).sign(b"body");
    unsigned.signer = None;
    assert_eq!(reason(&mesh, &unsigned), Reason::ManifestSigner);
}

#[test]
fn another_certified_signers_certificate_does_not_cover_the_signature() {
    let mesh = TestMesh::new();
    let mut object = TestSigner::new(&mesh).sign(b"body");
    object.signer = TestSigner::new(&mesh).sign(b"body").signer;
    assert_eq!(reason(&mesh, &object), Reason::ManifestSignature);
}
