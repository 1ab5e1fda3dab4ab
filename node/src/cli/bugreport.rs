//! `warren bugreport`: one document with what somebody who helps needs to see, and without what is nobody else's business.
//! Keys and tokens are never read; addresses outside the overlay and coordinators' names stand under pseudonyms.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;
use warren_proto::join_token::PREFIX;

use super::{Context, Exit, Failure, Outcome, Present, config};
use crate::config::Setting;
use crate::local_api::client::{ask, ask_once};
use crate::local_api::types::{FlowLine, FlowVerdict, Request, Status};

/// Refusals that the report holds.
const REFUSALS: usize = 50;
/// What stands where something was taken out whole.
const REMOVED: &str = "<removed>";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Holds versions, the configuration with where each value comes from, the names of WARREN_ variables, the status with all its counters, and the last refusals. Files of the state directory are not read. Addresses outside the overlay and the coordinators' names are replaced by pseudonyms, the same one for the same address; names of workloads and overlay addresses stay, because the policy speaks of them. Read it before you send it.

Works with the daemon away: the report then says why it did not answer.

Examples:
  warren bugreport --to report.json        a file that only you may read
  warren bugreport | less")]
pub(super) struct Arguments {
    /// Write to a new file instead of stdout.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    time: String,
    versions: BTreeMap<&'static str, String>,
    configuration: Vec<Setting>,
    /// Names only: values may be secret.
    environment: Vec<String>,
    /// None where the daemon did not answer.
    status: Option<Value>,
    /// Why it did not answer.
    unanswered: Option<String>,
    refusals: Vec<Value>,
}

impl Present for Report {
    const KIND: &'static str = "BugReport";

    fn text(&self, _wide: bool) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

pub(super) fn run(arguments: Arguments, context: &Context) -> Outcome {
    let loaded = config::load(context)?;
    let socket = loaded.config.socket.clone();
    super::block_on(async {
        let status = ask_once::<Status>(&socket, &Request::Status).await;
        let refusals = if status.is_ok() { refusals(&socket).await? } else { Vec::new() };
        let mut redaction = Redaction::new(status.as_ref().ok());
        let (status, unanswered) = match status {
            Ok(status) => (Some(redaction.of(&status)?), None),
            Err(failure) => (None, Some(failure.what().to_owned())),
        };
        let mut configuration = loaded.settings();
        for setting in &mut configuration {
            redaction.setting(setting);
        }
        let report = Report {
            time: crate::clock::read().wall.to_string(),
            versions: versions(),
            configuration,
            environment: variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())),
            status,
            unanswered,
            refusals: refusals.iter().map(|line| redaction.of(line)).collect::<Result<_, _>>()?,
        };
        match &arguments.to {
            None => context.output.print(&report)?,
            Some(path) => {
                write(path, &report.text(false)).map_err(|error| {
                    Failure::new(Exit::Failed, format!("{} cannot be written", path.display())).cause(&error)
                })?;
                context.output.say(format!("written: {}; read it before you send it", path.display()));
            }
        }
        Ok(Exit::Yes)
    })
}

async fn refusals(socket: &std::path::Path) -> Result<Vec<FlowLine>, Failure> {
    let request = Request::Flows { verdict: Some(FlowVerdict::Denied), limit: REFUSALS, follow: false };
    let mut asked = ask(socket, &request).await?;
    let mut lines = Vec::new();
    while let Some(line) = asked.next().await? {
        lines.push(line);
    }
    Ok(lines)
}

fn versions() -> BTreeMap<&'static str, String> {
    let kernel = rustix::system::uname();
    BTreeMap::from([
        ("warren", env!("CARGO_PKG_VERSION").to_owned()),
        ("protocol", warren_proto::PROTOCOL_VERSION.to_string()),
        ("kernel", kernel.release().to_string_lossy().into_owned()),
        ("machine", kernel.machine().to_string_lossy().into_owned()),
        ("processors", std::thread::available_parallelism().map_or(0, std::num::NonZero::get).to_string()),
    ])
}

fn variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<_> = names.filter(|name| name.starts_with("WARREN_")).collect();
    names.sort();
    names
}

fn write(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")
}

/// Which addresses stay, and what the others are called.
#[derive(Default)]
struct Redaction {
    overlay: HashSet<IpAddr>,
    addresses: HashMap<IpAddr, usize>,
    names: HashMap<String, usize>,
}

impl Redaction {
    fn new(status: Option<&Status>) -> Self {
        let mut overlay = HashSet::new();
        if let Some(status) = status {
            overlay.extend(status.instances.iter().flat_map(|instance| &instance.addresses).copied());
            overlay.extend(status.peers.iter().flat_map(|peer| &peer.addresses).copied());
        }
        Self { overlay, ..Self::default() }
    }

    fn of<T: Serialize>(&mut self, value: &T) -> Result<Value, Failure> {
        let mut value = serde_json::to_value(value)
            .map_err(|error| Failure::new(Exit::Failed, "the report cannot be written").cause(&error))?;
        self.redact(&mut value, "");
        Ok(value)
    }

