//! The coordinator's configuration: one YAML file, each key documented in `config/reference.yaml`, each overridable by
//! an environment variable. Unknown keys are refused: a misspelt key would silently mean its default.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use warren_proto::join_token::{MAX_ADDRESSES, is_address};
use warren_proto::spiffe::is_name;

/// Where the file is when `--config` names none.
pub const DEFAULT_FILE: &str = "/etc/warren/coordinator.yaml";

/// Every key with its meaning and its default.
pub const REFERENCE: &str = include_str!("config/reference.yaml");

/// Largest configuration file read (64 KiB): ours has a dozen keys.
const MAX_FILE: u64 = 64 * 1024;

/// The configuration. Keys and defaults: [`REFERENCE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Store, CA, clock.
    pub directory: PathBuf,
    /// This coordinator's name.
    pub name: String,
    /// UDP address of the QUIC port.
    pub listen: SocketAddr,
    /// Where nodes reach it.
    pub advertise: Vec<String>,
    /// TCP address of the admin API.
    pub admin_listen: SocketAddr,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// The passphrase of the CA's keys is in this file.
    pub ca_passphrase_file: Option<PathBuf>,
    /// Accept file systems whose syncs cannot be trusted.
    pub any_file_system: bool,
    /// Bytes below which no change is taken.
    pub keep_free: u64,
    /// A filter as tracing-subscriber's `EnvFilter` reads it.
    pub log_level: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
}

impl Config {
    fn with_defaults(directory: PathBuf) -> Self {
        Self {
            directory,
            name: "coordinator".to_owned(),
            listen: SocketAddr::from(([0, 0, 0, 0], 8443)),
            advertise: Vec::new(),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 8444)),
            heartbeat: Duration::from_secs(20),
            ca_passphrase_file: None,
            any_file_system: false,
            keep_free: 256 << 20,
            log_level: "info".to_owned(),
            log_json: false,
        }
    }
}

/// The file as written: what is absent keeps its default.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    directory: Option<String>,
    name: Option<String>,
    listen: Option<String>,
    advertise: Option<Vec<String>>,
    admin_listen: Option<String>,
    heartbeat: Option<String>,
    ca_passphrase_file: Option<String>,
    store: StoreDocument,
    log: LogDocument,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StoreDocument {
    any_file_system: Option<bool>,
    keep_free: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogDocument {
    level: Option<String>,
    format: Option<String>,
}

/// A key: how it is written in the file, where the file has it, and where its value goes.
struct Key {
    name: &'static str,
    read: fn(&Document) -> Option<String>,
    set: fn(&mut Config, &str) -> Result<(), String>,
}

const KEYS: [Key; 11] = [
    Key {
        name: "directory",
        read: |d| d.directory.clone(),
        set: |c, text| absolute(text).map(|path| c.directory = path),
    },
    Key {
        name: "name",
        read: |d| d.name.clone(),
        set: |c, text| match is_name(text) {
            true => {
                text.clone_into(&mut c.name);
                Ok(())
            }
            false => Err("not a lower-case letter followed by letters, digits and '-'".to_owned()),
        },
    },
    Key { name: "listen", read: |d| d.listen.clone(), set: |c, text| socket(text).map(|address| c.listen = address) },
    Key {
        name: "advertise",
        read: |d| d.advertise.as_ref().map(|items| items.join(",")),
        set: |c, text| addresses(text).map(|addresses| c.advertise = addresses),
    },
    Key {
        name: "admin_listen",
        read: |d| d.admin_listen.clone(),
        set: |c, text| socket(text).map(|address| c.admin_listen = address),
    },
    Key {
        name: "heartbeat",
        read: |d| d.heartbeat.clone(),
        set: |c, text| {
            let beat = duration(text)?;
            if !(Duration::from_secs(1)..=Duration::from_secs(300)).contains(&beat) {
                return Err("not between 1s and 5m".to_owned());
            }
            c.heartbeat = beat;
            Ok(())
        },
    },
    Key {
        name: "ca_passphrase_file",
        read: |d| d.ca_passphrase_file.clone(),
        set: |c, text| absolute(text).map(|path| c.ca_passphrase_file = Some(path)),
    },
    Key {
        name: "store.any_file_system",
        read: |d| d.store.any_file_system.map(|value| value.to_string()),
        set: |c, text| {
            c.any_file_system = text.parse().map_err(|_| "not true or false".to_owned())?;
            Ok(())
        },
    },
    Key {
        name: "store.keep_free",
        read: |d| d.store.keep_free.clone(),
        set: |c, text| size(text).map(|bytes| c.keep_free = bytes),
    },
    Key {
        name: "log.level",
        read: |d| d.log.level.clone(),
        set: |c, text| {
            tracing_subscriber::filter::EnvFilter::try_new(text)
                .map(|_| text.clone_into(&mut c.log_level))
                .map_err(|_| "not a log level: error, warn, info, debug or trace".to_owned())
        },
    },
    Key {
        name: "log.format",
        read: |d| d.log.format.clone(),
        set: |c, text| {
            c.log_json = match text {
                "human" => false,
                "json" => true,
                _ => return Err("not one of human, json".to_owned()),
            };
            Ok(())
        },
    },
];

impl Key {
    fn variable(&self) -> String {
        format!("WARREN_COORDINATOR_{}", self.name.to_ascii_uppercase().replace('.', "_"))
    }
}

/// What is wrong with the configuration, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    place: String,
    what: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

impl std::error::Error for ConfigError {}

/// Reads the file, then the environment.
pub fn load(file: &Path, environment: impl Fn(&str) -> Option<OsString>) -> Result<Config, ConfigError> {
    let place = file.display().to_string();
    let text = read(file).map_err(|error| ConfigError { place: place.clone(), what: error.to_string() })?;
    let document: Document =
        serde_saphyr::from_str(&text).map_err(|error| ConfigError { place: place.clone(), what: error.to_string() })?;
    let directory = file.parent().unwrap_or(Path::new("/"));
    let directory = std::path::absolute(directory)
        .map_err(|error| ConfigError { place: place.clone(), what: error.to_string() })?;
    let mut config = Config::with_defaults(directory);
    for key in &KEYS {
        let variable = key.variable();
        let (place, value) = match environment(&variable) {
            Some(value) => {
                let value = value
                    .into_string()
                    .map_err(|_| ConfigError { place: variable.clone(), what: "not text".to_owned() })?;
                (variable, value)
            }
            None => match (key.read)(&document) {
                Some(value) => (format!("{place}: {}", key.name), value),
                None => continue,
            },
        };
        (key.set)(&mut config, &value).map_err(|what| ConfigError { place, what: format!("{value:?} is {what}") })?;
    }
    if config.advertise.is_empty() {
        if config.listen.ip().is_unspecified() {
            let what = "advertise: nodes must be told where to find this coordinator, for `listen` is every address; \
                        set it to host:port";
            return Err(ConfigError { place, what: what.to_owned() });
        }
        config.advertise = vec![config.listen.to_string()];
    }
    Ok(config)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other("larger than any configuration (64 KiB)"));
    }
    Ok(text)
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("not an absolute path".to_owned()) }
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "not address:port, for example 0.0.0.0:8443 or [::]:8443".to_owned())
}

