//! Machines without a join token: what another's word gives them, and what is refused by name. Every key is made here.
//!
//! ```text
//!   coordinator    pod(s)
//!   =====================
//! ```

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer, SigningKey};
use libtest_mimic::Trial;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use warren_netns_tests::mesh::{Answer, CONTROL_PORT, Mesh, Node};

use super::{BANK, POLICY, WEB, claim};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const AUDIENCE: &str = "warren.bank.example";
const SVID: &str = "spiffe://other.example/ns/shop/sa/web-frontend";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("attestation::a_pod_gets_the_registered_identity_and_no_other", registered_identity),
        claim("attestation::a_pods_entrypoint_enrols_it_and_starts_its_program", entrypoint),
        claim("attestation::a_token_for_another_audience_or_pod_is_refused_by_name", refused_by_name),
        claim("attestation::a_jobs_token_makes_one_node", once),
        claim("attestation::the_guides_commands_work_as_written", guide),
        claim("attestation::a_certificate_of_another_authority_makes_a_node_with_its_key_only", certificate),
    ]
}

const GUIDE: &str = include_str!("../../../docs/guides/attestation.md");

/// A token issuer.
struct Cluster {
    key: SigningKey,
}

impl Cluster {
    fn new() -> Self {
        Self { key: SigningKey::generate(&mut rand_core::OsRng) }
    }

    fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.key.verifying_key().as_bytes());
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "one", "x": x }] }).to_string()
    }

    fn token(&self, claims: &Value) -> String {
        let header = json!({ "alg": "EdDSA", "kid": "one", "typ": "JWT" }).to_string();
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()).to_bytes());
        format!("{signed}.{signature}\n")
    }
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn pod(account: &str, uid: &str) -> Result<Value> {
    let now = now()?;
    Ok(json!({
        "iss": ISSUER, "aud": [AUDIENCE], "iat": now - 5, "nbf": now - 5, "exp": now + 3000,
        "sub": format!("system:serviceaccount:shop:{account}"),
        "kubernetes.io": {
            "namespace": "shop",
            "pod": { "name": format!("{account}-0"), "uid": uid },
            "serviceaccount": { "name": account, "uid": "5e" }
        }
    }))
}

fn write(mesh: &Mesh, name: &str, text: &str) -> Result<PathBuf> {
    let path = mesh.lab.directory().join(format!("{name}-{}", mesh.lab.fresh_number()));
    std::fs::write(&path, text)?;
    Ok(path)
}

/// A mesh whose administrator trusts `cluster`, and lets its pods of `shop/web-frontend` be that.
fn mesh(cluster: &Cluster) -> Result<Mesh> {
    let mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let jwks = write(&mesh, "jwks", &cluster.jwks())?;
    let jwks = jwks.to_string_lossy();
    let set = ["attestor", "set", "kubernetes", "cluster", "--issuer", ISSUER, "--audience", AUDIENCE, "--jwks", &jwks];
    mesh.coordinator.say(&set)?.expect(0)?;
    let create = ["registration", "create", "web", "--attestor", "cluster"];
    let selectors = ["--selector", "k8s:ns=shop", "--selector", "k8s:sa=web-frontend", "--for", WEB];
    mesh.coordinator.say(&[create.as_slice(), &selectors].concat())?.expect(0)?;
    Ok(mesh)
}

/// `warren enrol --attestor NAME` with this evidence and more arguments.
fn enrol(mesh: &Mesh, node: &Node, attestor: &str, evidence: &str, more: &[&OsStr]) -> Result<Answer> {
    let (evidence, root) = (write(mesh, "evidence", evidence)?, mesh.coordinator.directory().join("root.pem"));
    let coordinator = mesh.coordinator.host.at(CONTROL_PORT).to_string();
    let mut all = vec![OsStr::new("enrol"), OsStr::new("--attestor"), OsStr::new(attestor)];
    all.extend([OsStr::new("--evidence-file"), evidence.as_os_str(), OsStr::new("--root"), root.as_os_str()]);
    all.extend([OsStr::new("--coordinator"), OsStr::new(&coordinator)]);
    all.extend(more);
    node.cli(&all)
}

fn refused(answer: &Answer, reason: &str) -> Result<()> {
    ensure!(answer.code == Some(5) && answer.stderr.contains(reason), "expected {reason}: {answer:#?}");
    ensure!(!answer.stderr.contains("eyJ"), "the token must not be printed: {answer:#?}");
    Ok(())
}

