//! How a caller tells a coordinator which roots it trusts before the coordinator presents a certificate: in TLS's server
//! name, `<16 hexadecimal digits of a root's SHA-256>[.<another>...].root.warren`.
//!
//! While one root takes over from another a coordinator holds a certificate under each. Who holds a join token or a file
//! with the earlier root, or was away when the later one was introduced, is so shown the one that it can verify. The name
//! is a hint and no more: what is presented is verified against roots held, as ever.

use crate::trust_bundle::MAX_ROOTS;

const SUFFIX: &str = ".root.warren";

/// The first 8 bytes of the SHA-256 of a root's DER: enough to choose by, never to trust by.
pub type RootPrefix = [u8; 8];

/// The prefix of a root's SHA-256.
#[must_use]
pub fn prefix(sha256: &[u8; 32]) -> RootPrefix {
    let [a, b, c, d, e, f, g, h, ..] = *sha256;
    [a, b, c, d, e, f, g, h]
}

/// The server name that says which roots are held. Roots beyond [`MAX_ROOTS`] are left out.
#[must_use]
pub fn server_name<'a>(roots: impl IntoIterator<Item = &'a [u8; 32]>) -> String {
    let labels: Vec<_> = roots.into_iter().take(MAX_ROOTS).map(|root| hex::encode(prefix(root))).collect();
    format!("{}{SUFFIX}", labels.join("."))
}

/// The roots that a server name says are held; empty for any other name.
#[must_use]
pub fn parse(name: &str) -> Vec<RootPrefix> {
    let Some(labels) = name.strip_suffix(SUFFIX) else { return Vec::new() };
    let read = |label: &str| {
        let mut bytes = RootPrefix::default();
        hex::decode_to_slice(label, &mut bytes).ok().map(|()| bytes)
    };
    labels.split('.').take(MAX_ROOTS).map(read).collect::<Option<_>>().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roots_held_read_back_from_the_name_and_other_names_hint_at_none() {
        let roots = [[0xab; 32], [7; 32]];
        let name = server_name(&roots);
        assert_eq!(name, "abababababababab.0707070707070707.root.warren");
        assert_eq!(parse(&name), [[0xab; 8], [7; 8]]);
        let full = server_name(&[[0xff; 32]; MAX_ROOTS + 2]);
        assert!(full.len() <= 253, "a DNS name");
        assert_eq!(parse(&full).len(), MAX_ROOTS);
        for other in ["", "coordinator.warren", ".root.warren", "xyz.root.warren", "abab.root.warren", "root.warren"] {
            assert_eq!(parse(other), Vec::<RootPrefix>::new(), "{other}");
        }
    }
}
