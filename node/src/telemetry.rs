//! Logging: one line per fact to stderr, for a person or as JSON. Every refusal carries its reason under the same name
//! that metrics and the API use. No secret is ever a field: the types that hold one cannot be printed.

use std::io::IsTerminal;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

use crate::config::{Log, LogFormat};

/// Changes the level of a running process; the text is `log.level`'s.
pub type SetLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Installs the process's one subscriber. The level was checked when the configuration was read.
pub fn init(log: &Log) -> SetLevel {
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second subscriber in one process is refused by the library; the first stays.
    match log.format {
        LogFormat::Human => {
            let builder = builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            setter(handle)
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(false).with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            setter(handle)
        }
    }
}

fn setter<S: 'static>(handle: Handle<EnvFilter, S>) -> SetLevel {
    Arc::new(move |level| {
        let filter = EnvFilter::try_new(level).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    })
}
