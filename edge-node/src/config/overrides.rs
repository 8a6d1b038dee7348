//! Settings of one topic that clients gave it, over those of the configuration file. Plain code.
//!
//! They have Kafka's names, as clients write and read them, and are stored as lines of `name=value`. What
//! Kafka knows and a site has no use for is taken and kept, as long as it asks for nothing that would not be
//! done.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use shared::units::{ByteSize, Span};

use super::TopicSettings;
use crate::store::OnFull;

/// Longest value, bytes.
const MAX_VALUE_BYTES: usize = 128;
/// The smallest limit of a topic's log: it holds some of the largest batches.
const LEAST_RETENTION_BYTES: i64 = 1 << 20;
const LEAST_BATCH_BYTES: i64 = 1 << 10;
const MOST_BATCH_BYTES: i64 = 4 << 20;
/// As in the configuration file.
const MOST_RETENTION_MS: i64 = 3_650 * 86_400_000;

/// What [`Overrides::set`] refuses. The text names key, value and what is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Not a setting of topics.
    #[error("Unknown topic config name: {0}")]
    Unknown(String),
    /// A value that it can't have.
    #[error("Invalid value {value} for configuration {name}: accepted is {accepted}")]
    Invalid {
        name: &'static str,
        value: String,
        accepted: String,
    },
}

/// What a setting's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole number in this range; -1 stands for no limit where `has_none`.
    Number {
        least: i64,
        most: i64,
        has_none: bool,
    },
    /// One of these.
    OneOf(&'static [&'static str]),
    /// Anything: it is kept and has no effect.
    Ignored,
}

/// A setting of topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Kafka's name, or one of our own.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
}

const RETENTION_MS: &str = "retention.ms";
const RETENTION_BYTES: &str = "retention.bytes";
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
const CLEANUP_POLICY: &str = "cleanup.policy";
const ON_FULL: &str = "kedge.on.full";
/// Not a setting of Kafka's: how many partitions the topic was created with.
const PARTITIONS: &str = "kedge.partitions";
/// Nor this: the user that created it, when it was a user who may create so many.
const CREATOR: &str = "kedge.creator";

const fn ignored(name: &'static str) -> Setting {
    Setting {
        name,
        kind: Kind::Ignored,
    }
}

const fn one_of(name: &'static str, values: &'static [&'static str]) -> Setting {
    Setting {
        name,
        kind: Kind::OneOf(values),
    }
}

const fn number(name: &'static str, least: i64, most: i64, has_none: bool) -> Setting {
    Setting {
        name,
        kind: Kind::Number {
            least,
            most,
            has_none,
        },
    }
}

/// All settings that clients may give a topic, by name.
pub const SETTINGS: [Setting; 23] = [
    // "compact" is taken for "never deletes by age": Kafka Streams asks for it, and reads the whole log
    one_of(
        CLEANUP_POLICY,
        &["delete", "compact", "compact,delete", "delete,compact"],
    ),
    one_of("compression.type", &["producer"]),
    ignored("delete.retention.ms"),
    ignored("file.delete.delay.ms"),
    ignored("flush.messages"),
    ignored("flush.ms"),
    ignored("index.interval.bytes"),
    one_of(ON_FULL, &["backpressure", "drop-oldest", "drop-newest"]),
    ignored("max.compaction.lag.ms"),
    number(
        MAX_MESSAGE_BYTES,
        LEAST_BATCH_BYTES,
        MOST_BATCH_BYTES,
        false,
    ),
    ignored("message.timestamp.after.max.ms"),
    ignored("message.timestamp.before.max.ms"),
    one_of("message.timestamp.type", &["CreateTime"]),
    ignored("min.cleanable.dirty.ratio"),
    ignored("min.compaction.lag.ms"),
    one_of("min.insync.replicas", &["1"]),
    ignored("preallocate"),
    number(RETENTION_BYTES, LEAST_RETENTION_BYTES, 1 << 50, true),
    number(RETENTION_MS, 0, MOST_RETENTION_MS, true),
    ignored("segment.bytes"),
    ignored("segment.index.bytes"),
    ignored("segment.jitter.ms"),
    ignored("segment.ms"),
];

/// What clients changed of one topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    values: BTreeMap<&'static str, String>,
    partitions: Option<u32>,
    creator: Option<String>,
}

