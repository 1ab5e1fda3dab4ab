//! The tree against the vectors that implementations of Certificate Transparency share, and against the standard's recursive
//! definitions for every size and place.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const ENTRIES: [&str; 8] =
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];

/// Roots of the trees of the first 1 to 8 of [`ENTRIES`].
const ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

fn hash(text: &str) -> Hash {
    hex::decode(text).expect("hexadecimal").try_into().expect("32 bytes")
}

/// Every complete subtree of a tree.
#[derive(Default)]
struct Whole(HashMap<Complete, Hash>, Frontier);

impl Whole {
    fn of(leaves: &[Hash]) -> Self {
        let mut whole = Self::default();
        for leaf in leaves {
            whole.0.extend(whole.1.append(*leaf));
        }
        whole
    }
}

impl Subtrees for Whole {
    fn root(&self, of: Complete) -> Option<Hash> {
        self.0.get(&of).copied()
    }
}

fn leaves(count: u64) -> Vec<Hash> {
    (0..count).map(|entry| leaf_hash(&entry.to_be_bytes())).collect()
}

/// RFC 9162, 2.1.1, word for word.
fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [one] => *one,
        more => {
            let (left, right) = more.split_at(naive_split(more.len()));
            node_hash(&naive_root(left), &naive_root(right))
        }
    }
}

fn naive_split(count: usize) -> usize {
    (0..).map(|power| 1 << power).take_while(|power| *power < count).last().expect("two or more")
}

/// RFC 9162, 2.1.3.1.
fn naive_inclusion(index: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() == 1 {
        return Vec::new();
    }
    let (left, right) = leaves.split_at(naive_split(leaves.len()));
    let (mut path, other) = match index.checked_sub(left.len()) {
        None => (naive_inclusion(index, left), right),
        Some(index) => (naive_inclusion(index, right), left),
    };
    path.push(naive_root(other));
    path
}

/// RFC 9162, 2.1.4.1: SUBPROOF.
fn naive_consistency(earlier: usize, leaves: &[Hash], whole: bool) -> Vec<Hash> {
    if earlier == leaves.len() {
        return if whole { Vec::new() } else { vec![naive_root(leaves)] };
    }
    let (left, right) = leaves.split_at(naive_split(leaves.len()));
    if earlier <= left.len() {
        let mut path = naive_consistency(earlier, left, whole);
        path.push(naive_root(right));
        path
    } else {
        let mut path = naive_consistency(earlier - left.len(), right, false);
        path.push(naive_root(left));
        path
    }
}

