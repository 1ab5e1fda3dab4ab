//! The control link under attack: what is malformed, oversized or presents the wrong certificate is refused by name, changes
//! nothing, and keeps nobody else out.
//!
//! ```text
//!   coordinator    web-1    attacker (speaks QUIC)    impostor (poses as a coordinator)
//!   ====================================================================================
//! ```

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use warren_netns_tests::attacker::control::{Conversation, Credential, Impostor};
use warren_netns_tests::host::Host;
use warren_netns_tests::mesh::{CONTROL_PORT, Coordinator, IN_FORCE, Mesh, Node};
use warren_netns_tests::processes::eventually;
use warren_proto::codec::{MAX_ENROL_FRAME, MAX_NODE_FRAME};
use warren_proto::join_token::JoinToken;
use warren_proto::{ALPN_CONTROL, ALPN_ENROL, PROTOCOL_VERSION, READER_VERSION, wire};

use super::{POLICY, WEB, claim, wait_until_allowed, web_and_bank};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        claim("control::malformed_enrolments_are_refused_by_name_and_change_nothing", malformed_enrolments),
        claim("control::oversized_and_malformed_frames_of_a_node_end_its_link_and_change_nothing", frames_of_a_node),
        claim("control::a_node_believes_no_coordinator_of_another_authority", another_authority),
        claim("control::a_workload_certificate_does_not_pose_as_a_node", posing_as_node),
        claim("control::no_certificate_of_a_workload_or_node_poses_as_the_coordinator", posing_as_coordinator),
    ]
}

/// What an attack must leave as it was: the audit log, which has a row for every change and every certificate, and the tokens
/// with how often each was used.
fn standing(coordinator: &Coordinator) -> Result<String> {
    let mut all = String::new();
    for question in [["audit", "list"], ["token", "list"]] {
        let answer = coordinator.say(&[question[0], question[1], "-o", "json"])?.expect(0)?;
        all += &answer.stdout;
    }
    Ok(all)
}

/// The coordinator's own words have named `reason`, although the attacker goes away without a word and takes no answer.
fn is_named(coordinator: &mut Coordinator, reason: &str) -> Result<()> {
    let log = coordinator.process()?.log_path().to_owned();
    eventually(&format!("the coordinator's log names {reason}"), IN_FORCE, || {
        Ok(std::fs::read_to_string(&log)?.contains(reason))
    })
    .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())
}

fn enrol(node: &Node, token: &Path) -> Result<warren_netns_tests::mesh::Answer> {
    node.cli(&[OsStr::new("enrol"), OsStr::new("--token-file"), token.as_os_str()])
}

fn parsed(token: &Path) -> Result<JoinToken> {
    JoinToken::parse(&std::fs::read_to_string(token)?).map_err(|refusal| anyhow::anyhow!("{refusal}"))
}

/// Bytes with the length of `announced` in front.
fn frame(announced: usize, body: &[u8]) -> Vec<u8> {
    [&u32::try_from(announced).expect("a length").to_be_bytes(), body].concat()
}

/// A field 1 that holds text where the protocol has a number: the wrong type, in well-formed protobuf.
const WRONG_TYPE: [u8; 7] = [0x0a, 5, b'w', b'r', b'o', b'n', b'g'];

