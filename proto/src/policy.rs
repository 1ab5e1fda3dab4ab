//! Authorization policy: what people write, what it compiles to, and the one evaluator that decides.
//!
//! The way of a policy: source files -> [`document`] (strict YAML, every error with file, line, column and the
//! nearest valid word) -> [`CompiledPolicy`] (names interned, rules collected per service) -> either
//! [`evaluate`] (a [`Decision`] that explains itself) or [`table`] (the same decisions for packets, in constant
//! time). Node and coordinator run the same code, so what is enforced and what is explained cannot differ.
//!
//! Beside that way: [`openings`] (the same decisions as stretches of ports, for a packet filter), [`plan`] (who owns what, what an apply changes), [`mod@slice`] (the documents one node needs),
//! [`lint`], [`cases`] (tests and `never` proofs) and [`diff`].

pub mod cases;
pub mod compile;
pub mod diagnostic;
pub mod diff;
pub mod document;
pub mod evaluate;
mod fields;
#[cfg(test)]
mod fixtures;
pub mod guard;
pub mod identities;
pub mod lint;
pub mod openings;
pub mod paths;
pub mod plan;
#[cfg(test)]
mod properties;
pub mod request;
pub mod slice;
pub mod table;
mod yaml;

pub use compile::{CompiledPolicy, Layer, Mode, RuleIndex, RuleRef, Service};
pub use diagnostic::{Code, Diagnostic, Severity};
pub use document::{Documents, Kind, PolicyObject, SourceFile, Transport};
pub use evaluate::{Decision, Nearest, Verdict};
pub use identities::{IdentityTable, SourceIndex};
pub use openings::Openings;
pub use request::{Request, Token};
pub use table::{PortTable, PortVerdict};
