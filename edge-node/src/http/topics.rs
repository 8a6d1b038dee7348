//! `GET /v1/topics` and `GET /v1/topics/{topic}`: what there is to read, and from where to where.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::App;
use super::caller::Deed;
use super::error::HttpError;
use crate::store::Topic;

type Result<T> = std::result::Result<T, HttpError>;

#[derive(Debug, Serialize)]
struct List<'a> {
    topics: Vec<OneTopic<'a>>,
}

#[derive(Debug, Serialize)]
struct OneTopic<'a> {
    topic: &'a str,
    partitions: Vec<Ends>,
}

/// First offset still stored, and the one after the last.
#[derive(Debug, Serialize)]
struct Ends {
    partition: usize,
    start: u64,
    end: u64,
}

pub(super) async fn list(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    app.answer(async { app.list(&headers) }).await
}

pub(super) async fn one(
    State(app): State<Arc<App>>,
    topic: std::result::Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    app.answer(async {
        let Path(name) = topic?;
        app.one(&name, &headers)
    })
    .await
}

impl App {
    fn list(&self, headers: &HeaderMap) -> Result<Response> {
        let caller = self.caller(headers)?;
        let topics = self.reading.topics();
        let shown = topics
            .iter()
            .filter(|topic| caller.may_see(topic.name.as_str()))
            .map(|topic| self.ends(topic));
        let topics = shown.collect::<Result<_>>()?;
        Ok(json(&List { topics }))
    }

    fn one(&self, name: &str, headers: &HeaderMap) -> Result<Response> {
        self.allow(headers, Deed::See, name)?;
        let topic = self.reading.topic(name)?;
        Ok(json(&self.ends(&topic)?))
    }

    fn ends<'a>(&self, topic: &'a Topic) -> Result<OneTopic<'a>> {
        let ends = topic.partitions.iter().enumerate().map(|(partition, id)| {
            let range = self.reading.range(*id)?;
            Ok(Ends {
                partition,
                start: range.start,
                end: range.end,
            })
        });
        Ok(OneTopic {
            topic: topic.name.as_str(),
            partitions: ends.collect::<Result<_>>()?,
        })
    }
}

/// A small answer.
pub(super) fn json(answer: &impl Serialize) -> Response {
    let mut text = serde_json::to_string(answer).expect("numbers and names");
    text.push('\n');
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
