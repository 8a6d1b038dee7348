//! `POST /v1/topics/{topic}/records`: reads the body within its limits, hands the batches to the door,
//! and answers after the sync.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use shared::time::wall_ms;
use tokio::time::{Instant, timeout, timeout_at};

use super::App;
use super::caller::Deed;
use super::error::HttpError;
use super::records::{Gather, Placement, Record, gather_json, gather_ndjson};
use super::topics;
use crate::ingest::{Pending, Reservation};
use crate::quota::Flow;
use crate::store::Topic;

type Result<T> = std::result::Result<T, HttpError>;

/// What the address may say of a raw body's record.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Params {
    key: Option<String>,
    partition: Option<u32>,
    timestamp: Option<i64>,
}

/// The answer: where the records went.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    topic: &'a str,
    records: u64,
    offsets: Vec<Placed>,
}

#[derive(Debug, Serialize)]
struct Placed {
    partition: u32,
    base_offset: u64,
    count: u32,
}

pub(super) async fn produce(
    State(app): State<Arc<App>>,
    topic: std::result::Result<Path<String>, PathRejection>,
    params: std::result::Result<Query<Params>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    app.answer(async {
        let (Path(name), Query(params)) = (topic?, params?);
        app.produce(&name, params, &headers, body).await
    })
    .await
}

impl App {
    async fn produce(
        &self,
        name: &str,
        params: Params,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response> {
        let caller = self.allow(headers, Deed::Produce, name)?;
        let admission = self.begin(&caller, Flow::Produce)?;
        let kind = Kind::of(headers)?;
        let creator = Some(caller.creator());
        let topic = self.ingest.topic_for(name, creator).await?;
        let mut reservation = Reservation::default();
        let body = self.receive(headers, body, &mut reservation).await?;
        // it makes a debt, which the next request is told of
        admission.meter.count(Flow::Produce, body.len());
        let batches = self.batches(&topic, kind, params, body)?;
        let mut pending = Vec::with_capacity(batches.len());
        for (partition, batch) in batches {
            pending.push((
                partition,
                self.ingest.append(&topic, partition, batch).await?,
            ));
        }
        let offsets = timeout(self.config.sync_timeout, synced(pending))
            .await
            .map_err(|_| {
                HttpError::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the disk takes too long; whether the records are stored is not known",
                )
            })??;
        let answer = Answer {
            topic: topic.name.as_str(),
            records: offsets.iter().map(|placed| u64::from(placed.count)).sum(),
            offsets,
        };
        Ok(topics::json(&answer))
    }

    /// Reads the body; its bytes count towards the node's budget as they come.
    async fn receive(
        &self,
        headers: &HeaderMap,
        mut body: Body,
        reservation: &mut Reservation,
    ) -> Result<Bytes> {
        let limit = self.config.max_body_bytes;
        let too_large = || {
            let text = format!("body is larger than {limit} bytes");
            HttpError::new(StatusCode::PAYLOAD_TOO_LARGE, text)
        };
        let announced = headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|bytes| bytes > limit) {
            return Err(too_large());
        }
        let mut out = BytesMut::new();
        let mut deadline = Instant::now() + self.config.body_grace;
        loop {
            let frame = timeout_at(deadline, body.frame()).await.map_err(|_| {
                HttpError::new(StatusCode::REQUEST_TIMEOUT, "the body comes too slowly")
            })?;
            let Some(frame) = frame else {
                return Ok(out.freeze());
            };
            let frame = frame.map_err(|e| {
                HttpError::new(StatusCode::BAD_REQUEST, format!("body ended early: {e}"))
            })?;
            let Ok(data) = frame.into_data() else {
                continue; // trailers
            };
            if out.len() + data.len() > limit {
                return Err(too_large());
            }
            let earned = data.len() as u64 * 1000 / self.config.min_bytes_per_s.max(1);
            let before = Instant::now();
            timeout(
                self.config.budget_wait,
                reservation.grow(self.ingest.budget(), data.len()),
            )
            .await
            .map_err(|_| {
                let text = "too many bytes wait for the disk; try again";
                HttpError::new(StatusCode::TOO_MANY_REQUESTS, text)
            })?;
            // time that passed while we did not read is not the sender's
            deadline += Duration::from_millis(earned) + before.elapsed();
            out.extend_from_slice(&data);
        }
    }

    fn batches(
        &self,
        topic: &Topic,
        kind: Kind,
        params: Params,
        body: Bytes,
    ) -> Result<Vec<(u32, Bytes)>> {
        let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut gather = Gather::new(Placement {
            partitions,
            keyless_partition: turn % partitions.max(1),
            now_ms: wall_ms(),
            max_batch_bytes: topic.rules.max_batch_bytes,
        });
        match kind {
            Kind::Raw => gather.push(&Record {
                key: params.key.map(|key| key.into_bytes().into()),
                value: Some(body.as_ref().into()),
                headers: Vec::new(),
                partition: params.partition,
                timestamp_ms: params.timestamp,
            })?,
            Kind::Json | Kind::Ndjson if !params.is_empty() => {
                let text = "key, partition and timestamp belong into the records of a JSON body";
                return Err(HttpError::new(StatusCode::UNPROCESSABLE_ENTITY, text));
            }
            Kind::Json => gather_json(&body, &mut gather)?,
            Kind::Ndjson => gather_ndjson(&body, &mut gather)?,
        }
        Ok(gather.finish()?)
    }
}

impl Params {
    fn is_empty(&self) -> bool {
        self.key.is_none() && self.partition.is_none() && self.timestamp.is_none()
    }
}

/// The store has synced all of them: this is what the answer rests on.
async fn synced(pending: Vec<(u32, Pending)>) -> Result<Vec<Placed>> {
    let mut offsets = Vec::with_capacity(pending.len());
    for (partition, batch) in pending {
        let count = batch.count;
        let appended = batch.synced().await?;
        offsets.push(Placed {
            partition,
            base_offset: appended.base_offset,
            count,
        });
    }
    Ok(offsets)
}

/// How the body is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Ndjson,
    Raw,
}

impl Kind {
    fn of(headers: &HeaderMap) -> Result<Self> {
        let encoding = headers.get(header::CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| encoding != "identity") {
            let text = "content-encoding; accepted: none, or identity";
            return Err(HttpError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        let kind = headers.get(header::CONTENT_TYPE);
        let kind = kind.and_then(|v| v.to_str().ok()).unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim();
        Ok(match kind.to_ascii_lowercase().as_str() {
            "application/json" => Self::Json,
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Self::Ndjson,
            _ => Self::Raw,
        })
    }
}
