//! `GET /openapi.json`: the routes for machines. A test holds the document against the routes, and a
//! system test against what they do.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// OpenAPI 3.1, without the version of the software.
const DOCUMENT: &str = include_str!("openapi.json");

pub(super) fn document() -> Response {
    let text = DOCUMENT.replacen("VERSION", env!("CARGO_PKG_VERSION"), 1);
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
