//! What a user's rules allow of groups. Plain code.

use super::error::ErrorCode;
use super::group::{Answer, CommitAnswer, JoinAnswer, LeaveAnswer, Request, SyncAnswer};
use crate::access::Principal;

/// Lets a request through, without what the user may not; or the refusal that it is answered with.
///
/// # Errors
/// The answer, when the user may not use the group.
#[expect(clippy::result_large_err, reason = "as large as any other answer")]
pub(super) fn admit(principal: &Principal, mut request: Request) -> Result<Request, Answer> {
    let refused = ErrorCode::GroupAuthorizationFailed;
    let may_use = |group: &str| principal.may_use_group(group);
    match &mut request {
        Request::Join(it) if !may_use(&it.who.group) => {
            Err(Answer::Join(JoinAnswer::refused(refused, &it.who.member)))
        }
        Request::Sync(it) if !may_use(&it.who.group) => {
            Err(Answer::Sync(SyncAnswer::refused(refused)))
        }
        Request::Heartbeat(who) if !may_use(&who.group) => Err(Answer::Heartbeat(refused)),
        Request::Leave(it) if !may_use(&it.group) => Err(Answer::Leave(LeaveAnswer {
            error: refused,
            members: Vec::new(),
        })),
        Request::Commit(it) => {
            let is_allowed = may_use(&it.who.group);
            for (topic, entries) in &mut it.topics {
                let refusal = if !is_allowed {
                    Some(refused)
                } else if !principal.may_consume(topic) {
                    Some(ErrorCode::TopicAuthorizationFailed)
                } else {
                    None
                };
                if refusal.is_some() {
                    entries.iter_mut().for_each(|entry| entry.refused = refusal);
                }
            }
            if is_allowed {
                return Ok(request);
            }
            let topics = it.topics.iter().map(|(topic, entries)| {
                let entries = entries.iter().map(|entry| (entry.partition, refused));
                (topic.clone(), entries.collect())
            });
            Err(Answer::Commit(CommitAnswer {
                topics: topics.collect(),
            }))
        }
        // one that may not be deleted keeps the others
        Request::Delete(groups) if !groups.iter().all(|group| may_use(group)) => {
            let outcomes = groups.iter().map(|group| (group.clone(), refused));
            Err(Answer::Delete(outcomes.collect()))
        }
        Request::DeleteOffsets(group, _) if !may_use(group) => {
            Err(Answer::DeleteOffsets(refused, Vec::new()))
        }
        Request::Join(_)
        | Request::Sync(_)
        | Request::Heartbeat(_)
        | Request::Leave(_)
        | Request::Delete(_)
        | Request::DeleteOffsets(..)
        // what these tell is concealed in the answer
        | Request::Fetch(_)
        | Request::Describe(_)
        | Request::List(_) => Ok(request),
    }
}

/// Takes out of an answer what the user may not know.
pub(super) fn conceal(principal: &Principal, answer: &mut Answer) {
    match answer {
        Answer::Fetch(answer) => {
            for (group, code, topics) in &mut answer.groups {
                if !principal.may_use_group(group) {
                    *code = ErrorCode::GroupAuthorizationFailed;
                    topics.clear();
                }
                for (topic, found) in topics {
                    if principal.may_consume(topic) {
                        continue;
                    }
                    for it in found {
                        it.error = ErrorCode::TopicAuthorizationFailed;
                        it.offset = -1;
                        it.leader_epoch = -1;
                        it.metadata.clear();
                    }
                }
            }
        }
        Answer::Describe(groups) => {
            for group in groups {
                if !principal.may_use_group(&group.group) {
                    group.error = ErrorCode::GroupAuthorizationFailed;
                    group.state = "";
                    group.protocol_type.clear();
                    group.protocol.clear();
                    group.members.clear();
                }
            }
        }
        Answer::List(groups) => groups.retain(|it| principal.may_use_group(&it.group)),
        Answer::Join(_)
        | Answer::Sync(_)
        | Answer::Heartbeat(_)
        | Answer::Leave(_)
        | Answer::Commit(_)
        | Answer::Delete(_)
        | Answer::DeleteOffsets(..) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Rules;
    use crate::kafka::group::{
        CommitEntry, CommitRequest, Described, FetchAnswer, FetchedOffset, MemberRef,
    };

    fn till() -> Principal {
        let rules = Rules {
            consume: vec!["prices".parse().unwrap()],
            groups: vec!["till-*".parse().unwrap()],
            ..Rules::none()
        };
        Principal::user("till", rules)
    }

    fn commit(group: &str) -> Request {
        let entry = CommitEntry {
            partition: 0,
            offset: 1,
            leader_epoch: -1,
            metadata: String::new(),
            refused: None,
        };
        let topics = ["prices", "salaries"];
        Request::Commit(CommitRequest {
            who: MemberRef {
                group: group.to_owned(),
                ..MemberRef::default()
            },
            topics: topics
                .map(|it| (it.to_owned(), vec![entry.clone()]))
                .to_vec(),
        })
    }

    #[test]
    fn a_user_commits_to_its_groups_and_topics_only() {
        let Ok(Request::Commit(admitted)) = admit(&till(), commit("till-1")) else {
            panic!("admitted");
        };
        assert_eq!(admitted.topics[0].1[0].refused, None);
        let refused = Some(ErrorCode::TopicAuthorizationFailed);
        assert_eq!(admitted.topics[1].1[0].refused, refused);
        let Err(Answer::Commit(refused)) = admit(&till(), commit("other")) else {
            panic!("refused");
        };
        let expected = ErrorCode::GroupAuthorizationFailed;
        assert!(
            refused
                .topics
                .iter()
                .all(|(_, codes)| codes == &[(0, expected)])
        );
        let heartbeat = Request::Heartbeat(MemberRef::default());
        assert_eq!(admit(&till(), heartbeat), Err(Answer::Heartbeat(expected)));
    }

    #[test]
    fn a_user_is_not_told_of_other_groups_and_topics() {
        let offset = FetchedOffset {
            partition: 0,
            offset: 5,
            leader_epoch: 0,
            metadata: "secret".to_owned(),
            error: ErrorCode::None,
        };
        let group = |name: &str| {
            let topics = ["prices", "salaries"];
            let topics = topics
                .map(|it| (it.to_owned(), vec![offset.clone()]))
                .to_vec();
            (name.to_owned(), ErrorCode::None, topics)
        };
        let mut answer = Answer::Fetch(FetchAnswer {
            groups: vec![group("till-1"), group("other")],
        });
        conceal(&till(), &mut answer);
        let Answer::Fetch(answer) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(answer.groups[0].2[0].1[0], offset);
        let hidden = &answer.groups[0].2[1].1[0];
        assert_eq!((hidden.offset, hidden.metadata.as_str()), (-1, ""));
        assert_eq!(answer.groups[1].1, ErrorCode::GroupAuthorizationFailed);
        assert!(answer.groups[1].2.is_empty());
        let mut answer = Answer::Describe(vec![Described {
            group: "other".to_owned(),
            error: ErrorCode::None,
            state: "Stable",
            protocol_type: "consumer".to_owned(),
            protocol: "range".to_owned(),
            members: Vec::new(),
        }]);
        conceal(&till(), &mut answer);
        assert!(format!("{answer:?}").contains("GroupAuthorizationFailed"));
    }
}
