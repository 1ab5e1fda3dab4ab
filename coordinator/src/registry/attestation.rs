//! Attestors and registrations: set and deleted by administrators, asked when a machine enrols by somebody else's word.

use std::sync::Arc;

use warren_proto::admin::{AttestorSettings, Selector};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::spiffe::is_name;
use warren_proto::{NodeId, UnixTime, WorkloadName};

use super::nodes::{Grant, holder};
use super::tokens::check_match;
use super::{Caller, Entry, Plan, Registry, Transaction};
use crate::attestation::{self, Attested};
use crate::state::records::{Attestor, EvidenceUse, Hex32, NodeAttestation, Registration};
use crate::state::{Key, State, Stored};
use crate::store::Revision;

/// Most attestors.
const MAX_ATTESTORS: usize = 64;
/// Most registrations: each enrolment looks at those of its attestor.
const MAX_REGISTRATIONS: usize = 4096;
/// Most identities of one registration.
const MAX_WORKLOADS: usize = 64;
/// Longest note, in bytes.
const MAX_NOTE: usize = 512;
/// Largest settings as they are kept: with their frame they must fit a value of the store.
const MAX_SETTINGS: usize = 13 * 1024;

/// A registration to be made.
#[derive(Debug, Clone)]
pub struct NewRegistration {
    /// What people call it.
    pub name: String,
    /// The attestor whose word is taken.
    pub attestor: String,
    /// What the evidence must say, all of it.
    pub selectors: Vec<Selector>,
    /// The identities that a node with such evidence may hold.
    pub workloads: Vec<WorkloadName>,
    /// What it is for.
    pub note: String,
}

impl Registry {
    /// An attestor as it would be set. Nothing is changed.
    ///
    /// # Errors
    /// [`Reason::InvalidField`], and [`Reason::Conflict`] when a registration rests on it that the new settings could not serve.
    pub fn planned_attestor(
        &self,
        state: &State,
        name: &str,
        settings: &AttestorSettings,
        note: &str,
    ) -> Result<Attestor, Refusal> {
        check_words("name", name, note)?;
        let authority = self.authority();
        let own = authority.bundle().roots().chain([authority.issuer_certificate()]).map(|own| &**own.der());
        let settings = attestation::checked(settings, own)?;
        let size = serde_json::to_vec(&settings).map_or(usize::MAX, |json| json.len());
        if size > MAX_SETTINGS {
            let detail = format!("settings: {size} bytes of keys or certificates, at most {MAX_SETTINGS} are kept");
            return Err(Refusal::new(Reason::InvalidField, detail).hint("leave out keys that are no longer used"));
        }
        for (other, registration) in state.registrations.iter().filter(|(_, of)| of.attestor == name) {
            attestation::check_selectors(&settings, &registration.selectors).map_err(|refusal| {
                let detail = format!("settings: the registration {other} rests on it: {}", refusal.detail);
                Refusal::new(Reason::Conflict, detail).hint(format!("warren registration delete {other}"))
            })?;
        }
        // Another coordinator may have made one while the attestor was being deleted: it must not come to rest on another.
        if let (None, Some((other, _))) =
            (state.attestors.get(&name.to_owned()), state.registrations.iter().find(|(_, of)| of.attestor == name))
        {
            let detail = format!("name: the registration {other} was made for an earlier attestor {name}");
            return Err(Refusal::new(Reason::Conflict, detail).hint(format!("warren registration delete {other}")));
        }
        let (changed_at, changed_by) = (self.now(), String::new());
        Ok(Attestor { name: name.to_owned(), settings, changed_at, changed_by, note: note.to_owned() })
    }

