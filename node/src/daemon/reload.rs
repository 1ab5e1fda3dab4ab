//! The configuration read again while the daemon runs: what can change then changes, all of it or nothing; what cannot is
//! named and stays as it was.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use tracing::{info, warn};
use warren_proto::reason::{Reason, Refusal};

use crate::config::{self, Config, ConfigError};
use crate::local_api::types::Reloaded;
use crate::telemetry::SetLevel;

/// Reads the file and the environment that the daemon was started with.
pub type Reread = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Where a running daemon takes a change.
pub struct Live {
    /// `log.level`.
    pub level: SetLevel,
    /// `tunnel.addresses`.
    pub addresses: watch::Sender<Vec<IpAddr>>,
    /// `control.addresses`; a link that stands is not cut for it.
    pub coordinators: watch::Sender<Vec<String>>,
}

/// Reads the configuration again when asked.
pub struct Reloader {
    reread: Reread,
    live: Live,
    /// What is in force: the start's values, with what was changed since.
    held: Mutex<Config>,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").field("held", &self.held).finish_non_exhaustive()
    }
}

impl Reloader {
    /// For a daemon that runs by `config`.
    #[must_use]
    pub fn new(config: Config, reread: Reread, live: Live) -> Self {
        Self { reread, live, held: Mutex::new(config) }
    }

    /// Applies what has changed and can. A configuration with one wrong value changes nothing at all.
    pub fn reload(&self) -> Result<Reloaded, Refusal> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = (self.reread)().map_err(|error| {
            let refusal = Refusal::new(Reason::InvalidField, format!("{error}; nothing was changed"));
            refusal.hint(error.hint().unwrap_or("warren config validate checks it without a daemon"))
        })?;
        let mut reloaded = Reloaded::default();
        let changed = config::changes(&held, &wanted);
        if changed.contains(&"log.level") {
            // The only one that may be refused, so the first.
            (self.live.level)(&wanted.log.level).map_err(|what| {
                Refusal::new(Reason::InvalidField, format!("log.level: {what}; nothing was changed"))
            })?;
        }
        for key in changed {
            match key {
                "log.level" => held.log.level.clone_from(&wanted.log.level),
                "tunnel.addresses" => {
                    held.tunnel.addresses.clone_from(&wanted.tunnel.addresses);
                    self.live.addresses.send_replace(wanted.tunnel.addresses.clone());
                }
                "control.addresses" => {
                    held.control_addresses.clone_from(&wanted.control_addresses);
                    self.live.coordinators.send_replace(wanted.control_addresses.clone());
                }
                other => {
                    reloaded.needs_restart.push(other.to_owned());
                    continue;
                }
            }
            reloaded.applied.push(key.to_owned());
        }
        info!(applied = reloaded.applied.join(","), "configuration read again");
        if !reloaded.needs_restart.is_empty() {
            warn!(keys = reloaded.needs_restart.join(","), next = "restart the node", "these need a restart");
        }
        Ok(reloaded)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    struct Rig {
        reloader: Reloader,
        file: Arc<Mutex<String>>,
        level: Arc<Mutex<String>>,
        addresses: watch::Receiver<Vec<IpAddr>>,
        coordinators: watch::Receiver<Vec<String>>,
    }

    fn rig() -> Rig {
        let file = Arc::new(Mutex::new(String::new()));
        let level = Arc::new(Mutex::new("info".to_owned()));
        let (addresses, addresses_seen) = watch::channel(Vec::new());
        let (coordinators, coordinators_seen) = watch::channel(Vec::new());
        let (text, set) = (file.clone(), level.clone());
        let live = Live {
            level: Arc::new(move |wanted| {
                *set.lock().expect("lock") = wanted.to_owned();
                Ok(())
            }),
            addresses,
            coordinators,
        };
        let reread = Box::new(move || config::from_text(&text.lock().expect("lock")));
        let reloader = Reloader::new(Config::default(), reread, live);
        Rig { reloader, file, level, addresses: addresses_seen, coordinators: coordinators_seen }
    }

    #[test]
    fn what_can_change_changes_and_what_cannot_is_named_until_the_restart() {
        let rig = rig();
        assert_eq!(rig.reloader.reload(), Ok(Reloaded::default()));
        *rig.file.lock().expect("lock") = "log: { level: debug }\ntunnel: { port: 1, addresses: [192.0.2.1] }\n\
             control: { addresses: ['a.example:1'] }\n"
            .to_owned();
        let reloaded = rig.reloader.reload().expect("read");
        assert_eq!(reloaded.applied, ["tunnel.addresses", "control.addresses", "log.level"]);
        assert_eq!(reloaded.needs_restart, ["tunnel.port"]);
        assert_eq!(*rig.level.lock().expect("lock"), "debug");
        assert_eq!(*rig.addresses.borrow(), ["192.0.2.1".parse::<IpAddr>().expect("address")]);
        assert_eq!(*rig.coordinators.borrow(), ["a.example:1"]);
        let again = rig.reloader.reload().expect("read");
        assert_eq!((again.applied.len(), again.needs_restart), (0, vec!["tunnel.port".to_owned()]));
    }

    #[test]
    fn one_wrong_value_changes_nothing() {
        let rig = rig();
        *rig.file.lock().expect("lock") =
            "log: { level: debug }\ntunnel: { addresses: [192.0.2.1], mtu: 5 }\n".to_owned();
        let refusal = rig.reloader.reload().expect_err("refused");
        assert!(refusal.detail.contains("tunnel.mtu") && refusal.detail.contains("nothing was changed"), "{refusal}");
        assert_eq!(*rig.level.lock().expect("lock"), "info");
        assert!(rig.addresses.borrow().is_empty());
    }
}
