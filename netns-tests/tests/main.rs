//! The claims that need several hosts, each a module with its topology drawn at the top. The real binaries
//! run in network namespaces; `main` enters namespaces of its own before any thread exists, which is why
//! this target brings its own harness.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "everything here is a test")]

mod claims;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use libtest_mimic::Arguments;

fn main() -> Result<()> {
    if claims::workload_api::child()? || claims::several_instances::child()? {
        return Ok(());
    }
    warren_netns_tests::agent::be_one_if_asked();
    let arguments = Arguments::from_args();
    if arguments.list {
        libtest_mimic::run(&arguments, claims::all()).exit();
    }
    // On small machines one worker would be the default, and what only several can do wrong would not be seen.
    warren_netns_tests::variant::set_default("workers=2");
    warren_netns_tests::variant::environment()?;
    if env::var_os("WARREN_BIN_DIR").is_none() {
        build_binaries()?;
    }
    warren_netns_tests::namespace::enter()?;
    let mut arguments = arguments;
    // Each claim runs several hosts, which mostly wait for each other: a few at once fill the cores of a small machine.
    arguments.test_threads.get_or_insert(4);
    libtest_mimic::run(&arguments, claims::all()).exit()
}

/// `cargo test` builds no binaries of other packages; this builds them in the profile of this test, which is
/// the directory that it lies in: `<target>/<profile>/deps/main-<hash>`.
fn build_binaries() -> Result<()> {
    let own = env::current_exe().context("find this program")?;
    let directory = own.parent().and_then(Path::parent).map(PathBuf::from).context("this program has no directory")?;
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--workspace", "--bins", "--locked"]);
    if directory.file_name().is_some_and(|profile| profile == "release") {
        build.arg("--release");
    }
    for (name, _) in env::vars_os() {
        let about_us = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|p| name.starts_with(p));
        if name.to_str().is_some_and(about_us) {
            build.env_remove(name);
        }
    }
    let status = build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).status().context("run cargo build")?;
    if !status.success() {
        bail!("the binaries do not build");
    }
    warren_netns_tests::processes::set_binary_directory(directory);
    Ok(())
}