fn registered_identity() -> Result<()> {
    let cluster = Cluster::new();
    let mut mesh = mesh(&cluster)?;
    let mut node = Node::on(mesh.lab.host("pod-1")?, WEB)?;
    let token = cluster.token(&pod("web-frontend", "uid-1")?);
    enrol(&mesh, &node, "cluster", &token, &[])?.expect(0)?;
    node.start()?;
    node.say(&["status", "--check", "ready"])?.expect(0)?;
    let listed = mesh.coordinator.say(&["node", "list", "-o", "json"])?.expect(0)?.json()?;
    let shown = &listed["items"][0];
    ensure!(shown["workloads"] == json!([WEB]) && shown["attestation"]["attestor"] == "cluster", "{listed:#}");
    let rows = mesh.coordinator.say(&["audit", "list", "-o", "json"])?.expect(0)?.stdout;
    ensure!(rows.contains("attestor:cluster") && rows.contains("system:serviceaccount:shop:web-frontend"), "{rows}");
    ensure!(!rows.contains("eyJ"), "the token must not be in the log");

    let mut other = Node::on(mesh.lab.host("pod-2")?, WEB)?;
    enrol(&mesh, &other, "cluster", &cluster.token(&pod("web-frontend", "uid-2")?), &[])?.expect(0)?;
    other.configure(&format!("workload: {BANK}\n"))?;
    other.must_refuse("identity-not-allowed", |node| {
        let ready = node.say(&["status", "--check", "ready"])?;
        ensure!(ready.code != Some(0), "a pod of {WEB} runs as {BANK}");
        Ok(())
    })
}

fn entrypoint() -> Result<()> {
    let cluster = Cluster::new();
    let mut mesh = mesh(&cluster)?;
    let node = Node::on(mesh.lab.host("pod-1")?, WEB)?;
    node.configure(&format!("control:\n  addresses: [\"{}\"]\n", mesh.coordinator.host.at(CONTROL_PORT)))?;
    let token = write(&mesh, "token", &cluster.token(&pod("web-frontend", "uid-1")?))?;
    let root = mesh.coordinator.directory().join("root.pem");
    let mut all = ["run", "--attestor", "cluster", "--evidence-file"].map(OsStr::new).to_vec();
    all.extend([token.as_os_str(), OsStr::new("--root"), root.as_os_str()]);
    // What the program sees of how its node enrolled: nothing.
    all.extend(["--", "sh", "-c", "env | grep -c ^WARREN_; exit 7"].map(OsStr::new));
    let ran = node.cli(&all)?.expect(7)?;
    ensure!(ran.stdout.trim() == "0", "{ran:#?}");
    Ok(())
}

fn refused_by_name() -> Result<()> {
    let cluster = Cluster::new();
    let mut mesh = mesh(&cluster)?;
    let node = Node::on(mesh.lab.host("pod-1")?, WEB)?;
    let good = pod("web-frontend", "uid-1")?;
    let but = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        cluster.token(&claims)
    };
    refused(&enrol(&mesh, &node, "cluster", &but("aud", json!(["vault"])), &[])?, "evidence-audience")?;
    refused(&enrol(&mesh, &node, "cluster", &but("iss", json!("https://other")), &[])?, "evidence-issuer")?;
    refused(&enrol(&mesh, &node, "cluster", &but("exp", json!(now()? - 61)), &[])?, "evidence-expired")?;
    refused(&enrol(&mesh, &node, "cluster", &Cluster::new().token(&good), &[])?, "evidence-signature")?;
    refused(&enrol(&mesh, &node, "cluster", &cluster.token(&pod("batch", "uid-1")?), &[])?, "no-registration")?;
    refused(&enrol(&mesh, &node, "nobody", &cluster.token(&good), &[])?, "attestor-unknown")?;
    let mut unbound = good.clone();
    unbound["kubernetes.io"].as_object_mut().map(|private| private.remove("pod"));
    refused(&enrol(&mesh, &node, "cluster", &cluster.token(&unbound), &[])?, "evidence-unbound")?;

    // Nothing of that used the pod up; its token, once used, is of no use to another host.
    let token = cluster.token(&good);
    enrol(&mesh, &node, "cluster", &token, &[])?.expect(0)?;
    let thief = Node::on(mesh.lab.host("thief")?, WEB)?;
    refused(&enrol(&mesh, &thief, "cluster", &token, &[])?, "evidence-used")?;
    let listed = mesh.coordinator.say(&["node", "list", "-o", "json"])?.expect(0)?.json()?;
    ensure!(listed["items"].as_array().is_some_and(|items| items.len() == 1), "{listed:#}");
    let rows = mesh.coordinator.say(&["audit", "list", "-o", "json"])?.expect(0)?.stdout;
    ensure!(rows.contains("node.enrol-refused") && rows.contains("evidence-audience"), "{rows}");
    ensure!(!rows.contains("evidence-signature"), "a stranger's word makes no row: {rows}");
    Ok(())
}

