//! `warren down`: stops the daemon of this host.

use std::time::Duration;

use super::{Context, Exit, Failure, Outcome, config};
use crate::local_api::client::ask;
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
        let mut asked = ask(&socket, &Request::Stop).await?;
        asked.next::<()>().await?;
        // The daemon holds the connection until its process ends.
        match tokio::time::timeout(Duration::from_secs(arguments.timeout), asked.next::<()>()).await {
            Ok(_) => {
                context.output.say("stopped");
                Ok(Exit::Yes)
            }
            Err(_) => {
                let what = format!("the daemon has not ended within {} s", arguments.timeout);
                Err(Failure::new(Exit::NotReady, what).next("look at its log: journalctl -u warren"))
            }
        }
    })
}