fn addresses(text: &str) -> Result<Vec<String>, String> {
    let addresses: Vec<_> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect();
    match addresses.iter().find(|address| !is_address(address)) {
        Some(wrong) => Err(format!("not a list of host:port ({wrong:?})")),
        None if addresses.len() > MAX_ADDRESSES => Err(format!("more than {MAX_ADDRESSES} addresses")),
        None => Ok(addresses),
    }
}

/// A number and a unit: `ms`, `s`, `m`, `h` or `d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let wrong = || "not a duration such as 30s, 10m, 24h or 7d".to_owned();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    };
    milliseconds.map(Duration::from_millis).ok_or_else(wrong)
}

fn size(text: &str) -> Result<u64, String> {
    let wrong = || "not a size such as 256MiB or 2GiB".to_owned();
    let (number, shift) = match (text.strip_suffix("MiB"), text.strip_suffix("GiB")) {
        (Some(number), _) => (number, 20),
        (_, Some(number)) => (number, 30),
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("coordinator.yaml");
        std::fs::write(&file, text).expect("write");
        load(&file, |name| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_reference_states_the_defaults() {
        let text = REFERENCE.replace("advertise: []", "advertise: [\"mesh.example:8443\"]");
        let config = loaded(&text, &[]).expect("reference");
        let mut expected = Config::with_defaults(config.directory.clone());
        expected.advertise = vec!["mesh.example:8443".to_owned()];
        assert_eq!(config, expected);
        for key in &KEYS {
            let last = key.name.rsplit('.').next().expect("name");
            assert!(REFERENCE.contains(&format!("{last}:")), "{} is documented", key.name);
        }
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused_by_name() {
        for (text, named) in [
            ("listne: \"0.0.0.0:1\"", "listne"),
            ("listen: here", "listen"),
            ("advertise: [nowhere]", "advertise"),
            ("heartbeat: 10m", "heartbeat"),
            ("store: { keep_free: lots }", "store.keep_free"),
            ("log: { level: loud, format: human }\nlog: {}", "log"),
            ("name: Alpha", "name"),
            ("listen: \"0.0.0.0:8443\"", "advertise"),
        ] {
            let error = loaded(text, &[]).expect_err(text).to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn the_environment_wins_and_is_named_when_wrong() {
        let text = "listen: \"192.0.2.1:8443\"";
        let config = loaded(text, &[("WARREN_COORDINATOR_STORE_ANY_FILE_SYSTEM", "true")]).expect("config");
        assert!(config.any_file_system);
        assert_eq!(config.advertise, ["192.0.2.1:8443"]);
        let error = loaded(text, &[("WARREN_COORDINATOR_HEARTBEAT", "often")]).expect_err("refused").to_string();
        assert!(error.contains("WARREN_COORDINATOR_HEARTBEAT"), "{error}");
    }
}
