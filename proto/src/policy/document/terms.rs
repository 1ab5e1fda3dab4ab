//! The terms rules are made of: ports, identities, requests, tokens.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::super::diagnostic::Position;
use super::super::fields::At;
use super::super::guard::Guard;
use super::super::paths::PathTemplate;
use crate::{UnixTime, WorkloadName};

/// IP protocols that carry ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
}

impl Transport {
    /// The transport of an IP protocol number.
    #[must_use]
    pub const fn from_ip_protocol(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// `tcp` or `udp`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a port carries, as declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// Any TCP.
    Tcp,
    /// Any UDP.
    Udp,
    /// Cleartext HTTP over TCP inside the tunnel: requests can be judged.
    Http,
}

impl PortProtocol {
    /// The transport underneath.
    #[must_use]
    pub const fn transport(self) -> Transport {
        match self {
            Self::Tcp | Self::Http => Transport::Tcp,
            Self::Udp => Transport::Udp,
        }
    }
}

/// Port numbers of one transport, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// Of which transport.
    pub transport: Transport,
    /// Lowest number.
    pub first: u16,
    /// Highest number.
    pub last: u16,
}

impl PortRange {
    /// Whether the port lies in it.
    #[must_use]
    pub const fn contains(self, transport: Transport, port: u16) -> bool {
        self.transport as u8 == transport as u8 && self.first <= port && port <= self.last
    }

    pub(in crate::policy) fn overlaps(self, other: Self) -> bool {
        self.transport == other.transport && self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    /// As written in a rule: `5432/tcp`, `16384-32767/udp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}/{}", self.first, self.transport)
        } else {
            write!(f, "{}-{}/{}", self.first, self.last, self.transport)
        }
    }
}

/// A term of `from`, `to` or `members`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// `any`
    Any,
    /// `<namespace>/*`
    Namespace(String),
    /// `<namespace>/<name>`
    Workload(WorkloadName),
    /// `group:<name>`
    Group(String),
}

/// A term of `ports`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortTerm {
    /// A port that the same service declares.
    Named(String),
    /// Numbers.
    Range(PortRange),
}

/// What a rule does when it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Lets in.
    Allow,
    /// Refuses, unless an exception holds.
    Deny,
    /// Refuses what does not hold its `must`.
    Require,
}

/// One alternative of `http`. Absent terms match everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpTerm {
    /// Methods, in upper case; empty for any.
    pub methods: Vec<String>,
    /// Path templates; empty for any.
    pub paths: Vec<PathTemplate>,
    /// The protocol asked for with `Upgrade`.
    pub upgrade: Option<String>,
    /// gRPC methods as `(service, method)`, the method `*` for all of a service; empty when not gRPC.
    pub grpc: Vec<(String, String)>,
}

/// What a token must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtTerm {
    /// An issuer of the Mesh document.
    pub issuer: At<String>,
    /// The token counts only from the workload that it was issued to.
    pub bound_to_peer: bool,
    /// All must hold.
    pub claims: Vec<ClaimTerm>,
}

/// One claim and the values it may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimTerm {
    /// Keys from the top of the token downwards.
    pub claim: Vec<String>,
    /// One of these; a claim that is a list matches when one of its items does.
    pub any_of: Vec<ClaimValue>,
}

/// A value of a claim, typed: `"0710"` is not `710`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimValue {
    /// A string.
    Text(String),
    /// A number.
    Integer(i64),
    /// `true` or `false`.
    Bool(bool),
}

/// The terms that only a request can answer.
#[derive(Debug, Clone, Default)]
pub struct RequestTerms {
    /// Alternatives; empty for any request.
    pub http: Vec<HttpTerm>,
    /// What the token must be.
    pub jwt: Option<JwtTerm>,
    /// A CEL expression that must be true.
    pub when: Option<Guard>,
}

impl RequestTerms {
    /// True when layer 4 alone decides.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.http.is_empty() && self.jwt.is_none() && self.when.is_none()
    }
}

/// A rule as written. Empty lists stand for keys that were left out: everything.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its key.
    pub name: At<String>,
    /// What it does.
    pub effect: Effect,
    /// Callers.
    pub from: Vec<At<Selector>>,
    /// Destinations; only above a service.
    pub to: Vec<At<Selector>>,
    /// Ports.
    pub ports: Vec<At<PortTerm>>,
    /// Only ports that carry this.
    pub protocol: Option<PortProtocol>,
    /// Request terms of an allow or a deny.
    pub request: RequestTerms,
    /// What a deny leaves alone.
    pub except: Vec<Except>,
    /// What a require demands.
    pub must: Option<Must>,
}

/// An entry of `except`.
#[derive(Debug, Clone)]
pub struct Except {
    /// Its place.
    pub at: Position,
    /// Callers.
    pub from: Vec<At<Selector>>,
    /// Destinations; empty for all that the rule means.
    pub to: Vec<At<Selector>>,
    /// Ports; empty for all.
    pub ports: Vec<At<PortTerm>>,
    /// The first moment at which it no longer holds.
    pub until: Option<UnixTime>,
}

/// What a require demands; all of it.
#[derive(Debug, Clone)]
pub struct Must {
    /// The caller is one of these; empty for no such demand.
    pub from: Vec<At<Selector>>,
    /// What the request must be.
    pub request: RequestTerms,
}