    /// Makes an attestor, or sets all of one that is there: the way to give it an issuer's new keys.
    pub async fn set_attestor(
        &self,
        caller: &Caller,
        name: &str,
        settings: &AttestorSettings,
        note: &str,
        if_match: Option<Revision>,
    ) -> Result<Attestor, Refusal> {
        self.change(caller, |state, now| {
            let planned = self.planned_attestor(state, name, settings, note)?;
            let attestor = Attestor { changed_at: now, changed_by: caller.who.clone(), ..planned };
            let known = state.attestors.get(&attestor.name);
            let key = Key::Attestor(attestor.name.clone());
            let mut transaction = Transaction::default();
            match known {
                Some(known) => {
                    check_match("the attestor", known.modified, if_match)?;
                    transaction.replace(&key, known.modified, &attestor)?;
                }
                None if if_match.is_some() => return Err(no_attestor(name, Reason::NotFound)),
                None if state.attestors.len() >= MAX_ATTESTORS => {
                    return Err(Refusal::new(
                        Reason::InvalidField,
                        format!("there are {MAX_ATTESTORS} attestors, the most"),
                    ));
                }
                None => transaction.create(&key, &attestor)?,
            }
            let entry = Entry {
                action: "attestor.set",
                object: name.to_owned(),
                old: known.and_then(|known| serde_json::to_value(&known.value).ok()),
                new: serde_json::to_value(&attestor).ok(),
            };
            Ok(Plan::Commit { transaction, entry, answer: attestor })
        })
        .await
    }

    /// Deletes an attestor that no registration rests on.
    pub async fn delete_attestor(
        &self,
        caller: &Caller,
        name: &str,
        if_match: Option<Revision>,
    ) -> Result<(), Refusal> {
        self.change(caller, |state, _| {
            let known = deletable_attestor(state, name)?;
            check_match("the attestor", known.modified, if_match)?;
            let mut transaction = Transaction::default();
            transaction.delete(&Key::Attestor(name.to_owned()), known.modified);
            let old = serde_json::to_value(&known.value).ok();
            let entry = Entry { action: "attestor.delete", object: name.to_owned(), old, new: None };
            Ok(Plan::Commit { transaction, entry, answer: () })
        })
        .await
    }

    /// Makes a registration.
    pub async fn create_registration(&self, caller: &Caller, new: &NewRegistration) -> Result<Registration, Refusal> {
        self.change(caller, |state, now| {
            let planned = planned_registration(state, new)?;
            let registration = Registration { created_at: now, created_by: caller.who.clone(), ..planned };
            let mut transaction = Transaction::default();
            let attestor =
                state.attestors.get(&new.attestor).ok_or_else(|| no_attestor(&new.attestor, Reason::NotFound))?;
            // The selectors were checked against its settings. Rewriting it would be news to all; that it is there and the same is enough.
            transaction.depends_on(&Key::Attestor(new.attestor.clone()), attestor.modified);
            transaction.create(&Key::Registration(registration.name.clone()), &registration)?;
            let entry = Entry {
                action: "registration.create",
                object: registration.name.clone(),
                old: None,
                new: serde_json::to_value(&registration).ok(),
            };
            Ok(Plan::Commit { transaction, entry, answer: registration })
        })
        .await
    }

    /// Deletes a registration: no further node enrols by it. Those that did stay.
    pub async fn delete_registration(
        &self,
        caller: &Caller,
        name: &str,
        if_match: Option<Revision>,
    ) -> Result<(), Refusal> {
        self.change(caller, |state, _| {
            let known = state.registrations.get(&name.to_owned()).ok_or_else(|| no_registration(name))?;
            check_match("the registration", known.modified, if_match)?;
            let mut transaction = Transaction::default();
            transaction.delete(&Key::Registration(name.to_owned()), known.modified);
            let old = serde_json::to_value(&known.value).ok();
            let entry = Entry { action: "registration.delete", object: name.to_owned(), old, new: None };
            Ok(Plan::Commit { transaction, entry, answer: () })
        })
        .await
    }

    /// Puts into the audit log that authentic evidence was refused.
    pub(crate) async fn report_refused_evidence(
        &self,
        attestor: &str,
        subject: &str,
        refusal: &Refusal,
        from: std::net::IpAddr,
    ) -> Result<(), Refusal> {
        self.change(&Caller::new(format!("attestor:{attestor}")), |_, _| {
            let new = Some(serde_json::json!({ "reason": refusal.reason, "detail": refusal.detail, "from": from }));
            let entry = Entry { action: "node.enrol-refused", object: subject.to_owned(), old: None, new };
            Ok(Plan::Commit { transaction: Transaction::default(), entry, answer: () })
        })
        .await
    }
}

