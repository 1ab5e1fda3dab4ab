//! A digest of a set of entries that can be kept up to date entry by entry.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// The sum, in four lanes modulo 2^64, of the SHA-256 of every entry. It finds damage and divergence; it is no
/// defence against somebody who may write entries and looks for collisions.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest([u64; 4]);

impl Digest {
    /// The digest's length in bytes.
    pub const LENGTH: usize = 32;

    /// Of nothing.
    pub(super) const fn from_zero() -> Self {
        Self([0; 4])
    }

    /// Reads what [`Self::to_bytes`] wrote.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::LENGTH]) -> Self {
        let mut lanes = [0; 4];
        for (lane, part) in lanes.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *lane = u64::from_be_bytes(*part);
        }
        Self(lanes)
    }

    /// Big-endian lanes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        for (part, lane) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *part = lane.to_be_bytes();
        }
        bytes
    }

    /// Takes an entry in.
    pub(super) fn add(&mut self, key: &[u8], framed: &[u8]) {
        for (lane, term) in self.0.iter_mut().zip(term(key, framed)) {
            *lane = lane.wrapping_add(term);
        }
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, key: &[u8], framed: &[u8]) {
        for (lane, term) in self.0.iter_mut().zip(term(key, framed)) {
            *lane = lane.wrapping_sub(term);
        }
    }
}

fn term(key: &[u8], framed: &[u8]) -> [u64; 4] {
    let mut hash = Sha256::new();
    hash.update((key.len() as u64).to_be_bytes());
    hash.update(key);
    hash.update(framed);
    Digest::from_bytes(&hash.finalize().into()).0
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.to_bytes()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_depends_on_the_set_and_not_on_the_order_of_changes() {
        let mut left = Digest::default();
        left.add(b"a", b"1");
        left.add(b"b", b"2");
        let mut right = Digest::default();
        right.add(b"c", b"9");
        right.add(b"b", b"2");
        right.add(b"a", b"1");
        assert_ne!(left, right);
        right.remove(b"c", b"9");
        assert_eq!(left, right);
        assert_eq!(Digest::from_bytes(&left.to_bytes()), left);
    }

    #[test]
    fn where_a_key_ends_and_its_value_begins_matters() {
        let mut left = Digest::default();
        left.add(b"ab", b"c");
        let mut right = Digest::default();
        right.add(b"a", b"bc");
        assert_ne!(left, right);
    }
}
