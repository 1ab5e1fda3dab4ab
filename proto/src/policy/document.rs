//! Policy documents as written: one object each, checked for shape, every value with its place.
//!
//! Nothing here looks beyond one document; names are resolved by [`compile`](super::compile). An object keeps
//! its author's text, because that text, not a translation of it, is what travels to the nodes.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::diagnostic::{Code, Diagnostic, Findings, Position};
pub use super::fields::At;
use super::request::Request;
use super::yaml::{self, Chunk};
use crate::reason::Reason;
use crate::{TrustDomain, UnixTime, WorkloadName, wire};
pub use terms::{
    ClaimTerm, ClaimValue, Effect, Except, HttpTerm, JwtTerm, Must, PortProtocol, PortRange, PortTerm, RequestTerms,
    Rule, Selector, Transport,
};

mod read;
mod rules;
mod service;
mod terms;
mod tests_kind;

/// Largest source file in bytes.
pub const MAX_FILE_BYTES: usize = 4 * 1024 * 1024;
/// Most objects in one set of documents.
pub const MAX_DOCUMENTS: usize = 50_000;

/// A policy file as the caller read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// The name to show, for example `policy/bank.yaml`.
    pub name: String,
    /// The text.
    pub text: String,
}

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// One team's directory: which namespaces it owns.
    Set,
    /// The trust domain: labels, token issuers and the outermost guardrails.
    Mesh,
    /// A named set of identities.
    Group,
    /// Rules to include; they grant nothing by themselves.
    Rules,
    /// A namespace's labels, included rules and guardrails.
    Namespace,
    /// An identity, who may become it, its ports and who may reach them.
    Service,
    /// A plain WireGuard device: an identity without a node, its ports and who may reach them.
    Peer,
    /// Cases and proofs that every apply must pass.
    Tests,
}

impl Kind {
    /// Every kind, in the order of reading.
    pub const ALL: [Self; 8] =
        [Self::Set, Self::Mesh, Self::Group, Self::Rules, Self::Namespace, Self::Service, Self::Peer, Self::Tests];

    /// The word after `kind:`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Set => "Set",
            Self::Mesh => "Mesh",
            Self::Group => "Group",
            Self::Rules => "Rules",
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::Peer => "Peer",
            Self::Tests => "Tests",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a kind of policy object")]
pub struct UnknownKind;

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or(UnknownKind)
    }
}

/// One object as its author wrote it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyObject {
    /// What it is.
    pub kind: Kind,
    /// Its name; unique among objects of the kind.
    pub name: String,
    /// The file it came from.
    pub file: String,
    /// Line of the text's first line in that file, from 1.
    pub line: u32,
    /// The document's text, without `---`.
    pub text: String,
}

impl From<&PolicyObject> for wire::PolicyDocument {
    fn from(object: &PolicyObject) -> Self {
        Self { file: object.file.clone(), line: object.line, text: object.text.clone() }
    }
}

/// `kind: Set`
#[derive(Debug, Clone)]
pub struct Set {
    /// Namespaces, and `mesh`.
    pub owns: Vec<At<String>>,
}

/// `kind: Mesh`
#[derive(Debug, Clone)]
pub struct Mesh {
    /// The object's name.
    pub trust_domain: TrustDomain,
    /// Label keys with their values; every Namespace sets each.
    pub labels: Vec<(At<String>, Vec<String>)>,
    /// Token issuers.
    pub issuers: Vec<Issuer>,
    /// Denies and requires.
    pub rules: Vec<Rule>,
}

/// A token issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// What rules call it.
    pub name: At<String>,
    /// The `iss` claim.
    pub issuer: String,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// Where its keys are.
    pub jwks_url: String,
}

/// `kind: Group`
#[derive(Debug, Clone)]
pub enum Group {
    /// Every identity of the namespaces that carry all these labels.
    Labels(Vec<(At<String>, String)>),
    /// These.
    Members(Vec<At<Selector>>),
}

/// `kind: Rules`
#[derive(Debug, Clone)]
pub struct Rules {
    /// In the order allow, deny, require, each as written.
    pub rules: Vec<Rule>,
}

