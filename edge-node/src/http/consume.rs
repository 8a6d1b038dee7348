//! `GET /v1/topics/{topic}/records`: a page of records from an offset on.
//!
//! Nothing is kept of a reader: it says where to begin, and goes on at the `next_offset` it was told.
//! What is missing is never passed in silence: a page lists the gaps that it came past.

use std::ops::ControlFlow;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use shared::ids::Offset;
use shared::units::Span;

use super::App;
use super::caller::Deed;
use super::error::HttpError;
use super::sent::Page;
use super::view::{self, Seen};
use crate::quota::Flow;
use crate::store::{Item, LogRange, PartitionId, Topic};

type Result<T> = std::result::Result<T, HttpError>;

/// Records of a page, unless the request says otherwise, and most of them.
const DEFAULT_RECORDS: u32 = 1000;
pub(super) const MOST_RECORDS: u32 = 10_000;
/// Bytes of a page, unless the request says otherwise, and most of them. The record that passes the
/// limit is still in it.
const DEFAULT_BYTES: usize = 256 * 1024;
pub(super) const MOST_BYTES: usize = 1024 * 1024;

/// What the address says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Params {
    partition: Option<u32>,
    offset: Option<String>,
    max: Option<u32>,
    max_bytes: Option<usize>,
    wait: Option<String>,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    Earliest,
    Latest,
    At(Offset),
}

impl Begin {
    pub(super) fn parse(text: &str) -> Result<Self> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            number => {
                let is_number = number.bytes().all(|b| b.is_ascii_digit());
                let offset = number.parse().ok().filter(|_| is_number);
                offset.map(Self::At).ok_or_else(|| {
                    refused(
                        "offset",
                        text,
                        "a number from 0, \"earliest\" or \"latest\"",
                    )
                })
            }
        }
    }

    /// The offset.
    ///
    /// # Errors
    /// 416 beyond the end: the reader knows of records that this log never had.
    pub(super) fn resolve(self, ends: &LogRange) -> Result<Offset> {
        match self {
            Self::Earliest => Ok(ends.start),
            Self::Latest => Ok(ends.end),
            Self::At(offset) if offset <= ends.end => Ok(offset),
            Self::At(offset) => {
                let text = format!("offset {offset} is beyond the end, {}", ends.end);
                Err(HttpError::new(StatusCode::RANGE_NOT_SATISFIABLE, text))
            }
        }
    }
}

/// A value that is not accepted.
pub(super) fn refused(name: &str, value: &str, accepted: &str) -> HttpError {
    let shown: String = value.chars().take(40).collect();
    let text = format!("{name} = \"{shown}\"; accepted: {accepted}");
    HttpError::new(StatusCode::BAD_REQUEST, text)
}

/// The partition meant: the one that is named, or the only one.
///
/// # Errors
/// 404 when there is no such partition, 422 when none is named and there are several.
pub(super) fn pick(topic: &Topic, partition: Option<u32>) -> Result<(u32, PartitionId)> {
    let count = topic.partitions.len();
    let last = count.saturating_sub(1);
    let index = match partition {
        Some(index) => index,
        None if count == 1 => 0,
        None => {
            let text = format!(
                "topic `{}` has {count} partitions: say which, partition=0 to {last}",
                topic.name
            );
            return Err(HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, text));
        }
    };
    let id = usize::try_from(index)
        .ok()
        .and_then(|index| topic.partitions.get(index));
    match id {
        Some(id) => Ok((index, *id)),
        None => {
            let text = format!("partition {index} does not exist; accepted: 0 to {last}");
            Err(HttpError::new(StatusCode::NOT_FOUND, text))
        }
    }
}

/// What may be in a page.
#[derive(Debug, Clone, Copy)]
struct Limits {
    records: u32,
    bytes: usize,
    decoded: usize,
}

