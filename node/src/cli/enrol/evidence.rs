//! What a host shows to become a node, read from files: never from the command line, where every user could read it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use warren_proto::join_token::{JoinToken, MAX_TOKEN_LENGTH};
use warren_proto::reason::{Reason, Refusal};
use zeroize::Zeroizing;

use crate::admin_client::root_hash;
use crate::cli::{Exit, Failure};
use crate::control_client::enrol::{Evidence, Secret};

/// Largest token or document: the coordinator's own limit.
const MAX_DOCUMENT: u64 = 16 * 1024;
/// Largest file of certificates or of a key.
const MAX_PEM: u64 = 64 * 1024;

/// How a host enrols without a join token: the options of `warren enrol` and `warren run`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ByAttestor {
    /// Enrol by evidence for the coordinator's attestor of this name, in place of a join token.
    #[arg(
        long,
        value_name = "NAME",
        env = "WARREN_ATTESTOR",
        requires = "evidence_file",
        conflicts_with = "token_file"
    )]
    pub(in crate::cli) attestor: Option<String>,
    /// File with the evidence: a Kubernetes or OIDC token, an EC2 instance identity document (rsa2048), or a certificate chain
    /// (PEM, leaf first).
    #[arg(long, value_name = "FILE", env = "WARREN_EVIDENCE_FILE")]
    pub(in crate::cli) evidence_file: Option<PathBuf>,
    /// File with the certificate's private key (PEM). It signs once and stays on this host.
    #[arg(long, value_name = "FILE", env = "WARREN_EVIDENCE_KEY_FILE")]
    pub(in crate::cli) evidence_key_file: Option<PathBuf>,
    /// The mesh's root certificate (PEM), by which the coordinator is known; a join token brings it along.
    #[arg(long, value_name = "FILE", env = "WARREN_ROOT")]
    pub(in crate::cli) root: Option<PathBuf>,
}

impl ByAttestor {
    /// The evidence and the hash of the root, when an attestor is named.
    pub(super) fn read(&self) -> Result<Option<(Evidence, [u8; 32])>, Failure> {
        let Some(attestor) = self.attestor.clone() else { return Ok(None) };
        let missing = |what: &str, next: &str| Failure::new(Exit::Usage, what).next(next);
        let file = self
            .evidence_file
            .as_deref()
            .ok_or_else(|| missing("no evidence was given", "--evidence-file FILE, or set WARREN_EVIDENCE_FILE"))?;
        let root = self.root.as_deref().ok_or_else(|| {
            missing(
                "no root certificate was named, so no coordinator could be believed",
                "--root root.pem, or set WARREN_ROOT; `warren-coordinator init` wrote it to DIR/root.pem",
            )
        })?;
        let root = root_hash(root)?;
        let evidence = match &self.evidence_key_file {
            None => Evidence::Document { attestor, document: document(file)? },
            Some(key) => certificate(attestor, file, key)?,
        };
        Ok(Some((evidence, root)))
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Usage, format!("the evidence cannot be read from {}", path.display())).cause(error)
}

/// All of a file, or of stdin for `-`.
fn read(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // The buffer does not grow, so that no part of it is left behind unwiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(limit).unwrap_or(0) + 2));
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(limit + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| unreadable(path, &error))?;
    if bytes.len() as u64 > limit {
        return Err(Failure::new(
            Exit::Usage,
            format!("{} is larger than any evidence ({limit} bytes)", path.display()),
        ));
    }
    Ok(bytes)
}

fn document(path: &Path) -> Result<Secret, Failure> {
    let bytes = read(path, MAX_DOCUMENT)?;
    let trimmed = bytes.trim_ascii();
    if trimmed.is_empty() {
        return Err(Failure::new(Exit::Usage, format!("{} is empty", path.display())));
    }
    if trimmed.starts_with(b"-----BEGIN CERTIFICATE") {
        return Err(Failure::new(
            Exit::Usage,
            format!("{} holds a certificate, which proves nothing alone", path.display()),
        )
        .next("add --evidence-key-file FILE with its private key"));
    }
    Ok(Secret(Zeroizing::new(trimmed.to_vec())))
}