/// `kind: Namespace`
#[derive(Debug, Clone)]
pub struct Namespace {
    /// One value for each label of the mesh.
    pub labels: Vec<(At<String>, At<String>)>,
    /// Names of Rules that hold for every service of the namespace.
    pub include: Vec<At<String>>,
    /// Denies and requires.
    pub rules: Vec<Rule>,
}

/// Which nodes an entry of `runs` means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeSelector {
    /// `any`: every node whose join token names the identity.
    Any,
    /// `group:<name>`: nodes that joined with that group.
    Group(String),
}

/// An entry of `runs`: all of it must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its key.
    pub name: String,
    /// On these nodes; empty for no such demand.
    pub nodes: Vec<NodeSelector>,
    /// As this systemd unit.
    pub unit: Option<String>,
    /// As this local user.
    pub user: Option<String>,
    /// In this Kubernetes cluster.
    pub cluster: Option<String>,
    /// As this Kubernetes service account, `<namespace>/<name>`.
    pub service_account: Option<String>,
}

/// A declared port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: At<String>,
    /// Lowest number.
    pub first: u16,
    /// Highest number.
    pub last: u16,
    /// What it carries: one protocol, or udp and tcp.
    pub protocols: Vec<PortProtocol>,
    /// Where the application listens, when not at the same port.
    pub target: Option<SocketAddr>,
    /// The path that answers 2xx when the application is ready.
    pub health: Option<String>,
}

/// Lets through what no rule admits, and reports it, until a date.
#[derive(Debug, Clone)]
pub struct Audit {
    /// Its place.
    pub at: Position,
    /// The first moment at which it no longer holds.
    pub until: UnixTime,
    /// Port names; empty for all declared ports.
    pub ports: Vec<At<String>>,
}

/// `kind: Service` and `kind: Peer`
#[derive(Debug, Clone)]
pub struct ServiceDocument {
    /// The object's name; of a Peer, in the namespace of devices.
    pub workload: WorkloadName,
    /// Who may become it.
    pub runs: Vec<Run>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Names of Rules.
    pub include: Vec<At<String>>,
    /// In the order allow, deny, require, each as written.
    pub rules: Vec<Rule>,
    /// Audit mode.
    pub audit: Option<Audit>,
    /// Limits, routes and views: checked for shape, none of them enforced by this release.
    pub traffic: Vec<At<String>>,
}

/// `kind: Tests`
#[derive(Debug, Clone)]
pub struct Tests {
    /// Examples.
    pub cases: Vec<Case>,
    /// Proofs.
    pub never: Vec<Never>,
}

/// One example.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its key.
    pub name: At<String>,
    /// The caller.
    pub from: At<WorkloadName>,
    /// The destination.
    pub to: At<WorkloadName>,
    /// What is tried.
    pub attempt: Attempt,
    /// When; the time of the test run if left out.
    pub moment: Option<UnixTime>,
    /// What must come out.
    pub expect: Expect,
}

/// What a case tries.
#[derive(Debug, Clone)]
pub enum Attempt {
    /// A connection or datagram to one port.
    Connect(Transport, u16),
    /// An ICMP echo request.
    Echo,
    /// An HTTP request to a named port.
    Request(At<String>, Box<Request>),
}

/// What a case demands of the decision.
#[derive(Debug, Clone)]
pub struct Expect {
    /// Allowed or denied.
    pub allow: bool,
    /// The rule that decided, `<object>:<rule>`.
    pub rule: Option<String>,
    /// The reason of a denial.
    pub reason: Option<Reason>,
}

/// No connection from these to those may ever be let in.
#[derive(Debug, Clone)]
pub struct Never {
    /// Its key.
    pub name: At<String>,
    /// Callers.
    pub from: Vec<At<Selector>>,
    /// Destinations.
    pub to: Vec<At<Selector>>,
    /// Ports; empty for all.
    pub ports: Vec<PortRange>,
}

