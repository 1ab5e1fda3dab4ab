//! The node's configuration: one YAML file, each key documented in `config/reference.yaml`, each key
//! overridable by an environment variable. Unknown keys are refused with file, line and the nearest word,
//! because a misspelt key would otherwise silently mean its default.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use warren_proto::WorkloadName;

use crate::data_plane::offload::Switches;
use crate::placement::{MAX_INSTANCES, Placement};
use crate::selectors::{Assignment, InvalidAssignment, MAX_ASSIGNMENTS};

mod schema;

use schema::Form;
pub use schema::schema;

/// Where the file is when `--config` and `WARREN_CONFIG` name none.
pub const DEFAULT_FILE: &str = "/etc/warren/warren.yaml";

/// Every key with its meaning and its default.
pub const REFERENCE: &str = include_str!("config/reference.yaml");

/// Largest configuration file read (64 KiB): ours has a dozen keys.
const MAX_FILE: u64 = 64 * 1024;

/// The node's configuration. Keys and defaults: [`REFERENCE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Keys, certificates, last signed snapshot.
    pub state_dir: PathBuf,
    /// The local API's Unix socket.
    pub socket: PathBuf,
    /// The identity of whoever fits no entry of `workloads`; `None` takes the only one granted, where no entry has an
    /// instance of its own.
    pub workload: Option<WorkloadName>,
    /// Which processes of this host are which workload; see [`crate::placement`].
    pub workloads: Vec<Assignment>,
    /// The Workload API's Unix socket; `None` when it is not served.
    pub workload_api: Option<PathBuf>,
    /// Where the node's figures are served over HTTP; `None` when they are not.
    pub metrics: Option<SocketAddr>,
    /// The data plane.
    pub tunnel: Tunnel,
    /// Coordinator addresses, `host:port`; empty takes those of the join token.
    pub control_addresses: Vec<String>,
    /// Logging.
    pub log: Log,
}

/// Keys under `tunnel`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Name of the TUN device.
    pub device: String,
    /// UDP port; 0 lets the kernel choose.
    pub port: u16,
    /// Bytes of an inner packet.
    pub mtu: u16,
    /// Worker threads; 0 is half of the cores, at least 1 and at most 8.
    pub workers: u16,
    /// Addresses to report to peers; empty for every address of the host.
    pub addresses: Vec<IpAddr>,
    /// What its certificates say of the suites it wants.
    pub suite: SuiteChoice,
    /// Offloads that may be used where the kernel has them.
    pub offload: Switches,
}

/// Keys under `log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A filter as tracing-subscriber's `EnvFilter` reads it.
    pub level: String,
    /// How lines are written.
    pub format: LogFormat,
}

/// Which cipher suite the node asks for. The choice goes into its certificates, so it is never negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuiteChoice {
    /// AES-256-GCM with every peer where both processors have AES instructions.
    Auto,
    /// ChaCha20-Poly1305 with every peer: the node's certificates do not name AES.
    ChaCha20Poly1305,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a person or the journal.
    Human,
    /// One JSON object per line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/warren".into(),
            socket: "/run/warren/warren.sock".into(),
            workload: None,
            workloads: Vec::new(),
            workload_api: None,
            metrics: None,
            tunnel: Tunnel {
                device: "warren0".into(),
                port: 51820,
                mtu: 1420,
                workers: 0,
                addresses: Vec::new(),
                suite: SuiteChoice::Auto,
                offload: Switches::ON,
            },
            control_addresses: Vec::new(),
            log: Log { level: "info".into(), format: LogFormat::Human },
        }
    }
}