/// An attestor, if nothing rests on it.
pub(crate) fn deletable_attestor<'s>(state: &'s State, name: &str) -> Result<&'s Arc<Stored<Attestor>>, Refusal> {
    let known = state.attestors.get(&name.to_owned()).ok_or_else(|| no_attestor(name, Reason::NotFound))?;
    match state.registrations.iter().find(|(_, registration)| registration.attestor == name) {
        None => Ok(known),
        Some((other, _)) => Err(Refusal::new(Reason::Conflict, format!("the registration {other} rests on {name}"))
            .hint(format!("warren registration delete {other}"))),
    }
}

/// A registration as it would be made. Nothing is changed.
///
/// # Errors
/// [`Reason::InvalidField`], [`Reason::NotFound`] for its attestor, [`Reason::Conflict`] for a name that is taken.
pub fn planned_registration(state: &State, new: &NewRegistration) -> Result<Registration, Refusal> {
    check_words("name", &new.name, &new.note)?;
    let (mut workloads, mut selectors) = (new.workloads.clone(), new.selectors.clone());
    workloads.sort();
    workloads.dedup();
    selectors.sort();
    selectors.dedup();
    if !(1..=MAX_WORKLOADS).contains(&workloads.len()) {
        let detail = format!("workloads: {}, expected 1 to {MAX_WORKLOADS}", workloads.len());
        return Err(Refusal::new(Reason::InvalidField, detail));
    }
    let attestor = state.attestors.get(&new.attestor).ok_or_else(|| no_attestor(&new.attestor, Reason::NotFound))?;
    attestation::check_selectors(&attestor.settings, &selectors)?;
    if state.registrations.get(&new.name).is_some() {
        return Err(Refusal::new(Reason::Conflict, format!("there is a registration {} already", new.name))
            .hint("delete it first, or take another name"));
    }
    let same = |(_, other): &(&String, &Arc<Stored<Registration>>)| {
        other.attestor == new.attestor && other.selectors == selectors
    };
    if let Some((other, _)) = state.registrations.iter().find(same) {
        let detail =
            format!("selectors: the registration {other} has the same; evidence that fits both would be refused");
        return Err(Refusal::new(Reason::Conflict, detail));
    }
    if state.registrations.len() >= MAX_REGISTRATIONS {
        let detail = format!("there are {MAX_REGISTRATIONS} registrations, the most");
        return Err(Refusal::new(Reason::InvalidField, detail));
    }
    Ok(Registration {
        name: new.name.clone(),
        attestor: new.attestor.clone(),
        selectors,
        workloads,
        created_at: UnixTime(0),
        created_by: String::new(),
        note: new.note.clone(),
    })
}

