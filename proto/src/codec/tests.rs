//! Frames read back whole; lengths are capped; arbitrary bytes never panic.

use proptest::prelude::*;

use super::*;
use crate::wire;

fn hello(software: String, epoch: u64) -> wire::NodeFrame {
    let hello = wire::Hello { version: 1, epoch, software, ..Default::default() };
    wire::NodeFrame { frame: Some(wire::node_frame::Frame::Hello(hello)) }
}

#[test]
fn an_announced_length_over_the_limit_is_refused_before_its_body_arrives() {
    let mut decoder = FrameDecoder::new(100);
    decoder.extend(&101u32.to_be_bytes());
    let refusal = decoder.next_frame::<wire::NodeFrame>().expect_err("too large");
    assert_eq!(refusal.reason, Reason::FrameTooLarge);
}

#[test]
fn a_message_over_the_limit_is_not_sent() {
    let refusal = encode(&hello("x".repeat(200), 1), 100).expect_err("too large");
    assert_eq!(refusal.reason, Reason::FrameTooLarge);
}

proptest! {
    #[test]
    fn frames_survive_any_split(texts in prop::collection::vec(".{0,40}", 1..5), cut in 1usize..17) {
        let sent: Vec<_> = texts.into_iter().enumerate().map(|(i, text)| hello(text, i as u64)).collect();
        let bytes: Vec<u8> = sent.iter().flat_map(|m| encode(m, MAX_ENROL_FRAME).expect("fits").to_vec()).collect();
        let mut decoder = FrameDecoder::new(MAX_ENROL_FRAME);
        let mut got = Vec::new();
        for part in bytes.chunks(cut) {
            decoder.extend(part);
            while let Some(message) = decoder.next_frame::<wire::NodeFrame>().expect("well formed") {
                got.push(message);
            }
        }
        prop_assert_eq!(got, sent);
        prop_assert!(!decoder.is_partial());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut decoder = FrameDecoder::new(400);
        decoder.extend(&bytes);
        for _ in 0..200 {
            match decoder.next_frame::<wire::CoordinatorFrame>() {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }
}