fn malformed_enrolments() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    let token_file = mesh.token(WEB, &[])?;
    let token = parsed(&token_file)?;
    let attacker = mesh.lab.host("attacker")?;
    let to = mesh.coordinator.host.at(CONTROL_PORT);
    let before = standing(&mesh.coordinator)?;

    // In the place of the first message. Half of one is followed by the stream's end.
    let first: [(&str, Vec<u8>, &str); 8] = [
        ("bytes that are no protobuf", frame(3, &[0xff; 3]), "frame-malformed"),
        ("a field of the wrong type", frame(WRONG_TYPE.len(), &WRONG_TYPE), "frame-malformed"),
        ("half a message", frame(100, &[8; 50]), "frame-malformed"),
        ("half a length", vec![0, 0], "frame-malformed"),
        ("nothing at all", Vec::new(), "frame-unexpected"),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "frame-too-large"),
        ("a frame over the limit", frame(MAX_ENROL_FRAME + 1, &[]), "frame-too-large"),
        ("another version", frame(2, &[8, 99]), "version-unsupported"),
    ];
    for (what, bytes, expected) in first {
        let reason = attacker.namespace.run_async(|| async {
            let mut conversation = Conversation::begin(to, ALPN_ENROL, None).await?;
            conversation.send(&bytes).await;
            conversation.finish();
            conversation.refusal().await
        });
        let reason = reason.with_context(|| what.to_owned())?;
        ensure!(reason == expected, "{what}: {reason}, expected {expected}");
        is_named(&mut mesh.coordinator, expected)?;
    }

    // In the place of the request, with a challenge answered and a token that is good.
    type Alteration = fn(&mut wire::EnrolRequest);
    let second: [(&str, Alteration, &str); 9] = [
        ("no evidence", |request| request.evidence = None, "frame-malformed"),
        ("no certificate request", |request| request.csr.clear(), "csr-malformed"),
        ("a certificate request of zeros", |request| request.csr = vec![0; 100], "csr-malformed"),
        ("bytes behind the certificate request", |request| request.csr.push(0), "csr-malformed"),
        ("no proof of possession", |request| request.possession.clear(), "possession-unproven"),
        ("a proof of possession altered", |request| request.possession[20] ^= 1, "possession-unproven"),
        ("a secret cut off", |request| evidence(request).secret.truncate(31), "token-malformed"),
        ("an id of 20,000 characters", |request| evidence(request).token_id = "a".repeat(20_000), "token-malformed"),
        ("a name that fills more than a frame", |request| request.host_name = "a".repeat(40_000), "frame-too-large"),
    ];
    for (what, alter, expected) in second {
        let reason = attacker.namespace.run_async(|| async {
            let mut conversation = Conversation::begin(to, ALPN_ENROL, None).await?;
            let mut request = conversation.enrolment(&token).await?;
            alter(&mut request);
            conversation.say(&request).await;
            conversation.refusal().await
        });
        let reason = reason.with_context(|| what.to_owned())?;
        ensure!(reason == expected, "{what}: {reason}, expected {expected}");
        is_named(&mut mesh.coordinator, expected)?;
    }

    // A secret that is another's is as unknown as a token that is not there.
    let guessed = attacker.namespace.run_async(|| async {
        let mut conversation = Conversation::begin(to, ALPN_ENROL, None).await?;
        let mut request = conversation.enrolment(&token).await?;
        evidence(&mut request).secret[0] ^= 1;
        conversation.say(&request).await;
        conversation.refusal().await
    })?;
    ensure!(guessed == "token-unknown", "{guessed}");

    // No protocol of this port: TLS itself ends it, and says why.
    for alpn in [b"h3".as_slice(), b"warren-enrol/2"] {
        let told = attacker.namespace.run_async(|| async { Ok(Conversation::begin(to, alpn, None).await.err()) })?;
        let told = told.map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(told.contains("protocol"), "{alpn:?} was accepted, or refused without a word: {told:?}");
    }

    ensure!(standing(&mesh.coordinator)? == before, "an enrolment that was refused changed something");
    ensure!(mesh.coordinator.process()?.ended()?.is_none());
    let node = Node::on(mesh.lab.host("web-1")?, WEB)?;
    enrol(&node, &token_file)?.expect(0).context("the token is as good as before")?;
    Ok(())
}

fn evidence(request: &mut wire::EnrolRequest) -> &mut wire::JoinTokenEvidence {
    let Some(wire::enrol_request::Evidence::JoinToken(evidence)) = &mut request.evidence else {
        panic!("the request was made with a join token")
    };
    evidence
}

fn node_frame(frame: wire::node_frame::Frame) -> wire::NodeFrame {
    wire::NodeFrame { frame: Some(frame) }
}

fn hello() -> wire::NodeFrame {
    node_frame(wire::node_frame::Frame::Hello(wire::Hello {
        version: PROTOCOL_VERSION,
        reader: READER_VERSION,
        ..wire::Hello::default()
    }))
}

