//! `JoinGroup` 0-9, `SyncGroup` 0-5, `Heartbeat` 0-4, `LeaveGroup` 0-5.

use ::bytes::Bytes;

use super::super::messages::{
    Caller, JoinAnswer, JoinRequest, LeaveAnswer, LeaveRequest, Leaving, MemberRef, SyncAnswer,
    SyncRequest,
};
use super::{bounded, bytes, error, throttle};
use crate::kafka::codec::{Malformed, Reader, Writer};
use crate::kafka::error::ErrorCode;

fn owned(text: Option<&str>) -> Option<String> {
    text.map(str::to_owned)
}

/// Reads `JoinGroup`; the caller's address is added by whoever knows it.
///
/// # Errors
/// [`Malformed`].
pub fn decode_join(
    mut reader: Reader<'_>,
    version: i16,
    client_id: &str,
) -> Result<JoinRequest, Malformed> {
    let group = reader.string()?.to_owned();
    let session_ms = reader.i32()?;
    let rebalance_ms = if version >= 1 {
        reader.i32()?
    } else {
        session_ms
    };
    let member = reader.string()?.to_owned();
    let instance = if version >= 5 {
        owned(reader.nullable_string()?)
    } else {
        None
    };
    let protocol_type = reader.string()?.to_owned();
    let mut protocols = Vec::new();
    for _ in 0..bounded(reader.array_len(2)?)? {
        let name = reader.string()?.to_owned();
        let metadata = reader.nullable_bytes()?.unwrap_or_default();
        reader.skip_tags()?;
        // a copy, so that what is kept does not keep the whole request
        protocols.push((name, Bytes::copy_from_slice(&metadata)));
    }
    if version >= 8 {
        reader.nullable_string()?; // reason
    }
    reader.skip_tags()?;
    reader.finish()?;
    Ok(JoinRequest {
        who: MemberRef {
            group,
            generation: -1,
            member,
            instance,
        },
        session_ms,
        rebalance_ms,
        protocol_type,
        protocols,
        knows_required_id: version >= 4,
        can_skip_assignment: version >= 9,
        caller: Caller {
            client_id: client_id.to_owned(),
            host: String::new(),
        },
    })
}

pub(super) fn encode_join(out: &mut Writer, version: i16, answer: &JoinAnswer) {
    throttle(out, version >= 2);
    error(out, answer.error);
    out.i32(answer.generation);
    if version >= 7 {
        out.nullable_string(answer.protocol_type.as_deref());
        out.nullable_string(answer.protocol.as_deref());
    } else {
        out.string(answer.protocol.as_deref().unwrap_or_default());
    }
    out.string(&answer.leader);
    if version >= 9 {
        out.bool(answer.skips_assignment);
    }
    out.string(&answer.member);
    out.array_len(answer.members.len());
    for member in &answer.members {
        out.string(&member.member);
        if version >= 5 {
            out.nullable_string(member.instance.as_deref());
        }
        bytes(out, &member.metadata);
        out.tags();
    }
    out.tags();
}

/// Reads `SyncGroup`.
///
/// # Errors
/// [`Malformed`].
pub fn decode_sync(mut reader: Reader<'_>, version: i16) -> Result<SyncRequest, Malformed> {
    let who = member(&mut reader, version >= 3)?;
    let (mut protocol_type, mut protocol) = (None, None);
    if version >= 5 {
        protocol_type = owned(reader.nullable_string()?);
        protocol = owned(reader.nullable_string()?);
    }
    let mut assignments = Vec::new();
    for _ in 0..bounded(reader.array_len(2)?)? {
        let member = reader.string()?.to_owned();
        let assignment = reader.nullable_bytes()?.unwrap_or_default();
        reader.skip_tags()?;
        assignments.push((member, Bytes::copy_from_slice(&assignment)));
    }
    reader.skip_tags()?;
    reader.finish()?;
    Ok(SyncRequest {
        who,
        protocol_type,
        protocol,
        assignments,
    })
}

/// Group, generation, member and, where the version has it, the static id.
pub(super) fn member(reader: &mut Reader<'_>, has_instance: bool) -> Result<MemberRef, Malformed> {
    Ok(MemberRef {
        group: reader.string()?.to_owned(),
        generation: reader.i32()?,
        member: reader.string()?.to_owned(),
        instance: if has_instance {
            owned(reader.nullable_string()?)
        } else {
            None
        },
    })
}

pub(super) fn encode_sync(out: &mut Writer, version: i16, answer: &SyncAnswer) {
    throttle(out, version >= 1);
    error(out, answer.error);
    if version >= 5 {
        out.nullable_string(answer.protocol_type.as_deref());
        out.nullable_string(answer.protocol.as_deref());
    }
    bytes(out, &answer.assignment);
    out.tags();
}

/// Reads `Heartbeat`.
///
/// # Errors
/// [`Malformed`].
pub fn decode_heartbeat(mut reader: Reader<'_>, version: i16) -> Result<MemberRef, Malformed> {
    let who = member(&mut reader, version >= 3)?;
    reader.skip_tags()?;
    reader.finish()?;
    Ok(who)
}

pub(super) fn encode_heartbeat(out: &mut Writer, version: i16, code: ErrorCode) {
    throttle(out, version >= 1);
    error(out, code);
    out.tags();
}

/// Reads `LeaveGroup`.
///
/// # Errors
/// [`Malformed`].
pub fn decode_leave(mut reader: Reader<'_>, version: i16) -> Result<LeaveRequest, Malformed> {
    let group = reader.string()?.to_owned();
    let mut members = Vec::new();
    if version >= 3 {
        for _ in 0..bounded(reader.array_len(2)?)? {
            let member = reader.string()?.to_owned();
            let instance = owned(reader.nullable_string()?);
            if version >= 5 {
                reader.nullable_string()?; // reason
            }
            reader.skip_tags()?;
            members.push(Leaving { member, instance });
        }
    } else {
        let member = reader.string()?.to_owned();
        members.push(Leaving {
            member,
            instance: None,
        });
    }
    reader.skip_tags()?;
    reader.finish()?;
    Ok(LeaveRequest { group, members })
}

pub(super) fn encode_leave(out: &mut Writer, version: i16, answer: &LeaveAnswer) {
    throttle(out, version >= 1);
    if version >= 3 {
        error(out, answer.error);
        out.array_len(answer.members.len());
        for (who, code) in &answer.members {
            out.string(&who.member);
            out.nullable_string(who.instance.as_deref());
            error(out, *code);
            out.tags();
        }
    } else {
        // older versions name one member
        let first = answer
            .members
            .first()
            .map_or(ErrorCode::None, |(_, code)| *code);
        let is_fine = answer.error == ErrorCode::None;
        error(out, if is_fine { first } else { answer.error });
    }
    out.tags();
}
