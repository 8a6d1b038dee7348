//! HTTP: records from scripts and webhooks, and to them.
//!
//! | | |
//! | --- | --- |
//! | `POST /v1/topics/{topic}/records` | produce: a JSON array, NDJSON or one raw body ([`records`]) |
//! | `GET /v1/topics/{topic}/records` | a page of records from an offset on (`consume`) |
//! | `GET /v1/topics/{topic}/tail` | records as they come, as Server-Sent Events (`tail`) |
//! | `GET /v1/topics`, `GET /v1/topics/{topic}` | topics, partitions, ends (`topics`) |
//! | `GET /openapi.json` | all of this for machines (`openapi`) |
//!
//! A produce is answered with 200 and the offsets after the store's sync. A request is checked as a
//! whole before anything is stored, but its batches are stored one by one: after an error that came
//! later (503, 507) some of its records may be stored, and sending it again stores those twice.
//!
//! Reading keeps nothing of a reader: the client knows its offset. Disk reads happen beside the
//! runtime's threads, and what was read counts against slots until the client has taken it ([`reading`]).
//!
//! With users configured a request carries a bearer token (`caller`).
//!
//! Deliberately not done here: consumer groups (Kafka clients have them), TLS.

mod caller;
mod consume;
pub mod error;
mod idle;
pub mod json;
mod listener;
mod openapi;
mod produce;
mod reading;
pub mod records;
mod sent;
mod tail;
mod topics;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use error::HttpError;
pub use listener::Listener;
use reading::Reading;

use crate::access::Access;
use crate::config;
use crate::ingest::Ingest;
use crate::quota::Quota;
use crate::store::Store;

/// Pages that are read, or on their way to a client, at a time: with a page's largest size they bound the
/// memory of all readers.
const PAGES: usize = 8;

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
    /// Time that a client has to take an answer that does not fit its window at once.
    pub send_grace: Duration,
    /// Bytes per second that add to both.
    pub min_bytes_per_s: u64,
    /// A connection on which nothing moves for so long is closed.
    pub idle_timeout: Duration,
    /// At the limit of connections, one that waits for a request so long makes room for the next.
    pub min_idle: Duration,
    /// Time that a request waits for room in the node's budget.
    pub budget_wait: Duration,
    /// Time that a request waits for the sync.
    pub sync_timeout: Duration,
    /// Time to answer what is in flight on stop.
    pub drain_timeout: Duration,
    /// The longest that a request may wait for records.
    pub longest_wait: Duration,
    /// Open tails.
    pub max_tails: usize,
    /// A tail with nothing to tell says so, so often.
    pub heartbeat: Duration,
    /// What all clients together may use.
    pub quota: Arc<Quota>,
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
            longest_wait: file.request_timeout.duration(),
            max_tails: file.max_tails,
            quota: Arc::new(Quota::new(file.limits)),
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
            send_grace: Duration::from_secs(20),
            min_bytes_per_s: 4 * 1024,
            idle_timeout: Duration::from_secs(75),
            min_idle: Duration::from_secs(2),
            budget_wait: Duration::from_secs(5),
            sync_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            longest_wait: Duration::from_secs(30),
            max_tails: 64,
            heartbeat: Duration::from_secs(15),
            quota: Arc::default(),
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
    /// Idle connections ended for others.
    pub evicted: AtomicU64,
    /// Requests.
    pub requests: AtomicU64,
    /// Requests answered with an error.
    pub refused: AtomicU64,
    /// Tails open.
    pub tails: AtomicU64,
    /// Time that clients were told to wait because of a quota, ms.
    pub throttled_ms: AtomicU64,
}

/// What the routes lead to.
#[derive(Debug, Clone)]
pub struct Doors {
    /// The way in.
    pub ingest: Ingest,
    /// The way out.
    pub store: Arc<dyn Store>,
    /// Who may do what.
    pub access: Arc<Access>,
    /// Most bytes that a stored batch decompresses to.
    pub max_decoded: usize,
}

#[derive(Debug)]
struct App {
    ingest: Ingest,
    reading: Reading,
    access: Arc<Access>,
    max_decoded: usize,
    config: HttpConfig,
    stats: Arc<HttpStats>,
    tails: Arc<Semaphore>,
    /// Whose turn it is among the partitions for records without a key.
    turn: AtomicU32,
}

impl App {
    /// Counts a request and says no where that is the answer.
    async fn answer(&self, work: impl Future<Output = Result<Response, HttpError>>) -> Response {
        self.stats.requests.fetch_add(1, Ordering::Relaxed);
        match work.await {
            Ok(response) => response,
            Err(error) => {
                self.stats.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(
                    status = error.status.as_u16(),
                    text = error.text,
                    "Request refused"
                );
                error.into_response()
            }
        }
    }
}

/// Every address, once.
fn routes() -> [(&'static str, MethodRouter<Arc<App>>); 5] {
    [
        ("/openapi.json", get(openapi::document)),
        ("/v1/topics", get(topics::list)),
        ("/v1/topics/{topic}", get(topics::one)),
        (
            "/v1/topics/{topic}/records",
            get(consume::consume).post(produce::produce),
        ),
        ("/v1/topics/{topic}/tail", get(tail::tail)),
    ]
}

/// The routes, to be served by [`Listener`] or with others. From `stop` on, readers get what there is.
pub fn router(
    doors: Doors,
    config: HttpConfig,
    stats: Arc<HttpStats>,
    stop: CancellationToken,
) -> Router {
    let app = App {
        ingest: doors.ingest,
        reading: Reading::new(doors.store, PAGES, config.budget_wait, stop),
        access: doors.access,
        max_decoded: doors.max_decoded,
        tails: Arc::new(Semaphore::new(config.max_tails)),
        config,
        stats,
        turn: AtomicU32::new(0),
    };
    let router = routes()
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| {
            router.route(path, methods)
        });
    router
        .fallback(async || {
            let text = "no such address; /openapi.json lists all that there are";
            HttpError::new(StatusCode::NOT_FOUND, text)
        })
        .method_not_allowed_fallback(async || {
            let text = "no such method here; /openapi.json lists what there is";
            HttpError::new(StatusCode::METHOD_NOT_ALLOWED, text)
        })
        .with_state(Arc::new(app))
}

#[cfg(test)]
mod tests;
