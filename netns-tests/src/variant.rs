//! In which variant of the data plane the nodes of every lab run, so that all claims can be held against each.
//!
//! `WARREN_TEST_VARIANT` holds words separated by commas: `offloads=on` or `offloads=off`, and `workers=N`. What it names
//! overrides each node's configuration file, as environment variables do; what it does not name is as the program that
//! runs the labs says ([`set_default`]), else as it stands in the file.
//!
//! ```text
//! WARREN_TEST_VARIANT=offloads=off,workers=1 cargo test -p warren-netns-tests --test main
//! ```

use std::ffi::OsString;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// The variable's name.
pub const VARIABLE: &str = "WARREN_TEST_VARIANT";

const OFFLOADS: [&str; 4] = [
    "WARREN_TUNNEL_OFFLOAD_TSO",
    "WARREN_TUNNEL_OFFLOAD_USO",
    "WARREN_TUNNEL_OFFLOAD_GSO",
    "WARREN_TUNNEL_OFFLOAD_GRO",
];

static DEFAULT: OnceLock<&str> = OnceLock::new();

/// The variant of every lab of this process as far as `WARREN_TEST_VARIANT` does not say otherwise. The first call counts.
pub fn set_default(variant: &'static str) {
    let _ = DEFAULT.set(variant);
}

/// What to add to a node's environment, where a later entry overrides an earlier one. A word that means nothing is an
/// error.
pub fn environment() -> Result<Vec<(&'static str, OsString)>> {
    let mut all = parse(DEFAULT.get().copied().unwrap_or_default())?;
    if let Some(variant) = std::env::var_os(VARIABLE) {
        let variant = variant.into_string().ok().with_context(|| format!("{VARIABLE} is not text"))?;
        all.extend(parse(&variant)?);
    }
    Ok(all)
}

fn parse(variant: &str) -> Result<Vec<(&'static str, OsString)>> {
    let mut all = Vec::new();
    for word in variant.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word.split_once('=') {
            Some(("offloads", state @ ("on" | "off"))) => {
                let value = if state == "on" { "true" } else { "false" };
                all.extend(OFFLOADS.map(|name| (name, value.into())));
            }
            Some(("workers", count)) if count.parse::<u16>().is_ok_and(|count| count > 0) => {
                all.push(("WARREN_TUNNEL_WORKERS", count.into()));
            }
            _ => bail!("{VARIABLE}: {word:?} is none of offloads=on, offloads=off, workers=N"),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_sets_what_it_names_and_nothing_else() {
        assert_eq!(parse("").expect("nothing"), []);
        assert_eq!(parse("workers=4").expect("a variant"), [("WARREN_TUNNEL_WORKERS", "4".into())]);
        let off = parse("offloads=off, workers=1").expect("a variant");
        assert_eq!(off.len(), 5);
        assert!(off.iter().filter(|(name, _)| OFFLOADS.contains(name)).all(|(_, value)| value == "false"));
        for wrong in ["workers=0", "workers", "offloads=maybe", "offload=on"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