#[test]
fn roots_and_proofs_are_those_of_the_shared_vectors() {
    let entries = ENTRIES.map(|text| leaf_hash(&hex::decode(text).expect("hexadecimal")));
    let mut frontier = Frontier::default();
    assert_eq!(frontier.root(), hash("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
    for (entry, expected) in entries.iter().zip(ROOTS) {
        let _ = frontier.append(*entry);
        assert_eq!(frontier.root(), hash(expected), "{} entries", frontier.size());
    }
    let whole = Whole::of(&entries);
    let first = ROOTS[0];
    let second = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7";
    let two = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e";
    let four = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4";
    let fifth = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b";
    let pair = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0";
    let hashes = |texts: &[&str]| texts.iter().map(|text| hash(text)).collect::<Vec<_>>();
    for (index, size, path) in [
        (0, 1, &[][..]),
        (0, 8, &[second, two, four]),
        (5, 8, &[fifth, pair, ROOTS[3]]),
        (2, 3, &[ROOTS[1]]),
        (1, 5, &[first, two, fifth]),
    ] {
        assert_eq!(inclusion(&whole, index, size), Some(hashes(path)), "entry {index} of {size}");
    }
    let sixth = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a";
    for (earlier, size, path) in
        [(1, 1, &[][..]), (1, 8, &[second, two, four]), (6, 8, &[sixth, pair, ROOTS[3]]), (2, 5, &[two, fifth])]
    {
        assert_eq!(consistency(&whole, earlier, size), Some(hashes(path)), "{earlier} in {size}");
    }
}

#[test]
fn every_tree_to_a_hundred_has_the_standards_root_and_proofs_and_they_verify() {
    let all = leaves(100);
    let whole = Whole::of(&all);
    for size in 1..=100 {
        let tree = &all[..size as usize];
        let top = naive_root(tree);
        assert_eq!(root(&whole, size), Some(top));
        for index in 0..size {
            let path = inclusion(&whole, index, size).expect("at hand");
            assert_eq!(path, naive_inclusion(index as usize, tree), "entry {index} of {size}");
            assert!(verify_inclusion(&all[index as usize], index, size, &path, &top), "entry {index} of {size}");
        }
        for earlier in 1..=size {
            let path = consistency(&whole, earlier, size).expect("at hand");
            assert_eq!(path, naive_consistency(earlier as usize, tree, true), "{earlier} in {size}");
            let before = naive_root(&all[..earlier as usize]);
            assert!(verify_consistency(earlier, &before, size, &top, &path), "{earlier} in {size}");
        }
        assert_eq!((inclusion(&whole, size, size), consistency(&whole, size + 1, size)), (None, None));
    }
}

proptest! {
    #[test]
    fn no_other_entry_place_size_or_root_goes_with_a_proof(size in 1u64..300, at in any::<prop::sample::Index>(), other in 0u64..400, bit in 0usize..256) {
        let all = leaves(size);
        let (whole, index) = (Whole::of(&all), at.index(size as usize) as u64);
        let (path, top, leaf) = (inclusion(&whole, index, size).expect("at hand"), naive_root(&all), all[index as usize]);
        let flipped = |mut hash: Hash| { hash[bit / 8] ^= 1 << (bit % 8); hash };
        prop_assert!(!verify_inclusion(&flipped(leaf), index, size, &path, &top));
        prop_assert!(!verify_inclusion(&leaf, index, size, &path, &flipped(top)));
        prop_assert_eq!(verify_inclusion(&leaf, other, size, &path, &top), other == index);
        for step in 0..path.len() {
            let mut changed = path.clone();
            changed[step] = flipped(changed[step]);
            prop_assert!(!verify_inclusion(&leaf, index, size, &changed, &top));
        }
        let longer = [path.as_slice(), &[top]].concat();
        prop_assert!(!verify_inclusion(&leaf, index, size, &longer, &top));
        prop_assert!(path.is_empty() || !verify_inclusion(&leaf, index, size, &path[1..], &top));
    }

    #[test]
    fn a_log_that_was_written_anew_is_consistent_with_no_earlier_root(size in 2u64..300, at in any::<prop::sample::Index>(), changed in any::<prop::sample::Index>()) {
        let all = leaves(size);
        let earlier = 1 + at.index(size as usize - 1) as u64;
        let before = naive_root(&all[..earlier as usize]);
        let mut anew = all.clone();
        anew[changed.index(earlier as usize)] = leaf_hash(b"another");
        let whole = Whole::of(&anew);
        let path = consistency(&whole, earlier, size).expect("at hand");
        prop_assert!(!verify_consistency(earlier, &before, size, &naive_root(&anew), &path));
        let honest = consistency(&Whole::of(&all), earlier, size).expect("at hand");
        prop_assert!(!verify_consistency(earlier, &before, size, &naive_root(&anew), &honest));
        prop_assert!(verify_consistency(earlier, &before, size, &naive_root(&all), &honest));
        let longer = [honest.as_slice(), &[before]].concat();
        prop_assert!(!verify_consistency(earlier, &before, size, &naive_root(&all), &longer));
    }

    #[test]
    fn whatever_is_sent_as_a_proof_is_judged_without_a_fault(index: u64, size: u64, path in prop::collection::vec(any::<Hash>(), 0..70), one: Hash, other: Hash) {
        prop_assert!(!verify_inclusion(&one, index, size, &path, &other) || path.is_empty());
        prop_assert!(!verify_consistency(index, &one, size, &other, &path) || one == other);
    }
}
