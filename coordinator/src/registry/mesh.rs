//! The mesh's own settings: written once by `init`, read by every start.

use warren_proto::reason::{Reason, Refusal};

use super::{Caller, Entry, Plan, Registry, Transaction};
use crate::state::records::{MeshSettings, TrustRoots};
use crate::state::{Change, Key, State, StateError};
use crate::store::{Read, Store};

/// Shortest certificate lifetime, in seconds.
const MIN_LIFETIME: u32 = 300;
/// Longest certificate lifetime, in seconds (90 days).
const MAX_LIFETIME: u32 = 90 * 24 * 3600;

impl Registry {
    /// Writes the settings of a new mesh.
    pub async fn create_mesh(&self, caller: &Caller, settings: MeshSettings) -> Result<(), Refusal> {
        check(&settings)?;
        self.change(caller, |state, _| {
            if state.mesh.is_some() {
                return Err(Refusal::new(Reason::Conflict, "the store already holds a mesh"));
            }
            let mut transaction = Transaction::default();
            transaction.create(&Key::Mesh, &settings)?;
            let entry = Entry {
                action: "mesh.create",
                object: settings.trust_domain.to_string(),
                old: None,
                new: serde_json::to_value(&settings).ok(),
            };
            Ok(Plan::Commit { transaction, entry, answer: () })
        })
        .await
    }
}

/// The settings, before there is a registry: the CA needs them to open.
pub async fn read_settings(store: &dyn Store) -> Result<MeshSettings, Refusal> {
    match read(store, &Key::Mesh).await?.mesh {
        Some(mesh) => Ok(mesh.value.clone()),
        None => Err(StateError::NoMesh.into()),
    }
}

/// The roots, before there is a registry; none where they were never replaced.
pub async fn read_trust(store: &dyn Store) -> Result<Option<TrustRoots>, Refusal> {
    Ok(read(store, &Key::Trust).await?.trust.map(|trust| trust.value.clone()))
}

async fn read(store: &dyn Store, key: &Key) -> Result<State, Refusal> {
    let snapshot = store.snapshot(Read::all(key.to_bytes())).await?;
    let changes = snapshot.entries.into_iter().map(|entry| Change {
        key: entry.key,
        value: Some(entry.value.into()),
        modified: entry.modified,
    });
    let mut state = State::empty(store.epoch());
    state.apply(snapshot.revision, changes.collect())?;
    Ok(state)
}

fn check(settings: &MeshSettings) -> Result<(), Refusal> {
    for (name, lifetime) in [
        ("tunnel_certificate_lifetime", settings.tunnel_certificate_lifetime),
        ("node_certificate_lifetime", settings.node_certificate_lifetime),
        ("max_certificate_lifetime", settings.max_certificate_lifetime),
    ] {
        if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&lifetime) {
            let detail =
                format!("{name}: {lifetime} s, expected {MIN_LIFETIME} s (5 minutes) to {MAX_LIFETIME} s (90 days)");
            return Err(Refusal::new(Reason::InvalidField, detail));
        }
    }
    if settings.tunnel_certificate_lifetime > settings.max_certificate_lifetime {
        let detail = format!(
            "tunnel_certificate_lifetime: {} s is more than nodes admit ({} s)",
            settings.tunnel_certificate_lifetime, settings.max_certificate_lifetime
        );
        return Err(Refusal::new(Reason::InvalidField, detail));
    }
    if settings.stale_after == 0 {
        return Err(Refusal::new(Reason::InvalidField, "stale_after: 0 would admit no peer at all"));
    }
    Ok(())
}
