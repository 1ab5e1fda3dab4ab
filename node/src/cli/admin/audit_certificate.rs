//! Which certificate the audit log is asked for: one that is at hand, or any with a serial number.
//!
//! A serial number finds a row and identifies nothing: who has the issuer's key writes whichever he likes into a certificate of
//! his own. Rows hold the SHA-256 of the certificate that they issued, and that is compared where the certificate is at hand.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use warren_proto::certificate::serial_number;
use warren_proto::peer_map::object_digest;
use warren_proto::tree_head::Issuance;

use super::{Exit, Failure};

/// The largest file, in bytes: a chain, a key beside it, and words around them.
const MAX_FILE: u64 = 64 * 1024;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The serial number, hexadecimal.
    pub(super) serial: String,
    /// SHA-256 of the certificate, hexadecimal, where it is at hand.
    pub(super) sha256: Option<String>,
}

impl Wanted {
    /// Any certificate with this serial number, hexadecimal.
    ///
    /// # Errors
    /// For a word that cannot be one: it is sent as a part of a query.
    pub(super) fn by_serial(word: &str) -> Result<Self, Failure> {
        if (1..=64).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Self { serial: word.to_owned(), sha256: None });
        }
        Err(Failure::new(Exit::Usage, format!("{word:?} is no serial number: expected 1 to 64 hexadecimal digits"))
            .next("openssl x509 -in CERTIFICATE -noout -serial"))
    }

    /// The certificate in `file`, PEM (the first in it) or DER.
    ///
    /// # Errors
    /// When it cannot be read or holds none.
    pub(super) fn read(file: &Path) -> Result<Self, Failure> {
        let next = "--certificate names a certificate, PEM or DER; of a chain the first is taken";
        let mut bytes = Vec::new();
        let read = File::open(file).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
        read.map_err(|error| {
            let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
            Failure::new(exit, format!("{} cannot be read", file.display())).cause(&error).next(next)
        })?;
        Self::of(&bytes).map_err(|cause| {
            Failure::new(Exit::Usage, format!("{} holds no certificate", file.display())).because(cause).next(next)
        })
    }

    fn of(bytes: &[u8]) -> Result<Self, String> {
        // What begins as a SEQUENCE is DER; no text does.
        let der = match bytes.first() {
            Some(0x30) if bytes.get(1).is_some_and(|length| !length.is_ascii()) => bytes.to_vec(),
            _ => CertificateDer::from_pem_slice(bytes).map_err(|error| error.to_string())?.to_vec(),
        };
        let serial = serial_number(&der).map_err(|refusal| refusal.to_string())?;
        Ok(Self { serial: hex::encode(serial.as_bytes()), sha256: Some(hex::encode(object_digest(&der))) })
    }

    /// Whether the row `seq` issued it.
    ///
    /// # Errors
    /// Why a row with its serial number does not show that.
    pub(super) fn is(&self, seq: u64, issued: &Issuance<'_>) -> Result<bool, String> {
        if !issued.serial.eq_ignore_ascii_case(&self.serial) {
            return Ok(false);
        }
        match (&self.sha256, issued.certificate_sha256) {
            (None, _) => Ok(true),
            (Some(asked), Some(issued)) if issued.eq_ignore_ascii_case(asked) => Ok(true),
            (Some(asked), Some(issued)) => Err(format!(
                "row {seq} issued another certificate with serial number {}, of SHA-256 {issued}; this one, of {asked}, was not issued there",
                self.serial
            )),
            (Some(_), None) => Err(format!(
                "row {seq} issued a certificate with serial number {}, but does not say which: it is from before rows held a hash",
                self.serial
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_mesh::TestMesh;

    #[test]
    fn a_certificate_is_known_by_its_hash_and_another_with_its_serial_number_is_not_it() {
        let der = TestMesh::new().root_der().to_vec();
        let wanted = Wanted::of(&der).expect("DER");
        let pem = format!(
            "words\n-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &der)
        );
        assert_eq!(Wanted::of(pem.as_bytes()).as_ref(), Ok(&wanted));
        let hash = hex::encode(object_digest(&der));
        let of = |serial, certificate_sha256| Issuance { serial, certificate_sha256 };
        let upper = wanted.serial.to_uppercase();
        assert_eq!(wanted.is(7, &of(&upper, Some(&hash))), Ok(true));
        assert_eq!(wanted.is(7, &of("00ff", Some(&hash))), Ok(false));
        let stolen = "0".repeat(64);
        assert!(wanted.is(7, &of(&upper, Some(&stolen))).expect_err("another").contains("another certificate"));
        assert!(wanted.is(7, &of(&upper, None)).expect_err("unsaid").contains("does not say which"));
        let by_serial = Wanted::by_serial(&upper).expect("serial");
        assert_eq!(by_serial.is(7, &of(&wanted.serial, Some(&stolen))), Ok(true), "a serial number alone cannot tell");
        let with_more = [&der[..], &[0]].concat();
        for wrong in [&b""[..], b"0", b"\x30", b"\x30\x82", b"text", &der[..der.len() - 1], &with_more] {
            Wanted::of(wrong).expect_err("none");
        }
        for word in ["", "4g", "4a&row=1", &"4".repeat(65)] {
            assert!(Wanted::by_serial(word).is_err(), "{word}");
        }
    }
}
