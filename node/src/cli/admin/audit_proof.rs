//! Proofs about the audit log as files, checked without the coordinator: by whoever has the mesh's root certificate.
//!
//! A head is believed when the manifest signer of the mesh signed it, as of the moment that it names: signers' certificates
//! end after some weeks, and a head is kept for years.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use warren_engine::identity::verify_signed_object;
use warren_proto::TrustBundle;
use warren_proto::admin::{AuditProof, Timestamp, read_path};
use warren_proto::certificate::AuthorityCertificate;
use warren_proto::merkle::{leaf_hash, verify_consistency, verify_inclusion};
use warren_proto::reason::{Reason, Refusal};
use warren_proto::tree_head::{Issuance, TreeHead};

use super::audit_certificate::Wanted;
use super::{Exit, Failure, Present, Table};

/// The largest proof, in bytes: a row of 15 KiB, escaped, and two lists of hashes.
const MAX_FILE: u64 = 256 * 1024;

/// Reads what `head` and `prove` print with `-o json`.
pub(super) fn read(path: &Path) -> Result<AuditProof, Failure> {
    let next = "warren audit head -o json > head.json; warren audit prove SERIAL -o json > proof.json";
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_FILE).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
    };
    read.map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, format!("{} cannot be read", path.display())).cause(&error).next(next)
    })?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::new(Exit::Usage, format!("{} is no proof of the audit log", path.display())).cause(&error).next(next)
    })
}

/// The root by which heads are judged.
pub(super) struct Trusted(TrustBundle);

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProofReport {
    /// Whether every proof and question holds.
    pub(super) holds: bool,
    /// What does not; empty when all does.
    pub(super) problem: String,
    /// How many rows the log had.
    pub(super) size: u64,
    /// The root over them.
    pub(super) root: String,
    /// When that was signed.
    pub(super) time: Timestamp,
    /// The row that is proven.
    pub(super) row: Option<u64>,
    /// The serial number of the certificate that it issued.
    pub(super) serial: Option<String>,
    /// The SHA-256 of that certificate.
    pub(super) certificate_sha256: Option<String>,
    /// Whether a certificate was compared with that hash, and is it.
    pub(super) compared: bool,
    /// The earlier log that is proven to be the beginning.
    pub(super) since: Option<u64>,
}

impl Trusted {
    /// Reads the root's certificate, PEM.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |text: String| {
            Failure::new(Exit::Usage, text).next("--root names the mesh's root certificate, DIR/root.pem")
        };
        let der = CertificateDer::from_pem_file(path).map_err(|error| {
            wrong(format!("{} holds no certificate in PEM", path.display())).because(error.to_string())
        })?;
        Self::of(&der).map_err(|refusal| wrong(format!("{}: {refusal}", path.display())))
    }

    fn of(root: &[u8]) -> Result<Self, Refusal> {
        let unnamed = || Refusal::new(Reason::WrongTrustDomain, "it is the root of no mesh");
        let domain = AuthorityCertificate::parse(root)?.trust_domain().cloned().ok_or_else(unnamed)?;
        TrustBundle::new(domain, 1, [root]).map(Self)
    }

    /// The head of a proof, when the mesh's signer signed it.
    pub(super) fn head(&self, proof: &AuditProof) -> Result<TreeHead, Refusal> {
        let signed = proof.head.signed()?;
        let head = TreeHead::from_body(&signed.body)?;
        verify_signed_object(&signed, &self.0, head.time)?;
        if head.trust_domain != *self.0.trust_domain() {
            let detail = format!("the head is of {}, the root of {}", head.trust_domain, self.0.trust_domain());
            return Err(Refusal::new(Reason::WrongTrustDomain, detail));
        }
        Ok(head)
    }

    /// Checks every proof there is, that the row issued the certificate that is asked for, and that the log of a head that was
    /// kept is the beginning of this one.
    pub(super) fn verify(
        &self,
        proof: &AuditProof,
        wanted: Option<&Wanted>,
        kept: Option<&TreeHead>,
    ) -> Result<ProofReport, Refusal> {
        let head = self.head(proof)?;
        let row = proof.row.as_ref().and_then(|row| Row::read(&row.text));
        let issued = row.as_ref().and_then(Row::issued);
        let problem = problem(&head, proof, (wanted, issued), kept)?;
        let compared = problem.is_none();
        Ok(ProofReport {
            holds: problem.is_none(),
            problem: problem.unwrap_or_default(),
            size: head.size,
            root: hex::encode(head.root),
            time: head.time.into(),
            row: proof.row.as_ref().map(|row| row.seq),
            serial: issued.map(|issued| issued.serial.to_owned()),
            certificate_sha256: issued.and_then(|issued| issued.certificate_sha256).map(str::to_owned),
            compared: compared && wanted.is_some_and(|wanted| wanted.sha256.is_some()),
            since: kept.map(|kept| kept.size),
        })
    }
}

