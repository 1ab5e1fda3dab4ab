//! The coordinator of a warren mesh.

fn main() -> std::process::ExitCode {
    warren_coordinator::cli::run()
}
