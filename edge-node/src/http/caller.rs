//! Who asks, by bearer token (RFC 6750, section 2.1), and what that allows.
//!
//! Users and rules are the node's ([`crate::access`]). Nothing is told of a topic, not even whether it is
//! there, before its rule was looked at.

use axum::http::{HeaderMap, StatusCode, header};

use super::App;
use super::error::HttpError;
use crate::access::Principal;

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

    /// Whether the request may do this.
    ///
    /// # Errors
    /// [`App::caller`]'s, and 403.
    pub(super) fn allow(&self, headers: &HeaderMap, deed: Deed, topic: &str) -> Result<()> {
        let caller = self.caller(headers)?;
        let (may, verb) = match deed {
            Deed::Produce => (caller.may_produce(topic), "write to"),
            Deed::Consume => (caller.may_consume(topic), "read"),
            Deed::See => (caller.may_see(topic), "see"),
        };
        if may {
            return Ok(());
        }
        let name = caller.name().unwrap_or("without a token");
        let shown: String = topic.chars().take(80).collect();
        let text = format!("user `{name}` may not {verb} topic `{shown}`");
        Err(HttpError::new(StatusCode::FORBIDDEN, text))
    }
}

fn bearer(told: &str) -> Option<&str> {
    let (scheme, token) = told.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}
