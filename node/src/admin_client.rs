//! A client of the coordinator's admin API: HTTPS to one coordinator, known by its certificate and the pinned root,
//! not by the dialled name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, IF_MATCH};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use warren_proto::UnixTime;
use warren_proto::admin::{BASE_PATH, Credential, Kind, Page, Problem, Versioned};
use warren_proto::reason::{Reason, Refusal};

use crate::clock::{self, Clock};
use crate::control_client::tls::{ClientTls, Trust};

/// The TCP connection and the TLS handshake.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// One request: the coordinator gives up after a minute.
const REQUEST_TIME: Duration = Duration::from_secs(70);

/// The largest answer that is read.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// The largest root certificate file that is read.
const MAX_ROOT: u64 = 64 * 1024;

/// Where the coordinator is and by what it is known.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `https://host:port`.
    pub url: String,
    /// The mesh's root certificate, PEM.
    pub root: PathBuf,
}

/// A change's conditions.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Say what would be done and do nothing.
    pub dry_run: bool,
    /// For the audit log.
    pub why: String,
    /// Only if the object is still at this revision.
    pub if_match: Option<u64>,
}

/// Why a request was not done, with what the coordinator found in policy files.
#[derive(Debug, Clone)]
pub struct Refused {
    /// The refusal.
    pub refusal: Refusal,
    /// The whole of what the coordinator said, when it was the coordinator that refused.
    pub problem: Option<Box<Problem>>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, problem: None }
    }
}

/// One connection.
#[derive(Debug)]
pub struct AdminClient {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
    authorization: HeaderValue,
}

impl AdminClient {
    /// Connects and authenticates the coordinator. The credential leaves this process only afterwards.
    ///
    /// # Errors
    /// When the address is malformed, nobody answers, or whoever answers is not the mesh's coordinator.
    pub async fn connect(endpoint: &Endpoint, credential: &Credential) -> Result<Self, Refusal> {
        let uri: Uri = endpoint.url.parse().map_err(|_| bad_url(&endpoint.url))?;
        let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(bad_url(&endpoint.url));
        };
        if !matches!(uri.path(), "" | "/") {
            return Err(bad_url(&endpoint.url));
        }
        let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(8444);
        let trust = Trust::Pinned(root_hash(&endpoint.root)?);
        let clock = Arc::new(Clock::new(clock::read, UnixTime(0)));
        let ClientTls { config, server_name, refused } = ClientTls::admin(trust, clock)?;