/// The file as written: what is absent keeps its default.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    state_dir: Option<String>,
    socket: Option<String>,
    workload: Option<String>,
    workloads: Option<Vec<String>>,
    workload_api: WorkloadApiDocument,
    metrics: MetricsDocument,
    tunnel: TunnelDocument,
    control: ControlDocument,
    log: LogDocument,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WorkloadApiDocument {
    socket: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MetricsDocument {
    address: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TunnelDocument {
    device: Option<String>,
    port: Option<u64>,
    mtu: Option<u64>,
    workers: Option<u64>,
    addresses: Option<Vec<String>>,
    suite: Option<String>,
    offload: OffloadDocument,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OffloadDocument {
    tso: Option<bool>,
    uso: Option<bool>,
    gso: Option<bool>,
    gro: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ControlDocument {
    addresses: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogDocument {
    level: Option<String>,
    format: Option<String>,
}

/// A key: how it is written in the file, in the environment, and where its value goes.
struct Key {
    name: &'static str,
    variable: &'static str,
    form: Form,
    show: fn(&Config) -> String,
    set: fn(&mut Config, &str) -> Result<(), String>,
}

const KEYS: [Key; 19] = [
    Key {
        name: "state_dir",
        variable: "WARREN_STATE_DIR",
        form: Form::Path,
        show: |c| c.state_dir.display().to_string(),
        set: |c, text| absolute(text).map(|path| c.state_dir = path),
    },
    Key {
        name: "socket",
        variable: "WARREN_SOCKET",
        form: Form::Path,
        show: |c| c.socket.display().to_string(),
        set: |c, text| absolute(text).map(|path| c.socket = path),
    },
    Key {
        name: "workload",
        variable: "WARREN_WORKLOAD",
        form: Form::Workload,
        show: |c| c.workload.as_ref().map(ToString::to_string).unwrap_or_default(),
        set: |c, text| {
            c.workload = if text.is_empty() {
                None
            } else {
                Some(text.parse().map_err(|error: warren_proto::spiffe::InvalidName| error.to_string())?)
            };
            Ok(())
        },
    },
    Key {
        name: "workloads",
        variable: "WARREN_WORKLOADS",
        form: Form::Assignments,
        show: |c| joined(&c.workloads),
        set: |c, text| {
            let entries = list(text).map(|item| item.parse().map_err(|error: InvalidAssignment| error.to_string()));
            c.workloads = entries.collect::<Result<_, _>>()?;
            let instances = Placement::of(c.workload.as_ref(), &c.workloads).len();
            if c.workloads.len() > MAX_ASSIGNMENTS {
                Err(format!("more than {MAX_ASSIGNMENTS} entries"))
            } else if instances > MAX_INSTANCES {
                Err(format!("{instances} instances, and a node holds {MAX_INSTANCES}"))
            } else {
                Ok(())
            }
        },
    },
    Key {
        name: "workload_api.socket",
        variable: "WARREN_WORKLOAD_API_SOCKET",
        form: Form::OptionalPath,
        show: |c| c.workload_api.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        set: |c, text| {
            c.workload_api = if text.is_empty() { None } else { Some(absolute(text)?) };
            Ok(())
        },
    },
    Key {
        name: "metrics.address",
        variable: "WARREN_METRICS_ADDRESS",
        form: Form::OptionalSocketAddress,
        show: |c| c.metrics.map(|address| address.to_string()).unwrap_or_default(),
        set: |c, text| {
            let wrong = || format!("{text:?} is not an IP address with port, as in 127.0.0.1:9464");
            c.metrics = if text.is_empty() { None } else { Some(text.parse().map_err(|_| wrong())?) };
            Ok(())
        },
    },
    Key {
        name: "tunnel.device",
        variable: "WARREN_TUNNEL_DEVICE",
        form: Form::Device,
        show: |c| c.tunnel.device.clone(),
        set: |c, text| device(text).map(|name| c.tunnel.device = name),
    },
    Key {
        name: "tunnel.port",
        variable: "WARREN_TUNNEL_PORT",
        form: Form::Number(0, u16::MAX),
        show: |c| c.tunnel.port.to_string(),
        set: |c, text| number(text, 0, u16::MAX).map(|port| c.tunnel.port = port),
    },
    Key {
        name: "tunnel.mtu",
        variable: "WARREN_TUNNEL_MTU",
        form: Form::Number(1280, 9000),
        show: |c| c.tunnel.mtu.to_string(),
        set: |c, text| number(text, 1280, 9000).map(|mtu| c.tunnel.mtu = mtu),
    },
    Key {
        name: "tunnel.workers",
        variable: "WARREN_TUNNEL_WORKERS",
        form: Form::Number(0, 256),
        show: |c| c.tunnel.workers.to_string(),
        set: |c, text| number(text, 0, 256).map(|workers| c.tunnel.workers = workers),
    },
    Key {
        name: "tunnel.addresses",
        variable: "WARREN_TUNNEL_ADDRESSES",
        form: Form::Addresses,
        show: |c| joined(&c.tunnel.addresses),
        set: |c, text| {
            list(text)
                .map(|item| item.parse().map_err(|_| format!("{item:?} is not an IP address without port")))
                .collect::<Result<_, _>>()
                .map(|addresses| c.tunnel.addresses = addresses)
        },
    },
    Key {
        name: "tunnel.suite",
        variable: "WARREN_TUNNEL_SUITE",
        form: Form::Choice(&["auto", "chacha20-poly1305"]),
        show: |c| match c.tunnel.suite {
            SuiteChoice::Auto => "auto".to_owned(),
            SuiteChoice::ChaCha20Poly1305 => "chacha20-poly1305".to_owned(),
        },
        set: |c, text| {
            c.tunnel.suite = match text {
                "auto" => SuiteChoice::Auto,
                "chacha20-poly1305" => SuiteChoice::ChaCha20Poly1305,
                _ => return Err("not one of auto, chacha20-poly1305".to_owned()),
            };
            Ok(())
        },
    },
    Key {
        name: "tunnel.offload.tso",
        variable: "WARREN_TUNNEL_OFFLOAD_TSO",
        form: Form::Switch,
        show: |c| c.tunnel.offload.tso.to_string(),
        set: |c, text| switch(text).map(|on| c.tunnel.offload.tso = on),
    },
    Key {
        name: "tunnel.offload.uso",
        variable: "WARREN_TUNNEL_OFFLOAD_USO",
        form: Form::Switch,
        show: |c| c.tunnel.offload.uso.to_string(),
        set: |c, text| switch(text).map(|on| c.tunnel.offload.uso = on),
    },
    Key {
        name: "tunnel.offload.gso",
        variable: "WARREN_TUNNEL_OFFLOAD_GSO",
        form: Form::Switch,
        show: |c| c.tunnel.offload.gso.to_string(),
        set: |c, text| switch(text).map(|on| c.tunnel.offload.gso = on),
    },
    Key {
        name: "tunnel.offload.gro",
        variable: "WARREN_TUNNEL_OFFLOAD_GRO",
        form: Form::Switch,
        show: |c| c.tunnel.offload.gro.to_string(),
        set: |c, text| switch(text).map(|on| c.tunnel.offload.gro = on),
    },
    Key {
        name: "control.addresses",
        variable: "WARREN_CONTROL_ADDRESSES",
        form: Form::Endpoints,
        show: |c| joined(&c.control_addresses),
        set: |c, text| {
            list(text)
                .map(|item| host_and_port(item).map(|()| item.to_owned()))
                .collect::<Result<_, _>>()
                .map(|addresses| c.control_addresses = addresses)
        },
    },
    Key {
        name: "log.level",
        variable: "WARREN_LOG_LEVEL",
        form: Form::Text,
        show: |c| c.log.level.clone(),
        set: |c, text| {
            tracing_subscriber::filter::EnvFilter::try_new(text)
                .map(|_| c.log.level = text.to_owned())
                .map_err(|_| "not a log level: error, warn, info, debug or trace".to_owned())
        },
    },
    Key {
        name: "log.format",
        variable: "WARREN_LOG_FORMAT",
        form: Form::Choice(&["human", "json"]),
        show: |c| match c.log.format {
            LogFormat::Human => "human".to_owned(),
            LogFormat::Json => "json".to_owned(),
        },
        set: |c, text| {
            c.log.format = match text {
                "human" => LogFormat::Human,
                "json" => LogFormat::Json,
                _ => return Err("not one of human, json".to_owned()),
            };
            Ok(())
        },
    },
];

impl Document {
    /// What the file says for `key`, as text; lists joined by commas.
    fn value(&self, key: &str) -> Option<String> {
        let numeric = |value: Option<u64>| value.map(|number| number.to_string());
        let boolean = |value: Option<bool>| value.map(|on| on.to_string());
        let several = |value: &Option<Vec<String>>| value.as_ref().map(|items| items.join(","));
        match key {
            "state_dir" => self.state_dir.clone(),
            "socket" => self.socket.clone(),
            "workload" => self.workload.clone(),
            "workloads" => several(&self.workloads),
            "workload_api.socket" => self.workload_api.socket.clone(),
            "metrics.address" => self.metrics.address.clone(),
            "tunnel.device" => self.tunnel.device.clone(),
            "tunnel.port" => numeric(self.tunnel.port),
            "tunnel.mtu" => numeric(self.tunnel.mtu),
            "tunnel.workers" => numeric(self.tunnel.workers),
            "tunnel.addresses" => several(&self.tunnel.addresses),
            "tunnel.suite" => self.tunnel.suite.clone(),
            "tunnel.offload.tso" => boolean(self.tunnel.offload.tso),
            "tunnel.offload.uso" => boolean(self.tunnel.offload.uso),
            "tunnel.offload.gso" => boolean(self.tunnel.offload.gso),
            "tunnel.offload.gro" => boolean(self.tunnel.offload.gro),
            "control.addresses" => several(&self.control.addresses),
            "log.level" => self.log.level.clone(),
            "log.format" => self.log.format.clone(),
            _ => None,
        }
    }
}

/// A configuration and where each value came from.
#[derive(Debug)]
pub struct Loaded {
    /// What holds.
    pub config: Config,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    origins: Vec<Origin>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Default,
    File,
    Environment,
}

/// One key as `config show` lists it.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// As in the file, with dots.
    pub key: &'static str,
    /// What holds.
    pub value: String,
    /// `default`, `file`, or the variable's name.
    pub origin: &'static str,
}

impl Loaded {
    /// Every key, in the reference's order.
    #[must_use]
    pub fn settings(&self) -> Vec<Setting> {
        KEYS.iter()
            .zip(&self.origins)
            .map(|(key, origin)| Setting {
                key: key.name,
                value: (key.show)(&self.config),
                origin: match origin {
                    Origin::Default => "default",
                    Origin::File => "file",
                    Origin::Environment => key.variable,
                },
            })
            .collect()
    }
}

/// The keys whose values differ, in the reference's order.
#[must_use]
pub fn changes(before: &Config, after: &Config) -> Vec<&'static str> {
    KEYS.iter().filter(|key| (key.show)(before) != (key.show)(after)).map(|key| key.name).collect()
}

/// A file's text alone, without an environment.
#[cfg(test)]
pub(crate) fn from_text(text: &str) -> Result<Config, ConfigError> {
    parse(text, "warren.yaml", |_| None).map(|loaded| loaded.config)
}

/// What is wrong with a configuration, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    place: String,
    what: String,
    hint: Option<String>,
}

impl ConfigError {
    /// The next step, where there is a better one than reading the reference.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

impl std::error::Error for ConfigError {}

/// Reads the file, then the environment. A missing file is an error only when it was named.
pub fn load(file: Option<&Path>, environment: impl Fn(&str) -> Option<OsString>) -> Result<Loaded, ConfigError> {
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    let text = match read(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => None,
        Err(error) => {
            return Err(ConfigError {
                place: path.display().to_string(),
                what: format!("cannot be read: {error}"),
                hint: (error.kind() == std::io::ErrorKind::NotFound)
                    .then(|| format!("warren config reference > {}", path.display())),
            });
        }
    };
    let mut loaded = parse(text.as_deref().unwrap_or_default(), &path.display().to_string(), environment)?;
    loaded.file = text.map(|_| path.to_owned());
    Ok(loaded)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    if file.take(MAX_FILE + 1).read_to_string(&mut text)? as u64 > MAX_FILE {
        return Err(std::io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(text)
}

fn parse(text: &str, place: &str, environment: impl Fn(&str) -> Option<OsString>) -> Result<Loaded, ConfigError> {
    // A file of comments only is a file that changes nothing.
    let empty = text.lines().all(|line| matches!(line.trim_start().chars().next(), None | Some('#')));
    let document = if empty {
        Document::default()
    } else {
        serde_saphyr::from_str(text).map_err(|error| unreadable(&error, text, place))?
    };
    let mut config = Config::default();
    let mut origins = Vec::with_capacity(KEYS.len());
    for key in &KEYS {
        let mut origin = Origin::Default;
        if let Some(value) = document.value(key.name) {
            (key.set)(&mut config, &value).map_err(|what| wrong(line_of(text, place, key.name), key, &value, what))?;
            origin = Origin::File;
        }
        if let Some(value) = environment(key.variable) {
            let value = value
                .into_string()
                .map_err(|_| wrong(key.variable.to_owned(), key, "", "the variable's value is not UTF-8".to_owned()))?;
            (key.set)(&mut config, &value).map_err(|what| wrong(key.variable.to_owned(), key, &value, what))?;
            origin = Origin::Environment;
        }
        origins.push(origin);
    }
    Ok(Loaded { config, file: None, origins })
}

fn wrong(place: String, key: &Key, value: &str, what: String) -> ConfigError {
    ConfigError { place, what: format!("{}: {value:?}: {what}", key.name), hint: None }
}

/// `file:line` of a key that parsed; the file alone when the line cannot be told.
fn line_of(text: &str, place: &str, key: &str) -> String {
    let (section, leaf) = key.split_once('.').map_or((None, key), |(section, leaf)| (Some(section), leaf));
    let mut inside = section.is_none();
    for (number, line) in text.lines().enumerate() {
        let indented = line.starts_with(' ');
        if !indented && let Some(section) = section {
            inside = line.trim_end().strip_suffix(':') == Some(section) || line.starts_with(&format!("{section}:"));
        }
        let word = line.trim_start();
        if inside
            && indented == section.is_some()
            && word.strip_prefix(leaf).is_some_and(|rest| rest.trim_start().starts_with(':'))
        {
            return format!("{place}:{}", number + 1);
        }
    }
    place.to_owned()
}

fn unreadable(error: &serde_saphyr::Error, text: &str, place: &str) -> ConfigError {
    let error = error.without_snippet();
    let key = error.location().and_then(|location| key_above(text, usize::try_from(location.line()).ok()?));
    let place = match error.location().filter(|location| location.line() > 0) {
        Some(location) => format!("{place}:{}:{}", location.line(), location.column()),
        None => place.to_owned(),
    };
    if let serde_saphyr::Error::SerdeUnknownField { field, expected, .. } = error {
        let nearest = nearest(field, expected.iter().copied());
        let known = expected.join(", ");
        return ConfigError {
            place,
            what: format!("unknown key {field:?}; known here: {known}"),
            hint: nearest.map(|word| format!("did you mean {word:?}?")),
        };
    }
    let said = error.to_string();
    let said = said.lines().next().unwrap_or_default();
    let what =
        key.map_or_else(|| said.to_owned(), |key| format!("{}: {said}; expected {}", key.name, key.form.words()));
    ConfigError { place, what, hint: None }
}

/// The key that the `line`, counted from 1, is part of the value of.
fn key_above(text: &str, line: usize) -> Option<&'static Key> {
    let (mut section, mut found) = ("", None);
    for line in text.lines().take(line) {
        let Some((word, _)) = line.split_once(':') else { continue };
        let inside = line.starts_with(' ');
        let name = if inside { format!("{section}.{}", word.trim_start()) } else { word.to_owned() };
        if !inside && !line.starts_with(['#', '-']) {
            (section, found) = (word, None);
        }
        found = KEYS.iter().find(|key| key.name == name).or(found);
    }
    found
}

/// The known word that `word` was probably meant to be.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(3) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The items of a list as the environment writes it.
pub fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn switch(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

fn number(text: &str, least: u16, most: u16) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("not a number from {least} to {most}"))
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("not an absolute path".to_owned()) }
}

/// A name the kernel takes for a network device (IFNAMSIZ less the NUL, `dev_valid_name`), without what a
/// shell or a log would trip over.
fn device(text: &str) -> Result<String, String> {
    let spelt = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if (1..=15).contains(&text.len()) && spelt && !matches!(text, "." | "..") {
        Ok(text.to_owned())
    } else {
        Err("not a device name: 1 to 15 letters, digits, '-', '_' and '.'".to_owned())
    }
}

/// Checks `host:port` without resolving it.
pub fn host_and_port(text: &str) -> Result<(), String> {
    let valid = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host_ok = match bracketed {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                (1..=253).contains(&host.len())
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        host_ok && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if valid { Ok(()) } else { Err(format!("{text:?} is not host:port, [IPv6]:port or IPv4:port")) }
}

#[cfg(test)]
mod tests;