impl Overrides {
    /// Gives a setting a value.
    ///
    /// # Errors
    /// [`SettingError`].
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SettingError> {
        let setting = find(name)?;
        let value = value.trim();
        if !setting.kind.accepts(value) {
            return Err(SettingError::Invalid {
                name: setting.name,
                value: value.chars().take(MAX_VALUE_BYTES).collect(),
                accepted: setting.kind.accepted(),
            });
        }
        self.values.insert(setting.name, value.to_owned());
        Ok(())
    }

    /// Takes a setting back: what the file says holds again.
    ///
    /// # Errors
    /// [`SettingError::Unknown`].
    pub fn unset(&mut self, name: &str) -> Result<(), SettingError> {
        self.values.remove(find(name)?.name);
        Ok(())
    }

    /// A setting's value, when it was given one.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// How many partitions the topic was given.
    pub fn set_partitions(&mut self, partitions: u32) {
        self.partitions = Some(partitions);
    }

    /// Notes who created the topic; the name has no line ends.
    pub fn set_creator(&mut self, name: &str) {
        self.creator = Some(name.to_owned());
    }

    /// Who created the topic, when that counts.
    #[must_use]
    pub fn creator(&self) -> Option<&str> {
        self.creator.as_deref()
    }

    /// The file's settings with these over them.
    #[must_use]
    pub fn over(&self, file: TopicSettings) -> TopicSettings {
        let number = |name| self.value(name).and_then(|value| value.parse::<i64>().ok());
        let mut settings = file;
        if let Some(partitions) = self.partitions {
            settings.partitions = partitions;
        }
        if self.value(CLEANUP_POLICY) == Some("compact") {
            settings.retention = None;
        }
        if let Some(ms) = number(RETENTION_MS) {
            settings.retention = u64::try_from(ms).ok().map(Span::millis);
        }
        if let Some(bytes) = number(RETENTION_BYTES) {
            settings.retention_bytes = u64::try_from(bytes).ok().map(ByteSize);
        }
        if let Some(bytes) = number(MAX_MESSAGE_BYTES).and_then(|n| u64::try_from(n).ok()) {
            settings.max_batch = ByteSize(bytes);
        }
        match self.value(ON_FULL) {
            Some("backpressure") => settings.on_full = OnFull::Backpressure,
            Some("drop-oldest") => settings.on_full = OnFull::DropOldest,
            Some("drop-newest") => settings.on_full = OnFull::DropNewest,
            Some(_) | None => {}
        }
        settings
    }

    /// Lines of `name=value`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = String::new();
        if let Some(partitions) = self.partitions {
            // writing to a string cannot fail
            writeln!(out, "{PARTITIONS}={partitions}").ok();
        }
        if let Some(creator) = &self.creator {
            writeln!(out, "{CREATOR}={creator}").ok();
        }
        for (name, value) in &self.values {
            writeln!(out, "{name}={value}").ok();
        }
        out.into_bytes()
    }

    /// Reads what [`Overrides::encode`] wrote. Settings that this version doesn't know, or whose values it
    /// doesn't take, are left out.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let mut overrides = Self::default();
        let text = String::from_utf8_lossy(bytes);
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            if name == PARTITIONS {
                overrides.partitions = value.parse().ok();
            } else if name == CREATOR {
                overrides.creator = Some(value.to_owned());
            } else if let Err(error) = overrides.set(name, value) {
                tracing::warn!(%error, "Stored setting of a topic left out");
            }
        }
        overrides
    }
}

impl Kind {
    fn accepts(self, value: &str) -> bool {
        let is_short = value.len() <= MAX_VALUE_BYTES && !value.contains('\n');
        is_short
            && match self {
                Self::Number {
                    least,
                    most,
                    has_none,
                } => value.parse::<i64>().is_ok_and(|number| {
                    (least..=most).contains(&number) || (has_none && number == -1)
                }),
                Self::OneOf(values) => values.contains(&value),
                Self::Ignored => true,
            }
    }

    fn accepted(self) -> String {
        match self {
            Self::Number {
                least,
                most,
                has_none: true,
            } => format!("{least} to {most}, or -1 for no limit"),
            Self::Number { least, most, .. } => format!("{least} to {most}"),
            Self::OneOf(values) => values.join(", or "),
            Self::Ignored => format!("one line of at most {MAX_VALUE_BYTES} bytes"),
        }
    }
}

