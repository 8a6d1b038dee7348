//! Requests about groups between a connection and the groups' task.

use std::net::IpAddr;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::api::Header;
use super::conn::text_of;
use super::error::ErrorCode;
use super::group::codec::{self, FindCoordinator};
use super::group::{Answer, Request};
use super::groups::Groups;
use super::metadata::BROKER_ID;
use super::permit;
use crate::access::Principal;
use crate::ingest::Ingest;

/// `FindCoordinator`: this broker, for every group.
pub(super) fn coordinators(
    header: &Header,
    request: &FindCoordinator,
    host: &str,
    port: u16,
) -> Vec<u8> {
    let refusal = match request.key_type {
        0 => None,
        1 => Some((
            ErrorCode::TransactionalIdAuthorizationFailed,
            "transactions are not served here",
        )),
        _ => Some((ErrorCode::InvalidRequest, "accepted: 0, for groups")),
    };
    let keys: Vec<_> = request
        .keys
        .iter()
        .map(|key| (key.clone(), refusal))
        .collect();
    codec::encode_coordinators(header, BROKER_ID, host, port, &keys)
}

/// Adds what the bytes of a request don't tell: whose it is, and which topics there are.
pub(super) async fn complete(mut request: Request, ingest: &Ingest, peer: IpAddr) -> Request {
    match &mut request {
        Request::Join(join) => join.caller.host = format!("/{}", text_of(peer)),
        Request::Commit(commit) => {
            for (topic, entries) in &mut commit.topics {
                let found = ingest.topic(topic, false).await;
                let partitions = found.as_ref().map_or(0, |topic| topic.partitions.len());
                for entry in entries {
                    let is_there =
                        usize::try_from(entry.partition).is_ok_and(|index| index < partitions);
                    let refusal = match &found {
                        Err(error) => Some(error.into()),
                        Ok(_) => (!is_there).then_some(ErrorCode::UnknownTopicOrPartition),
                    };
                    entry.refused = entry.refused.or(refusal);
                }
            }
        }
        Request::Sync(_)
        | Request::Heartbeat(_)
        | Request::Leave(_)
        | Request::Fetch(_)
        | Request::Describe(_)
        | Request::List(_)
        | Request::Delete(_)
        | Request::DeleteOffsets(..) => {}
    }
    request
}

/// A request that the groups' task has.
#[derive(Debug)]
pub(super) struct PendingGroup {
    header: Header,
    principal: Principal,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Done(Answer),
    /// It is answered as soon as the disk allows.
    Soon(oneshot::Receiver<Answer>),
    /// It is answered when other members have done their part.
    Waits(oneshot::Receiver<Answer>),
}

impl PendingGroup {
    pub(super) async fn ask(
        groups: &Groups,
        header: &Header,
        request: Request,
        principal: &Principal,
    ) -> Self {
        let waits = matches!(request, Request::Join(_) | Request::Sync(_));
        let work = match permit::admit(principal, request) {
            Err(refusal) => Work::Done(refusal),
            Ok(request) if waits => Work::Waits(groups.ask(request).await),
            Ok(request) => Work::Soon(groups.ask(request).await),
        };
        Self {
            header: *header,
            principal: principal.clone(),
            work,
        }
    }

    /// The response; it may take as long as a rebalance. `None`: there will be none, because the client is
    /// gone or the node stops.
    pub(super) async fn settle(self, stop: &CancellationToken) -> Option<Vec<u8>> {
        let mut answer = match self.work {
            Work::Done(answer) => answer,
            Work::Soon(answer) => answer.await.ok()?,
            Work::Waits(answer) => tokio::select! {
                biased;
                answer = answer => answer.ok()?,
                () = stop.cancelled() => return None,
            },
        };
        permit::conceal(&self.principal, &mut answer);
        Some(codec::encode(&self.header, &answer))
    }
}
