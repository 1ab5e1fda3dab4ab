//! `cargo demo`: builds every binary of the workspace, then runs the one that was asked for.
//!
//! `cargo run` builds only the package it runs, but the demo needs the node and the coordinator too. This
//! launcher has no dependencies, so it is there in a second; it then builds the rest in release mode and
//! becomes the program. Usage: `warren-launch PROGRAM [ARGUMENTS]`.

#![forbid(unsafe_code)]

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The programs that may be launched: binaries of `warren-netns-tests`.
const PROGRAMS: &[&str] = &["demo"];

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let program = arguments.next().and_then(|name| name.into_string().ok());
    let Some(program) = program.filter(|name| PROGRAMS.contains(&name.as_str())) else {
        report(&format!("usage: warren-launch {} [ARGUMENTS]", PROGRAMS.join("|")));
        return ExitCode::from(2);
    };
    match launch(&program, arguments.collect()) {
        Ok(code) => code,
        Err(error) => {
            report(&format!("cannot launch {program}: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn launch(program: &str, arguments: Vec<OsString>) -> io::Result<ExitCode> {
    let build = cargo().args(["build", "--release", "--workspace", "--bins", "--locked"]).status()?;
    if !build.success() {
        report("the build failed; its messages stand above");
        return Ok(ExitCode::FAILURE);
    }
    let binaries = release_directory()?;
    let mut command = Command::new(binaries.join(program));
    forget_cargo(&mut command);
    Err(command.args(arguments).env("WARREN_BIN_DIR", &binaries).exec())
}

/// The same cargo that runs this launcher, without what it told the launcher about the launcher's package:
/// build scripts would take it for their own and be run again.
fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_cargo(&mut command);
    command
}

fn forget_cargo(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let about_the_launcher = name
            .to_str()
            .is_some_and(|name| ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|p| name.starts_with(p)));
        if about_the_launcher {
            command.env_remove(name);
        }
    }
}

/// This program is `<target>/<profile>/warren-launch`; its neighbours are in `<target>/release`.
fn release_directory() -> io::Result<PathBuf> {
    let own = env::current_exe()?;
    let target = own.parent().and_then(Path::parent);
    target.map(|target| target.join("release")).ok_or_else(|| io::Error::other("this program has no directory"))
}

fn report(text: &str) {
    use io::Write;
    // Nothing is left to do when standard error is closed.
    let _ = writeln!(io::stderr(), "warren: {text}");
}
