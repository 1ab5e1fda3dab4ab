//! `Idempotency-Key` on creates whose answer holds a secret.
//!
//! The store remembers that a change was made, but not a secret that was shown once. So this process keeps the answers
//! of the last hour: whoever repeats a request whose answer was lost gets the same token, and none is made twice. After a
//! restart of the coordinator the store still refuses the second making.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use warren_proto::reason::{Reason, Refusal};
use zeroize::Zeroizing;

use super::problem::ApiError;
use super::request::Change;

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(3600);

/// How many answers are kept; the oldest go first.
const MAX_ANSWERS: usize = 1024;

/// The answers of the last hour.
#[derive(Default)]
pub(super) struct Once {
    answers: Mutex<HashMap<[u8; 32], Kept>>,
}

struct Kept {
    since: Instant,
    request: [u8; 32],
    answer: Arc<OnceCell<Zeroizing<Vec<u8>>>>,
}

impl Once {
    /// Does the work, or gives the answer that the same request with the same key was given. Of several at the same time
    /// one works and the others wait for it.
    pub(super) async fn run<T: Serialize + DeserializeOwned>(
        &self,
        token: &str,
        change: &Change,
        request: &impl Serialize,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let Some(key) = change.key.as_ref().filter(|_| !change.dry_run) else { return work.await };
        let name = Sha256::new().chain_update(token).chain_update([0]).chain_update(key).finalize().into();
        let cell = self.cell(name, fingerprint(request)?)?;
        let bytes = cell
            .get_or_try_init(|| async {
                let answer = work.await?;
                Ok::<_, ApiError>(Zeroizing::new(serde_json::to_vec(&answer).map_err(unwritable)?))
            })
            .await?;
        serde_json::from_slice(bytes).map_err(|error| unwritable(error).into())
    }

    fn cell(&self, name: [u8; 32], request: [u8; 32]) -> Result<Arc<OnceCell<Zeroizing<Vec<u8>>>>, Refusal> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|_, kept| kept.since.elapsed() < KEPT);
        if answers.len() >= MAX_ANSWERS
            && let Some(oldest) = answers.iter().min_by_key(|(_, kept)| kept.since).map(|(name, _)| *name)
        {
            answers.remove(&oldest);
        }
        let kept =
            answers.entry(name).or_insert_with(|| Kept { since: Instant::now(), request, answer: Arc::default() });
        if kept.request != request {
            return Err(Refusal::new(Reason::Conflict, "Idempotency-Key: it was used before for another request"));
        }
        Ok(Arc::clone(&kept.answer))
    }
}

fn fingerprint(request: &impl Serialize) -> Result<[u8; 32], Refusal> {
    Ok(Sha256::digest(serde_json::to_vec(request).map_err(unwritable)?).into())
}

fn unwritable(error: serde_json::Error) -> Refusal {
    Refusal::new(Reason::Internal, format!("an answer cannot be kept: {error}"))
}