fn find(name: &str) -> Result<Setting, SettingError> {
    let mut settings = SETTINGS.into_iter();
    settings
        .find(|setting| setting.name == name)
        .ok_or_else(|| SettingError::Unknown(name.chars().take(MAX_VALUE_BYTES).collect()))
}

/// What holds for a topic of these settings, in Kafka's words; `None` when a site has no such setting.
#[must_use]
pub fn value_in_force(settings: &TopicSettings, name: &str) -> Option<String> {
    let limit = |limit: Option<u64>| limit.map_or_else(|| "-1".to_owned(), |n| n.to_string());
    Some(match name {
        RETENTION_MS => limit(settings.retention.map(Span::as_millis)),
        RETENTION_BYTES => limit(settings.retention_bytes.map(ByteSize::bytes)),
        MAX_MESSAGE_BYTES => settings.max_batch.bytes().to_string(),
        CLEANUP_POLICY => "delete".to_owned(),
        "compression.type" => "producer".to_owned(),
        "message.timestamp.type" => "CreateTime".to_owned(),
        "min.insync.replicas" => "1".to_owned(),
        ON_FULL => match settings.on_full {
            OnFull::Backpressure => "backpressure",
            OnFull::DropOldest => "drop-oldest",
            OnFull::DropNewest => "drop-newest",
        }
        .to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use shared::class::Class;

    use super::*;

    fn file() -> TopicSettings {
        TopicSettings {
            partitions: 4,
            retention: Some(Span::days(7)),
            retention_bytes: None,
            on_full: OnFull::Backpressure,
            max_batch: ByteSize::mib(1),
            class: Class::Normal,
            live_first: false,
        }
    }

    #[test]
    fn what_a_client_set_holds_over_the_file_and_survives_being_stored() {
        let mut overrides = Overrides::default();
        assert_eq!(overrides.over(file()), file());
        for (name, value) in [
            ("retention.ms", "1500"),
            ("retention.bytes", " 2097152 "),
            ("max.message.bytes", "65536"),
            ("kedge.on.full", "drop-oldest"),
            ("segment.bytes", "50000000"),
        ] {
            overrides.set(name, value).unwrap();
        }
        overrides.set_partitions(2);
        overrides.set_creator("till-1");
        let stored = Overrides::parse(&overrides.encode());
        assert_eq!(stored, overrides);
        let settings = stored.over(file());
        assert_eq!(
            settings,
            TopicSettings {
                partitions: 2,
                retention: Some(Span::millis(1500)),
                retention_bytes: Some(ByteSize::mib(2)),
                on_full: OnFull::DropOldest,
                max_batch: ByteSize::kib(64),
                class: Class::Normal,
                live_first: false,
            }
        );
        assert_eq!(value_in_force(&settings, "retention.ms").unwrap(), "1500");
        for setting in SETTINGS {
            overrides.unset(setting.name).unwrap();
        }
        assert_eq!(overrides.over(file()).retention, file().retention);
    }

    #[test]
    fn no_limit_is_minus_one_and_compaction_keeps_everything() {
        let mut overrides = Overrides::default();
        overrides.set("retention.ms", "-1").unwrap();
        assert_eq!(overrides.over(file()).retention, None);
        overrides.unset("retention.ms").unwrap();
        overrides.set("cleanup.policy", "compact").unwrap();
        assert_eq!(overrides.over(file()).retention, None);
        overrides.set("retention.ms", "5").unwrap();
        assert_eq!(overrides.over(file()).retention, Some(Span::millis(5)));
    }

    #[test]
    fn what_would_not_be_done_is_refused_in_words() {
        let mut overrides = Overrides::default();
        for (name, value, told) in [
            ("retention.ms", "-2", "0 to"),
            ("retention.ms", "week", "week"),
            ("retention.bytes", "5", "1048576"),
            ("max.message.bytes", "4194305", "1024 to 4194304"),
            ("compression.type", "zstd", "producer"),
            ("min.insync.replicas", "2", "accepted is 1"),
            ("kedge.on.full", "", "backpressure, or"),
            ("segment.ms", "1\n2", "one line"),
            ("no.such", "1", "no.such"),
        ] {
            let error = overrides.set(name, value).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        assert_eq!(overrides, Overrides::default());
        assert_eq!(Overrides::parse(b"x=1\nretention.ms=z\n\xff"), overrides);
    }
}
