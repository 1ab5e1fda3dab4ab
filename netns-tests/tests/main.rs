//! The claims that need several hosts, each a module with its topology drawn at the top. The real binaries
//! run in network namespaces; `main` enters namespaces of its own before any thread exists, which is why
//! this target brings its own harness.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "everything here is a test")]

use libtest_mimic::{Arguments, Failed, Trial};

mod lab_itself;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::from_args();
    warren_netns_tests::namespace::enter()?;
    libtest_mimic::run(&arguments, trials()).exit()
}

fn trials() -> Vec<Trial> {
    lab_itself::trials()
}

/// One claim.
fn claim(name: &str, test: fn() -> anyhow::Result<()>) -> Trial {
    Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:?}"))))
}
