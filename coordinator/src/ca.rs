//! The certificate authority: a root, an issuing intermediate, and what the coordinator itself presents and
//! signs with.
//!
//! ```text
//! root (P-384, 10 years) -+- issuing intermediate (P-256, 30 days, path length 0, overlay prefixes only)
//!                         |      +- tunnel certificates, node certificates
//!                         +- coordinator (P-256, TLS)
//!                         +- manifest signer (Ed25519)
//! ```
//!
//! [`Authority`] is an immutable value read from a directory. The root's key stands in a file of its own that is
//! needed only to renew the other three, so it may be kept elsewhere in between. Issuance builds every
//! certificate from the caller's terms; of a request only the public key is used.
//!
//! Private keys lie in the clear or sealed under a passphrase ([`KeyFiles`]).
//!
//! A root is replaced in steps ([`rotation`]). What hangs under each root that is trusted is its *family*: a directory of
//! its own, whole before the store first names the root. The store alone says which roots are trusted and which signs;
//! files that it does not name are of no account, so no crash leaves the two in disagreement.

mod authority;
mod family;
mod files;
mod issue;
mod request;
pub mod rotation;
mod sealing;
mod template;

pub use authority::{Authority, CaParameters, ISSUING_LIFETIME, choose};
pub use files::{CaError, pem};
pub use issue::{IssuedNode, IssuedSvid, IssuedTunnel, TunnelTerms};
pub use request::RequesterKey;
pub use sealing::{KeyFiles, Passphrase};

#[cfg(test)]
mod tests;
