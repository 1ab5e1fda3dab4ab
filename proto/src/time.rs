//! Wall-clock time as a value. Nothing in this crate reads a clock.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Seconds since 1970-01-01T00:00:00Z, as certificates and signed objects count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// This moment moved forward; saturates at the end of time.
    #[must_use]
    pub const fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by.as_secs()))
    }

    /// This moment moved back; saturates at 1970.
    #[must_use]
    pub const fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by.as_secs()))
    }

    /// How long until `later`, zero when it has passed.
    #[must_use]
    pub const fn until(self, later: Self) -> Duration {
        Duration::from_secs(later.0.saturating_sub(self.0))
    }
}

impl fmt::Display for UnixTime {
    /// RFC 3339 in UTC; a moment beyond year 9999 is shown as `@seconds`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = i64::try_from(self.0)
            .ok()
            .and_then(|seconds| ::time::OffsetDateTime::from_unix_timestamp(seconds).ok())
            .and_then(|moment| moment.format(&::time::format_description::well_known::Rfc3339).ok());
        match text {
            Some(text) => f.write_str(&text),
            None => write!(f, "@{}", self.0),
        }
    }
}