fn once() -> Result<()> {
    let issuer = Cluster::new();
    let mut mesh = Mesh::new(&[])?;
    let jwks = write(&mesh, "jwks", &issuer.jwks())?;
    let jwks = jwks.to_string_lossy();
    let set =
        ["attestor", "set", "oidc", "ci", "--issuer", "https://ci.example", "--audience", AUDIENCE, "--jwks", &jwks];
    mesh.coordinator.say(&set)?.expect(0)?;
    let create = ["registration", "create", "deploy", "--attestor", "ci", "--selector", "claim:project=7"];
    let rest = ["--selector", "claim:protected:=true", "--for", WEB];
    mesh.coordinator.say(&[create.as_slice(), &rest].concat())?.expect(0)?;
    let job = |id: &str, protected: Value| {
        let now = now()?;
        anyhow::Ok(issuer.token(&json!({
            "iss": "https://ci.example", "aud": AUDIENCE, "iat": now - 1, "exp": now + 300, "jti": id, "sub": "job",
            "project": "7", "protected": protected
        })))
    };
    let (first, second) = (Node::on(mesh.lab.host("job-1")?, WEB)?, Node::on(mesh.lab.host("job-2")?, WEB)?);
    refused(&enrol(&mesh, &first, "ci", &job("a", json!("true"))?, &[])?, "no-registration")?;
    let token = job("a", json!(true))?;
    enrol(&mesh, &first, "ci", &token, &[])?.expect(0)?;
    refused(&enrol(&mesh, &second, "ci", &token, &[])?, "evidence-used")?;
    enrol(&mesh, &second, "ci", &job("b", json!(true))?, &[])?.expect(0)?;
    Ok(())
}

/// The administrator's commands of the guide, each as one line.
fn guides_commands() -> Vec<String> {
    let joined = GUIDE.replace("\\\n", " ");
    let commands = joined.lines().filter_map(|line| line.strip_prefix("$ warren "));
    let administrators = |command: &&str| command.starts_with("attestor ") || command.starts_with("registration ");
    commands.filter(administrators).map(str::to_owned).collect()
}

fn guide() -> Result<()> {
    let mesh = Mesh::new(&[])?;
    let here = &mesh.coordinator.host.directory;
    for file in ["jwks.json", "github.json"] {
        std::fs::write(here.join(file), Cluster::new().jwks())?;
    }
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(here.join("spire-bundle.pem"), root.self_signed(&KeyPair::generate()?)?.pem())?;
    let region = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?;
    let certificate = CertificateParams::default().self_signed(&region)?.pem();
    std::fs::write(here.join("ec2-eu-west-1-rsa2048.pem"), certificate)?;
    let commands = guides_commands();
    ensure!(commands.len() == 8, "an attestor and a registration of each kind: {commands:#?}");
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        mesh.coordinator.say(&words)?.expect(0)?;
    }
    let listed = mesh.coordinator.say(&["attestor", "list", "-o", "json"])?.expect(0)?.json()?;
    let ones =
        listed["items"].as_array().into_iter().flatten().filter(|attestor| attestor["registrations"] == 1).count();
    ensure!(ones == 4, "{listed:#}");
    mesh.coordinator.say(&["attestor", "show", "ec2"])?.expect(0)?;
    let kept = mesh.coordinator.say(&["attestor", "delete", "ec2"])?;
    ensure!(kept.code == Some(7) && kept.stderr.contains("registration delete worker"), "{kept:#?}");
    Ok(())
}

fn certificate() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    let root_key = KeyPair::generate()?;
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root_pem = root.self_signed(&root_key)?.pem();
    let issuer = Issuer::new(root, root_key);
    let roots = write(&mesh, "roots", &root_pem)?;
    let roots = roots.to_string_lossy();
    mesh.coordinator
        .say(&["attestor", "set", "x509", "spire", "--roots", &roots, "--trust-domain", "other.example"])?
        .expect(0)?;
    let selector = format!("x509:spiffe-id={SVID}");
    let create = ["registration", "create", "web", "--attestor", "spire", "--selector", &selector, "--for", WEB];
    mesh.coordinator.say(&create)?.expect(0)?;

    let mut leaf = CertificateParams::default();
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    leaf.subject_alt_names = vec![SanType::URI(SVID.try_into()?)];
    let key = KeyPair::generate()?;
    let leaf = leaf.signed_by(&key, &issuer)?.pem();
    let (own, other) =
        (write(&mesh, "key", &key.serialize_pem())?, write(&mesh, "key", &KeyPair::generate()?.serialize_pem())?);
    let with = |key: &PathBuf| [OsStr::new("--evidence-key-file").to_owned(), key.clone().into_os_string()];
    let node = Node::on(mesh.lab.host("machine")?, WEB)?;
    let wrong = enrol(&mesh, &node, "spire", &leaf, &with(&other).each_ref().map(AsRef::as_ref))?;
    ensure!(wrong.code != Some(0) && wrong.stderr.contains("possession-unproven"), "{wrong:#?}");
    enrol(&mesh, &node, "spire", &leaf, &with(&own).each_ref().map(AsRef::as_ref))?.expect(0)?;
    let listed = mesh.coordinator.say(&["node", "list", "-o", "json"])?.expect(0)?.json()?;
    ensure!(listed["items"][0]["attestation"]["subject"] == SVID, "{listed:#}");
    Ok(())
}
