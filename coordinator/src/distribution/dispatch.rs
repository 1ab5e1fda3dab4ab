//! From a change of the state to the sessions that it concerns.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;

use super::links::Links;
use crate::peer_map::{Concerned, concerned};
use crate::registry::{Registry, admitted_node};
use crate::state::Touched;

/// Rules may end on a date, which no commit announces: every scope is looked at again this often.
const REVIEW: Duration = Duration::from_secs(300);

/// Marks sessions for as long as the registry lasts.
pub(super) async fn run(registry: Arc<Registry>, links: Arc<Links>) {
    let mut notices = registry.notices();
    links.dispatched(registry.state().generation());
    links.mark(&Concerned::All, false);
    let mut review = tokio::time::interval(REVIEW);
    loop {
        tokio::select! {
            notice = notices.recv() => match notice {
                Ok(touched) => dispatch(&registry, &links, &touched),
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "changes came faster than they were looked at; every node is looked at");
                    dispatch(&registry, &links, &Touched::everything());
                }
                Err(RecvError::Closed) => return,
            },
            _ = review.tick() => links.mark(&Concerned::All, false),
        }
    }
}

fn dispatch(registry: &Registry, links: &Links, touched: &Touched) {
    // The state may be newer than the notice; its own notice then comes and finds nothing left to do.
    let state = registry.state();
    links.mark(&concerned(&state, touched, registry.now()), touched.revocations);
    let suspects: Vec<_> = match touched.mesh && touched.nodes.is_empty() {
        true => links.list().into_iter().map(|link| link.node).collect(),
        false => touched.nodes.iter().copied().collect(),
    };
    for node in suspects {
        if let Err(refusal) = admitted_node(&state, node) {
            links.cut(node, &refusal);
        }
    }
    links.dispatched(state.generation());
}
