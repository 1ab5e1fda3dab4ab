//! What an apply changes: a Set replaces what it owns and nothing else.
//!
//! Every namespace, and `mesh`, has exactly one owner. Services, Rules and Namespaces belong to their namespace, Peers
//! to `peer`; the Mesh and the Groups belong to `mesh`, because guardrails of the mesh are written with groups; Tests
//! belong to the Set they came with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::document::{Body, Document, Documents, Kind, PolicyObject, Set};
use crate::reason::{Reason, Refusal};
use crate::spiffe::PEER_NAMESPACE;

/// An object in force and the Set it came with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OwnedObject {
    /// Name of the Set.
    pub set: String,
    /// The object.
    pub object: PolicyObject,
}

/// An object by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

/// What applying a Set would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The Set that is applied.
    pub set: String,
    /// Objects that are new.
    pub added: Vec<ObjectName>,
    /// Objects whose text differs.
    pub changed: Vec<ObjectName>,
    /// Objects that are no longer there.
    pub removed: Vec<ObjectName>,
    /// Everything in force afterwards, of all Sets, by kind and name. Compile this before committing it.
    pub result: Vec<OwnedObject>,
}

/// Plans the apply of one Set's documents over what is in force.
///
/// # Errors
///
/// `invalid-field` without exactly one Set document; `namespace-owned` when a document or an entry of `owns`
/// belongs to another Set; `deletes-too-much` when the Set would be left empty or lose more than `allow_delete`
/// objects.
pub fn plan(current: &[OwnedObject], submitted: &Documents, allow_delete: usize) -> Result<Plan, Refusal> {
    let (set, body) = the_set(submitted)?;
    let owners = owners(current, &set.object.name)?;
    for namespace in &body.owns {
        if let Some(other) = owners.get(namespace.value.as_str()) {
            let detail = format!("`{}` belongs to the Set {other}, not to {}", namespace.value, set.object.name);
            return Err(Refusal::new(Reason::NamespaceOwned, detail).hint("the other Set must give it up first"));
        }
    }
    for document in submitted.iter() {
        check_owned(document, set, body, &owners)?;
    }
    let key = |object: &PolicyObject| (object.kind, object.name.clone());
    let mut result: BTreeMap<(Kind, String), OwnedObject> = BTreeMap::new();
    let mut own: BTreeMap<(Kind, String), &PolicyObject> = BTreeMap::new();
    for owned in current {
        if owned.set == set.object.name {
            own.insert(key(&owned.object), &owned.object);
        } else {
            result.insert(key(&owned.object), owned.clone());
        }
    }
    let (mut added, mut changed) = (Vec::new(), Vec::new());
    for object in submitted.objects() {
        let name = ObjectName { kind: object.kind, name: object.name.clone() };
        let owned = OwnedObject { set: set.object.name.clone(), object: object.clone() };
        if let Some(other) = result.insert(key(object), owned) {
            let detail = format!("{} {} belongs to the Set {}", object.kind, object.name, other.set);
            return Err(Refusal::new(Reason::NamespaceOwned, detail).hint("choose another name"));
        }
        match own.remove(&key(object)) {
            None => added.push(name),
            Some(before) if before.text != object.text => changed.push(name),
            Some(_) => {}
        }
    }
    let removed: Vec<ObjectName> = own.into_keys().map(|(kind, name)| ObjectName { kind, name }).collect();
    let left = submitted.objects().filter(|object| object.kind != Kind::Set).count();
    if left == 0 && !removed.is_empty() {
        let detail = format!("the apply would leave the Set {} empty", set.object.name);
        return Err(Refusal::new(Reason::DeletesTooMuch, detail).hint("were all files given?"));
    }
    if removed.len() > allow_delete {
        let names: Vec<_> = removed.iter().take(5).map(|object| format!("{} {}", object.kind, object.name)).collect();
        let detail = format!("the apply would delete {} objects: {}", removed.len(), names.join(", "));
        let hint = format!("when that is meant, say --allow-delete {}", removed.len());
        return Err(Refusal::new(Reason::DeletesTooMuch, detail).hint(hint));
    }
    Ok(Plan { set: set.object.name.clone(), added, changed, removed, result: result.into_values().collect() })
}

fn the_set(submitted: &Documents) -> Result<(&Document, &Set), Refusal> {
    let mut sets = submitted.iter().filter_map(|document| match &document.body {
        Body::Set(set) => Some((document, set)),
        Body::Mesh(_) | Body::Group(_) | Body::Rules(_) | Body::Namespace(_) | Body::Service(_) | Body::Tests(_) => {
            None
        }
    });
    match (sets.next(), sets.next()) {
        (Some(set), None) => Ok(set),
        (None, _) => Err(Refusal::new(Reason::InvalidField, "there is no Set document")
            .hint("begin with kind: Set, name: <name>, owns: [mesh, <namespace>]")),
        (Some(_), Some((second, _))) => {
            let detail =
                format!("a second Set, {}, at {}:{}", second.object.name, second.object.file, second.object.line);
            Err(Refusal::new(Reason::InvalidField, detail).hint("apply one Set at a time"))
        }
    }
}

/// What the other Sets own.
fn owners(current: &[OwnedObject], set: &str) -> Result<BTreeMap<String, String>, Refusal> {
    let others: Vec<PolicyObject> = current
        .iter()
        .filter(|owned| owned.set != set && owned.object.kind == Kind::Set)
        .map(|owned| owned.object.clone())
        .collect();
    let unreadable = |_| Refusal::new(Reason::Internal, "a Set in force does not read");
    let documents = Documents::from_objects(&others).map_err(unreadable)?;
    let mut owners = BTreeMap::new();
    for document in documents.iter() {
        if let Body::Set(body) = &document.body {
            owners.extend(body.owns.iter().map(|name| (name.value.clone(), document.object.name.clone())));
        }
    }
    Ok(owners)
}

fn check_owned(
    document: &Document,
    set: &Document,
    body: &Set,
    owners: &BTreeMap<String, String>,
) -> Result<(), Refusal> {
    let object = &document.object;
    let realm = match object.kind {
        Kind::Set | Kind::Tests => return Ok(()),
        Kind::Mesh | Kind::Group => "mesh",
        Kind::Peer => PEER_NAMESPACE,
        Kind::Namespace => object.name.as_str(),
        Kind::Rules | Kind::Service => object.name.split('/').next().unwrap_or_default(),
    };
    if body.owns.iter().any(|name| name.value == realm) {
        return Ok(());
    }
    let PolicyObject { kind, name, file, line, .. } = object;
    let owner = owners.get(realm).map(|owner| format!(", which belongs to the Set {owner}")).unwrap_or_default();
    let detail = format!("{file}:{line}: {kind} {name} is part of `{realm}`{owner}");
    let hint = format!("add `{realm}` to `owns` of the Set {}, or move the object", set.object.name);
    Err(Refusal::new(Reason::NamespaceOwned, detail).hint(hint))
}

#[cfg(test)]
mod tests;
