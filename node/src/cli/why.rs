//! `warren why`: is this connection allowed, and by which rule in which line?

use super::{Context, Exit, Failure, Outcome, Present, config};
use crate::local_api::client::ask_once;
use crate::local_api::types::{Explanation, Request};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Judged by the policy this node holds, with the same code that judges packets. The destination's own node has the last word; ask there, or the coordinator, when this one does not hold its rules. Exit code 0: allowed; 3: denied.

Examples:
  warren why shop/web-frontend bank/banking-api:8080
  warren why fd5a:1b2c:3d4e::7 bank/banking-api:53/udp
  warren why shop/web-frontend '[fd5a:1b2c:3d4e::9]:8080' -o json | jq .decision.rule")]
pub(super) struct Arguments {
    /// A workload <namespace>/<name>, or an overlay address.
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Workload or overlay address, with port: NAME:PORT[/tcp|/udp] or [V6]:PORT.
    #[arg(value_name = "DESTINATION:PORT")]
    destination: String,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    let (destination, port, protocol) = parse_destination(&arguments.destination).map_err(|what| {
        Failure::new(Exit::Usage, what).next("for example: bank/banking-api:8080 or bank/dns:53/udp")
    })?;
    let socket = config::load(context)?.config.socket;
    super::block_on(async {
        let request = Request::Why { source: arguments.source, destination, port, protocol };
        let explanation: Explanation = ask_once(&socket, &request).await?;
        context.output.print(&explanation)?;
        Ok(if explanation.allowed { Exit::Yes } else { Exit::No })
    })
}

impl Present for Explanation {
    const KIND: &'static str = "Explanation";

    fn text(&self, wide: bool) -> String {
        let mut text = self.text.clone();
        for note in &self.notes {
            text.push_str(&format!("\nnote: {note}"));
        }
        if wide {
            text.push_str(&format!("\npolicy revision: {}", self.policy_revision));
        }
        text
    }
}

/// Splits `NAME:PORT[/PROTOCOL]`, `V4:PORT[/..]` or `[V6]:PORT[/..]`.
pub(super) fn parse_destination(text: &str) -> Result<(String, u16, String), String> {
    let (host, rest) = text.rsplit_once(':').ok_or_else(|| format!("{text:?} has no port"))?;
    let (port, protocol) = rest.split_once('/').unwrap_or((rest, "tcp"));
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("{port:?} is not a port"))?;
    if !matches!(protocol, "tcp" | "udp") {
        return Err(format!("{protocol:?} is neither tcp nor udp"));
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.parse::<std::net::Ipv6Addr>().is_ok() {
        return Err(format!("write an IPv6 address in brackets: [{host}]:{port}"));
    }
    let host = bare.unwrap_or(host);
    if host.is_empty() {
        return Err(format!("{text:?} names no destination"));
    }
    Ok((host.to_owned(), port, protocol.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_in_every_form_people_type() {
        let read = |text: &str| parse_destination(text).expect(text);
        assert_eq!(read("bank/banking-api:8080"), ("bank/banking-api".into(), 8080, "tcp".into()));
        assert_eq!(read("bank/dns:53/udp"), ("bank/dns".into(), 53, "udp".into()));
        assert_eq!(read("[fd00::1]:80"), ("fd00::1".into(), 80, "tcp".into()));
        assert_eq!(read("10.7.0.1:80/tcp"), ("10.7.0.1".into(), 80, "tcp".into()));
        assert_eq!(read("spiffe://d/ns/a/sa/b:1"), ("spiffe://d/ns/a/sa/b".into(), 1, "tcp".into()));
    }

    #[test]
    fn what_is_no_destination_is_refused() {
        for bad in ["", ":80", "a/b", "a/b:", "a/b:0", "a/b:99999", "a/b:80/icmp", "fd00::1:80", "[]:80"] {
            assert!(parse_destination(bad).is_err(), "{bad}");
        }
    }
}
