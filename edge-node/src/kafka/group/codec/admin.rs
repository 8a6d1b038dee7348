//! `DescribeGroups` 0-5, `ListGroups` 0-5, `DeleteGroups` 0-2, `OffsetDelete` 0.

use super::super::messages::{Described, GROUP_TYPE, ListRequest, Listed, TopicEntries};
use super::offsets::put_codes;
use super::{by_topic, bytes, error, texts, throttle};
use crate::kafka::codec::{Malformed, Reader, Writer};
use crate::kafka::error::ErrorCode;

/// Reads `DescribeGroups`.
///
/// # Errors
/// [`Malformed`].
pub fn decode_describe(mut reader: Reader<'_>, version: i16) -> Result<Vec<String>, Malformed> {
    let groups = texts(&mut reader)?;
    if version >= 3 {
        reader.bool()?; // authorized operations
    }
    reader.skip_tags()?;
    reader.finish()?;
    Ok(groups)
}

pub(super) fn encode_describe(out: &mut Writer, version: i16, groups: &[Described]) {
    throttle(out, version >= 1);
    out.array_len(groups.len());
    for group in groups {
        error(out, group.error);
        out.string(&group.group);
        out.string(group.state);
        out.string(&group.protocol_type);
        out.string(&group.protocol);
        out.array_len(group.members.len());
        for member in &group.members {
            out.string(&member.who.member);
            if version >= 4 {
                out.nullable_string(member.who.instance.as_deref());
            }
            out.string(&member.caller.client_id);
            out.string(&member.caller.host);
            bytes(out, &member.metadata);
            bytes(out, &member.assignment);
            out.tags();
        }
        if version >= 3 {
            out.i32(i32::MIN); // authorized operations: not told
        }
        out.tags();
    }
    out.tags();
}

/// Reads `ListGroups`.
///
/// # Errors
/// [`Malformed`].
pub fn decode_list(mut reader: Reader<'_>, version: i16) -> Result<ListRequest, Malformed> {
    let mut request = ListRequest::default();
    if version >= 4 {
        request.states = texts(&mut reader)?;
    }
    if version >= 5 {
        request.types = texts(&mut reader)?;
    }
    reader.skip_tags()?;
    reader.finish()?;
    Ok(request)
}

pub(super) fn encode_list(out: &mut Writer, version: i16, groups: &[Listed]) {
    throttle(out, version >= 1);
    error(out, ErrorCode::None);
    out.array_len(groups.len());
    for group in groups {
        out.string(&group.group);
        out.string(&group.protocol_type);
        if version >= 4 {
            out.string(group.state);
        }
        if version >= 5 {
            out.string(GROUP_TYPE);
        }
        out.tags();
    }
    out.tags();
}

/// Reads `DeleteGroups`.
///
/// # Errors
/// [`Malformed`].
pub fn decode_delete(mut reader: Reader<'_>) -> Result<Vec<String>, Malformed> {
    let groups = texts(&mut reader)?;
    reader.skip_tags()?;
    reader.finish()?;
    Ok(groups)
}

pub(super) fn encode_delete(out: &mut Writer, groups: &[(String, ErrorCode)]) {
    throttle(out, true);
    out.array_len(groups.len());
    for (group, code) in groups {
        out.string(group);
        error(out, *code);
        out.tags();
    }
    out.tags();
}

/// Reads `OffsetDelete`.
///
/// # Errors
/// [`Malformed`].
pub fn decode_delete_offsets(
    mut reader: Reader<'_>,
) -> Result<(String, Vec<(String, Vec<i32>)>), Malformed> {
    let group = reader.string()?.to_owned();
    let count = reader.array_len(6)?;
    let topics = by_topic(&mut reader, count, Reader::i32)?;
    reader.skip_tags()?;
    reader.finish()?;
    Ok((group, topics))
}

pub(super) fn encode_delete_offsets(
    out: &mut Writer,
    code: ErrorCode,
    topics: &TopicEntries<(i32, ErrorCode)>,
) {
    error(out, code);
    throttle(out, true);
    put_codes(out, topics);
    out.tags();
}
