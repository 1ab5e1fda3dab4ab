//! In which variant of the data plane the nodes of every lab run, so that all claims can be held against each.
//!
//! `WARREN_TEST_VARIANT` holds words separated by commas: `offloads=on` or `offloads=off`, and `workers=N`. What it names
//! overrides each node's configuration file, as environment variables do; what it does not name stays as it is.
//!
//! ```text
//! WARREN_TEST_VARIANT=offloads=off,workers=1 cargo test -p warren-netns-tests --test main
//! ```

use std::ffi::OsString;

use anyhow::{Context, Result, bail};

/// The variable's name.
pub const VARIABLE: &str = "WARREN_TEST_VARIANT";

const OFFLOADS: [&str; 4] = [
    "WARREN_TUNNEL_OFFLOAD_TSO",
    "WARREN_TUNNEL_OFFLOAD_USO",
    "WARREN_TUNNEL_OFFLOAD_GSO",
    "WARREN_TUNNEL_OFFLOAD_GRO",
];

/// What to add to a node's environment. A word that means nothing is an error.
pub fn environment() -> Result<Vec<(&'static str, OsString)>> {
    let Some(variant) = std::env::var_os(VARIABLE) else { return Ok(Vec::new()) };
    let variant = variant.into_string().ok().with_context(|| format!("{VARIABLE} is not text"))?;
    parse(&variant)
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
