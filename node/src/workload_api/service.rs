//! The calls: each begins with who calls, and no message leaves without a look whether that is so still.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::stream::{self, Stream};
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status};
use tracing::{debug, warn};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::{SpiffeId, TrustBundle, WorkloadName};

use super::Offer;
use super::caller::{Caller, netns_of};
use super::wire;
use super::wire::spiffe_workload_api_server::SpiffeWorkloadApi;
use crate::certificates::svids::{Held, Listening, Snapshot, Svid};
use crate::selectors::{Assignment, Process};
use crate::stop::Stop;

/// What a caller must send along, so that a request that somebody was tricked into is none
/// (SPIFFE_Workload_Endpoint.md, section 5.1).
const HEADER: &str = "workload.spiffe.io";

/// Answers of one call.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers calls.
#[derive(Debug)]
pub(super) struct Service {
    offer: Arc<Offer>,
    stop: Stop,
}

impl Service {
    pub(super) fn new(offer: Offer, stop: Stop) -> Self {
        Self { offer: Arc::new(offer), stop }
    }

    /// Who calls, and which workloads that is.
    fn admit<T>(&self, request: &Request<T>) -> Result<(Arc<Caller>, Vec<WorkloadName>), Status> {
        let admitted = check_header(request).and_then(|()| {
            let caller = request.extensions().get::<Arc<Caller>>().cloned();
            let caller = caller.ok_or_else(|| status(&Refusal::new(Reason::CallerGone, "the caller is not known")))?;
            let workloads = workloads_of(&self.offer.assignments, &caller).map_err(|refusal| status(&refusal))?;
            Ok((caller, workloads))
        });
        let counts = &self.offer.counts;
        match admitted {
            Ok(admitted) => {
                counts.served.fetch_add(1, Ordering::Relaxed);
                Ok(admitted)
            }
            Err(status) => {
                counts.refused.fetch_add(1, Ordering::Relaxed);
                warn!("Workload API: call refused: {}", status.message());
                Err(status)
            }
        }
    }

    /// Everything `message` makes of the present state, at once and again at each change, until the caller is no longer who
    /// it was.
    fn watch<M, T>(&self, caller: Arc<Caller>, workloads: Vec<WorkloadName>, message: M) -> Answers<T>
    where
        M: Fn(&[Arc<Svid>], &TrustBundle) -> T + Send + 'static,
        T: PartialEq + Clone + Send + 'static,
    {
        let svids = &self.offer.svids;
        let watching = Watching {
            listening: workloads.iter().map(|workload| svids.listen(workload)).collect(),
            held: svids.held(),
            bundle: self.offer.bundle.clone(),
            offer: self.offer.clone(),
            stop: self.stop.clone(),
            caller,
            workloads,
            message,
            last: None,
            ended: false,
        };
        Box::pin(stream::unfold(watching, Watching::next))
    }

    fn not_implemented<T>(&self, request: &Request<impl Sized>) -> Result<T, Status> {
        check_header(request)?;
        Err(Status::unimplemented("the JWT profile is not implemented; X.509-SVIDs and X.509 bundles are"))
    }
}

/// One call that goes on.
struct Watching<M, T> {
    listening: Vec<Listening>,
    held: watch::Receiver<Snapshot>,
    bundle: watch::Receiver<TrustBundle>,
    offer: Arc<Offer>,
    stop: Stop,
    caller: Arc<Caller>,
    workloads: Vec<WorkloadName>,
    message: M,
    last: Option<T>,
    ended: bool,
}

impl<M, T> Watching<M, T>
where
    M: Fn(&[Arc<Svid>], &TrustBundle) -> T,
    T: PartialEq + Clone,
{
    async fn next(mut self) -> Option<(Result<T, Status>, Self)> {
        if self.ended {
            return None;
        }
        let answer = self.changed().await;
        if let Err(status) = &answer {
            debug!("Workload API: call ended: {}", status.message());
            self.ended = true;
            // Nothing is kept in date for it any more, however long the stream is held.
            self.listening.clear();
        }
        Some((answer, self))
    }

    /// The next message that differs from the last.
    async fn changed(&mut self) -> Result<T, Status> {
        loop {
            let snapshot = self.held.borrow_and_update().clone();
            let bundle = self.bundle.borrow_and_update().clone();
            if let Some(svids) = present(&self.workloads, &snapshot).map_err(|refusal| status(&refusal))? {
                let message = (self.message)(&svids, &bundle);
                if self.last.as_ref() != Some(&message) {
                    // A process that was moved elsewhere, or has ended and left its connection to another, gets no more.
                    let now =
                        workloads_of(&self.offer.assignments, &self.caller).map_err(|refusal| status(&refusal))?;
                    if now != self.workloads {
                        let detail = "the caller fits other workloads than when it called";
                        return Err(status(&Refusal::new(Reason::NoWorkload, detail).hint("call again")));
                    }
                    self.last = Some(message.clone());
                    return Ok(message);
                }
            }
            let stopping = || status(&Refusal::new(Reason::ShuttingDown, "the node is stopping"));
            tokio::select! {
                changed = self.held.changed() => changed.map_err(|_| stopping())?,
                changed = self.bundle.changed() => changed.map_err(|_| stopping())?,
                () = self.stop.stopped() => return Err(stopping()),
            }
        }
    }
}