/// What an enrolled node's own certificate opens, and what its holder may say there.
fn frames_of_a_node() -> Result<()> {
    let mut mesh = Mesh::new(&[])?;
    mesh.try_apply(POLICY, &[])?.expect(0)?;
    let mut web = mesh.enrol("web-1", WEB)?;
    let stolen = Credential::of_node(&web.state())?;
    let to = mesh.coordinator.host.at(CONTROL_PORT);
    let before = standing(&mesh.coordinator)?;

    let too_much = |length| frame(length, &vec![0; length.min(MAX_NODE_FRAME * 2)]);
    let first: [(&str, Vec<u8>, &str); 6] = [
        ("a frame over the limit", too_much(MAX_NODE_FRAME + 1), "frame-too-large"),
        ("the longest length there is", frame(u32::MAX as usize, &[]), "frame-too-large"),
        ("bytes that are no protobuf", frame(3, &[0xff; 3]), "frame-malformed"),
        ("a field of the wrong type", frame(3, &[0x08, 0x96, 0x01]), "frame-malformed"),
        ("half a message", frame(100, &[0; 50]), "frame-malformed"),
        ("an empty frame", frame(0, &[]), "frame-unexpected"),
    ];
    for (what, bytes, expected) in first {
        let told = web.host.namespace.run_async(|| async {
            let mut conversation = Conversation::begin(to, ALPN_CONTROL, Some(stolen.clone())).await?;
            conversation.send(&bytes).await;
            conversation.finish();
            conversation.closed().await
        });
        let told = told.with_context(|| what.to_owned())?;
        ensure!(told.starts_with(expected), "{what}: {told:?}, expected {expected}");
        is_named(&mut mesh.coordinator, expected)?;
    }
    // The same on a session that was welcomed.
    let future = node_frame(wire::node_frame::Frame::Ack(wire::Ack { epoch: 1, revision: 1_000_000 }));
    let later: [(&str, Vec<u8>, &str); 4] = [
        ("a frame over the limit", too_much(MAX_NODE_FRAME + 1), "frame-too-large"),
        ("bytes that are no protobuf", frame(3, &[0xff; 3]), "frame-malformed"),
        ("a second Hello", framed(&hello()), "frame-unexpected"),
        ("an acknowledgement of what was not told", framed(&future), "frame-unexpected"),
    ];
    for (what, bytes, expected) in later {
        let told = web.host.namespace.run_async(|| async {
            let mut conversation = Conversation::begin(to, ALPN_CONTROL, Some(stolen.clone())).await?;
            conversation.say(&hello()).await;
            let welcome: wire::CoordinatorFrame = conversation.hear().await?.context("no welcome")?;
            ensure!(matches!(welcome.frame, Some(wire::coordinator_frame::Frame::Welcome(_))), "{welcome:?}");
            conversation.send(&bytes).await;
            conversation.closed().await
        });
        let told = told.with_context(|| what.to_owned())?;
        ensure!(told.starts_with(expected), "{what}: {told:?}, expected {expected}");
    }
    // Issuance has a stream of its own: what is wrong there is answered there, and the session goes on.
    let answered = web.host.namespace.run_async(|| async {
        let mut conversation = Conversation::begin(to, ALPN_CONTROL, Some(stolen.clone())).await?;
        conversation.say(&hello()).await;
        let _: wire::CoordinatorFrame = conversation.hear().await?.context("no welcome")?;
        let mut reasons = Vec::new();
        for bytes in [frame(MAX_ENROL_FRAME + 1, &[]), frame(3, &[0xff; 3]), frame(2, &[8, 99])] {
            conversation.next_stream().await?;
            conversation.send(&bytes).await;
            let answer: wire::IssueResponse = conversation.hear().await?.context("no answer")?;
            let Some(wire::issue_response::Result::Refused(refusal)) = answer.result else {
                anyhow::bail!("a certificate was issued: {answer:?}")
            };
            reasons.push(refusal.reason);
        }
        Ok(reasons)
    })?;
    ensure!(answered == ["frame-too-large", "frame-malformed", "version-unsupported"], "{answered:?}");

    ensure!(standing(&mesh.coordinator)? == before, "a frame that was refused changed something");
    // The node whose certificate that was, and everybody else, is served as before.
    web.start()?;
    web.say(&["status", "--check", "ready"])?.expect(0)?;
    Ok(())
}

fn framed<M: prost::Message>(message: &M) -> Vec<u8> {
    let body = message.encode_to_vec();
    frame(body.len(), &body)
}

