//! HTTP: records from scripts and webhooks.
//!
//! `POST /v1/topics/{topic}/records` with a JSON array, NDJSON or one raw body; what each is:
//! [`records`]. Answered with 200 and the offsets after the store's sync. A request is checked as a
//! whole before anything is stored, but its batches are stored one by one: after an error that came
//! later (503, 507) some of its records may be stored, and sending it again stores those twice.
//!
//! Deliberately not done here: consuming, TLS, authentication.

pub mod error;
pub mod json;
mod listener;
mod produce;
pub mod records;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;

use error::HttpError;
pub use listener::Listener;

use crate::config;
use crate::ingest::Ingest;

/// The listener's settings.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Where to listen.
    pub bind: SocketAddr,
    /// Open connections.
    pub max_connections: usize,
    /// Largest body.
    pub max_body_bytes: usize,
    /// Time that any body has to arrive.
    pub body_grace: Duration,
    /// Bytes per second that add to it.
    pub min_bytes_per_s: u64,
    /// A connection on which nothing moves for so long is closed.
    pub idle_timeout: Duration,
    /// Time that a request waits for room in the node's budget.
    pub budget_wait: Duration,
    /// Time that a request waits for the sync.
    pub sync_timeout: Duration,
    /// Time to answer what is in flight on stop.
    pub drain_timeout: Duration,
}

impl HttpConfig {
    /// The file's settings, with defaults for what it doesn't name.
    #[must_use]
    pub fn from_file(file: &config::HttpConfig) -> Self {
        Self {
            max_connections: file.max_connections,
            max_body_bytes: file.max_body.as_usize(),
            body_grace: file.request_timeout.duration(),
            sync_timeout: file.request_timeout.duration(),
            ..Self::new(file.listen)
        }
    }

    /// Defaults for a listener at `bind`.
    #[must_use]
    pub fn new(bind: SocketAddr) -> Self {
        Self {
            bind,
            max_connections: 500,
            max_body_bytes: 8 * 1024 * 1024,
            body_grace: Duration::from_secs(20),
            min_bytes_per_s: 4 * 1024,
            idle_timeout: Duration::from_secs(75),
            budget_wait: Duration::from_secs(5),
            sync_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Counters, for metrics.
#[derive(Debug, Default)]
pub struct HttpStats {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections open.
    pub open: AtomicU64,
    /// Requests for the records of a topic.
    pub requests: AtomicU64,
    /// Requests answered with an error.
    pub refused: AtomicU64,
}

#[derive(Debug)]
struct App {
    ingest: Ingest,
    config: HttpConfig,
    stats: Arc<HttpStats>,
    /// Whose turn it is among the partitions for records without a key.
    turn: AtomicU32,
}

/// The routes, to be served by [`Listener`] or with others.
pub fn router(ingest: Ingest, config: HttpConfig, stats: Arc<HttpStats>) -> Router {
    let app = App {
        ingest,
        config,
        stats,
        turn: AtomicU32::new(0),
    };
    Router::new()
        .route("/v1/topics/{topic}/records", post(produce::produce))
        .fallback(async || {
            let text = "no such address; accepted: POST /v1/topics/{topic}/records";
            HttpError::new(StatusCode::NOT_FOUND, text)
        })
        .method_not_allowed_fallback(async || {
            let text = "no such method here; accepted: POST";
            HttpError::new(StatusCode::METHOD_NOT_ALLOWED, text)
        })
        .with_state(Arc::new(app))
}

#[cfg(test)]
mod tests;
