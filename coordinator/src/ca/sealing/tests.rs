//! Keys at rest: what opens them, what does not, and what a crash leaves.

use super::*;
use crate::ca::{Authority, CaParameters};
use warren_proto::UnixTime;

const NOW: UnixTime = UnixTime(1_800_000_000);

fn parameters() -> CaParameters {
    CaParameters {
        trust_domain: "bank.example".parse().expect("name"),
        coordinator: "alpha".to_owned(),
        overlay: warren_proto::Overlay { v6: ("fd12:3456:789a::".parse().expect("address"), 48), v4: None },
    }
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(text.as_bytes().to_vec())).expect("of a fit length")
}

fn opened(directory: &Path, with: Option<&str>) -> Result<Authority, CaError> {
    let passphrase = with.map(passphrase);
    let keys = KeyFiles::open(directory, passphrase.as_ref())?;
    Authority::open_with(std::sync::Arc::new(keys), &parameters(), None, NOW)
}

/// A CA with its directory, sealed or not.
fn ca(with: Option<&str>) -> (tempfile::TempDir, PathBuf, Authority) {
    let place = tempfile::tempdir().expect("directory");
    let directory = place.path().join("ca");
    let passphrase = with.map(passphrase);
    let authority = Authority::init_sealed(&directory, passphrase.as_ref(), &parameters(), NOW).expect("init");
    (place, directory, authority)
}

fn private(directory: &Path) -> Vec<String> {
    PRIVATE_FILES.iter().map(|file| fs::read_to_string(directory.join(file)).expect("there")).collect()
}

fn in_the_clear(directory: &Path) -> usize {
    private(directory).iter().filter(|text| text.contains("PRIVATE KEY")).count()
}

fn same(one: &Authority, other: &Authority) -> bool {
    one.root_der() == other.root_der() && one.issuer_certificate() == other.issuer_certificate()
}

#[test]
fn sealed_keys_open_with_their_passphrase_alone_and_every_failure_has_its_name() {
    let (_place, directory, made) = ca(Some("correct horse"));
    assert_eq!(in_the_clear(&directory), 0, "no private file lies in the clear");
    assert!(made.keys_are_sealed());
    assert!(same(&opened(&directory, Some("correct horse")).expect("opened"), &made));
    assert!(matches!(opened(&directory, None), Err(CaError::Sealed { .. })));
    assert!(matches!(opened(&directory, Some("correct horsf")), Err(CaError::WrongPassphrase { .. })));
    let (_other, plain, _) = ca(None);
    assert!(matches!(opened(&plain, Some("x")), Err(CaError::NotSealed { .. })), "it must not be believed sealed");
    assert!(!opened(&plain, None).expect("plain").keys_are_sealed());
}

#[test]
fn what_is_issued_again_under_sealed_keys_is_sealed_too_and_a_later_roots_keys_as_well() {
    let (_place, directory, made) = ca(Some("p"));
    fs::remove_file(directory.join("issuing.pem")).expect("removed");
    let again = opened(&directory, Some("p")).expect("issued again");
    assert_ne!(again.issuer_certificate(), made.issuer_certificate());
    again.make_root(NOW).expect("made");
    assert_eq!(in_the_clear(&directory), 0);
    let later = fs::read_dir(directory.join("roots")).expect("there").next().expect("one").expect("entry").path();
    assert_eq!(in_the_clear(&later), 0);
}

