//! Administrators' credentials: `wa1_<id>_<secret>`.
//!
//! The prefix is fixed, for secret scanners. The id is 16 hexadecimal digits and no secret: a leaked token can be found
//! and deleted by it. The last part is base64url without padding over the 32 secret bytes and the CRC-32C of prefix, id
//! and secret, so that a token that was cut off or misspelt is told from one that is unknown. The coordinator keeps only
//! the secret's SHA-256.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::reason::{Reason, Refusal};

const PREFIX: &str = "wa1_";
const SECRET: usize = 32;
const CHECKSUM: usize = 4;

/// The longest text that is looked at.
pub const MAX_CREDENTIAL_LENGTH: usize = 128;

/// The public half.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdminTokenId([u8; 8]);

impl AdminTokenId {
    /// Takes 8 random bytes as they are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for AdminTokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for AdminTokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdminTokenId({self})")
    }
}

impl FromStr for AdminTokenId {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let mut bytes = [0; 8];
        let upper = text.bytes().any(|byte| byte.is_ascii_uppercase());
        if upper || hex::decode_to_slice(text, &mut bytes).is_err() {
            return Err(malformed("its id is not 16 lower-case hexadecimal digits"));
        }
        Ok(Self(bytes))
    }
}

/// A whole credential: wiped when dropped, shown only by [`Credential::expose`].
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Credential {
    #[zeroize(skip)]
    id: AdminTokenId,
    secret: [u8; SECRET],
}

impl Credential {
    /// Takes random bytes as they are.
    #[must_use]
    pub const fn new(id: AdminTokenId, secret: [u8; SECRET]) -> Self {
        Self { id, secret }
    }

    /// Reads the text form; white space around it is passed over.
    ///
    /// # Errors
    /// What is wrong with it, never quoting it.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let text = text.trim();
        if text.len() > MAX_CREDENTIAL_LENGTH {
            return Err(malformed("it is too long"));
        }
        let Some(rest) = text.strip_prefix(PREFIX) else {
            return Err(malformed("it does not begin with wa1_"));
        };
        let (id, secret) = rest.split_once('_').ok_or_else(|| malformed("it has no second part"))?;
        let id = AdminTokenId::from_str(id)?;
        let bytes =
            Zeroizing::new(URL_SAFE_NO_PAD.decode(secret).map_err(|_| malformed("its secret is not base64url"))?);
        let (secret, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or_else(|| malformed("it is cut off"))?;
        let secret: &[u8; SECRET] = secret.try_into().map_err(|_| malformed("it is cut off"))?;
        let credential = Self { id, secret: *secret };
        if u32::from_be_bytes(*checksum) != credential.checksum() {
            return Err(malformed("its checksum is wrong: it is misspelt or cut off"));
        }
        Ok(credential)
    }

    /// The public half.
    #[must_use]
    pub const fn id(&self) -> AdminTokenId {
        self.id
    }

    /// What the coordinator keeps. The secret is random, so a plain hash is enough.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }

    /// The text form, for the one time it is shown and for the request that presents it.
    #[must_use]
    pub fn expose(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new([self.secret.as_slice(), &self.checksum().to_be_bytes()].concat());
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes));
        Zeroizing::new(format!("{PREFIX}{}_{}", self.id, *secret))
    }

    fn checksum(&self) -> u32 {
        let named = crc32c::crc32c_append(crc32c::crc32c(PREFIX.as_bytes()), &self.id.0);
        crc32c::crc32c_append(named, &self.secret)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({}, ..)", self.id)
    }
}

fn malformed(what: &str) -> Refusal {
    Refusal::new(Reason::TokenMalformed, format!("the administrator's token is malformed: {what}"))
        .hint("give the file that `warren admin claim` or `warren admin token create` wrote")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Credential {
        Credential::new(AdminTokenId::from_bytes([0xab; 8]), [7; 32])
    }

    #[test]
    fn a_credential_reads_back_and_its_debug_form_hides_the_secret() {
        let text = sample().expose();
        let read = Credential::parse(&format!(" {}\n", *text)).unwrap();
        assert_eq!((read.id(), read.hash()), (sample().id(), sample().hash()));
        assert!(!format!("{read:?}").contains(text.rsplit('_').next().unwrap()));
    }

    #[test]
    fn every_misspelling_is_malformed_and_is_not_quoted() {
        let text = sample().expose();
        for at in 0..text.len() {
            let mut wrong = text.as_bytes().to_vec();
            wrong[at] = if wrong[at] == b'x' { b'y' } else { b'x' };
            let refusal = Credential::parse(std::str::from_utf8(&wrong).unwrap()).unwrap_err();
            assert_eq!(refusal.reason, Reason::TokenMalformed, "at {at}");
            assert!(!refusal.to_string().contains(&text[25..]));
            assert!(Credential::parse(&text[..at]).is_err());
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_never_panics(text: String) {
            let _ = Credential::parse(&text);
            let _ = Credential::parse(&format!("wa1_abababababababab_{text}"));
        }
    }
}