/// Starts `web` with its control link pointed elsewhere. Its stored policy stays in force, `reason` is named, and it says
/// that the link is down.
fn must_not_believe(web: &mut Node, bank: &Node, at: &Host, reason: &str) -> Result<()> {
    web.configure(&format!("control:\n  addresses: [\"{}\"]\n", at.at(CONTROL_PORT)))?;
    web.start()?;
    eventually(&format!("the node's status names {reason}"), IN_FORCE, || {
        let status = web.say(&["status", "-o", "json"])?.expect(0)?.json()?;
        ensure!(status["control"]["up"] == false, "{} was believed", at.name);
        Ok(status["control"]["cause"]["reason"] == reason)
    })
    .with_context(|| web.process().map(|process| process.log_text()).unwrap_or_default())?;
    ensure!(web.process()?.log_text().contains(reason), "the log does not name {reason}");
    super::must_answer(web, bank.at(8080)?)?;
    web.stop()
}

fn another_authority() -> Result<()> {
    let (mut mesh, mut web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let other = Coordinator::on(mesh.lab.host("other-mesh")?, &[])?;
    let (before, theirs) = (standing(&mesh.coordinator)?, standing(&other)?);
    web.stop()?;
    must_not_believe(&mut web, &bank, &other.host, "untrusted-issuer")?;
    ensure!(standing(&other)? == theirs, "the other mesh took something from the node");
    ensure!(standing(&mesh.coordinator)? == before);

    // A token that pins this mesh's root, taken to the other mesh's coordinator, and the other way round.
    let elsewhere = |node: &Node, token: &Path, at: &Host| -> Result<()> {
        node.configure(&format!("control:\n  addresses: [\"{}\"]\n", at.at(CONTROL_PORT)))?;
        let refused = enrol(node, token)?;
        ensure!(refused.code != Some(0) && refused.stderr.contains("untrusted-issuer"), "{refused:#?}");
        ensure!(!node.state().join("node").exists(), "an identity was kept");
        Ok(())
    };
    let ours = mesh.token(WEB, &[])?;
    let foreign = token_of(&other, mesh.lab.directory())?;
    let node = Node::on(mesh.lab.host("web-2")?, WEB)?;
    elsewhere(&node, &ours, &other.host)?;
    elsewhere(&node, &foreign, &mesh.coordinator.host)?;
    node.configure("")?;
    enrol(&node, &ours)?.expect(0).context("the token is as good as before")?;

    web.configure("")?;
    web.start()?;
    eventually("the node finds its own coordinator again", IN_FORCE, || {
        Ok(web.say(&["status", "-o", "json"])?.expect(0)?.json()?["control"]["up"] == true)
    })
}

fn token_of(coordinator: &Coordinator, directory: &Path) -> Result<PathBuf> {
    let answer = coordinator.say(&["token", "create", "--for", WEB])?.expect(0)?;
    let path = directory.join("foreign.token");
    std::fs::write(&path, answer.stdout.trim())?;
    Ok(path)
}

fn posing_as_node() -> Result<()> {
    let (mut mesh, web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let attacker = mesh.lab.host("attacker")?;
    let to = mesh.coordinator.host.at(CONTROL_PORT);
    let before = standing(&mesh.coordinator)?;
    let other = Coordinator::on(mesh.lab.host("other-mesh")?, &[])?;
    let foreign = Node::on(mesh.lab.host("foreign")?, WEB)?;
    enrol(&foreign, &token_of(&other, mesh.lab.directory())?)?.expect(0)?;
    let wrong = [
        ("a workload's certificate", Some(Credential::of_workload(&web.state())?)),
        ("a node's certificate of another mesh", Some(Credential::of_node(&foreign.state())?)),
        ("a self-made certificate", Some(Credential::self_made()?)),
        ("no certificate", None),
    ];
    for (what, credential) in wrong {
        let told = attacker.namespace.run_async(|| async {
            let mut conversation = match Conversation::begin(to, ALPN_CONTROL, credential).await {
                Ok(conversation) => conversation,
                Err(error) => return Ok(format!("{error:#}")),
            };
            conversation.say(&hello()).await;
            let heard: Option<wire::CoordinatorFrame> = conversation.hear().await?;
            ensure!(heard.is_none(), "{what} was answered: {heard:?}");
            conversation.closed().await
        })?;
        ensure!(told.contains("peer-certificate-wrong"), "{what}: {told:?}");
    }
    // Enrolment asks for no certificate, but one that is shown must be a node's.
    let workload = Credential::of_workload(&web.state())?;
    let told = attacker.namespace.run_async(|| async {
        match Conversation::begin(to, ALPN_ENROL, Some(workload)).await {
            Ok(conversation) => conversation.closed().await,
            Err(error) => Ok(format!("{error:#}")),
        }
    })?;
    ensure!(told.contains("peer-certificate-wrong"), "enrolment with a workload's certificate: {told:?}");
    is_named(&mut mesh.coordinator, "peer-certificate-wrong")?;
    ensure!(standing(&mesh.coordinator)? == before, "a certificate that was refused changed something");
    ensure!(!mesh.coordinator.process()?.log_text().contains("took its place"), "web-1's own link was touched");
    // A change reaches the real nodes: the coordinator serves as before.
    mesh.apply(&super::policy_with_another_port())?;
    Ok(())
}

fn posing_as_coordinator() -> Result<()> {
    let (mut mesh, mut web, bank) = web_and_bank(&[])?;
    wait_until_allowed(&web, &bank)?;
    let root = root_of(&mesh.coordinator)?;
    let before = standing(&mesh.coordinator)?;
    let token = mesh.token(WEB, &[])?;
    web.stop()?;
    let certificates = [
        ("workload", Credential::of_workload(&bank.state())?),
        ("node", Credential::of_node(&bank.state())?),
        ("self-made", Credential::self_made()?),
    ];
    for (number, (what, credential)) in certificates.into_iter().enumerate() {
        let host = mesh.lab.host(&format!("impostor-{number}"))?;
        // Behind it the mesh's own root, which everybody may have: a token's pin is met by that.
        let impostor = Impostor::on(&host, host.at(CONTROL_PORT), credential.with(root.clone()))?;
        // What is not a coordinator's certificate fails at the first thing that a coordinator's must have.
        let reason = "certificate-";
        web.configure(&format!("control:\n  addresses: [\"{}\"]\n", host.at(CONTROL_PORT)))?;
        web.start()?;
        let log = web.process()?.log_path().to_owned();
        eventually(&format!("{what}: the log names {reason}"), IN_FORCE, || {
            let text = std::fs::read_to_string(&log)?;
            Ok(text.lines().any(|line| line.contains("control link down") && line.contains(reason)))
        })
        .with_context(|| std::fs::read_to_string(&log).unwrap_or_default())?;
        super::must_answer(&web, bank.at(8080)?)?;
        web.stop()?;

        let joining = Node::on(mesh.lab.host(&format!("joining-{number}"))?, WEB)?;
        joining.configure(&format!("control:\n  addresses: [\"{}\"]\n", host.at(CONTROL_PORT)))?;
        let refused = enrol(&joining, &token)?;
        ensure!(refused.code != Some(0) && refused.stderr.contains(reason), "{what}: {refused:#?}");
        ensure!(!joining.state().join("node").exists(), "an identity was kept");
        let seen = impostor.seen();
        ensure!(seen.attempts >= 2, "{what}: only {} dialled: this proves nothing", seen.attempts);
        ensure!(seen.believed == 0 && seen.told.is_empty(), "{what}: the impostor was told {seen:?}");
    }
    // Nobody has used the token, and the nodes find their coordinator again.
    let node = Node::on(mesh.lab.host("web-2")?, WEB)?;
    let after = standing(&mesh.coordinator)?;
    ensure!(after.matches("\"token.create\"").count() == before.matches("\"token.create\"").count() + 1);
    ensure!(after.matches("\"node.enrol\"").count() == before.matches("\"node.enrol\"").count());
    enrol(&node, &token)?.expect(0).context("the token is as good as before")?;
    web.configure("")?;
    web.start()?;
    mesh.apply(&super::policy_with_another_port())?;
    Ok(())
}

fn root_of(coordinator: &Coordinator) -> Result<Vec<u8>> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    let pem = std::fs::read(coordinator.directory().join("root.pem"))?;
    Ok(CertificateDer::from_pem_slice(&pem).context("the root's certificate")?.to_vec())
}