impl Params {
    fn limits(&self, decoded: usize) -> Result<Limits> {
        let records = self.max.unwrap_or(DEFAULT_RECORDS);
        if !(1..=MOST_RECORDS).contains(&records) {
            let accepted = format!("1 to {MOST_RECORDS}");
            return Err(refused("max", &records.to_string(), &accepted));
        }
        let bytes = self.max_bytes.unwrap_or(DEFAULT_BYTES);
        if !(1..=MOST_BYTES).contains(&bytes) {
            let accepted = format!("1 to {MOST_BYTES}");
            return Err(refused("max_bytes", &bytes.to_string(), &accepted));
        }
        Ok(Limits {
            records,
            bytes,
            decoded,
        })
    }

    fn wait(&self) -> Result<Span> {
        let parse = |text: &String| {
            text.parse()
                .map_err(|_| refused("wait", text, "a time such as 500ms or 10s"))
        };
        self.wait
            .as_ref()
            .map_or_else(|| Ok(Span::default()), parse)
    }
}

pub(super) async fn consume(
    State(app): State<Arc<App>>,
    topic: std::result::Result<Path<String>, PathRejection>,
    params: std::result::Result<Query<Params>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    app.answer(async {
        let (Path(name), Query(params)) = (topic?, params?);
        app.consume(&name, &params, &headers).await
    })
    .await
}

impl App {
    async fn consume(&self, name: &str, params: &Params, headers: &HeaderMap) -> Result<Response> {
        let caller = self.allow(headers, Deed::Consume, name)?;
        let admission = self.begin(&caller, Flow::Consume)?;
        let limits = params.limits(self.max_decoded)?;
        let wait = params.wait()?.duration().min(self.config.longest_wait);
        let begin = params.offset.as_deref().map(Begin::parse).transpose()?;
        let topic = self.reading.topic(name)?;
        let (partition, id) = pick(&topic, params.partition)?;
        let begin = begin.unwrap_or(Begin::Earliest);
        let from = begin.resolve(&self.reading.range(id)?)?;
        self.reading.wait_for(id, from, wait).await?;
        let slot = self.reading.slot().await?;
        let ends = self.reading.range(id)?;
        let head = format!(
            "{{\"topic\":\"{}\",\"partition\":{partition},\"start\":{},\"end\":{},",
            topic.name, ends.start, ends.end
        );
        let make = move |items: &[Item]| page(head, items, from, limits);
        let page = self.reading.read(id, from, limits.bytes, make).await?;
        admission.meter.count(Flow::Consume, page.len());
        let mut response = Body::new(Page::new(page, Some(slot))).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }
}

/// The answer, as JSON: `head`, then the records, the gaps, and where to go on.
fn page(head: String, items: &[Item], from: Offset, limits: Limits) -> Result<Vec<u8>> {
    let mut page = head.into_bytes();
    page.extend_from_slice(b"\"records\":[");
    let mut gaps = Vec::new();
    let mut count = 0;
    let next = view::walk(items, from, limits.decoded, &mut |seen| {
        match seen {
            Seen::Record {
                offset,
                timestamp_ms,
                record,
            } => {
                if count > 0 {
                    page.push(b',');
                }
                view::put_record(&mut page, None, offset, timestamp_ms, &record);
                count += 1;
            }
            Seen::Gap(gap) => {
                if !gaps.is_empty() {
                    gaps.push(b',');
                }
                view::put_gap(&mut gaps, None, &gap);
            }
        }
        if count < limits.records && page.len() + gaps.len() < limits.bytes {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })
    .map_err(|error| unreadable(&error))?;
    page.extend_from_slice(b"],\"gaps\":[");
    page.append(&mut gaps);
    page.extend_from_slice(format!("],\"next_offset\":{next}}}\n").as_bytes());
    Ok(page)
}

/// The log holds what cannot be decoded.
pub(super) fn unreadable(error: &shared::record::RecordError) -> HttpError {
    tracing::warn!(%error, "A stored batch cannot be decoded for a reader");
    HttpError::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}