        let unreachable = |detail: String| {
            Refusal::new(Reason::CoordinatorUnreachable, format!("{} does not answer: {detail}", endpoint.url))
                .hint("check the address and that `warren-coordinator serve` runs there")
        };
        let stream = tokio::time::timeout(CONNECT_TIME, TcpStream::connect((name.as_str(), port)))
            .await
            .map_err(|_| unreachable("the connection timed out".to_owned()))?
            .map_err(|error| unreachable(error.to_string()))?;
        let server = ServerName::try_from(server_name).map_err(|_| bad_url(&endpoint.url))?;
        let handshake = TlsConnector::from(Arc::new(config)).connect(server, stream);
        let stream = match tokio::time::timeout(CONNECT_TIME, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let refused = refused.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                return Err(refused.map_or_else(|| unreachable(error.to_string()), |why| foreign(endpoint, why)));
            }
            Err(_) => return Err(unreachable("the TLS handshake timed out".to_owned())),
        };
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        // It ends with the connection; how it ended shows in the request under way.
        tokio::spawn(async move { drop(connection.await) });
        let header = |text: &str| HeaderValue::from_str(text).map_err(|_| bad_url(&endpoint.url));
        let mut authorization = header(&format!("Bearer {}", *credential.expose()))?;
        authorization.set_sensitive(true);
        Ok(Self { sender, host: header(authority.as_str())?, authorization })
    }

    /// Reads one object.
    ///
    /// # Errors
    /// The coordinator's refusal, or that the connection failed.
    pub async fn get<T: Kind + DeserializeOwned>(&mut self, path: &str) -> Result<T, Refused> {
        self.ask(Method::GET, path, None, &Terms::default()).await
    }

    /// Reads a list, page after page, up to `limit` items.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn list<L, T>(&mut self, path: &str, limit: usize, page: fn(L) -> Page<T>) -> Result<Vec<T>, Refused>
    where
        L: Kind + DeserializeOwned,
    {
        let mut items = Vec::new();
        let mut cursor = String::new();
        while items.len() < limit {
            let count = (limit - items.len()).min(warren_proto::admin::MAX_PAGE);
            let Page { items: next, next_cursor } = page(self.get(&format!("{path}?limit={count}{cursor}")).await?);
            items.extend(next);
            let Some(next) = next_cursor else { break };
            cursor = format!("&cursor={next}");
        }
        Ok(items)
    }

    /// Asks for a change, under a fresh Idempotency-Key.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn change<T: Kind + DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        terms: &Terms,
    ) -> Result<T, Refused> {
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| {
            Refusal::new(Reason::Internal, format!("the request cannot be written as JSON: {error}"))
        })?;
        let why = encode(&terms.why);
        self.ask(method, &format!("{path}?dry_run={}&why={why}", terms.dry_run), body, terms).await
    }

    /// Sends a question that needs a body and changes nothing.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn inquire<T: Kind + DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Refused> {
        let body = serde_json::to_vec(body).map_err(|error| {
            Refusal::new(Reason::Internal, format!("the request cannot be written as JSON: {error}"))
        })?;
        self.ask(Method::POST, path, Some(body), &Terms::default()).await
    }

    async fn ask<T: Kind + DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        terms: &Terms,
    ) -> Result<T, Refused> {
        let mut request = Request::builder()
            .method(&method)
            .uri(format!("{BASE_PATH}{path}"))
            .header(HOST, &self.host)
            .header(AUTHORIZATION, &self.authorization);
        if method != Method::GET {
            let key = hex::encode(rand::random::<[u8; 16]>());
            request = request.header(HeaderName::from_static("idempotency-key"), key);
        }
        if let Some(revision) = terms.if_match {
            request = request.header(IF_MATCH, format!("\"{revision}\""));
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| Refusal::new(Reason::InvalidField, format!("the request cannot be made: {error}")))?;
        let exchange = async {
            self.sender.ready().await.map_err(|error| broken(&error))?;
            let response = self.sender.send_request(request).await.map_err(|error| broken(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            Ok::<_, Refusal>((status, body.map_err(|error| broken(&*error))?.to_bytes()))
        };
        let (status, bytes) = tokio::time::timeout(REQUEST_TIME, exchange)
            .await
            .map_err(|_| Refusal::new(Reason::NotReady, "the coordinator took too long to answer"))??;
        read(status, &bytes)
    }
}

fn read<T: Kind + DeserializeOwned>(status: StatusCode, bytes: &[u8]) -> Result<T, Refused> {
    let foreign = |error: serde_json::Error| {
        Refusal::new(
            Reason::VersionUnsupported,
            format!("the coordinator's answer ({status}) is not understood: {error}"),
        )
        .hint("compare `warren version` with `warren-coordinator --version`")
    };
    if status.is_success() {
        let answer: Versioned<T> = serde_json::from_slice(bytes).map_err(foreign)?;
        return Ok(answer.into_value()?);
    }
    let problem: Problem = serde_json::from_slice(bytes).map_err(foreign)?;
    Err(Refused { refusal: problem.refusal(), problem: Some(Box::new(problem)) })
}

fn broken(error: &(dyn std::error::Error + 'static)) -> Refusal {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    Refusal::new(Reason::CoordinatorUnreachable, format!("the connection to the coordinator broke: {words}"))
        .hint("whether a change was made is not known: look before you repeat it")
}

/// Whoever answered is not the mesh's coordinator. Nothing was sent to it.
fn foreign(endpoint: &Endpoint, why: Refusal) -> Refusal {
    if why.reason != Reason::UntrustedIssuer {
        return why;
    }
    let root = endpoint.root.display();
    Refusal::new(why.reason, format!("{} is not a coordinator of the mesh whose root is {root}", endpoint.url))
        .hint("compare the address and --root; the token was not sent")
}

fn bad_url(url: &str) -> Refusal {
    Refusal::new(Reason::InvalidField, format!("coordinator: {url:?}, expected https://host:port"))
}

/// The SHA-256 of the first certificate in a PEM file.
pub(crate) fn root_hash(path: &Path) -> Result<[u8; 32], Refusal> {
    let wrong = |what: &str| {
        Refusal::new(Reason::InvalidField, format!("root: {} {what}", path.display()))
            .hint("`warren-coordinator init` writes the mesh's root to DIR/root.pem; copy that file")
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_ROOT), &mut text)
        .map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    let begin = "-----BEGIN CERTIFICATE-----";
    let body = text.split_once(begin).and_then(|(_, rest)| rest.split_once("-----END CERTIFICATE-----"));
    let (body, _) = body.ok_or_else(|| wrong("holds no PEM certificate"))?;
    let body: String = body.split_whitespace().collect();
    let der = STANDARD.decode(body).map_err(|_| wrong("holds a damaged PEM certificate"))?;
    Ok(Sha256::digest(der).into())
}

/// Percent-encodes a value of a query.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_a_query_cannot_become_another_parameter() {
        assert_eq!(encode("a&dry_run=true #\u{e9}"), "a%26dry_run%3Dtrue%20%23%C3%A9");
    }

    #[test]
    fn a_root_file_is_read_or_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.pem");
        let pem = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, pem).unwrap();
        assert_eq!(root_hash(&path).unwrap(), <[u8; 32]>::from(Sha256::digest([0, 1, 2])));
        for wrong in ["", "AAEC", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"] {
            std::fs::write(&path, wrong).unwrap();
            let refusal = root_hash(&path).unwrap_err();
            assert!(refusal.detail.contains("root.pem") && !refusal.hint.is_empty(), "{refusal}");
        }
        assert!(root_hash(&directory.path().join("none")).is_err());
    }

    #[test]
    fn what_is_no_answer_of_a_coordinator_is_not_taken_for_one() {
        let read = |status, text: &str| read::<warren_proto::admin::Deleted>(status, text.as_bytes());
        assert!(read(StatusCode::OK, "<html>").is_err());
        assert!(read(StatusCode::OK, r#"{"apiVersion":"warren/v1","kind":"Node","id":"a","committed":true}"#).is_err());
        assert_eq!(read(StatusCode::BAD_GATEWAY, "<html>").unwrap_err().refusal.reason, Reason::VersionUnsupported);
        let problem = Problem::new(&Refusal::new(Reason::Conflict, "moved"), 409, "r".into());
        let refused = read(StatusCode::CONFLICT, &serde_json::to_string(&problem).unwrap()).unwrap_err();
        assert_eq!(refused.refusal.reason, Reason::Conflict);
    }
}
