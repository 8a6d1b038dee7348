//! Who asks, by bearer token (RFC 6750, section 2.1), and what that allows.
//!
//! Users and rules are the node's ([`crate::access`]). Nothing is told of a topic, not even whether it is
//! there, before its rule was looked at.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::App;
use super::error::{HttpError, LoginRefused};
use super::listener::Peer;
use crate::access::{Principal, RefusedLogins};
use crate::quota::{Flow, Meter, Place};

type Result<T> = std::result::Result<T, HttpError>;

/// What a request does to a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Produce,
    Consume,
    See,
}

impl App {
    /// Whom the rules are those of.
    ///
    /// # Errors
    /// 401 for a token that nobody has, and without one where it is needed.
    pub(super) fn caller(&self, headers: &HeaderMap) -> Result<Principal> {
        let refused = |text: &str| HttpError::new(StatusCode::UNAUTHORIZED, text);
        let told = headers.get(header::AUTHORIZATION);
        match told.filter(|_| self.access.has_users()) {
            None => self
                .access
                .anonymous()
                .ok_or_else(|| refused("no token; needed: Authorization: Bearer TOKEN")),
            Some(told) => {
                let token = told.to_str().ok().and_then(bearer);
                token
                    .and_then(|token| self.access.by_token(token))
                    .ok_or_else(|| refused("not a token of any user"))
            }
        }
    }

    /// Whether the request may do this; whose it is.
    ///
    /// # Errors
    /// [`App::caller`]'s, and 403.
    pub(super) fn allow(&self, headers: &HeaderMap, deed: Deed, topic: &str) -> Result<Principal> {
        let caller = self.caller(headers)?;
        let (may, verb) = match deed {
            Deed::Produce => (caller.may_produce(topic), "write to"),
            Deed::Consume => (caller.may_consume(topic), "read"),
            Deed::See => (caller.may_see(topic), "see"),
        };
        if may {
            return Ok(caller);
        }
        let name = caller.name().unwrap_or("without a token");
        let shown: String = topic.chars().take(80).collect();
        let text = format!("user `{name}` may not {verb} topic `{shown}`");
        Err(HttpError::new(StatusCode::FORBIDDEN, text))
    }

    /// Lets a request that moves bytes begin.
    ///
    /// # Errors
    /// 429: the caller is above its rate, or has as many requests under way as it may have connections.
    pub(super) fn begin(&self, caller: &Principal, flow: Flow) -> Result<Admission> {
        let meter = Meter::new(&self.config.quota, caller.quota());
        if let Some(wait) = meter.wait(flow) {
            let error = HttpError::above_rate(wait);
            let told = error.retry_after_s.saturating_mul(1_000);
            self.stats.throttled_ms.fetch_add(told, Ordering::Relaxed);
            return Err(error);
        }
        let place = caller.quota().connect().ok_or_else(|| {
            let text = "as many connections and requests of this user as allowed; try again";
            HttpError::new(StatusCode::TOO_MANY_REQUESTS, text)
        })?;
        Ok(Admission {
            meter,
            _place: place,
        })
    }
}

/// The right to move bytes, held as long as the request takes.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) meter: Meter,
    _place: Place,
}

/// Tells the operator of requests that were answered with 401.
pub(super) async fn tell_refused(
    State(refused): State<Arc<RefusedLogins>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    if let Some(LoginRefused(reason)) = response.extensions().get() {
        // a token says nothing of whose it would be
        refused.tell(peer.address, None, reason);
    }
    response
}

fn bearer(told: &str) -> Option<&str> {
    let (scheme, token) = told.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}
