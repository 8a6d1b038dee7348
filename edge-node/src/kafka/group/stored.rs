//! Groups as they lie on disk, in the store's space for group offsets. Numbers are big endian.
//!
//! ```text
//! offset  key    1: u8 │ len: u16 │ group │ len: u16 │ topic │ partition: i32
//!         value  1: u8 │ offset: i64 │ leader epoch: i32 │ metadata
//! group   key    2: u8 │ group
//!         value  1: u8 │ without members for: u64, ms │ protocol type
//! ```
//! Each value begins with its version. A fact that can't be read is left out on start and counted; it costs a
//! group its offset, which the next commit writes anew.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};

use super::offsets::Committed;
use crate::store::{StateChange, StateSpace};

const SPACE: StateSpace = StateSpace::GroupOffset;
const OFFSET: u8 = 1;
const GROUP: u8 = 2;
const VERSION: u8 = 1;

/// A fact, read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fact {
    Offset(String, String, i32, Committed),
    Group(String, Duration, String),
}

fn offset_key(group: &str, topic: &str, partition: i32) -> Vec<u8> {
    let mut key = vec![OFFSET];
    put_text(&mut key, group);
    put_text(&mut key, topic);
    key.put_i32(partition);
    key
}

fn group_key(group: &str) -> Vec<u8> {
    let mut key = vec![GROUP];
    key.extend_from_slice(group.as_bytes());
    key
}

/// Names come from strings of the protocol, which have at most 32,767 bytes.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn put_offset(
    group: &str,
    topic: &str,
    partition: i32,
    committed: &Committed,
) -> StateChange {
    let mut value = vec![VERSION];
    value.put_i64(committed.offset);
    value.put_i32(committed.leader_epoch);
    value.extend_from_slice(committed.metadata.as_bytes());
    StateChange::put(SPACE, offset_key(group, topic, partition), value)
}

pub(super) fn forget_offset(group: &str, topic: &str, partition: i32) -> StateChange {
    StateChange::forget(SPACE, offset_key(group, topic, partition))
}

pub(super) fn put_group(group: &str, idle: Duration, protocol_type: &str) -> StateChange {
    let mut value = vec![VERSION];
    value.put_u64(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
    value.extend_from_slice(protocol_type.as_bytes());
    StateChange::put(SPACE, group_key(group), value)
}

pub(super) fn forget_group(group: &str) -> StateChange {
    StateChange::forget(SPACE, group_key(group))
}

/// Reads a fact; `None` when it isn't one.
pub(super) fn read(key: &[u8], value: &[u8]) -> Option<Fact> {
    let (mut key, mut value) = (key, value);
    let (kind, version) = (key.try_get_u8().ok()?, value.try_get_u8().ok()?);
    match (kind, version) {
        (OFFSET, VERSION) => {
            let (group, topic) = (take_text(&mut key)?, take_text(&mut key)?);
            let partition = key.try_get_i32().ok().filter(|_| key.is_empty())?;
            let committed = Committed {
                offset: value.try_get_i64().ok()?,
                leader_epoch: value.try_get_i32().ok()?,
                metadata: text(value)?,
            };
            Some(Fact::Offset(group, topic, partition, committed))
        }
        (GROUP, VERSION) => {
            let idle = Duration::from_millis(value.try_get_u64().ok()?);
            Some(Fact::Group(text(key)?, idle, text(value)?))
        }
        _ => None,
    }
}

/// All facts that can be read, and how many cannot.
pub(super) fn read_all(facts: &[(Bytes, Bytes)]) -> (Vec<Fact>, usize) {
    let read: Vec<_> = facts
        .iter()
        .filter_map(|(key, value)| read(key, value))
        .collect();
    let unreadable = facts.len() - read.len();
    (read, unreadable)
}

fn take_text(from: &mut &[u8]) -> Option<String> {
    let len = usize::from(from.try_get_u16().ok()?);
    let (head, tail) = from.split_at_checked(len)?;
    *from = tail;
    text(head)
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed() -> Committed {
        Committed {
            offset: 0x0102,
            leader_epoch: -1,
            metadata: "mé".to_owned(),
        }
    }

    #[test]
    fn bytes_on_disk_stay_as_they_are() {
        let change = put_offset("g", "to", 3, &committed());
        assert_eq!(&change.key.key[..], b"\x01\0\x01g\0\x02to\0\0\0\x03");
        let value = change.value.unwrap();
        assert_eq!(
            &value[..],
            b"\x01\0\0\0\0\0\0\x01\x02\xff\xff\xff\xffm\xc3\xa9"
        );
        assert_eq!(
            read(&change.key.key, &value),
            Some(Fact::Offset("g".into(), "to".into(), 3, committed()))
        );
        let change = put_group("g", Duration::from_millis(5), "consumer");
        let value = change.value.unwrap();
        assert_eq!(&change.key.key[..], b"\x02g");
        assert_eq!(&value[..], b"\x01\0\0\0\0\0\0\0\x05consumer");
        assert_eq!(
            read(&change.key.key, &value),
            Some(Fact::Group(
                "g".into(),
                Duration::from_millis(5),
                "consumer".into()
            ))
        );
    }

    #[test]
    fn what_cannot_be_read_is_counted() {
        let change = put_offset("g", "t", 0, &committed());
        let (key, value) = (change.key.key, change.value.unwrap());
        let mut facts = vec![(key.clone(), value.clone())];
        facts.extend((0..value.len().min(13)).map(|len| (key.clone(), value.slice(..len))));
        facts.extend((0..key.len()).map(|len| (key.slice(..len), value.clone())));
        facts.push((key, Bytes::from_static(b"\x09xxxxxxxxxxxxxxxxxx")));
        let (found, unreadable) = read_all(&facts);
        assert_eq!((found.len(), unreadable), (1, facts.len() - 1));
    }
}