#[test]
fn a_sealed_file_that_is_altered_cut_off_or_put_in_anothers_place_is_refused_and_never_replaced() {
    let (_place, directory, _) = ca(Some("p"));
    let path = directory.join("issuing.pem");
    let whole = fs::read_to_string(&path).expect("read");
    let body = HEADER.len() + 1;
    let other = if whole.as_bytes()[body + 20] == b'A' { "B" } else { "A" };
    let altered = format!("{}{other}{}", &whole[..body + 20], &whole[body + 21..]);
    let moved = fs::read_to_string(directory.join("signer.pem")).expect("read");
    let cut_off = whole[..whole.len() / 2].to_owned();
    for wrong in
        [altered, moved, cut_off, HEADER.to_owned(), format!("{HEADER}\n{FOOTER}\n"), format!("{HEADER}\n%%\n{FOOTER}")]
    {
        fs::write(&path, &wrong).expect("write");
        assert!(matches!(opened(&directory, Some("p")), Err(CaError::Damaged { .. })), "{wrong}");
        assert_eq!(fs::read_to_string(&path).expect("read"), wrong);
    }
    fs::write(&path, whole).expect("write");
    opened(&directory, Some("p")).expect("whole again");
}

#[test]
fn a_key_in_the_clear_among_sealed_ones_is_refused_until_it_is_sealed() {
    let (_place, directory, _) = ca(None);
    let root_key = fs::read_to_string(directory.join("root/root.key")).expect("read");
    KeyFiles::set_passphrase(&directory, None, &passphrase("p")).expect("sealed");
    fs::write(directory.join("root/root.key"), &root_key).expect("put back from where it was kept");
    fs::remove_file(directory.join("issuing.pem")).expect("the root's key is needed");
    assert!(matches!(opened(&directory, Some("p")), Err(CaError::InTheClear { .. })));
    KeyFiles::set_passphrase(&directory, Some(&passphrase("p")), &passphrase("p")).expect("sealed");
    assert!(!fs::read_to_string(directory.join("root/root.key")).expect("read").contains("PRIVATE KEY"));
    opened(&directory, Some("p")).expect("opened");
}

#[test]
fn a_passphrase_is_given_changed_and_removed_and_the_keys_stay_the_same() {
    let (_place, directory, made) = ca(None);
    let before = private(&directory);
    KeyFiles::set_passphrase(&directory, None, &passphrase("first")).expect("sealed");
    let sealed = private(&directory);
    assert!(same(&opened(&directory, Some("first")).expect("opened"), &made));
    let wrong = KeyFiles::set_passphrase(&directory, Some(&passphrase("x")), &passphrase("second"));
    assert!(matches!(wrong, Err(CaError::WrongPassphrase { .. })));
    KeyFiles::set_passphrase(&directory, Some(&passphrase("first")), &passphrase("second")).expect("changed");
    assert_eq!(private(&directory), sealed, "only the seal was written");
    assert!(matches!(opened(&directory, Some("first")), Err(CaError::WrongPassphrase { .. })));
    assert!(same(&opened(&directory, Some("second")).expect("opened"), &made));
    KeyFiles::remove_passphrase(&directory, &passphrase("second")).expect("removed");
    assert_eq!(private(&directory), before);
    assert!(same(&opened(&directory, None).expect("plain"), &made));
}

#[test]
fn a_passphrase_is_not_removed_while_a_roots_key_is_kept_elsewhere() {
    let (_place, directory, _) = ca(Some("p"));
    let (key, away) = (directory.join("root/root.key"), directory.join("../root.key"));
    fs::rename(&key, &away).expect("taken away");
    let refused = KeyFiles::remove_passphrase(&directory, &passphrase("p"));
    assert!(matches!(refused, Err(CaError::RootKeyAway { .. })));
    assert!(matches!(opened(&directory, None), Err(CaError::Sealed { .. })), "nothing was changed");
    fs::rename(&away, &key).expect("put back");
    KeyFiles::remove_passphrase(&directory, &passphrase("p")).expect("removed");
}