/// What does not hold of a proof whose head is signed.
fn problem(
    head: &TreeHead,
    proof: &AuditProof,
    (asked, issued): (Option<&Wanted>, Option<Issuance<'_>>),
    kept: Option<&TreeHead>,
) -> Result<Option<String>, Refusal> {
    if let Some(row) = &proof.row {
        let (leaf, path) = (leaf_hash(row.text.as_bytes()), read_path(&row.path)?);
        // A row's number counts from 1, its place in the tree from 0.
        let holds = row.seq.checked_sub(1).is_some_and(|at| verify_inclusion(&leaf, at, head.size, &path, &head.root));
        if !holds {
            return Ok(Some(format!("row {} is not in the log that the head was signed of", row.seq)));
        }
    }
    if let Some(asked) = asked
        && let Err(problem) = issued_by(proof, asked, issued)
    {
        return Ok(Some(problem));
    }
    let Some(kept) = kept else { return Ok(None) };
    if kept.size > head.size {
        let (had, has) = (kept.size, head.size);
        return Ok(Some(format!("the log had {had} rows when the kept head was signed, and has {has}: rows are gone")));
    }
    let path = match &proof.since {
        Some(since) if since.size == kept.size => read_path(&since.path)?,
        _ if kept.size == head.size => Vec::new(),
        _ => return Ok(Some("it does not tell of the kept head: make it with --since and that head".to_owned())),
    };
    let holds = verify_consistency(kept.size, &kept.root, head.size, &head.root, &path);
    Ok((!holds)
        .then(|| format!("the log's first {} rows are not those of the kept head: it was written anew", kept.size)))
}

/// That the row of a proof issued what is asked for, or why not.
fn issued_by(proof: &AuditProof, asked: &Wanted, issued: Option<Issuance<'_>>) -> Result<(), String> {
    let Some(row) = &proof.row else { return Err("there is no row in it".to_owned()) };
    match issued.map(|issued| asked.is(row.seq, &issued)).transpose()? {
        Some(true) => Ok(()),
        _ => Err(format!("row {} is not the issuance of {}", row.seq, asked.serial)),
    }
}

/// Refuses a proof whose row did not issue the certificate that it was asked for.
pub(super) fn check_row(proof: &AuditProof, asked: &Wanted) -> Result<(), String> {
    let row = proof.row.as_ref().and_then(|row| Row::read(&row.text));
    issued_by(proof, asked, row.as_ref().and_then(Row::issued))
}

/// What is needed of a row.
#[derive(serde::Deserialize)]
struct Row {
    action: String,
    #[serde(default)]
    new: Option<serde_json::Value>,
}

impl Row {
    fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    fn issued(&self) -> Option<Issuance<'_>> {
        Issuance::of(&self.action, self.new.as_ref()?)
    }
}

impl Present for ProofReport {
    const KIND: &'static str = "AuditProofReport";

    fn text(&self, _wide: bool) -> String {
        if !self.holds {
            return format!("fail {}", self.problem);
        }
        let mut text = format!("ok head of {} rows, signed {}\nroot {}", self.size, self.time, self.root);
        if let Some(row) = self.row {
            text.push_str(&format!("\nok row {row} is in the log"));
        }
        match (&self.serial, &self.certificate_sha256) {
            (Some(serial), Some(hash)) if self.compared => {
                text.push_str(&format!(": the issuance of this certificate, {serial}\nsha256 {hash}"));
            }
            (Some(serial), hash) => {
                text.push_str(&format!(": the issuance of a certificate with serial number {serial}"));
                if let Some(hash) = hash {
                    text.push_str(&format!("\nsha256 {hash}"));
                }
                text.push_str(
                    "\nnote a serial number alone does not identify a certificate: compare it with --certificate FILE",
                );
            }
            (None, _) => {}
        }
        if let Some(since) = self.since {
            text.push_str(&format!("\nok the {since} rows of the kept head are its beginning"));
        }
        text
    }
}

