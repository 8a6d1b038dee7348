//! What went wrong, as HTTP says it: a status and `{"error": text}`.

use axum::extract::rejection::{PathRejection, QueryRejection};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use shared::record::RecordError;

use super::records::BodyError;
use crate::ingest::{Refusal, TopicError};
use crate::store::{AppendError, StoreError};

/// When a client should try again unless it is known better, seconds.
const RETRY_AFTER_S: u64 = 1;

/// A refusal.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpError {
    /// The status code.
    pub status: StatusCode,
    /// For people.
    pub text: String,
    /// When to try again, seconds; told where trying again may help.
    pub retry_after_s: u64,
}

impl HttpError {
    /// A refusal.
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            retry_after_s: RETRY_AFTER_S,
        }
    }

    /// 429: too much in too short a time, and how long until it is paid for.
    #[must_use]
    pub fn above_rate(wait: Duration) -> Self {
        let text = "more bytes a second than the quota allows; try again later";
        Self {
            retry_after_s: wait.as_secs() + u64::from(wait.subsec_nanos() > 0),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, text)
        }
    }
}

/// Beside a response with 401: why the client was refused.
#[derive(Debug, Clone)]
pub(super) struct LoginRefused(pub(super) Arc<str>);

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let body = format!("{}\n", serde_json::json!({ "error": self.text }));
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        let may_retry = matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::INSUFFICIENT_STORAGE
        );
        if may_retry {
            headers.insert(header::RETRY_AFTER, self.retry_after_s.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
            let reason = LoginRefused(self.text.into());
            response.extensions_mut().insert(reason);
        }
        response
    }
}

impl From<PathRejection> for HttpError {
    fn from(error: PathRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.body_text())
    }
}

impl From<QueryRejection> for HttpError {
    fn from(error: QueryRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.body_text())
    }
}

impl From<BodyError> for HttpError {
    fn from(error: BodyError) -> Self {
        let status = match error {
            BodyError::Invalid(_) | BodyError::Timestamp { .. } | BodyError::Empty => {
                StatusCode::BAD_REQUEST
            }
            BodyError::NoPartition { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            BodyError::RecordTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<TopicError> for HttpError {
    fn from(error: TopicError) -> Self {
        let status = match error {
            TopicError::InvalidName(_) => StatusCode::BAD_REQUEST,
            TopicError::Unknown(..) => StatusCode::NOT_FOUND,
            TopicError::TooMany(_) => StatusCode::FORBIDDEN,
            TopicError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<StoreError> for HttpError {
    fn from(error: StoreError) -> Self {
        let status = match error {
            // deleted since the request came
            StoreError::UnknownPartition => StatusCode::NOT_FOUND,
            StoreError::Corrupt(_) | StoreError::Io(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<AppendError> for HttpError {
    fn from(error: AppendError) -> Self {
        let status = match error {
            AppendError::UnknownPartition => StatusCode::UNPROCESSABLE_ENTITY,
            // these two can't happen to records without a producer id
            AppendError::OutOfOrderSequence { .. } | AppendError::ProducerFenced { .. } => {
                StatusCode::CONFLICT
            }
            AppendError::Full(_) => StatusCode::INSUFFICIENT_STORAGE,
            AppendError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<Refusal> for HttpError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Append(error) => error.into(),
            Refusal::Record(error @ RecordError::TooLarge { .. }) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
            Refusal::UnknownPartition => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, refusal.to_string())
            }
            Refusal::Record(error) => Self::new(StatusCode::BAD_REQUEST, error.to_string()),
        }
    }
}