#[test]
fn a_crash_while_files_are_sealed_or_opened_leaves_what_the_passphrase_opens() {
    let (_place, directory, made) = ca(None);
    let plain = private(&directory);
    KeyFiles::set_passphrase(&directory, None, &passphrase("p")).expect("sealed");
    let sealed = private(&directory);
    for (stage, kept) in [(Stage::Sealing, 4), (Stage::Opening, 4)] {
        for done in 0..=kept {
            // The first `done` files were rewritten when it stopped.
            for (at, file) in PRIVATE_FILES.iter().enumerate() {
                let is_sealed = (at < done) == (stage == Stage::Sealing);
                fs::write(directory.join(file), if is_sealed { &sealed[at] } else { &plain[at] }).expect("write");
            }
            let seal = read_seal(&directory).expect("read").expect("there");
            write_seal(&directory, &Seal { stage, ..seal }).expect("write");
            assert!(matches!(opened(&directory, None), Err(CaError::Sealed { .. })), "{stage:?} {done}");
            assert!(same(&opened(&directory, Some("p")).expect("opened"), &made), "{stage:?} {done}");
            if stage == Stage::Sealing {
                assert_eq!(in_the_clear(&directory), 0, "a sealing is finished");
            }
        }
    }
    KeyFiles::remove_passphrase(&directory, &passphrase("p")).expect("repeated");
    assert_eq!(private(&directory), plain);
}

#[test]
fn a_seal_of_another_version_or_cost_or_salt_is_refused_before_it_costs_anything() {
    let (_place, directory, _) = ca(Some("p"));
    let whole = read_seal(&directory).expect("read").expect("there");
    let cost = |memory_kib, passes, lanes| Seal { cost: Cost { memory_kib, passes, lanes }, ..whole.clone() };
    for wrong in [
        Seal { version: 2, ..whole.clone() },
        Seal { kdf: "scrypt".to_owned(), ..whole.clone() },
        cost(u32::MAX, 1, 1),
        cost(64 << 10, u32::MAX, 1),
        cost(64 << 10, 3, 0),
        cost(1, 1, 1),
        Seal { salt: "AAAA".to_owned(), ..whole.clone() },
        Seal { wrapped_key: whole.wrapped_key[4..].to_owned(), ..whole.clone() },
        Seal { salt: "not base64".to_owned(), ..whole.clone() },
    ] {
        write_seal(&directory, &wrong).expect("write");
        assert!(
            matches!(KeyFiles::open(&directory, Some(&passphrase("p"))), Err(CaError::Damaged { .. })),
            "{wrong:?}"
        );
    }
    // A cost within bounds that is not the one the key was wrapped at opens nothing.
    write_seal(&directory, &cost(8 << 10, 3, 1)).expect("write");
    assert!(matches!(KeyFiles::open(&directory, Some(&passphrase("p"))), Err(CaError::WrongPassphrase { .. })));
    for text in ["", "{", "[]", "{\"version\":1}", &"{".repeat(100_000)] {
        fs::write(directory.join(SEAL), text).expect("write");
        assert!(
            matches!(KeyFiles::open(&directory, Some(&passphrase("p"))), Err(CaError::Damaged { .. })),
            "{text:.20}"
        );
    }
}

#[test]
fn a_passphrase_is_what_stands_in_its_file_without_the_line_end_and_is_never_shown() {
    let place = tempfile::tempdir().expect("directory");
    let path = place.path().join("p");
    let read = |text: &str| {
        fs::write(&path, text).expect("write");
        Passphrase::read(&path).ok().map(|passphrase| passphrase.0.to_vec())
    };
    assert_eq!(read(" two words \r\n"), Some(b" two words ".to_vec()));
    assert_eq!((read(""), read("\n")), (None, None));
    assert_eq!(read(&"x".repeat(MAX_PASSPHRASE)).map(|text| text.len()), Some(MAX_PASSPHRASE));
    assert_eq!(read(&"x".repeat(MAX_PASSPHRASE + 1)), None);
    let secret = passphrase("correct horse");
    assert!(!format!("{secret:?}").contains("correct"));
    let keys = KeyFiles { directory: PathBuf::from("/ca"), key: Some(Zeroizing::new([7; KEY])), mixed: false };
    assert_eq!(format!("{keys:?}"), "KeyFiles { directory: \"/ca\", sealed: true }");
}
