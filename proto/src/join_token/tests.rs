//! Join tokens read back, and a mistyped one is told apart.

use proptest::prelude::*;

use super::*;

fn token(addresses: &[&str]) -> JoinToken {
    JoinToken {
        id: JoinTokenId::from_bytes([0xab; 8]),
        secret: JoinSecret::from_bytes([7; 32]),
        root_sha256: [9; 32],
        addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
    }
}

#[test]
fn a_token_reads_back_as_it_was_written() {
    let written = token(&["10.1.2.3:7443", "[fd00::1]:7443", "mesh.bank.example:7443"]);
    let text = written.format().expect("format");
    let read = JoinToken::parse(&format!("  {}\n", text.as_str())).expect("parse");
    assert_eq!(read.id, written.id);
    assert_eq!(read.secret.expose(), written.secret.expose());
    assert_eq!(read.root_sha256, written.root_sha256);
    assert_eq!(read.addresses, written.addresses);
    assert!(text.starts_with("wj1_abababababababab_"));
}

#[test]
fn no_single_changed_character_passes_the_checksum() {
    let text = token(&["10.1.2.3:7443"]).format().expect("format");
    for at in 0..text.len() {
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).expect("ascii");
        let refusal = JoinToken::parse(&changed).expect_err(&changed);
        assert_eq!(refusal.reason, Reason::TokenMalformed);
    }
    for length in 0..text.len() {
        assert!(JoinToken::parse(&text[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn the_secret_is_in_no_debug_output() {
    let token = token(&["10.1.2.3:7443"]);
    let shown = format!("{token:?} {:?}", token.secret);
    assert!(!shown.contains("7, 7") && !shown.contains("0707"));
}

#[test]
fn addresses_that_cannot_be_dialled_are_refused() {
    for address in ["", "host", "host:0", ":7443", "host:+1", "host:70000", "[::1:7443", "a b:1", "fd00::1"] {
        assert!(!is_address(address), "{address}");
        assert!(token(&[address]).format().is_err(), "{address}");
    }
    assert!(token(&[]).format().is_err());
    assert!(token(&["h:1"; 9]).format().is_err());
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics_the_parser(text in ".{0,300}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = JoinToken::parse(&text);
        let _ = JoinToken::parse(&format!("{PREFIX}{text}"));
        let _ = JoinToken::parse(&format!("{PREFIX}abababababababab_{}", URL_SAFE_NO_PAD.encode(bytes)));
    }
}
