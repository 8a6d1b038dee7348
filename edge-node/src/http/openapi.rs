//! `GET /openapi.json`: the routes for machines. A test holds the document against the routes, and a
//! system test against what they do.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::App;

/// OpenAPI 3.1, without the version of the software.
const DOCUMENT: &str = include_str!("openapi.json");
/// The document's last word: a token may be sent. Where it must be, the empty choice goes.
const OPTIONAL: &str = "\"security\": [{}, { \"token\": [] }]";
const REQUIRED: &str = "\"security\": [{ \"token\": [] }]";

/// Needs no token.
pub(super) async fn document(State(app): State<Arc<App>>) -> Response {
    app.answer(async { Ok(app.document()) }).await
}

impl App {
    fn document(&self) -> Response {
        let mut text = DOCUMENT.replacen("VERSION", env!("CARGO_PKG_VERSION"), 1);
        if self.access.anonymous().is_none() {
            text = text.replacen(OPTIONAL, REQUIRED, 1);
        }
        ([(header::CONTENT_TYPE, "application/json")], text).into_response()
    }
}