    fn setting(&mut self, setting: &mut Setting) {
        if setting.key == "control.addresses" {
            let shown: Vec<_> = crate::config::list(&setting.value).map(|item| self.name(item)).collect();
            setting.value = shown.join(",");
        } else {
            setting.value = self.text(&setting.value);
        }
    }

    fn redact(&mut self, value: &mut Value, key: &str) {
        match value {
            Value::String(text) => {
                *text = match key {
                    // Public, and still nobody's business: it is how a tunnel is recognised on the wire.
                    "tunnelKey" => REMOVED.to_owned(),
                    "coordinator" => self.name(text),
                    _ => self.text(text),
                };
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.redact(item, key)),
            Value::Object(fields) => fields.iter_mut().for_each(|(key, field)| self.redact(field, key)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// The text with every address in it replaced; nothing is left of a text that holds a token or a private key.
    fn text(&mut self, text: &str) -> String {
        if text.contains(PREFIX) || text.contains("PRIVATE KEY") {
            return REMOVED.to_owned();
        }
        let is_part = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '[' | ']');
        let mut shown = String::new();
        let mut rest = text;
        while let Some(start) = rest.find(is_part) {
            let (before, from) = rest.split_at(start);
            let end = from.find(|c| !is_part(c)).unwrap_or(from.len());
            let (word, after) = from.split_at(end);
            shown.push_str(before);
            // An address at a sentence's end has its full stop behind it.
            let bare = word.trim_end_matches(['.', ':']);
            shown.push_str(&self.address(bare).unwrap_or_else(|| bare.to_owned()));
            shown.push_str(word.get(bare.len()..).unwrap_or_default());
            rest = after;
        }
        shown.push_str(rest);
        shown
    }

    /// The pseudonym of an address outside the overlay, its port kept; none for what is no address or stays.
    fn address(&mut self, word: &str) -> Option<String> {
        let (address, port) = match (word.parse::<SocketAddr>(), word.parse::<IpAddr>()) {
            (Ok(socket), _) => (socket.ip(), Some(socket.port())),
            (Err(_), Ok(address)) => (address, None),
            (Err(_), Err(_)) => return None,
        };
        let address = address.to_canonical();
        if self.overlay.contains(&address) || address.is_loopback() || address.is_unspecified() {
            return None;
        }
        let next = self.addresses.len() + 1;
        let number = *self.addresses.entry(address).or_insert(next);
        Some(port.map_or_else(|| format!("<address-{number}>"), |port| format!("<address-{number}>:{port}")))
    }

    /// The pseudonym of a coordinator's `host:port`.
    fn name(&mut self, text: &str) -> String {
        if let Some(shown) = self.address(text) {
            return shown;
        }
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        let next = self.names.len() + 1;
        let number = *self.names.entry(host.to_owned()).or_insert(next);
        format!("<coordinator-{number}>:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redaction() -> Redaction {
        Redaction { overlay: HashSet::from(["fd00::7".parse().expect("address")]), ..Redaction::default() }
    }

    #[test]
    fn the_same_address_has_the_same_pseudonym_wherever_it_stands_and_the_overlays_stay() {
        let mut redaction = redaction();
        for (text, shown) in [
            ("198.51.100.2:51820", "<address-1>:51820"),
            ("from 198.51.100.2, then [2001:db8::9]:7.", "from <address-1>, then <address-2>:7."),
            ("198.51.100.3", "<address-3>"),
            ("::ffff:198.51.100.2", "<address-1>"),
            ("to fd00::7 over 127.0.0.1:5", "to fd00::7 over 127.0.0.1:5"),
            ("12:34:56, face to face: 1.2.3, abc", "12:34:56, face to face: 1.2.3, abc"),
            ("", ""),
        ] {
            assert_eq!(redaction.text(text), shown);
        }
    }

    #[test]
    fn no_token_no_key_and_no_coordinators_name_is_left_however_deep_it_stands() {
        let mut value = serde_json::json!({
            "tunnelKey": "c2VjcmV0",
            "notes": ["token wj1_0123_abc was refused", "-----BEGIN PRIVATE KEY-----"],
            "control": { "coordinator": "mesh.bank.example:8443", "cause": { "detail": "198.51.100.9:1 refused" } }
        });
        redaction().redact(&mut value, "");
        let text = value.to_string();
        for secret in ["c2VjcmV0", "wj1_", "PRIVATE", "bank.example", "198.51"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        assert_eq!(value["control"]["coordinator"], "<coordinator-1>:8443");
    }

    #[test]
    fn of_the_environment_only_names_of_ours_are_told() {
        let names = ["PATH", "WARREN_TOKEN_FILE", "WARREN_CONFIG"].map(str::to_owned).into_iter();
        assert_eq!(variables(names), ["WARREN_CONFIG", "WARREN_TOKEN_FILE"]);
    }

    #[test]
    fn a_report_is_for_its_writers_eyes_and_replaces_no_file() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("report.json");
        write(&path, "{}").expect("written");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        write(&path, "other").expect_err("refused");
    }
}
