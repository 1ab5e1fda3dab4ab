//! Projected service-account tokens of a Kubernetes cluster (TokenRequest API): bound to one pod, for one audience, for an
//! hour. The pod makes one node; a token without a pod makes none.

use warren_proto::UnixTime;
use warren_proto::admin::Selector;
use warren_proto::reason::{Reason, Refusal};

use super::json::{self, Json, Object, malformed};
use super::token::Issuer;
use super::{Findings, Rejected};

/// Names of Kubernetes objects are DNS subdomains at most.
const MAX_NAME: usize = 253;

pub(super) fn attest(issuer: &Issuer, token: &[u8], now: UnixTime) -> Result<Findings, Rejected> {
    let verified = issuer.verify(token, now)?;
    let told = super::printable(&verified.subject);
    let Binding { facts, pod } = bound(&verified.claims, &verified.subject)
        .map_err(|refusal| Rejected { refusal, subject: Some(told.clone()) })?;
    Ok(Findings {
        facts,
        subject: told,
        unique: vec![issuer.name.as_bytes().to_vec(), pod.into_bytes()],
        until: verified.expires,
    })
}

struct Binding {
    facts: Vec<Selector>,
    /// The pod's uid, which no other pod ever has.
    pod: String,
}

fn bound(claims: &Object, subject: &str) -> Result<Binding, Refusal> {
    let what = "claims.kubernetes.io";
    let Some(Json::Object(private)) = claims.get("kubernetes.io") else {
        return Err(malformed(format!("{what}: missing; this is no projected service-account token")));
    };
    let namespace = name(private, what, "namespace")?;
    let account =
        member(private, what, "serviceaccount")?.ok_or_else(|| malformed(format!("{what}.serviceaccount: missing")))?;
    let account = name(account, "claims.kubernetes.io.serviceaccount", "name")?;
    if subject != format!("system:serviceaccount:{namespace}:{account}") {
        return Err(malformed("claims.sub: another service account than claims.kubernetes.io names"));
    }
    let pod = member(private, what, "pod")?.ok_or_else(|| {
        Refusal::new(Reason::EvidenceUnbound, "claims.kubernetes.io.pod: missing; the token is not bound to a pod")
            .hint("mount a projected volume with a serviceAccountToken source, or have a CSI driver ask for it")
    })?;
    let inside = "claims.kubernetes.io.pod";
    let (pod_name, uid) = (name(pod, inside, "name")?, name(pod, inside, "uid")?);
    let mut facts = vec![
        Selector::text("k8s:ns", namespace),
        Selector::text("k8s:sa", account),
        Selector::text("k8s:pod", pod_name),
    ];
    if let Some(node) = member(private, what, "node")? {
        facts.push(Selector::text("k8s:node", name(node, "claims.kubernetes.io.node", "name")?));
    }
    Ok(Binding { facts, pod: uid.to_owned() })
}

fn member<'j>(object: &'j Object, what: &str, member: &str) -> Result<Option<&'j Object>, Refusal> {
    match object.get(member) {
        None => Ok(None),
        Some(Json::Object(object)) => Ok(Some(object)),
        Some(_) => Err(malformed(format!("{what}.{member}: not an object"))),
    }
}

fn name<'j>(object: &'j Object, what: &str, member: &str) -> Result<&'j str, Refusal> {
    let text = json::text(object, what, member)?;
    if text.is_empty() || text.len() > MAX_NAME {
        Err(malformed(format!("{what}.{member}: not a name")))
    } else {
        Ok(text)
    }
}
