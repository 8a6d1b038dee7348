//! `/healthz`, `/readyz`, `/metrics` and `/status` of a node, for machines and for `status`.
//!
//! No authentication: it listens on loopback or a management network. Connections are bounded in
//! number, and one that stays silent is closed.

mod client;
mod listener;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use client::{FetchError, fetch};
use listener::BoundedListener;

/// One condition of readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at: `store`, `lanes`.
    pub name: &'static str,
    /// What is wrong; `None`: it is fine.
    pub problem: Option<String>,
}

impl Check {
    /// A condition that holds when there is no problem.
    #[must_use]
    pub const fn new(name: &'static str, problem: Option<String>) -> Self {
        Self { name, problem }
    }
}

/// What a node tells about itself. Calls may block for a moment; they run off the async threads.
pub trait Provider: Send + Sync + 'static {
    /// Whether the node can do its work: a site is ready when it accepts records, whatever the link.
    fn readiness(&self) -> Vec<Check>;

    /// All metrics as OpenMetrics text.
    ///
    /// # Errors
    /// The writer's.
    fn metrics(&self) -> Result<String, std::fmt::Error>;

    /// The status document.
    fn status(&self) -> serde_json::Value;
}

/// Serves until told to stop.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    provider: Arc<dyn Provider>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(provider);
    let server = axum::serve(BoundedListener::new(listener), routes);
    // Nothing here is worth waiting for.
    tokio::select! {
        result = server => result,
        () = stop.cancelled() => Ok(()),
    }
}

type Node = State<Arc<dyn Provider>>;

async fn readyz(State(node): Node) -> Response {
    ask(node, |node| {
        let checks = node.readiness();
        let mut text = String::new();
        for check in &checks {
            let state = check.problem.as_deref().unwrap_or("ok");
            text.push_str(&format!("{}: {state}\n", check.name));
        }
        let is_ready = checks.iter().all(|check| check.problem.is_none());
        let code = if is_ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        (code, text).into_response()
    })
    .await
}

async fn metrics(State(node): Node) -> Response {
    ask(node, |node| match node.metrics() {
        Ok(text) => ([(header::CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    })
    .await
}

async fn status(State(node): Node) -> Response {
    ask(node, |node| {
        let body = format!("{}\n", node.status());
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    })
    .await
}

async fn ask(
    node: Arc<dyn Provider>,
    answer: impl FnOnce(&dyn Provider) -> Response + Send + 'static,
) -> Response {
    let answered = tokio::task::spawn_blocking(move || answer(node.as_ref())).await;
    answered.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[derive(Default)]
    struct Fake {
        is_full: AtomicBool,
    }

    impl Provider for Fake {
        fn readiness(&self) -> Vec<Check> {
            let problem = self
                .is_full
                .load(Ordering::Relaxed)
                .then(|| "the disk is full".to_owned());
            vec![Check::new("store", problem), Check::new("kafka", None)]
        }

        fn metrics(&self) -> Result<String, std::fmt::Error> {
            crate::metrics::encode("kedge_test", |scrape| {
                scrape.gauge("up", "Up", crate::metrics::single(1.0))
            })
        }

        fn status(&self) -> serde_json::Value {
            serde_json::json!({ "site": "shop-1" })
        }
    }

    async fn start(provider: Arc<Fake>) -> (SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, provider, stop.clone()));
        (address, stop)
    }

    async fn read(address: SocketAddr, path: &'static str) -> (u16, String) {
        let limit = Duration::from_secs(10);
        tokio::task::spawn_blocking(move || fetch(address, path, limit))
            .await
            .unwrap()
            .unwrap()
    }

    #[tokio::test]
    async fn every_page_answers() {
        let provider = Arc::new(Fake::default());
        let (address, _stop) = start(Arc::clone(&provider)).await;
        assert_eq!(read(address, "/healthz").await, (200, "ok\n".to_owned()));
        assert_eq!(
            read(address, "/readyz").await,
            (200, "store: ok\nkafka: ok\n".to_owned())
        );
        provider.is_full.store(true, Ordering::Relaxed);
        let (code, text) = read(address, "/readyz").await;
        assert_eq!(
            (code, text.as_str()),
            (503, "store: the disk is full\nkafka: ok\n")
        );
        assert!(
            read(address, "/metrics")
                .await
                .1
                .contains("kedge_test_up 1")
        );
        assert_eq!(read(address, "/status").await.1, "{\"site\":\"shop-1\"}\n");
        assert_eq!(read(address, "/other").await.0, 404);
    }

    #[tokio::test]
    async fn silent_connections_do_not_keep_others_out_for_ever() {
        let (address, _stop) = start(Arc::default()).await;
        let mut silent = Vec::new();
        for _ in 0..listener::MAX_CONNECTIONS {
            silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        // One place is free as soon as one of them goes.
        silent.pop();
        assert_eq!(read(address, "/healthz").await.0, 200);
    }
}
