//! The four endpoints of every process: `/livez`, `/readyz`, `/metrics` and `/status`.
//!
//! *Live* means that the process makes progress: it fails only where a restart would help. *Ready* means
//! that it does its work. *Status* is for people and for the operator: JSON with the figures behind both.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use axum::{
    Json, Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The port that every worker serves on.
pub const PORT: u16 = 8080;

/// What a process says of itself. Each answer must be immediate: it is asked every few seconds.
pub trait Probe: Send + Sync + 'static {
    /// `Err` with the reason where only a restart would help.
    ///
    /// # Errors
    /// The reason, as a sentence.
    fn live(&self) -> Result<(), String> {
        Ok(())
    }

    /// `Err` with the reason where the work is not being done.
    ///
    /// # Errors
    /// The reason, as a sentence.
    fn ready(&self) -> Result<(), String>;

    /// The figures, for people and for the operator.
    fn status(&self) -> serde_json::Value;
}

/// Serves the endpoints until `shutdown`.
///
/// # Errors
/// Where accepting connections fails.
pub async fn serve(
    listener: TcpListener,
    probe: Arc<dyn Probe>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router(probe))
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

/// Listens on all addresses at `port`, of IPv6 and of IPv4: a pod may have either alone. Port 0 takes a free
/// one.
///
/// # Errors
/// Where the port is taken or may not be used.
pub async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        // A port that is taken is taken, and one that may not be used is as little allowed with IPv4.
        Err(error) if !matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied) => {
            // A machine without IPv6, which says so with one of several errors.
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        result => result,
    }
}

fn router(probe: Arc<dyn Probe>) -> Router {
    let (live, ready, status) = (probe.clone(), probe.clone(), probe);
    Router::new()
        .route("/livez", get(move || async move { verdict(live.live()) }))
        .route("/readyz", get(move || async move { verdict(ready.ready()) }))
        .route("/status", get(move || async move { Json(status.status()) }))
        .route(
            "/metrics",
            get(|| async {
                (
                    [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
                    crate::metrics::render(),
                )
            }),
        )
}

fn verdict(verdict: Result<(), String>) -> impl IntoResponse {
    match verdict {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Fixed;

    impl Probe for Fixed {
        fn ready(&self) -> Result<(), String> {
            Err("the broker does not answer".to_owned())
        }

        fn status(&self) -> serde_json::Value {
            serde_json::json!({"polls": 7})
        }
    }

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_the_four_paths_and_ends_when_asked() {
        crate::metrics::install().unwrap();
        ::metrics::counter!("http_test_total").increment(3);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Arc::new(Fixed), shutdown.clone()));
        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"));
        let ready = ask(address, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("the broker does not answer"));
        assert!(ask(address, "/status").await.ends_with(r#"{"polls":7}"#));
        assert!(ask(address, "/metrics").await.contains("http_test_total 3"));
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn listens_where_ipv4_and_ipv6_arrive() {
        let listener = listen(0).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
        // Only where this machine has IPv6 at all.
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            addresses.push(SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
        }
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Arc::new(Fixed), shutdown.clone()));
        for address in addresses {
            assert!(
                ask(address, "/livez").await.starts_with("HTTP/1.1 200"),
                "{address}"
            );
        }
        shutdown.cancel();
        server.await.unwrap().unwrap();
        let taken = listen(0).await.unwrap();
        let error = listen(taken.local_addr().unwrap().port()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }
}
