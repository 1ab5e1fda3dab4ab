//! `cargo demo` and `cargo bench-mesh`: build every binary of the workspace, then run the one that was asked for.
//!
//! `cargo run` builds only the package it runs, but these need the node and the coordinator too. This
//! launcher has no dependencies, so it is there in a second; it then builds the rest in release mode and
//! becomes the program. Usage: `warren-launch PROGRAM [ARGUMENTS]`.

#![forbid(unsafe_code)]

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The programs that may be launched, binaries of `warren-netns-tests`, each with the profile it is built in: the benchmark
/// measures what packages ship.
const PROGRAMS: &[(&str, &str)] = &[("demo", "release"), ("bench", "dist")];

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let asked = arguments.next();
    let Some((program, profile)) = PROGRAMS.iter().find(|(name, _)| asked.as_deref() == Some(OsStr::new(name))) else {
        let names: Vec<_> = PROGRAMS.iter().map(|(name, _)| *name).collect();
        report(&format!("usage: warren-launch {} [ARGUMENTS]", names.join("|")));
        return ExitCode::from(2);
    };
    match launch(program, profile, arguments.collect()) {
        Ok(code) => code,
        Err(error) => {
            report(&format!("cannot launch {program}: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn launch(program: &str, profile: &str, arguments: Vec<OsString>) -> io::Result<ExitCode> {
    let build = cargo().args(["build", "--profile", profile, "--workspace", "--bins", "--locked"]).status()?;
    if !build.success() {
        report("the build failed; its messages stand above");
        return Ok(ExitCode::FAILURE);
    }
    let binaries = binary_directory(profile)?;
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

/// This program is `<target>/debug/warren-launch`; what it builds is in `<target>/<profile>`.
fn binary_directory(profile: &str) -> io::Result<PathBuf> {
    let own = env::current_exe()?;
    let target = own.parent().and_then(Path::parent);
    target.map(|target| target.join(profile)).ok_or_else(|| io::Error::other("this program has no directory"))
}

fn report(text: &str) {
    use io::Write;
    // Nothing is left to do when standard error is closed.
    let _ = writeln!(io::stderr(), "warren: {text}");
}