/// The SVIDs that there are for `workloads`; `None` while one is being asked for. The refusal of the first when there is none
/// at all.
fn present(workloads: &[WorkloadName], snapshot: &Snapshot) -> Result<Option<Vec<Arc<Svid>>>, Refusal> {
    let mut svids = Vec::with_capacity(workloads.len());
    let mut refused = None;
    for workload in workloads {
        match snapshot.get(workload) {
            None => return Ok(None),
            Some(Held::Svid(svid)) => svids.push(svid.clone()),
            Some(Held::Refused(refusal)) => drop(refused.get_or_insert_with(|| refusal.clone())),
        }
    }
    match refused {
        Some(refusal) if svids.is_empty() => Err(refusal),
        _ => Ok(Some(svids)),
    }
}

fn check_header<T>(request: &Request<T>) -> Result<(), Status> {
    let mut values = request.metadata().get_all(HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_encoded_bytes() == b"true" => Ok(()),
        _ => Err(Status::invalid_argument(format!("the metadata {HEADER} must be there once and say true"))),
    }
}

/// The workloads that the caller is, in the order of the configuration: the first is its default.
fn workloads_of(assignments: &[Assignment], caller: &Caller) -> Result<Vec<WorkloadName>, Refusal> {
    let process = caller.identify()?;
    let mut workloads: Vec<WorkloadName> = Vec::new();
    for assignment in assignments.iter().filter(|one| one.fits(&process, |file| netns_of(file))) {
        if !workloads.contains(&assignment.workload) {
            workloads.push(assignment.workload.clone());
        }
    }
    if workloads.is_empty() { Err(stranger(&process)) } else { Ok(workloads) }
}

fn stranger(process: &Process) -> Refusal {
    Refusal::new(Reason::NoWorkload, format!("{process} fits no workload of this host"))
        .hint("compare with workloads in the node's warren.yaml")
}

/// A refusal as gRPC has it: the caller can do nothing about one kind, and has to try again later after the other.
fn status(refusal: &Refusal) -> Status {
    let code = match refusal.reason {
        Reason::NoWorkload
        | Reason::CallerGone
        | Reason::IdentityNotAllowed
        | Reason::Revoked
        | Reason::NodeRevoked
        | Reason::NodeUnknown => Code::PermissionDenied,
        _ => Code::Unavailable,
    };
    let hint = if refusal.hint.is_empty() { String::new() } else { format!("; {}", refusal.hint) };
    Status::new(code, format!("{}: {}{hint}", refusal.reason, refusal.detail))
}

fn concatenated<'a>(certificates: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    certificates.flatten().copied().collect()
}

fn roots(bundle: &TrustBundle) -> Vec<u8> {
    concatenated(bundle.roots().map(|root| root.der().as_ref()))
}

fn svid_message(svids: &[Arc<Svid>], bundle: &TrustBundle) -> wire::X509svidResponse {
    let svids = svids.iter().map(|svid| wire::X509svid {
        spiffe_id: svid.certificate.leaf().identity().to_string(),
        x509_svid: concatenated(svid.chain.0.iter().map(Vec::as_slice)),
        x509_svid_key: svid.key.to_workload().to_vec(),
        bundle: roots(bundle),
        // It must be unique among a caller's SVIDs, and helps it choose.
        hint: svid.certificate.workload().to_string(),
    });
    wire::X509svidResponse { svids: svids.collect(), crl: Vec::new(), federated_bundles: HashMap::new() }
}

fn bundle_message(_: &[Arc<Svid>], bundle: &TrustBundle) -> wire::X509BundlesResponse {
    let domain = SpiffeId::authority(bundle.trust_domain()).to_string();
    wire::X509BundlesResponse { crl: Vec::new(), bundles: HashMap::from([(domain, roots(bundle))]) }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Answers<wire::X509svidResponse>;
    type FetchX509BundlesStream = Answers<wire::X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<wire::JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<wire::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let (caller, workloads) = self.admit(&request)?;
        Ok(Response::new(self.watch(caller, workloads, svid_message)))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<wire::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let (caller, workloads) = self.admit(&request)?;
        Ok(Response::new(self.watch(caller, workloads, bundle_message)))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<wire::JwtsvidRequest>,
    ) -> Result<Response<wire::JwtsvidResponse>, Status> {
        self.not_implemented(&request)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<wire::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.not_implemented(&request)
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        self.not_implemented(&request)
    }
}