/// What a document says.
#[derive(Debug, Clone)]
pub enum Body {
    /// `kind: Set`
    Set(Set),
    /// `kind: Mesh`
    Mesh(Mesh),
    /// `kind: Group`
    Group(Group),
    /// `kind: Rules`
    Rules(Rules),
    /// `kind: Namespace`
    Namespace(Namespace),
    /// `kind: Service` and `kind: Peer`
    Service(ServiceDocument),
    /// `kind: Tests`
    Tests(Tests),
}

/// One checked document.
#[derive(Debug, Clone)]
pub struct Document {
    /// The text and its place.
    pub object: PolicyObject,
    /// Where its name stands.
    pub name_at: Position,
    /// What it says.
    pub body: Body,
}

/// Checked documents, in the order given.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    list: Vec<Document>,
}

impl Documents {
    /// Reads files, each of many documents. All errors are collected.
    pub fn from_files(files: &[SourceFile]) -> Result<Self, Vec<Diagnostic>> {
        let texts = files.iter().map(|file| (file.name.as_str(), file.text.as_str(), 1));
        Self::read(texts, true)
    }

    /// Reads objects again that were read before, for example from the coordinator's store.
    pub fn from_objects(objects: &[PolicyObject]) -> Result<Self, Vec<Diagnostic>> {
        Self::read(objects.iter().map(|object| (object.file.as_str(), object.text.as_str(), object.line)), false)
    }

    /// Reads what a node was sent: one document per message.
    pub fn from_wire(documents: &[wire::PolicyDocument]) -> Result<Self, Vec<Diagnostic>> {
        let texts = documents.iter().map(|document| (document.file.as_str(), document.text.as_str(), document.line));
        Self::read(texts, false)
    }

    fn read<'a>(texts: impl Iterator<Item = (&'a str, &'a str, u32)>, many: bool) -> Result<Self, Vec<Diagnostic>> {
        let mut findings = Findings::default();
        let mut list: Vec<Document> = Vec::new();
        for (file, text, line) in texts {
            let start = Position { line, column: 1 };
            if text.len() > MAX_FILE_BYTES {
                let message = format!("the file has {} bytes; the limit is {MAX_FILE_BYTES}", text.len());
                findings.error(file, start, Code::TooLarge, message, "split it");
                continue;
            }
            let chunks = yaml::split(file, text, line, &mut findings);
            if !many && chunks.len() != 1 {
                findings.error(file, start, Code::Syntax, "one document was expected here", "");
                continue;
            }
            for chunk in chunks {
                if list.len() >= MAX_DOCUMENTS {
                    let message = format!("more than {MAX_DOCUMENTS} documents");
                    findings.error(file, start, Code::TooLarge, message, "");
                    return Err(findings.into_sorted());
                }
                list.extend(Self::document(file, chunk, &mut findings));
            }
        }
        let documents = Self { list };
        documents.refuse_duplicates(&mut findings);
        if findings.is_empty() { Ok(documents) } else { Err(findings.into_sorted()) }
    }

    fn document(file: &str, chunk: Chunk<'_>, findings: &mut Findings) -> Option<Document> {
        let root = yaml::parse(file, chunk, findings)?;
        let (kind, name, name_at, body) = read::document(file, &root, findings)?;
        let object = PolicyObject { kind, name, file: file.to_owned(), line: chunk.line, text: chunk.text.to_owned() };
        Some(Document { object, name_at, body })
    }

    fn refuse_duplicates(&self, findings: &mut Findings) {
        let mut seen = std::collections::BTreeMap::new();
        for document in &self.list {
            let PolicyObject { kind, name, file, .. } = &document.object;
            if let Some(first) = seen.insert((*kind, name.as_str()), document) {
                let message = format!("{kind} {name} is declared twice");
                let hint = format!("the other one is at {}:{}", first.object.file, first.name_at.line);
                findings.error(file, document.name_at, Code::Duplicate, message, hint);
            }
        }
    }

    /// The documents.
    pub fn iter(&self) -> impl Iterator<Item = &Document> {
        self.list.iter()
    }

    /// The documents as written.
    pub fn objects(&self) -> impl Iterator<Item = &PolicyObject> {
        self.list.iter().map(|document| &document.object)
    }
}

#[cfg(test)]
mod tests;
