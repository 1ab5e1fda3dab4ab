//! How every value lies in an engine: `format u8 | schema u16 | revision u64 | length u32 | payload | crc32c u32`,
//! big-endian. The checksum runs over the key as well, so a value that turns up under another key is damage too.

use super::Revision;

/// The layout of the frame itself.
const FORMAT: u8 = 1;

/// The version of what is stored inside frames. A store with a greater one was written by a newer warren.
pub(super) const SCHEMA: u16 = 1;

const HEADER: usize = 1 + 2 + 8 + 4;
const TRAILER: usize = 4;

/// A value is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the value of {0} is cut off or has a wrong length")]
    Length(String),
    #[error("the value of {0} does not have its checksum")]
    Checksum(String),
    #[error("the value of {0} has format {1} and schema {2}; this build reads format 1 and schema 1")]
    TooNew(String, u8, u16),
}

/// Frames a payload for its key.
pub(super) fn encode(key: &[u8], revision: Revision, payload: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(HEADER + payload.len() + TRAILER);
    framed.push(FORMAT);
    framed.extend_from_slice(&SCHEMA.to_be_bytes());
    framed.extend_from_slice(&revision.0.to_be_bytes());
    // Payloads are bounded far below 4 GiB by the store's limits.
    framed.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(payload);
    framed.extend_from_slice(&checksum(key, &framed).to_be_bytes());
    framed
}

/// The revision and the payload of a framed value.
pub(super) fn decode<'a>(key: &[u8], framed: &'a [u8]) -> Result<(Revision, &'a [u8]), FrameError> {
    let name = || key.escape_ascii().to_string();
    let (body, trailer) = framed.split_last_chunk::<TRAILER>().ok_or_else(|| FrameError::Length(name()))?;
    if u32::from_be_bytes(*trailer) != checksum(key, body) {
        return Err(FrameError::Checksum(name()));
    }
    let (header, payload) = body.split_first_chunk::<HEADER>().ok_or_else(|| FrameError::Length(name()))?;
    let [format, s0, s1, r0, r1, r2, r3, r4, r5, r6, r7, l0, l1, l2, l3] = *header;
    let schema = u16::from_be_bytes([s0, s1]);
    if format != FORMAT || schema > SCHEMA {
        return Err(FrameError::TooNew(name(), format, schema));
    }
    if u32::from_be_bytes([l0, l1, l2, l3]) as usize != payload.len() {
        return Err(FrameError::Length(name()));
    }
    Ok((Revision(u64::from_be_bytes([r0, r1, r2, r3, r4, r5, r6, r7])), payload))
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_framed_value_is_noticed() {
        let framed = encode(b"node/1", Revision(7), b"payload");
        assert_eq!(decode(b"node/1", &framed), Ok((Revision(7), b"payload".as_slice())));
        for at in 0..framed.len() {
            for bit in 0..8 {
                let mut damaged = framed.clone();
                damaged[at] ^= 1 << bit;
                assert!(decode(b"node/1", &damaged).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn a_value_under_another_key_is_noticed() {
        let framed = encode(b"node/1", Revision(7), b"payload");
        assert_eq!(decode(b"node/2", &framed), Err(FrameError::Checksum("node/2".into())));
    }

    proptest::proptest! {
        #[test]
        fn frames_read_back_and_arbitrary_bytes_never_panic(
            key: Vec<u8>, payload: Vec<u8>, revision: u64, noise: Vec<u8>
        ) {
            let framed = encode(&key, Revision(revision), &payload);
            proptest::prop_assert_eq!(decode(&key, &framed), Ok((Revision(revision), payload.as_slice())));
            let _ = decode(&key, &noise);
        }
    }
}
