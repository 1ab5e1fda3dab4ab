//! Fragments are judged by their first one or not at all.

use super::*;
use crate::testing::{Build, fragment};

const PEER: PeerIndex = PeerIndex(1);
const START: Duration = Duration::from_secs(5);

struct Path {
    fragments: Fragments,
    whole: Vec<u8>,
    peer: PeerIndex,
}

impl Path {
    fn new(build: Build) -> Self {
        Self { fragments: Fragments::default(), whole: build.udp(1000, 2000, &[3; 120]), peer: PEER }
    }

    /// A part of an eight-byte header and 120 bytes of data.
    fn part(&mut self, id: u16, offset: u16, length: usize, now: Duration) -> Result<(), Reason> {
        let more = usize::from(offset) + length < 128;
        self.send(id, offset, more, length, now, 1)
    }

    fn send(
        &mut self,
        id: u16,
        offset: u16,
        more: bool,
        length: usize,
        now: Duration,
        generation: u64,
    ) -> Result<(), Reason> {
        let packet = fragment(&self.whole, id, offset, more, length);
        let inner = Inner::parse(&packet).expect("parsed");
        if offset == 0 {
            self.fragments.begin(&inner, self.peer, generation, now)
        } else {
            self.fragments.follow(&inner, self.peer, generation, now)
        }
    }
}

#[test]
fn parts_follow_their_first_in_any_order_and_no_other() {
    for build in [Build::v4(), Build::v6()] {
        let mut path = Path::new(build);
        assert_eq!(path.part(1, 64, 32, START), Err(Reason::UnknownFragment));
        assert_eq!(path.part(1, 0, 32, START), Ok(()));
        assert_eq!(path.part(1, 96, 32, START), Ok(()));
        assert_eq!(path.part(2, 64, 32, START), Err(Reason::UnknownFragment));
        assert_eq!(path.part(1, 32, 32, START), Ok(()));
        assert_eq!(path.part(1, 64, 32, START), Ok(()));
    }
}

/// A7: a part that rewrites bytes of an earlier one, the ports among them.
#[test]
fn an_overlapping_part_ends_its_datagram() {
    for (offset, length) in [(8, 24), (24, 16), (32, 32), (40, 8)] {
        let mut path = Path::new(Build::v6());
        assert_eq!(path.part(1, 0, 32, START), Ok(()));
        assert_eq!(path.part(1, 32, 32, START), Ok(()));
        assert_eq!(path.part(1, offset, length, START), Err(Reason::OverlappingFragment), "{offset}");
        assert_eq!(path.part(1, 64, 32, START), Err(Reason::UnknownFragment), "the rest is dropped too");
    }
}

#[test]
fn nothing_lies_behind_the_last_part() {
    let mut path = Path::new(Build::v4());
    assert_eq!(path.part(1, 0, 32, START), Ok(()));
    assert_eq!(path.send(1, 32, false, 32, START, 1), Ok(()));
    assert_eq!(path.part(1, 64, 32, START), Err(Reason::OverlappingFragment));
    let mut path = Path::new(Build::v4());
    assert_eq!(path.part(1, 0, 32, START), Ok(()));
    assert_eq!(path.part(1, 64, 32, START), Ok(()));
    assert_eq!(path.send(1, 32, false, 32, START, 1), Err(Reason::OverlappingFragment), "a last part in the middle");
}

#[test]
fn a_verdict_lasts_thirty_seconds_and_one_generation() {
    let mut path = Path::new(Build::v4());
    assert_eq!(path.part(1, 0, 32, START), Ok(()));
    assert_eq!(path.part(2, 0, 32, START), Ok(()));
    assert_eq!(path.part(1, 32, 32, START + LIFETIME), Err(Reason::UnknownFragment));
    assert_eq!(path.send(2, 32, true, 32, START, 2), Err(Reason::UnknownFragment));
}

#[test]
fn an_identification_is_free_again_once_its_datagram_is_complete() {
    let mut path = Path::new(Build::v4());
    for _ in 0..3 {
        assert_eq!(path.part(1, 0, 64, START), Ok(()));
        assert_eq!(path.part(1, 64, 64, START), Ok(()));
    }
    assert_eq!(path.part(1, 0, 64, START), Ok(()));
    assert_eq!(path.part(1, 0, 64, START), Err(Reason::OverlappingFragment));
}

#[test]
fn the_table_is_bounded_and_recovers() {
    let mut path = Path::new(Build::v4());
    for peer in 0..PEER_SHARE as u32 {
        path.peer = PeerIndex(peer);
        for id in 0..(MAX_DATAGRAMS / PEER_SHARE) as u16 {
            assert_eq!(path.part(id, 0, 64, START), Ok(()));
        }
    }
    path.peer = PeerIndex(PEER_SHARE as u32);
    assert_eq!(path.part(9999, 0, 64, START), Err(Reason::UnknownFragment));
    assert_eq!(path.part(9999, 0, 64, START + LIFETIME), Ok(()));
}

#[test]
fn a_peer_that_completes_nothing_shuts_nobody_else_out() {
    let mut path = Path::new(Build::v4());
    let passed = (0..2 * MAX_DATAGRAMS as u16).filter(|id| path.part(*id, 0, 64, START).is_ok()).count();
    assert_eq!(passed, MAX_DATAGRAMS / PEER_SHARE);
    path.peer = PeerIndex(2);
    assert_eq!(path.part(1, 0, 64, START), Ok(()));
    path.peer = PEER;
    assert_eq!(path.part(9999, 0, 64, START + LIFETIME), Ok(()), "its own share comes back");
}

#[test]
fn endless_small_parts_are_refused() {
    let mut path = Path::new(Build::v4());
    path.whole = Build::v4().udp(1, 2, &[0; 8 * 200]);
    assert_eq!(path.send(1, 0, true, 8, START, 1), Ok(()));
    let refused = (1..200).find(|n| path.send(1, n * 8, true, 8, START, 1).is_err());
    assert_eq!(refused, Some(MAX_PARTS as u16));
}
