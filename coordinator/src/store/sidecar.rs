//! The high-water mark: a file beside the engine that remembers the last acknowledged revision.
//!
//! The engine takes a damaged record in the middle of its log for a torn end and opens cleanly at an older state.
//! Only somebody else who remembers how far it was can tell. The file has two slots of one sector each, written in
//! turn, so a torn write leaves the other; the greater valid one counts.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::durable::{DurableIo, SyncTarget};
use super::{Digest, Epoch, Revision};

const MAGIC: &[u8; 8] = b"wrnmark1";
const SLOT: usize = 512;
const BODY: usize = MAGIC.len() + 8 + 8 + Digest::LENGTH;

/// What was acknowledged last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub epoch: Epoch,
    pub revision: Revision,
    pub digest: Digest,
}

impl Mark {
    fn encode(&self) -> [u8; SLOT] {
        let mut body = Vec::with_capacity(BODY + 4);
        body.extend_from_slice(MAGIC);
        body.extend_from_slice(&self.epoch.0.to_be_bytes());
        body.extend_from_slice(&self.revision.0.to_be_bytes());
        body.extend_from_slice(&self.digest.to_bytes());
        body.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
        let mut slot = [0; SLOT];
        for (to, from) in slot.iter_mut().zip(body) {
            *to = from;
        }
        slot
    }

    fn decode(slot: &[u8]) -> Option<Self> {
        let (body, rest) = slot.split_at_checked(BODY)?;
        let checksum = rest.first_chunk::<4>()?;
        if u32::from_be_bytes(*checksum) != crc32c::crc32c(body) {
            return None;
        }
        let body = body.strip_prefix(MAGIC)?;
        let (epoch, body) = body.split_first_chunk::<8>()?;
        let (revision, body) = body.split_first_chunk::<8>()?;
        Some(Self {
            epoch: Epoch(u64::from_be_bytes(*epoch)),
            revision: Revision(u64::from_be_bytes(*revision)),
            digest: Digest::from_bytes(body.first_chunk()?),
        })
    }

    fn order(&self) -> (Epoch, Revision) {
        (self.epoch, self.revision)
    }
}

/// The open file.
#[derive(Debug)]
pub(super) struct Sidecar {
    file: File,
    next_slot: u64,
}

impl Sidecar {
    /// Opens the file, creating it when absent, and reads the mark if there is a valid one.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<Mark>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let (mark, next_slot) = Self::newest(&file)?;
        Ok((Self { file, next_slot }, mark))
    }

    /// The mark at `path`, if there is a readable and valid one; creates nothing.
    pub(super) fn read(path: &Path) -> Option<Mark> {
        Self::newest(&File::open(path).ok()?).ok()?.0
    }

    /// The newest valid mark, and the slot to write next.
    fn newest(file: &File) -> io::Result<(Option<Mark>, u64)> {
        let mut bytes = [0; 2 * SLOT];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..)
            && !rest.is_empty()
        {
            match file.read_at(rest, filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        let (first, second) = bytes.split_at(SLOT);
        let (first, second) = (Mark::decode(first), Mark::decode(second));
        let second_is_newer = second.as_ref().map(Mark::order) > first.as_ref().map(Mark::order);
        let (mark, next_slot) = if second_is_newer { (second, 0) } else { (first, 1) };
        Ok((mark, if mark.is_none() { 0 } else { next_slot }))
    }

    /// Overwrites the older slot and syncs it.
    pub(super) fn write(&mut self, io: &dyn DurableIo, mark: &Mark) -> io::Result<()> {
        self.file.write_all_at(&mark.encode(), self.next_slot * SLOT as u64)?;
        io.sync(SyncTarget::Mark, &self.file)?;
        self.next_slot = 1 - self.next_slot;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::OsIo;

    fn mark(revision: u64) -> Mark {
        Mark { epoch: Epoch(1), revision: Revision(revision), digest: Digest::default() }
    }

    #[test]
    fn the_newest_mark_is_read_back_and_a_torn_slot_leaves_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mark");
        let (mut sidecar, none) = Sidecar::open(&path).unwrap();
        assert_eq!(none, None);
        for revision in 1..=5 {
            sidecar.write(&OsIo, &mark(revision)).unwrap();
            assert_eq!(Sidecar::open(&path).unwrap().1, Some(mark(revision)));
        }
        // Revision 5 stands in the first slot.
        sidecar.file.write_all_at(b"torn", 20).unwrap();
        let (mut reopened, found) = Sidecar::open(&path).unwrap();
        assert_eq!(found, Some(mark(4)));
        reopened.write(&OsIo, &mark(6)).unwrap();
        assert_eq!(Sidecar::open(&path).unwrap().1, Some(mark(6)));
    }

    #[test]
    fn every_flipped_bit_of_a_slot_is_noticed() {
        let slot = mark(9).encode();
        for at in 0..BODY + 4 {
            let mut damaged = slot;
            damaged[at] ^= 0x10;
            assert_eq!(Mark::decode(&damaged), None, "byte {at}");
        }
        assert_eq!(Mark::decode(&slot), Some(mark(9)));
    }
}
