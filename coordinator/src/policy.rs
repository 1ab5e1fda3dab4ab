//! The policy in force, compiled once per revision and asked by projection, admin API and dry runs alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use warren_proto::policy::slice::slice;
use warren_proto::policy::{CompiledPolicy, Diagnostic, Documents, Mode, PolicyObject};
use warren_proto::{UnixTime, WorkloadName, wire};

use crate::state::StateError;
use crate::state::records::StoredPolicy;
use crate::store::Revision;

/// One revision of policy, ready to be asked. The default is the empty policy, which lets nothing through.
#[derive(Debug, Default)]
pub struct PolicyInForce {
    /// The revision's number; 0 before the first.
    pub number: u64,
    /// The store revision that put it in force.
    pub modified: Revision,
    /// Every object with its Set.
    pub objects: Vec<Arc<StoredPolicy>>,
    compiled: Option<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    documents: Documents,
    policy: CompiledPolicy,
    /// What nodes are sent, by scope name; encoded once and shared by every node's scope.
    encoded: BTreeMap<String, Bytes>,
}

impl PolicyInForce {
    /// Compiles the objects of a revision that was accepted before.
    pub fn compile(number: u64, modified: Revision, objects: Vec<Arc<StoredPolicy>>) -> Result<Self, StateError> {
        let compiled = Compiled::new(&objects).map_err(|diagnostics| StateError::PolicyInvalid {
            number,
            first: diagnostics.first().map(ToString::to_string).unwrap_or_default(),
        })?;
        Ok(Self { number, modified, objects, compiled })
    }

    /// The compiled policy; none while there is no object at all.
    #[must_use]
    pub fn compiled(&self) -> Option<&CompiledPolicy> {
        self.compiled.as_ref().map(|compiled| &compiled.policy)
    }

    /// The checked documents; none while there is no object at all.
    #[must_use]
    pub fn documents(&self) -> Option<&Documents> {
        self.compiled.as_ref().map(|compiled| &compiled.documents)
    }

    /// Whether some rule lets `source` reach `destination` on some port.
    #[must_use]
    pub fn linked(&self, source: &WorkloadName, destination: &WorkloadName, now: UnixTime) -> bool {
        self.compiled().is_some_and(|policy| policy.linked(source, destination, now))
    }

    /// The documents that a node with these workloads enforces, by scope name, as they are sent.
    #[must_use]
    pub fn slice(&self, local: &[WorkloadName], now: UnixTime) -> Vec<(String, Bytes)> {
        let Some(compiled) = &self.compiled else { return Vec::new() };
        slice(&compiled.documents, &compiled.policy, local, now)
            .into_iter()
            .filter_map(|object| {
                let name = scope_name(object);
                let content = compiled.encoded.get(&name)?.clone();
                Some((name, content))
            })
            .collect()
    }
}

impl Compiled {
    fn new(objects: &[Arc<StoredPolicy>]) -> Result<Option<Self>, Vec<Diagnostic>> {
        if objects.is_empty() {
            return Ok(None);
        }
        let plain: Vec<_> = objects.iter().map(|stored| stored.object.clone()).collect();
        let documents = Documents::from_objects(&plain)?;
        let policy = CompiledPolicy::compile(&documents, Mode::Whole)?;
        let encoded = plain
            .iter()
            .map(|object| (scope_name(object), wire::PolicyDocument::from(object).encode_to_vec().into()))
            .collect();
        Ok(Some(Self { documents, policy, encoded }))
    }
}

fn scope_name(object: &PolicyObject) -> String {
    format!("{}/{}", object.kind, object.name)
}
