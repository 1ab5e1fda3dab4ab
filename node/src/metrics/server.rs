//! `GET /metrics` over HTTP/1.1, and nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::warn;
use warren_proto::reason::{Reason, Refusal};

use crate::daemon::surface::Surface;
use crate::stop::Stop;
use crate::underlay;

/// Askers at once: a few scrapers, and whoever tries it by hand.
const CONNECTIONS: usize = 16;
/// A request's head must be complete, and a connection may be idle, for so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// One connection lives at most this long: a scraper opens another.
const LIFETIME: Duration = Duration::from_secs(300);
/// Largest request's head in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;
/// What the page is (OpenMetrics 1.0.0, content type).
const PAGE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The listening socket.
#[derive(Debug)]
pub struct Server(TcpListener);

impl Server {
    /// Listens at `address` of the underlay's network namespace, which may be one of the overlay that this host is yet to get (`IP_FREEBIND`): it then answers
    /// those whom policy lets in.
    pub fn bind(address: SocketAddr) -> Result<Self, Refusal> {
        let listening = underlay::run(move || listen(address)).and_then(|made| made);
        listening.and_then(TcpListener::from_std).map(Self).map_err(|error| {
            Refusal::new(Reason::Internal, format!("metrics.address {address} cannot be listened at: {error}"))
                .hint("choose another port, or leave metrics.address empty")
        })
    }

    /// Answers until told to stop.
    pub async fn run(self, surface: Arc<Surface>, stop: Stop) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let stream = tokio::select! {
                accepted = self.0.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        warn!("metrics.address does not accept: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = stop.stopped() => return,
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
            let (surface, stop) = (surface.clone(), stop.clone());
            tokio::spawn(async move {
                let _slot = slot;
                tokio::select! {
                    () = serve(stream, surface) => {}
                    () = tokio::time::sleep(LIFETIME) => {}
                    () = stop.stopped() => {}
                }
            });
        }
    }
}

fn listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    match address {
        SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_freebind(&socket, true)?,
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

async fn serve(stream: TcpStream, surface: Arc<Surface>) {
    let answer = service_fn(move |request| {
        let surface = surface.clone();
        async move { Ok::<_, Infallible>(answer(&request, &surface).await) }
    });
    // An error here is an asker that went away, or that speaks something else.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

async fn answer(request: &Request<Incoming>, surface: &Surface) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match super::exposition(surface.status().await) {
            Ok(page) => text(StatusCode::OK, PAGE, page),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        },
        (_, "/metrics") => {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            refused
        }
        _ => plain(StatusCode::NOT_FOUND, "the figures are at /metrics\n"),
    }
}

fn plain(status: StatusCode, words: &str) -> Response<Full<Bytes>> {
    text(status, "text/plain; charset=utf-8", words.to_owned())
}

fn text(status: StatusCode, kind: &'static str, page: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(page)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
