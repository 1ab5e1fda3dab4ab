//! The fuzz targets' committed corpora, replayed with the targets' own checks on the stable toolchain. A crash that
//! fuzzing finds is fixed, its input kept here under a name that says what it was.

#![allow(clippy::expect_used, clippy::panic, missing_docs, unreachable_pub, reason = "properties are assertions")]
#![allow(clippy::disallowed_methods, reason = "the corpus is read from its files")]

use std::fs;
use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
mod properties;

/// Runs `check` on every file of one target's corpus; a failure is named by its file.
fn replay(target: &str, check: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&directory).expect("a corpus").flatten().map(|entry| entry.path()).collect();
    files.sort();
    assert!(files.len() > 20, "{} holds {} inputs", directory.display(), files.len());
    for file in files {
        let input = fs::read(&file).expect("readable");
        if std::panic::catch_unwind(|| check(&input)).is_err() {
            panic!("{} breaks a property; see the assertion above", file.display());
        }
    }
}

#[test]
fn what_is_split_is_what_the_kernel_would_have_sent() {
    replay("split", properties::split::check);
}

#[test]
fn merging_hides_nothing_loses_nothing_and_keeps_the_order_of_a_flow() {
    replay("merge", properties::merge::check);
}

#[test]
fn a_view_of_a_packet_shows_what_stands_in_it() {
    replay("packet", properties::packet::check);
}

#[test]
fn every_datagram_has_one_end_and_only_admitted_packets_are_delivered() {
    replay("demux", properties::demux::check);
}
