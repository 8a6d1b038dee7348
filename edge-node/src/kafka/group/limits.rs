//! How much of everything there may be.

use std::time::Duration;

use crate::config::GroupsConfig;

/// Bounds and times. Defaults suit a small box; Kafka's own name is given where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Groups that are known, those with committed offsets only included.
    pub max_groups: usize,
    /// Members of one group (`group.max.size`).
    pub max_members: usize,
    /// Bytes of what all members of all groups say about themselves, and of their assignments.
    pub max_member_bytes: usize,
    /// Committed offsets of all groups.
    pub max_offsets: usize,
    /// Bytes of metadata of one committed offset (`offset.metadata.max.bytes`).
    pub max_metadata: usize,
    /// Bytes of metadata of all committed offsets.
    pub max_metadata_bytes: usize,
    /// Shortest session timeout (`group.min.session.timeout.ms`).
    pub min_session: Duration,
    /// Longest session timeout (`group.max.session.timeout.ms`).
    pub max_session: Duration,
    /// How long the first members of a group wait for others (`group.initial.rebalance.delay.ms`).
    pub initial_delay: Duration,
    /// How long a member that waits for its first generation is kept (Kafka: 5 minutes too).
    pub new_member: Duration,
    /// Offsets of a group that had no members for so long are forgotten (`offsets.retention.minutes`). Only
    /// time while the node runs counts.
    pub retention: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_groups: 1_000,
            max_members: 250,
            max_member_bytes: 16 << 20,
            max_offsets: 50_000,
            max_metadata: 4096,
            max_metadata_bytes: 8 << 20,
            min_session: Duration::from_secs(6),
            max_session: Duration::from_secs(1800),
            // Kafka waits 3 s; a site has few consumers, and they start together
            initial_delay: Duration::from_millis(500),
            new_member: Duration::from_secs(300),
            retention: Duration::from_secs(7 * 86_400),
        }
    }
}

impl Limits {
    /// The settings of the file, with defaults for what it doesn't name.
    #[must_use]
    pub fn from_file(file: &GroupsConfig) -> Self {
        Self {
            max_groups: file.max_groups,
            max_members: file.max_members,
            max_offsets: file.max_offsets,
            initial_delay: file.initial_delay.duration(),
            min_session: file.min_session.duration(),
            max_session: file.max_session.duration(),
            retention: file.retention.duration(),
            ..Self::default()
        }
    }

    /// How often the time that groups are without members is counted and written.
    #[must_use]
    pub fn sweep_interval(&self) -> Duration {
        (self.retention / 16).clamp(Duration::from_secs(1), Duration::from_secs(3600))
    }
}
