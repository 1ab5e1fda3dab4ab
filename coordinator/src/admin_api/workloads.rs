//! `/workloads` and `/services`: read only, for policy and enrolment make them.

use std::collections::BTreeMap;

use axum::extract::State;
use warren_proto::WorkloadName;
use warren_proto::admin::{Service, ServiceList, ServicePort, Versioned, Workload, WorkloadList};
use warren_proto::policy;
use warren_proto::policy::document::PortProtocol;
use warren_proto::reason::{Reason, Refusal};

use super::problem::ApiError;
use super::request::{Answer, Named, Paging, Params};
use super::{Api, Authorized, Viewer, view};
use crate::state;

/// Every identity that a node may hold or that policy declares.
#[utoipa::path(get, path = "/workloads", tag = "workloads", params(Paging), security(("token" = [])),
    responses((status = 200, body = Versioned<WorkloadList>)))]
pub(super) async fn list(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(paging): Params<Paging>,
) -> Result<Answer<WorkloadList>, ApiError> {
    let state = api.registry().state();
    let known = known(&state).into_iter().map(|(name, nodes)| (name.to_string(), (name, nodes))).collect();
    let page = paging.cut(known, |(name, nodes)| workload(&api, &state, name, nodes))?;
    let items = page.items.into_iter().collect::<Result<_, _>>()?;
    Ok(Answer::ok(WorkloadList { page: warren_proto::admin::Page { items, next_cursor: page.next_cursor } }))
}

/// One identity.
#[utoipa::path(get, path = "/workloads/{namespace}/{name}", tag = "workloads",
    params(("namespace" = String, Path), ("name" = String, Path)), security(("token" = [])),
    responses((status = 200, body = Versioned<Workload>)))]
pub(super) async fn get(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Named((namespace, name)): Named<(String, String)>,
) -> Result<Answer<Workload>, ApiError> {
    let state = api.registry().state();
    let unknown = || {
        Refusal::new(Reason::NotFound, format!("there is no workload {namespace}/{name}")).hint("warren workload list")
    };
    let wanted = WorkloadName::new(&namespace, &name).map_err(|_| unknown())?;
    let nodes = *known(&state).get(&wanted).ok_or_else(unknown)?;
    Ok(Answer::ok(workload(&api, &state, wanted, nodes)?))
}

/// Every service that policy declares.
#[utoipa::path(get, path = "/services", tag = "workloads", params(Paging), security(("token" = [])),
    responses((status = 200, body = Versioned<ServiceList>)))]
pub(super) async fn list_services(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Params(paging): Params<Paging>,
) -> Result<Answer<ServiceList>, ApiError> {
    let state = api.registry().state();
    let compiled = state.policy.compiled();
    let named =
        compiled.into_iter().flat_map(|policy| policy.services()).map(|found| (found.name().to_string(), found));
    Ok(Answer::ok(ServiceList { page: paging.cut(named.collect(), |found| service(&api, &state, found))? }))
}

/// One service.
#[utoipa::path(get, path = "/services/{namespace}/{name}", tag = "workloads",
    params(("namespace" = String, Path), ("name" = String, Path)), security(("token" = [])),
    responses((status = 200, body = Versioned<Service>)))]
pub(super) async fn get_service(
    State(api): State<Api>,
    _: Authorized<Viewer>,
    Named((namespace, name)): Named<(String, String)>,
) -> Result<Answer<Service>, ApiError> {
    let state = api.registry().state();
    let found = WorkloadName::new(&namespace, &name).ok().and_then(|name| state.policy.compiled()?.service(&name));
    let found = found.ok_or_else(|| {
        Refusal::new(Reason::NotFound, format!("policy declares no service {namespace}/{name}"))
            .hint("warren service list")
    })?;
    Ok(Answer::ok(service(&api, &state, found)))
}

/// Every identity with the number of nodes that may hold it.
fn known(state: &state::State) -> BTreeMap<WorkloadName, usize> {
    let mut known = BTreeMap::new();
    for (_, node) in state.nodes.iter().filter(|(_, node)| node.revoked_at.is_none()) {
        for workload in &node.workloads {
            *known.entry(workload.clone()).or_default() += 1;
        }
    }
    for workload in state.workloads() {
        known.entry(workload.clone()).or_default();
    }
    for service in state.policy.compiled().into_iter().flat_map(|policy| policy.services()) {
        known.entry(service.name().clone()).or_default();
    }
    known
}

fn workload(api: &Api, state: &state::State, name: WorkloadName, nodes: usize) -> Result<Workload, Refusal> {
    let settings = state.settings().map_err(|error| Refusal::new(Reason::StateCorrupt, error.to_string()))?;
    Ok(Workload {
        spiffe_id: name.in_domain(&settings.trust_domain).to_string(),
        declared: state.policy.compiled().is_some_and(|policy| policy.service(&name).is_some()),
        nodes,
        instances: view::instances_of(state, &name, api.registry().now()),
        name,
    })
}

fn service(api: &Api, state: &state::State, service: &policy::Service) -> Service {
    let now = api.registry().now();
    let callers = state.policy.compiled().map(|policy| policy.callers(service.name(), now)).unwrap_or_default();
    let running = view::instances_of(state, service.name(), now);
    Service {
        name: service.name().clone(),
        ports: service.ports().iter().map(port).collect(),
        file: service.file().to_owned(),
        line: service.line(),
        callers,
        addresses: running
            .into_iter()
            .filter(|instance| instance.certificate_expires_at.0 > now && instance.revoked_at.is_none())
            .flat_map(|instance| instance.addresses)
            .collect(),
    }
}

fn port(port: &policy::document::Port) -> ServicePort {
    ServicePort {
        name: port.name.value.clone(),
        ports: if port.first == port.last { port.first.to_string() } else { format!("{}-{}", port.first, port.last) },
        protocols: port.protocols.iter().map(|protocol| protocol_name(*protocol).to_owned()).collect(),
    }
}

const fn protocol_name(protocol: PortProtocol) -> &'static str {
    match protocol {
        PortProtocol::Tcp => "tcp",
        PortProtocol::Udp => "udp",
        PortProtocol::Http => "http",
    }
}
