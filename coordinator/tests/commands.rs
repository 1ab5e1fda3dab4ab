//! Claims about the commands, run as a person or a service manager runs them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warren-coordinator")).args(arguments).output().unwrap()
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A mesh made by `init` on ports that are free at that moment.
struct Mesh {
    home: tempfile::TempDir,
    listen: String,
    admin: String,
}

impl Mesh {
    fn init() -> Self {
        Self::init_with(&[])
    }

    fn init_with(more: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let listen = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let mesh = Self { home, listen, admin };
        let output = mesh.init_again_with(more);
        assert!(output.status.success(), "{}", error_of(&output));
        mesh
    }

    fn init_again(&self) -> Output {
        self.init_again_with(&[])
    }

    fn init_again_with(&self, more: &[&str]) -> Output {
        let directory = self.directory();
        let directory = directory.to_str().unwrap();
        let addresses = ["--listen", &self.listen, "--admin-listen", &self.admin, "--any-file-system"];
        run(&[&["init", "--dir", directory, "--domain", "bank.example"], addresses.as_slice(), more].concat())
    }

    fn directory(&self) -> PathBuf {
        self.home.path().join("mesh")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    fn serve(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warren-coordinator"));
        command.arg("serve").arg("--config").arg(self.file("coordinator.yaml"));
        // The disk of the machine that runs the tests is not what they are about.
        command.env("WARREN_COORDINATOR_STORE_KEEP_FREE", "0MiB");
        command
    }

    /// Starts it and waits until it says that it is ready.
    fn start(&self) -> Running {
        let mut child = self.serve().stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        while !seen.lines().last().unwrap_or_default().contains(" ready ") {
            assert_ne!(log.read_line(&mut seen).unwrap(), 0, "it ended: {seen}");
        }
        Running { child, _log: log }
    }

    fn status(&self) -> Output {
        run(&["status", "--config", self.file("coordinator.yaml").to_str().unwrap()])
    }
}

struct Running {
    child: Child,
    _log: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn signal(&mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_makes_a_mesh_once_and_keeps_its_secrets_to_its_owner() {
    let mesh = Mesh::init();
    assert_eq!(mode(&mesh.directory()), 0o700);
    assert_eq!(mode(&mesh.file("first-run-token")), 0o600);
    assert!(fs::read_to_string(mesh.file("first-run-token")).unwrap().starts_with("wa1_"));
    assert!(fs::read_to_string(mesh.file("root.pem")).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    let before = fs::read(mesh.file("root.pem")).unwrap();
    let again = mesh.init_again();
    assert_eq!(again.status.code(), Some(7));
    assert!(error_of(&again).contains("not empty"), "{}", error_of(&again));
    assert_eq!(fs::read(mesh.file("root.pem")).unwrap(), before);
}

#[test]
fn an_init_that_fails_leaves_nothing_behind() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("mesh");
    let cases: [(&[&str], &str); 4] = [
        (&["--domain", "Bank Example", "--listen", "127.0.0.1:1"], "--domain"),
        (&["--domain", "bank.example", "--overlay-v4", "192.0.2.1/24"], "overlay.v4"),
        (&["--domain", "bank.example", "--listen", "0.0.0.0:1"], "advertise"),
        (
            &["--domain", "bank.example", "--listen", "127.0.0.1:1", "--certificate-lifetime", "1m"],
            "certificate_lifetime",
        ),
    ];
    for (arguments, named) in cases {
        let output = run(&[&["init", "--dir", directory.to_str().unwrap()], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", error_of(&output));
        assert!(error_of(&output).contains(named), "{}", error_of(&output));
        assert!(!directory.exists(), "{arguments:?}");
    }
}

#[test]
fn it_becomes_ready_answers_status_and_stops_cleanly_on_sigterm() {
    let mesh = Mesh::init();
    let idle = mesh.status();
    assert_eq!(idle.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&idle.stdout).contains("not running"));
    let mut running = mesh.start();
    let status = mesh.status();
    assert_eq!(status.status.code(), Some(0), "{}", error_of(&status));
    assert!(String::from_utf8_lossy(&status.stdout).starts_with("bank.example: running"));
    let second = mesh.serve().output().unwrap();
    assert_eq!(second.status.code(), Some(7), "{}", error_of(&second));
    assert!(error_of(&second).contains("in use by another process"), "{}", error_of(&second));
    assert_eq!(running.signal(Signal::TERM), Some(0));
}

#[test]
fn a_killed_coordinator_starts_again() {
    let mesh = Mesh::init();
    for _ in 0..3 {
        assert_eq!(mesh.start().signal(Signal::KILL), None);
    }
    assert_eq!(mesh.start().signal(Signal::TERM), Some(0));
}

#[test]
fn a_port_in_use_is_named_with_the_way_to_find_who_has_it() {
    let mesh = Mesh::init();
    let udp = UdpSocket::bind(&mesh.listen).unwrap();
    let refused = mesh.serve().output().unwrap();
    let text = error_of(&refused);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text.contains(&format!("cannot open UDP {}", mesh.listen)) && text.contains("ss -ulpn"), "{text}");
    drop(udp);
    let _tcp = TcpListener::bind(&mesh.admin).unwrap();
    let refused = mesh.serve().output().unwrap();
    let text = error_of(&refused);
    assert!(text.contains(&format!("cannot open TCP {}", mesh.admin)) && text.contains("ss -ltnp"), "{text}");
}

#[test]
fn a_damaged_file_is_named_and_nothing_is_served() {
    for (file, text, code, named) in [
        ("coordinator.yaml", "listen: \"127.0.0.1:1\"\nlisten_adress: x\n", 2, "listen_adress"),
        ("coordinator.yaml", "listen: [", 2, "coordinator.yaml"),
        ("clock", "tomorr", 1, "clock"),
        ("ca/issuing.pem", "-----BEGIN CERTIFICATE-----\nMIIB", 1, "issuing.pem"),
        ("ca/root/root.crt", "", 1, "root.crt"),
        ("store.mark", "half", 1, "store.mark"),
    ] {
        let mesh = Mesh::init();
        fs::write(mesh.file(file), text).unwrap();
        let refused = mesh.serve().output().unwrap();
        assert_eq!(refused.status.code(), Some(code), "{file}: {}", error_of(&refused));
        assert!(error_of(&refused).contains(named), "{file}: {}", error_of(&refused));
    }
}

#[test]
fn a_missing_mesh_is_named_with_the_command_that_makes_one() {
    let missing = run(&["serve", "--config", "/nonexistent/coordinator.yaml"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(error_of(&missing).contains("warren-coordinator init"), "{}", error_of(&missing));
    let mesh = Mesh::init();
    fs::remove_dir_all(mesh.file("store")).unwrap();
    fs::remove_file(mesh.file("store.mark")).unwrap();
    let empty = mesh.serve().output().unwrap();
    assert_eq!(empty.status.code(), Some(6), "{}", error_of(&empty));
    assert!(error_of(&empty).contains("warren-coordinator init"), "{}", error_of(&empty));
}

#[test]
fn a_lost_administrator_gets_in_again_on_the_machine_itself_and_leaves_a_trace() {
    let mesh = Mesh::init();
    let before = fs::read_to_string(mesh.file("first-run-token")).unwrap();
    let config = mesh.file("coordinator.yaml");
    let recover = |command: &[&str]| {
        let mut run = Command::new(env!("CARGO_BIN_EXE_warren-coordinator"));
        run.args(command).arg("--config").arg(&config).env("WARREN_COORDINATOR_STORE_KEEP_FREE", "0MiB");
        run.output().unwrap()
    };
    let running = mesh.start();
    assert_eq!(recover(&["admin", "recover"]).status.code(), Some(7), "a running coordinator is left alone");
    drop(running);
    let done = recover(&["admin", "recover"]);
    assert!(done.status.success(), "{}", error_of(&done));
    let after = fs::read_to_string(mesh.file("first-run-token")).unwrap();
    assert!(after.starts_with("wa1_") && after != before);
    assert_eq!(mode(&mesh.file("first-run-token")), 0o600);
    let whole = recover(&["recover"]);
    assert!(String::from_utf8_lossy(&whole.stdout).contains("nothing to recover"), "{}", error_of(&whole));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_store_that_was_rolled_back_serves_only_after_its_loss_was_accepted_and_then_in_a_new_epoch() {
    let mesh = Mesh::init();
    let config = mesh.file("coordinator.yaml");
    let command = |words: &[&str]| {
        let mut run = Command::new(env!("CARGO_BIN_EXE_warren-coordinator"));
        run.args(words).arg("--config").arg(&config).env("WARREN_COORDINATOR_STORE_KEEP_FREE", "0MiB");
        run.output().unwrap()
    };
    let older = mesh.home.path().join("older");
    copy(&mesh.file("store"), &older);
    let first_token = fs::read_to_string(mesh.file("first-run-token")).unwrap();
    // A change that was acknowledged, and that the older copy does not have.
    assert!(command(&["admin", "recover"]).status.success());
    assert_ne!(fs::read_to_string(mesh.file("first-run-token")).unwrap(), first_token);
    fs::remove_dir_all(mesh.file("store")).unwrap();
    copy(&older, &mesh.file("store"));

    let refused = mesh.serve().output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", error_of(&refused));
    assert!(error_of(&refused).contains("recover"), "{}", error_of(&refused));
    let asked = command(&["recover"]);
    assert_eq!(asked.status.code(), Some(1), "{}", error_of(&asked));
    assert!(error_of(&asked).contains("--accept-loss"), "{}", error_of(&asked));
    let still = mesh.serve().output().unwrap();
    assert_eq!(still.status.code(), Some(1), "asking changed nothing: {}", error_of(&still));

    let accepted = command(&["recover", "--accept-loss"]);
    let said = String::from_utf8_lossy(&accepted.stdout).into_owned();
    assert!(accepted.status.success(), "{}", error_of(&accepted));
    assert!(said.contains("epoch 2") && said.contains("revoke again"), "{said}");
    let mut running = mesh.start();
    let status = mesh.status();
    assert!(status.status.success(), "{}", error_of(&status));
    assert_eq!(running.signal(Signal::TERM), Some(0));
    let whole = command(&["recover"]);
    assert!(String::from_utf8_lossy(&whole.stdout).contains("nothing to recover"), "{}", error_of(&whole));
}

#[test]
fn the_book_states_every_configuration_key_as_the_command_prints_it() {
    let printed = run(&["reference"]);
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/coordinator.md");
    let book = fs::read_to_string(book).unwrap();
    assert!(book.contains(&String::from_utf8(printed.stdout).unwrap()), "copy `warren-coordinator reference` there");
}

/// A file with a passphrase, outside of the mesh's directory.
fn passphrase(place: &Path, name: &str, text: &str) -> String {
    let path = place.join(name);
    fs::write(&path, format!("{text}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn ca_keys_in_the_clear(mesh: &Mesh) -> usize {
    let files = ["ca/root/root.key", "ca/issuing.pem", "ca/coordinator.pem", "ca/signer.pem"];
    files.iter().filter(|file| fs::read_to_string(mesh.file(file)).unwrap().contains("PRIVATE KEY")).count()
}

#[test]
fn a_coordinator_whose_ca_keys_are_sealed_serves_with_their_passphrase_only() {
    let place = tempfile::tempdir().unwrap();
    let right = passphrase(place.path(), "right", "correct horse");
    let wrong = passphrase(place.path(), "wrong", "correct house");
    let mesh = Mesh::init_with(&["--ca-passphrase-file", &right]);
    assert_eq!(ca_keys_in_the_clear(&mesh), 0);
    assert_eq!(mesh.start().signal(Signal::TERM), Some(0));
    let told = mesh.serve().env("WARREN_COORDINATOR_CA_PASSPHRASE_FILE", &wrong).output().unwrap();
    assert_eq!(told.status.code(), Some(5));
    assert!(error_of(&told).contains("the passphrase does not open"), "{}", error_of(&told));
    for output in [&told.stderr, &told.stdout] {
        assert!(!String::from_utf8_lossy(output).contains("correct"), "a passphrase is never shown");
    }

    let config = fs::read_to_string(mesh.file("coordinator.yaml")).unwrap();
    let without: String =
        config.lines().filter(|line| !line.starts_with("ca_passphrase_file")).map(|line| format!("{line}\n")).collect();
    fs::write(mesh.file("coordinator.yaml"), without).unwrap();
    let told = mesh.serve().output().unwrap();
    assert_eq!(told.status.code(), Some(5));
    assert!(error_of(&told).contains("none was given"), "{}", error_of(&told));

    // As systemd hands it over.
    passphrase(place.path(), "ca-passphrase", "correct horse");
    let mut child = mesh.serve().env("CREDENTIALS_DIRECTORY", place.path()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut seen = String::new();
    while !seen.lines().last().unwrap_or_default().contains(" ready ") {
        assert_ne!(log.read_line(&mut seen).unwrap(), 0, "it ended: {seen}");
    }
    let config = mesh.file("coordinator.yaml");
    let config = config.to_str().unwrap();
    let while_it_runs = run(&["passphrase", "--config", config, "--current-file", &right, "remove"]);
    assert_eq!(while_it_runs.status.code(), Some(7), "{}", error_of(&while_it_runs));
    let mut running = Running { child, _log: log };
    assert_eq!(running.signal(Signal::TERM), Some(0));
}

#[test]
fn the_passphrase_of_a_mesh_that_is_there_is_set_changed_and_removed() {
    let place = tempfile::tempdir().unwrap();
    let first = passphrase(place.path(), "first", "one");
    let second = passphrase(place.path(), "second", "two");
    let mesh = Mesh::init();
    let config = mesh.file("coordinator.yaml");
    let verb = |words: &[&str]| run(&[&["passphrase", "--config", config.to_str().unwrap()], words].concat());
    assert_eq!(ca_keys_in_the_clear(&mesh), 4);
    let done = verb(&["set", "--new-file", &first]);
    assert!(done.status.success(), "{}", error_of(&done));
    assert_eq!(ca_keys_in_the_clear(&mesh), 0);
    assert_eq!(verb(&["set", "--new-file", &second]).status.code(), Some(5), "the one in force is needed");
    assert_eq!(verb(&["--current-file", &second, "set", "--new-file", &second]).status.code(), Some(5));
    assert!(verb(&["--current-file", &first, "set", "--new-file", &second]).status.success());
    assert_eq!(verb(&["remove"]).status.code(), Some(2));
    assert!(verb(&["--current-file", &second, "remove"]).status.success());
    assert_eq!(ca_keys_in_the_clear(&mesh), 4);
    assert_eq!(mesh.start().signal(Signal::TERM), Some(0));
}