impl Present for AuditProof {
    const KIND: &'static str = "AuditProof";

    fn text(&self, _wide: bool) -> String {
        let mut table = Table::new(["ROWS", &self.head.size.to_string()]);
        table.row(["root", &self.head.root]);
        table.row(["signed", &self.head.time.to_string()]);
        if let Some(row) = &self.row {
            table.row(["row", &row.seq.to_string()]);
            table.row(["proof", &format!("{} hashes", row.path.len())]);
        }
        if let Some(since) = &self.since {
            table.row(["since", &format!("{} rows, {} hashes", since.size, since.path.len())]);
        }
        let row = self.row.as_ref().map(|row| format!("\n\n{}", row.text)).unwrap_or_default();
        format!("{table}{row}\n\nto keep and to check it: -o json > FILE, then warren audit verify")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use warren_proto::UnixTime;
    use warren_proto::admin::{AuditHead, ProvenRow, ProvenSince, shown_path};
    use warren_proto::merkle::{Complete, Frontier, Hash, Subtrees, consistency, inclusion};

    use super::*;
    use crate::test_mesh::{NOW, TestMesh};

    fn row(seq: u64) -> String {
        format!(
            r#"{{"seq":{seq},"action":"certificate.issue","new":{{"serial":"4{seq}","certificate_sha256":"c{seq}"}}}}"#
        )
    }

    fn serial(word: &str) -> Wanted {
        Wanted::by_serial(word).expect("a serial number")
    }

    #[derive(Default)]
    struct Log(HashMap<Complete, Hash>, Frontier);

    impl Subtrees for Log {
        fn root(&self, of: Complete) -> Option<Hash> {
            self.0.get(&of).copied()
        }
    }

    impl Log {
        fn of(rows: &[String]) -> Self {
            let mut log = Self::default();
            for row in rows {
                log.0.extend(log.1.append(leaf_hash(row.as_bytes())));
            }
            log
        }

        fn head(&self, mesh: &TestMesh, time: UnixTime) -> AuditHead {
            let head = TreeHead { trust_domain: mesh.trust_domain(), size: self.1.size(), root: self.1.root(), time };
            AuditHead::new(&head, &mesh.sign(head.to_body()))
        }

        fn prove(&self, mesh: &TestMesh, seq: u64, since: u64) -> AuditProof {
            let path = inclusion(self, seq - 1, self.1.size()).expect("a row");
            let row = Some(ProvenRow { seq, text: row(seq), path: shown_path(&path) });
            let path = consistency(self, since, self.1.size()).expect("an earlier log");
            let since = Some(ProvenSince { size: since, path: shown_path(&path) });
            AuditProof { head: self.head(mesh, NOW), row, since }
        }
    }

    #[test]
    fn a_proof_holds_for_its_row_its_serial_number_and_the_head_that_was_kept() {
        let mesh = TestMesh::new();
        let trusted = Trusted::of(mesh.root_der()).expect("root");
        let rows: Vec<_> = (1..=11).map(row).collect();
        let kept = AuditProof { head: Log::of(&rows[..6]).head(&mesh, NOW), row: None, since: None };
        let kept = trusted.head(&kept).expect("signed");
        let proof = Log::of(&rows).prove(&mesh, 4, 6);
        let report = trusted.verify(&proof, Some(&serial("44")), Some(&kept)).expect("judged");
        assert!(report.holds && report.problem.is_empty(), "{report:?}");
        assert_eq!(
            (report.size, report.row, report.serial.as_deref(), report.since),
            (11, Some(4), Some("44"), Some(6))
        );

        let fails = |proof: &AuditProof, wanted: Option<&Wanted>, kept: Option<&TreeHead>| {
            let report = trusted.verify(proof, wanted, kept).expect("judged");
            assert!(!report.holds && report.text(false).starts_with("fail "), "{report:?}");
            report.problem
        };
        assert!(fails(&proof, Some(&serial("45")), None).contains("not the issuance"));
        let mut other = proof.clone();
        other.row.as_mut().expect("row").text = row(5);
        assert!(fails(&other, None, None).contains("not in the log"));
        let mut other = proof.clone();
        other.row.as_mut().expect("row").seq = 0;
        assert!(fails(&other, None, None).contains("not in the log"));

        // The log was written anew: every head is signed, and none goes with the one that was kept.
        let mut anew = rows.clone();
        anew[1] = anew[1].replace("42", "99");
        let forged = Log::of(&anew).prove(&mesh, 4, 6);
        assert!(trusted.verify(&forged, Some(&serial("44")), None).expect("judged").holds, "whole in itself");
        assert!(fails(&forged, Some(&serial("44")), Some(&kept)).contains("written anew"));
        assert!(fails(&Log::of(&rows[..5]).prove(&mesh, 4, 5), None, Some(&kept)).contains("rows are gone"));
        assert!(fails(&Log::of(&rows).prove(&mesh, 4, 5), None, Some(&kept)).contains("--since"));
        let same = Log::of(&rows[..6]).prove(&mesh, 4, 6);
        assert!(trusted.verify(&AuditProof { since: None, ..same }, None, Some(&kept)).expect("judged").holds);
    }

    #[test]
    fn a_certificate_with_a_serial_number_of_the_log_is_not_its_issuance_and_no_other_row_is_one() {
        let mesh = TestMesh::new();
        let trusted = Trusted::of(mesh.root_der()).expect("root");
        let proof = Log::of(&[row(1), row(2)]).prove(&mesh, 2, 1);
        let certificate = |sha256: &str| Wanted { sha256: Some(sha256.to_owned()), ..serial("42") };
        let report = trusted.verify(&proof, Some(&certificate("c2")), None).expect("judged");
        assert!(report.holds && report.compared && report.text(false).contains("of this certificate"), "{report:?}");
        check_row(&proof, &certificate("c2")).expect("it is");
        let report = trusted.verify(&proof, Some(&certificate("c3")), None).expect("judged");
        assert!(!report.holds && !report.compared && report.problem.contains("another certificate"), "{report:?}");
        check_row(&proof, &certificate("c3")).expect_err("it is not");
        let report = trusted.verify(&proof, Some(&serial("42")), None).expect("judged");
        assert!(report.holds && !report.compared && report.text(false).contains("does not identify"), "{report:?}");

        // In the log, signed and proven, and it issued nothing.
        for action in ["node.renewed", "node.set-workloads"] {
            let shows = row(1).replace("certificate.issue", action);
            let mut log = Log::of(std::slice::from_ref(&shows)).prove(&mesh, 1, 1);
            log.row.as_mut().expect("row").text = shows;
            let report = trusted.verify(&log, None, None).expect("judged");
            assert!(report.holds && report.serial.is_none(), "{report:?}");
            assert!(!trusted.verify(&log, Some(&serial("41")), None).expect("judged").holds, "{action}");
        }
    }

    #[test]
    fn a_head_that_another_mesh_signed_or_that_was_altered_is_refused() {
        let (mesh, foreign) = (TestMesh::new(), TestMesh::new());
        let trusted = Trusted::of(mesh.root_der()).expect("root");
        let log = Log::of(&[row(1), row(2)]);
        let with = |head: AuditHead| AuditProof { head, row: None, since: None };
        trusted.head(&with(log.head(&mesh, NOW))).expect("its own");
        let refused = |head: AuditHead| trusted.head(&with(head)).expect_err("refused").reason;
        assert_eq!(refused(log.head(&foreign, NOW)), Reason::ManifestSigner);
        // A moment at which the signer's certificate did not hold yet.
        assert_eq!(refused(log.head(&mesh, UnixTime(NOW.0 - 86_400 * 400))), Reason::ManifestSigner);
        let mut altered = log.head(&mesh, NOW);
        altered.body = log_body_of(&mesh, 3);
        assert_eq!(refused(altered), Reason::ManifestSignature);
        let mut another = log.head(&mesh, NOW);
        let heartbeat = mesh.heartbeat(1, NOW);
        let other = AuditHead::new(&trusted.head(&with(another.clone())).expect("head"), &heartbeat);
        (another.body, another.signature) = (other.body, other.signature);
        assert_eq!(refused(another), Reason::FrameMalformed, "no other object of the signer's is a head");
        for garbled in ["", "!", &"A".repeat(40_000)] {
            let mut head = log.head(&mesh, NOW);
            head.signature = garbled.to_owned();
            trusted.head(&with(head)).expect_err("refused");
        }
    }

    fn log_body_of(mesh: &TestMesh, size: u64) -> String {
        let rows: Vec<_> = (1..=size).map(row).collect();
        Log::of(&rows).head(mesh, NOW).body
    }
}
