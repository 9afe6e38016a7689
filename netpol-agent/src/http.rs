//! What the agent answers over HTTP: metrics, health, and which versions are in force.
//!
//! Four read-only routes need no framework. Connections are few and short-lived by construction: their number is
//! bounded, and a client that does not finish its request is cut off.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::metrics::State;

/// Connections at once. A scraper and a kubelet need two.
const CONNECTIONS: usize = 64;

/// Time for a client to send a request's head; also how long an idle connection lives.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens the listening socket, before anything is programmed: a port that is taken should stop the agent at once.
///
/// `::` is every address of both families, whatever the sysctl `net.ipv6.bindv6only` says, and `0.0.0.0` on a kernel
/// without IPv6: the kubelet probes a pod in the host network by the node's address, of the cluster's first family.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = listen(address).and_then(|socket| TcpListener::from_std(socket.into()));
    listener.with_context(|| format!("--metrics-address {address}: cannot listen"))
}

fn listen(address: SocketAddr) -> std::io::Result<Socket> {
    const BACKLOG: i32 = 128;
    let is_every = address.is_ipv6() && address.ip().is_unspecified();
    let socket = match Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP)) {
        Err(error) if is_every && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            return listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())));
        }
        socket => socket?,
    };
    if is_every {
        socket.set_only_v6(false)?;
    }
    // A restarted agent does not wait for connections of the one before it.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Answers until the process ends.
pub async fn serve(listener: TcpListener, state: Arc<State>) -> Infallible {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { unreachable!("nobody closes the semaphore") };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or a connection that died in the queue: neither is for ever.
                tracing::warn!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = answer(request.method(), request.uri().path(), &state);
                async { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!("http connection: {error}");
            }
            drop(slot);
        });
    }
}

fn answer(method: &Method, path: &str, state: &Arc<State>) -> Response<Full<Bytes>> {
    if !matches!(path, "/metrics" | "/livez" | "/readyz" | "/v1/applied") {
        return text(StatusCode::NOT_FOUND, "not found\n");
    }
    if method != Method::GET && method != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => match state.render() {
            Ok(metrics) => body(StatusCode::OK, State::CONTENT_TYPE, metrics),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        },
        "/livez" if state.is_alive(Instant::now()) => text(StatusCode::OK, "ok\n"),
        "/livez" => text(StatusCode::SERVICE_UNAVAILABLE, "the reconcile loop does not turn\n"),
        "/readyz" if state.is_ready() => text(StatusCode::OK, "ok\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not everything is programmed yet\n"),
        _ => body(StatusCode::OK, "application/json", format!("{}\n", state.applied_json())),
    }
}

fn text(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    body(status, "text/plain; charset=utf-8", message.to_owned())
}

fn body(status: StatusCode, content_type: &'static str, content: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(content)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use netpol_policy::decode::Kind;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn start(state: &Arc<State>) -> SocketAddr {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(serve(listener, Arc::clone(state)));
        address
    }

    /// Status and body.
    async fn request(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let head = format!("{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        let (head, body) = answer.split_once("\r\n\r\n").expect("head");
        (head[9..12].parse().expect("status"), body.to_owned())
    }

    #[tokio::test]
    async fn every_address_is_of_both_families() {
        let listener = bind("[::]:0".parse().expect("address")).await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let state = State::new();
        tokio::spawn(serve(listener, Arc::clone(&state)));
        // A kernel without IPv6 has no such loopback address to be reached by.
        for loopback in ["127.0.0.1", "::1"].map(|address| address.parse().expect("address")) {
            let address = SocketAddr::new(loopback, port);
            let has_it = loopback.is_ipv4() || std::net::UdpSocket::bind((loopback, 0)).is_ok();
            if has_it {
                assert_eq!(request(address, "GET", "/nothing").await.0, 404, "{address}");
            }
        }
    }

    #[tokio::test]
    async fn readiness_comes_with_the_first_full_programming() {
        let state = State::new();
        let address = start(&state).await;
        assert_eq!(request(address, "GET", "/readyz").await.0, 503);
        assert_eq!(request(address, "GET", "/livez").await.0, 200);
        state.programmed();
        assert_eq!(request(address, "GET", "/readyz").await, (200, "ok\n".into()));
    }

    #[tokio::test]
    async fn metrics_are_served_as_text() {
        let state = State::new();
        state.set_policies(3);
        let address = start(&state).await;
        let (status, body) = request(address, "GET", "/metrics").await;
        assert_eq!(status, 200);
        assert!(body.contains("netpol_policies{mode=\"enforce\"} 3"), "{body}");
    }

    #[tokio::test]
    async fn applied_versions_are_served_as_json() {
        let state = State::new();
        state.applied(Kind::Policy, "42");
        let address = start(&state).await;
        let (status, body) = request(address, "GET", "/v1/applied").await;
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!((status, &body["applied"]["NetworkPolicy"]["version"]), (200, &"42".into()));
    }

    #[tokio::test]
    async fn other_paths_are_not_found_and_other_methods_not_allowed() {
        let address = start(&State::new()).await;
        assert_eq!(request(address, "GET", "/").await.0, 404);
        assert_eq!(request(address, "GET", "/metrics/").await.0, 404);
        assert_eq!(request(address, "POST", "/metrics").await.0, 405);
        assert_eq!(request(address, "HEAD", "/readyz").await, (503, String::new()));
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_an_error_that_names_the_flag() {
        let taken = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("bind");
        let error = bind(taken.local_addr().expect("address")).await.expect_err("taken");
        assert!(error.to_string().contains("--metrics-address 127.0.0.1:"), "{error}");
    }
}