fn certificate(attestor: String, chain: &Path, key: &Path) -> Result<Evidence, Failure> {
    let wrong = |path: &Path, what: String| {
        Failure::from(Refusal::new(Reason::EvidenceMalformed, format!("{}: {what}", path.display())))
    };
    let certificates = read(chain, MAX_PEM)?;
    let certificates: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(&certificates)
        .map(|certificate| certificate.map(|der| der.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(chain, format!("not PEM certificates: {error}")))?;
    if certificates.is_empty() {
        return Err(wrong(chain, "no PEM certificate in it".to_owned()));
    }
    let pem = read(key, MAX_PEM)?;
    // Whatever the error says, it must not quote the key.
    let key_der = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| wrong(key, "no PEM private key in it".to_owned()))?;
    let signing: Arc<dyn rustls::sign::SigningKey> = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key_der)
        .map_err(|_| wrong(key, "a private key of a type that is not supported".to_owned()))?;
    Ok(Evidence::Certificate { attestor, chain: certificates, key: signing })
}

/// The join token in `file`, in a systemd credential, or on stdin.
pub(super) fn join_token(file: Option<&Path>) -> Result<JoinToken, Failure> {
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| Path::new(&dir).join("warren-token"));
    let path = match (file, credential) {
        (Some(path), _) => path.to_owned(),
        (None, Some(path)) if path.exists() => path,
        (None, _) => {
            return Err(Failure::new(Exit::Usage, "no join token was given")
                .next("warren enrol --token-file FILE (or - for stdin)")
                .next("an administrator makes one with: warren token create --for <namespace>/<name>")
                .next("without a token: warren enrol --attestor NAME --evidence-file FILE --root root.pem"));
        }
    };
    let mut text = Zeroizing::new(String::with_capacity(MAX_TOKEN_LENGTH));
    let limit = MAX_TOKEN_LENGTH as u64 + 2;
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        std::fs::File::open(&path).and_then(|file| file.take(limit).read_to_string(&mut text))
    };
    read.map_err(|error| {
        Failure::new(Exit::Usage, format!("the join token cannot be read from {}", path.display())).cause(&error)
    })?;
    Ok(JoinToken::parse(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(directory: &Path, evidence: &[u8], key: Option<&str>) -> ByAttestor {
        std::fs::write(directory.join("evidence"), evidence).expect("write");
        let root = rcgen::generate_simple_self_signed(vec!["root".into()]).expect("root").cert.pem();
        std::fs::write(directory.join("root.pem"), root).expect("write");
        let key = key.map(|key| {
            let path = directory.join("key.pem");
            std::fs::write(&path, key).expect("write");
            path
        });
        ByAttestor {
            attestor: Some("cluster".to_owned()),
            evidence_file: Some(directory.join("evidence")),
            evidence_key_file: key,
            root: Some(directory.join("root.pem")),
        }
    }

    #[test]
    fn a_token_is_sent_without_the_files_line_break_and_never_shown() {
        let directory = tempfile::tempdir().expect("directory");
        let (evidence, _) = options(directory.path(), b"a.b.c\n", None).read().expect("read").expect("an attestor");
        let Evidence::Document { document, .. } = &evidence else { panic!("not a document") };
        assert_eq!(document.0.as_slice(), b"a.b.c");
        assert!(!format!("{evidence:?}").contains("a.b.c"));
    }

    #[test]
    fn evidence_that_cannot_be_is_refused_before_anything_is_sent() {
        let directory = tempfile::tempdir().expect("directory");
        let own = rcgen::generate_simple_self_signed(vec!["web".into()]).expect("certificate");
        let (chain, key) = (own.cert.pem(), own.signing_key.serialize_pem());
        options(directory.path(), chain.as_bytes(), Some(&key)).read().expect("a chain and its key");
        let secret = "c2VjcmV0LW9mLW1pbmU=";
        let damaged = format!("-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n");
        let large = vec![b'x'; 20_000];
        for (evidence, key, named) in [
            (&b"\n"[..], None, "empty"),
            (&large, None, "larger"),
            (chain.as_bytes(), None, "--evidence-key-file"),
            (b"a.b.c", Some(key.as_str()), "no PEM certificate"),
            (chain.as_bytes(), Some(chain.as_str()), "no PEM private key"),
            (chain.as_bytes(), Some(damaged.as_str()), "private key"),
        ] {
            let failure = options(directory.path(), evidence, key).read().expect_err(named);
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.to_string().contains(named) && !failure.to_string().contains(secret), "{failure}");
        }
        let rootless = ByAttestor { root: None, ..options(directory.path(), b"a.b.c", None) };
        assert!(rootless.read().expect_err("no root").to_string().contains("--root"));
    }
}