/// What an attestor's word grants: what the one registration says that accepts it.
pub(super) fn by_word(
    state: &State,
    attested: &Attested,
    key_sha256: [u8; 32],
    fresh: NodeId,
    now: UnixTime,
) -> Result<Grant, Refusal> {
    let attestor = state
        .attestors
        .get(&attested.attestor().to_owned())
        .filter(|attestor| attestor.modified == attested.modified())
        .ok_or_else(|| {
            let detail = format!("the attestor {} was changed while it judged", attested.attestor());
            Refusal::new(Reason::Conflict, detail).hint("enrol again")
        })?;
    let registration = accepting(state, attested)?;
    let digest = *attested.evidence();
    let key = Key::Evidence(digest);
    let mut transaction = Transaction::default();
    transaction.depends_on(&Key::Attestor(attestor.name.clone()), attestor.modified);
    transaction.depends_on(&Key::Registration(registration.name.clone()), registration.modified);
    let known = holder(state, key_sha256).filter(|node| {
        let same = |by: &NodeAttestation| by.attestor == attestor.name && by.registration == registration.name;
        node.attested.as_ref().is_some_and(same)
    });
    // Whoever holds the key of a node that the same registration made is that node, with this evidence as with the last:
    // an answer was lost, and the token is another by now.
    let used = EvidenceUse { node: known.as_ref().map_or(fresh, |node| node.id), until: attested.until() };
    match state.evidence.get(&digest) {
        None => transaction.create(&key, &used)?,
        Some(before) if before.node == used.node => transaction.replace(&key, before.modified, &used)?,
        Some(before) if state.nodes.get(&before.node).is_some() => {
            let detail = format!("the evidence of {} already made node {}", attested.subject(), before.node);
            return Err(Refusal::new(Reason::EvidenceUsed, detail).hint(format!(
                "if that node's state is lost: `warren node revoke {0}`, then `warren node forget {0}`",
                before.node
            )));
        }
        Some(before) if before.until > now => {
            let detail = format!(
                "the evidence of {} made a node before and could be a copy until {}",
                attested.subject(),
                before.until
            );
            return Err(Refusal::new(Reason::EvidenceUsed, detail).hint("enrol with fresh evidence"));
        }
        Some(before) => transaction.replace(&key, before.modified, &used)?,
    }
    let attested = Some(NodeAttestation {
        attestor: attestor.name.clone(),
        registration: registration.name.clone(),
        subject: attested.subject().to_owned(),
        evidence: Hex32(digest),
    });
    Ok(match known {
        Some(known) => Grant::Again { known, attested, transaction },
        None => Grant::New { workloads: registration.workloads.clone(), token: None, attested, transaction },
    })
}

/// The one registration that accepts the evidence. Of two, neither: which identities a machine gets is nobody's guess.
fn accepting<'s>(state: &'s State, attested: &Attested) -> Result<&'s Arc<Stored<Registration>>, Refusal> {
    let mut names: Vec<_> = state
        .registrations
        .iter()
        .filter(|(_, of)| of.attestor == attested.attestor() && attested.says(&of.selectors))
        .collect();
    names.sort_unstable_by_key(|(name, _)| *name);
    match names.as_slice() {
        [(_, registration)] => Ok(registration),
        [] => {
            let detail =
                format!("no registration of the attestor {} accepts {}", attested.attestor(), attested.subject());
            Err(Refusal::new(Reason::NoRegistration, detail)
                .hint("an administrator makes one: `warren registration create`"))
        }
        [(one, _), (other, _), ..] => {
            let detail = format!("the registrations {one} and {other} both accept {}", attested.subject());
            Err(Refusal::new(Reason::RegistrationAmbiguous, detail)
                .hint("an administrator deletes one, or makes one more particular"))
        }
    }
}

/// The settings of an attestor that a machine names, with the revision that they were read at.
pub(crate) fn attestor_named<'s>(state: &'s State, name: &str) -> Result<&'s Arc<Stored<Attestor>>, Refusal> {
    if !is_name(name) {
        return Err(Refusal::new(Reason::AttestorUnknown, "attestor: not a name"));
    }
    state.attestors.get(&name.to_owned()).ok_or_else(|| no_attestor(name, Reason::AttestorUnknown))
}

fn no_attestor(name: &str, reason: Reason) -> Refusal {
    Refusal::new(reason, format!("there is no attestor {name}")).hint("list them with `warren attestor list`")
}

fn no_registration(name: &str) -> Refusal {
    Refusal::new(Reason::NotFound, format!("there is no registration {name}"))
        .hint("list them with `warren registration list`")
}

fn check_words(field: &str, name: &str, note: &str) -> Result<(), Refusal> {
    if !is_name(name) {
        let detail = format!("{field}: expected a lower-case letter, then letters, digits and '-', 63 at most");
        return Err(Refusal::new(Reason::InvalidField, detail));
    }
    if note.len() > MAX_NOTE {
        return Err(Refusal::new(Reason::InvalidField, format!("note: {} bytes, at most {MAX_NOTE}", note.len())));
    }
    Ok(())
}
