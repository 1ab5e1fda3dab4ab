//! `warren down`: stops the daemon of this host.

use std::time::{Duration, Instant};

use super::{Context, Exit, Failure, Outcome, config};
use crate::local_api::client::{ask, ask_once};
use crate::local_api::types::Request;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The daemon says goodbye to its peers, removes its addresses and routes, and ends. The `unreachable` routes for the overlay stay, so that no overlay traffic leaves in clear while the node is down.

Example:
  warren down && warren up")]
pub(super) struct Arguments {
    /// Wait at most this many seconds for the daemon to be gone.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    timeout: u64,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    let socket = config::load(context)?.config.socket;
    super::block_on(async {
        ask_once::<()>(&socket, &Request::Stop).await?;
        let end = Instant::now() + Duration::from_secs(arguments.timeout);
        // The socket's file goes away with the daemon; there is nothing else to wait on across a process boundary.
        while ask(&socket, &Request::Status).await.is_ok() {
            if Instant::now() >= end {
                return Err(Failure::new(
                    Exit::NotReady,
                    format!("the daemon has not ended within {} s", arguments.timeout),
                )
                .next("look at its log: journalctl -u warren"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        context.output.say("stopped");
        Ok(Exit::Yes)
    })
}
