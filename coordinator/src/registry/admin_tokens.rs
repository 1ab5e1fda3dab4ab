//! Administrators' tokens. Secrets and their form are the admin API's; here are their hashes.

use std::sync::Arc;

use warren_proto::UnixTime;
use warren_proto::admin::Role;
use warren_proto::reason::{Reason, Refusal};

use super::tokens::check_match;
use super::{Caller, Entry, Plan, Registry, Transaction};
use crate::state::records::AdminToken;
use crate::state::{Key, State, Stored};
use crate::store::Revision;

/// Most administrator tokens at once.
const MAX_TOKENS: usize = 1_000;

impl Registry {
    /// Keeps a new administrator token. With `consume`, the one-time token of that id goes in the same commit,
    /// so that of two who try, one succeeds.
    pub async fn create_admin_token(
        &self,
        caller: &Caller,
        token: AdminToken,
        consume: Option<&str>,
    ) -> Result<AdminToken, Refusal> {
        if token.id.len() != 16 || !token.id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(Refusal::new(Reason::InvalidField, "id: expected 16 hexadecimal digits"));
        }
        if !warren_proto::spiffe::is_name(&token.name) {
            let detail = format!("name: {:?}, expected a lower-case letter, then letters, digits and '-'", token.name);
            return Err(Refusal::new(Reason::InvalidField, detail));
        }
        self.change(caller, |state, now| {
            if state.admin_tokens.len() >= MAX_TOKENS {
                return Err(Refusal::new(Reason::InvalidField, format!("there are already {MAX_TOKENS} tokens"))
                    .hint("delete some with `warren admin token delete`"));
            }
            if state.admin_tokens.iter().any(|(_, known)| {
                known.name == token.name && known.expires_at > now && !(known.first_run && token.first_run)
            }) {
                return Err(Refusal::new(Reason::Conflict, format!("name: there is a token called {:?}", token.name)));
            }
            let mut transaction = Transaction::default();
            if let Some(id) = consume {
                let used = state.admin_tokens.get(&id.to_owned()).filter(|used| used.first_run).ok_or_else(spent)?;
                transaction.delete(&Key::AdminToken(id.to_owned()), used.modified);
            }
            // There is one first-run token: who makes another has lost the one before, or fears it lost.
            let first_runs = state.admin_tokens.iter().filter(|(_, known)| token.first_run && known.first_run);
            for (id, known) in first_runs {
                transaction.delete(&Key::AdminToken(id.clone()), known.modified);
            }
            transaction.create(&Key::AdminToken(token.id.clone()), &token)?;
            let entry =
                Entry { action: "admin-token.create", object: token.name.clone(), old: None, new: shown(&token) };
            Ok(Plan::Commit { transaction, entry, answer: token.clone() })
        })
        .await
    }

    /// Takes an administrator token back.
    pub async fn delete_admin_token(
        &self,
        caller: &Caller,
        id: &str,
        if_match: Option<Revision>,
    ) -> Result<(), Refusal> {
        self.change(caller, |state, now| {
            let stored = deletable_admin_token(state, id, now)?;
            check_match("the token", stored.modified, if_match)?;
            let mut transaction = Transaction::default();
            transaction.delete(&Key::AdminToken(id.to_owned()), stored.modified);
            let object = stored.name.clone();
            let entry = Entry { action: "admin-token.delete", object, old: shown(&stored.value), new: None };
            Ok(Plan::Commit { transaction, entry, answer: () })
        })
        .await
    }
}

/// The token, when another one remains that can make others. One that is still to be exchanged for its first does not
/// count: nobody may have it any more.
pub(crate) fn deletable_admin_token<'s>(
    state: &'s State,
    id: &str,
    now: UnixTime,
) -> Result<&'s Arc<Stored<AdminToken>>, Refusal> {
    let stored = state.admin_tokens.get(&id.to_owned()).ok_or_else(|| gone(id))?;
    let makes_others = |token: &AdminToken| {
        token.role == Role::CaAdmin && token.expires_at > now && token.namespaces.is_empty() && !token.first_run
    };
    if !state.admin_tokens.iter().any(|(other, token)| other != id && makes_others(token)) {
        return Err(Refusal::new(
            Reason::Conflict,
            "no token would remain that can make others; nobody could come in again",
        )
        .hint("make another first: warren admin token create --role ca-admin NAME"));
    }
    Ok(stored)
}

fn shown(token: &AdminToken) -> Option<serde_json::Value> {
    Some(serde_json::json!({
        "id": token.id,
        "name": token.name,
        "role": token.role,
        "namespaces": token.namespaces,
        "expires_at": token.expires_at,
        "first_run": token.first_run,
    }))
}

fn spent() -> Refusal {
    Refusal::new(Reason::NotAuthenticated, "the first-run token has been used")
        .hint("use the administrator's token that it was exchanged for, or `warren-coordinator admin recover`")
}

fn gone(id: &str) -> Refusal {
    Refusal::new(Reason::NotFound, format!("there is no administrator's token {id}")).hint("warren admin token list")
}
