//! `warren flows`: what this node let through and what it refused, with the rule.

use super::{Context, Exit, Outcome, Present, config};
use crate::local_api::client::ask;
use crate::local_api::types::{FlowLine, FlowVerdict, Request};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
One line per flow; alike denials are counted, not repeated. The last two thousand of each verdict are kept. With -o json each line is an object.

Examples:
  warren flows --verdict denied
  warren flows -f --verdict denied -o json | jq -r '[.time,.source,.reason,.rule]|@tsv'")]
pub(super) struct Arguments {
    /// Only flows with this verdict.
    #[arg(long, value_enum, value_name = "VERDICT")]
    verdict: Option<FlowVerdict>,
    /// Go on with every new flow.
    #[arg(short, long)]
    follow: bool,
    /// At most so many of the past.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
}

/// All flows as one object: `-o json` without `-f` is a list like every other.
#[derive(serde::Serialize)]
struct FlowList {
    items: Vec<FlowLine>,
}

impl Present for FlowList {
    const KIND: &'static str = "FlowList";

    fn text(&self, wide: bool) -> String {
        if self.items.is_empty() {
            return "no flows yet".to_owned();
        }
        self.items.iter().map(|line| line.text(wide)).collect::<Vec<_>>().join("\n")
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    let socket = config::load(context)?.config.socket;
    let request = Request::Flows { verdict: arguments.verdict, limit: arguments.limit, follow: arguments.follow };
    super::block_on(async {
        let mut asked = ask(&socket, &request).await?;
        let mut items = Vec::new();
        while let Some(line) = asked.next::<FlowLine>().await? {
            if arguments.follow {
                context.output.print_item(&line)?;
                if context.output.reader_is_gone() {
                    return Ok(Exit::Yes);
                }
            } else {
                items.push(line);
            }
        }
        if !arguments.follow {
            context.output.print(&FlowList { items })?;
        }
        Ok(Exit::Yes)
    })
}

impl Present for FlowLine {
    const KIND: &'static str = "Flow";

    fn text(&self, wide: bool) -> String {
        let unknown = || "unknown".to_owned();
        let (source, destination) =
            (self.source.clone().unwrap_or_else(unknown), self.destination.clone().unwrap_or_else(unknown));
        let verdict = match self.verdict {
            FlowVerdict::Allowed => "allowed",
            FlowVerdict::Denied => "denied",
        };
        let mut text = format!("{} {verdict} {source} -> {destination}:{}/{}", self.time, self.port, self.protocol);
        if let Some(reason) = self.reason {
            text.push_str(&format!(" {}", reason.name()));
        }
        match (&self.rule, &self.nearest) {
            (Some(rule), _) => text.push_str(&format!(" by {rule}")),
            (None, Some(nearest)) => text.push_str(&format!("; nearest: {nearest}")),
            (None, None) => {}
        }
        if let (Some(file), Some(line)) = (&self.file, self.line) {
            text.push_str(&format!(" at {file}:{line}"));
        }
        if self.audit {
            text.push_str(" (audit)");
        }
        if self.count > 1 {
            text.push_str(&format!(" x{}", self.count));
        }
        if wide {
            text.push_str(&format!(" [{} -> {}]", self.source_address, self.destination_address));
        }
        text
    }
}
