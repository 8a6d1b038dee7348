//! Small durable facts of the protocols: committed offsets, sessions, retained messages.
//!
//! They stand beside the log and are written by its writer, in the order and with the sync of the appends
//! around them; those of an [`Append`](super::Append) are on disk if and only if its batch is. The store does
//! not look into them: how many there may be, and how large, is bounded by the protocol that writes them.

use bytes::Bytes;

/// Whose facts. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum StateSpace {
    /// Offsets that consumer groups committed.
    GroupOffset = 1,
    /// Sessions of MQTT clients.
    MqttSession = 2,
    /// Messages of MQTT clients that are on their way.
    MqttInflight = 3,
    /// Retained MQTT messages.
    MqttRetained = 4,
    /// Settings of topics that were changed at run time.
    TopicSetting = 5,
}

/// A fact's name, unique in its space; facts are listed in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateKey {
    /// Whose.
    pub space: StateSpace,
    /// Any bytes.
    pub key: Bytes,
}

/// One fact that is written or forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// Which.
    pub key: StateKey,
    /// What it is from now on; `None` forgets it.
    pub value: Option<Bytes>,
}

impl StateChange {
    /// Writes a fact over what it was.
    #[must_use]
    pub fn put(space: StateSpace, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        let key = key.into();
        Self {
            key: StateKey { space, key },
            value: Some(value.into()),
        }
    }

    /// Forgets a fact; one that is not known is no error.
    #[must_use]
    pub fn forget(space: StateSpace, key: impl Into<Bytes>) -> Self {
        let key = key.into();
        Self {
            key: StateKey { space, key },
            value: None,
        }
    }

    /// What it takes in a write.
    pub(super) fn len(&self) -> usize {
        self.key.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}
