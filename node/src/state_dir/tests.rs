//! Files of the state directory: atomic, tight, and refused when half-written.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn fresh() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("state");
    (directory, path)
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777
}

#[test]
fn what_is_written_is_read_back_and_nobody_else_may_read_it() {
    let (_keep, path) = fresh();
    let state = StateDir::open(&path).expect("open");
    assert_eq!(state.read("a").expect("read"), None);
    state.write("a", b"one").expect("write");
    state.write("a", b"two").expect("write");
    assert_eq!(state.read("a").expect("read").as_deref().map(Vec::as_slice), Some(b"two".as_slice()));
    assert_eq!((mode(&path), mode(&path.join("a")), mode(&path.join("lock"))), (0o700, 0o600, 0o600));
    let mut names: Vec<_> = std::fs::read_dir(&path).expect("list").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "lock"], "no temporary file stays");
}

#[test]
fn two_daemons_cannot_share_a_state_directory_but_a_reader_may_look() {
    let (_keep, path) = fresh();
    let first = StateDir::open(&path).expect("open");
    let error = StateDir::open(&path).expect_err("locked");
    assert_eq!(error.trouble, Trouble::Locked);
    assert!(error.hint().contains("warren down"), "{error:?}");
    StateDir::open_to_look(&path).expect("look");
    drop(first);
    StateDir::open(&path).expect("free again");
}

#[test]
fn a_drift_of_mode_is_refused_and_named() {
    let (_keep, path) = fresh();
    let state = StateDir::open(&path).expect("open");
    state.write("a", b"one").expect("write");
    set_mode(&path.join("a"), 0o640);
    let error = state.read("a").expect_err("refused");
    assert_eq!(error.trouble, Trouble::Unsafe);
    assert!(error.to_string().contains("state/a: has mode 0640"), "{error}");
    drop(state);
    set_mode(&path, 0o755);
    assert_eq!(StateDir::open(&path).expect_err("refused").trouble, Trouble::Unsafe);
}

#[test]
fn symbolic_links_are_followed_nowhere() {
    let (keep, path) = fresh();
    let state = StateDir::open(&path).expect("open");
    let outside = keep.path().join("outside");
    std::fs::write(&outside, "x").expect("write");
    symlink(&outside, path.join("a")).expect("link");
    assert_eq!(state.read("a").expect_err("refused").trouble, Trouble::Unsafe);
    state.write("a", b"new").expect("a link is replaced, not written through");
    assert_eq!(std::fs::read(&outside).expect("read"), b"x");
    drop(state);
    let link = keep.path().join("link");
    symlink(&path, &link).expect("link");
    assert_eq!(StateDir::open(&link).expect_err("refused").trouble, Trouble::Unsafe);
}

#[test]
fn every_cut_and_every_flipped_bit_of_a_file_is_noticed_and_the_file_named() {
    let (_keep, path) = fresh();
    let state = StateDir::open(&path).expect("open");
    state.write("a", b"some content").expect("write");
    let good = std::fs::read(path.join("a")).expect("read");
    for length in 0..good.len() {
        std::fs::write(path.join("a"), &good[..length]).expect("cut");
        let error = state.read("a").expect_err("cut");
        assert_eq!(error.trouble, Trouble::Corrupt, "{length}");
        assert!(error.to_string().contains("state/a: "), "{error}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(path.join("a"), &bad).expect("flip");
        assert_eq!(state.read("a").expect_err("flipped").trouble, Trouble::Corrupt, "byte {at}");
    }
}

#[test]
fn a_leftover_of_an_interrupted_write_is_harmless() {
    let (_keep, path) = fresh();
    let state = StateDir::open(&path).expect("open");
    std::fs::write(path.join(".a.new"), "half").expect("leftover");
    state.write("a", b"whole").expect("write");
    assert!(state.read("a").expect("read").is_some());
    assert!(!path.join(".a.new").exists());
}

#[test]
fn the_previous_content_is_kept_on_request() {
    let (_keep, path) = fresh();
    let state = StateDir::open(&path).expect("open");
    for body in [b"1", b"2", b"3"] {
        state.write_keeping("s", "s.previous", body).expect("write");
    }
    let read = |name| state.read(name).expect("read").expect("there").to_vec();
    assert_eq!((read("s"), read("s.previous")), (b"3".to_vec(), b"2".to_vec()));
}

#[test]
fn a_full_disk_is_named_and_the_old_content_stays() {
    let (_keep, path) = fresh();
    let error = StateError::io(&path, "cannot be written", Errno::NOSPC);
    assert_eq!(error.trouble, Trouble::Full);
    assert!(error.hint().starts_with("free space"), "{error:?}");
    assert_eq!(Refusal::from(error).reason, Reason::DiskFull);
}

#[test]
fn a_missing_parent_is_named_with_the_command_that_makes_it() {
    let (keep, _path) = fresh();
    let error = StateDir::open(&keep.path().join("a/b")).expect_err("missing");
    assert_eq!(error.trouble, Trouble::Missing);
    assert!(error.hint().starts_with("mkdir -p"), "{error:?}");
}
