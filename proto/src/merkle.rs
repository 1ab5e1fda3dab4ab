//! The Merkle tree over a log that only grows (RFC 9162, section 2): its root stands for every entry, and two short lists of
//! hashes prove that an entry is in it, and that a later tree holds an earlier one unchanged.
//!
//! Pure: a [`Frontier`] takes one entry after the other, and proofs are made from the roots of complete subtrees, which never
//! change once they are there.

use sha2::{Digest, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Most hashes of a proof: a tree of 2^64 entries has 64 levels, and a consistency proof one hash more.
pub const MAX_PROOF: usize = 65;

/// The hash of an entry (RFC 9162, 2.1.1).
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(entry).finalize().into()
}

/// The hash of a node above two.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// A subtree of 2^`level` entries, the `index`th from the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Complete {
    /// 0 for an entry.
    pub level: u32,
    /// Counted from 0 within its level.
    pub index: u64,
}

/// The right edge of a tree: the roots of its largest complete subtrees. At most 64 hashes, whatever the tree's size.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// How many entries there are.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Takes the hash of the next entry, and says which subtrees it completes and their roots, the entry's own first.
    pub fn append(&mut self, leaf: Hash) -> impl Iterator<Item = (Complete, Hash)> + use<> {
        let (mut hash, index) = (leaf, self.size);
        let mut completed = vec![(Complete { level: 0, index }, hash)];
        for level in 0..index.trailing_ones() {
            // As many peaks as the size has ones: each of the lowest has its sibling to the left.
            let Some(left) = self.peaks.pop() else { break };
            hash = node_hash(&left, &hash);
            completed.push((Complete { level: level + 1, index: index >> (level + 1) }, hash));
        }
        self.peaks.push(hash);
        self.size += 1;
        completed.into_iter()
    }

    /// The tree's root.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else { return Sha256::digest([]).into() };
        peaks.fold(*last, |right, left| node_hash(left, &right))
    }
}

/// Finds the root of a complete subtree; `None` where it is not at hand.
pub trait Subtrees {
    /// The root.
    fn root(&self, of: Complete) -> Option<Hash>;
}

/// The root of the tree of the first `size` entries.
pub fn root(subtrees: &impl Subtrees, size: u64) -> Option<Hash> {
    if size == 0 {
        return Some(Sha256::digest([]).into());
    }
    range(subtrees, 0, size)
}

/// That the entry at `index`, counted from 0, is in the tree of the first `size` entries (RFC 9162, 2.1.3.1). `None` when it is
/// not, or a subtree is not at hand.
pub fn inclusion(subtrees: &impl Subtrees, index: u64, size: u64) -> Option<Vec<Hash>> {
    if index >= size {
        return None;
    }
    let (mut begin, mut end) = (0, size);
    let mut path = Vec::new();
    while end - begin > 1 {
        let middle = begin + split(end - begin);
        if index < middle {
            path.push(range(subtrees, middle, end)?);
            end = middle;
        } else {
            path.push(range(subtrees, begin, middle)?);
            begin = middle;
        }
    }
    path.reverse();
    Some(path)
}

/// That the tree of the first `size` entries begins with the tree of the first `earlier` (RFC 9162, 2.1.4.1). `None` when it does
/// not, or a subtree is not at hand.
pub fn consistency(subtrees: &impl Subtrees, earlier: u64, size: u64) -> Option<Vec<Hash>> {
    if earlier > size {
        return None;
    }
    if earlier == 0 || earlier == size {
        return Some(Vec::new());
    }
    let (mut begin, mut end, mut whole) = (0, size, true);
    let mut path = Vec::new();
    while end != earlier {
        let middle = begin + split(end - begin);
        if earlier <= middle {
            path.push(range(subtrees, middle, end)?);
            end = middle;
        } else {
            path.push(range(subtrees, begin, middle)?);
            (begin, whole) = (middle, false);
        }
    }
    if !whole {
        path.push(range(subtrees, begin, end)?);
    }
    path.reverse();
    Some(path)
}

/// Whether `path` proves that `leaf` is the entry at `index` of the tree of `size` entries with this root (RFC 9162, 2.1.3.2).
#[must_use]
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, path: &[Hash], root: &Hash) -> bool {
    if index >= size || path.len() > MAX_PROOF {
        return false;
    }
    let (mut node, mut last, mut hash) = (index, size - 1, *leaf);
    for step in path {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(step, &hash);
            if node & 1 == 0 {
                let skip = node.trailing_zeros().min(63);
                (node, last) = (node >> skip, last >> skip);
            }
        } else {
            hash = node_hash(&hash, step);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    last == 0 && hash == *root
}

/// Whether `path` proves that the tree of `size` entries with root `root` begins with the one of `earlier` entries with root
/// `earlier_root` (RFC 9162, 2.1.4.2).
#[must_use]
pub fn verify_consistency(earlier: u64, earlier_root: &Hash, size: u64, root: &Hash, path: &[Hash]) -> bool {
    if earlier > size || path.len() > MAX_PROOF {
        return false;
    }
    if earlier == size {
        return path.is_empty() && earlier_root == root;
    }
    if earlier == 0 {
        // Every tree begins with the empty one, which has one root.
        return path.is_empty() && *earlier_root == Frontier::default().root();
    }
    let mut steps = path.iter();
    let (mut node, mut last) = (earlier - 1, size - 1);
    let skip = node.trailing_ones();
    (node, last) = (node >> skip, last >> skip);
    // A whole earlier tree is a subtree of the later one: its root is known and not sent.
    let first = if earlier.is_power_of_two() { Some(earlier_root) } else { steps.next() };
    let Some(first) = first else { return false };
    let (mut before, mut after) = (*first, *first);
    for step in steps {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            before = node_hash(step, &before);
            after = node_hash(step, &after);
            if node & 1 == 0 {
                let skip = node.trailing_zeros().min(63);
                (node, last) = (node >> skip, last >> skip);
            }
        } else {
            after = node_hash(&after, step);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    last == 0 && before == *earlier_root && after == *root
}

/// The largest power of two below `count`, which is at least 2.
const fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// The root over the entries from `begin` to before `end`: of a range that begins where a subtree of its size would.
fn range(subtrees: &impl Subtrees, mut begin: u64, end: u64) -> Option<Hash> {
    let mut parts = Vec::new();
    while begin < end {
        let level = (end - begin).ilog2();
        parts.push(subtrees.root(Complete { level, index: begin >> level })?);
        begin += 1 << level;
    }
    let last = parts.pop()?;
    Some(parts.iter().rev().fold(last, |right, left| node_hash(left, &right)))
}

#[cfg(test)]
mod tests;
