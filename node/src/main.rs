//! The `warren` binary: the node daemon, and every client and administrator command.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    warren_node::cli::main()
}
