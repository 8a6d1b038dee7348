//! `DescribeConfigs` 1 to 4 and `IncrementalAlterConfigs` 0 and 1.
//!
//! Topics have the settings of [`crate::config::SETTINGS`]. The broker shows a few that tools look at; all of
//! its settings are those of the configuration file.

use std::collections::BTreeSet;

use super::{Entries, Refusal, check_admin, told};
use crate::access::Principal;
use crate::config::{Kind, SETTINGS, TopicSettings, TopicsConfig, value_in_force};
use crate::ingest::{Ingest, SettingChange};
use crate::kafka::api::Header;
use crate::kafka::codec::{Malformed, Reader, Writer};
use crate::kafka::error::ErrorCode;
use crate::kafka::metadata::BROKER_ID;

const TOPIC: i8 = 2;
const BROKER: i8 = 4;

/// Where a value comes from (`DescribeConfigsResponse.ConfigSource`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
enum Source {
    /// A client set it for the topic.
    Topic = 1,
    /// The site's configuration file, or its default.
    File = 4,
    /// There is no other value.
    Fixed = 5,
}

/// How a value is to be read (`DescribeConfigsResponse.ConfigType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
enum Type {
    Boolean = 1,
    Text = 2,
    Int = 3,
    Long = 5,
    List = 7,
}

/// One setting as clients are told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    name: &'static str,
    value: String,
    source: Source,
    kind: Type,
    is_read_only: bool,
}

/// A request, decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct DescribeConfigs {
    /// What to describe.
    pub resources: Vec<Wanted>,
    /// Tell where else a value could have come from.
    pub with_synonyms: bool,
}

/// One thing to describe.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// 2 a topic, 4 a broker.
    pub kind: i8,
    /// Its name, unchecked.
    pub name: String,
    /// The settings to tell; `None`: all.
    pub keys: Option<BTreeSet<String>>,
}

impl DescribeConfigs {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(mut reader: Reader<'_>, version: i16) -> Result<Self, Malformed> {
        let mut entries = Entries::new();
        let mut resources = Vec::new();
        for _ in 0..entries.enter(reader.array_len(3)?)? {
            let kind = reader.i8()?;
            let name = reader.string()?.to_owned();
            let mut keys = None;
            if let Some(len) = reader.nullable_array(1)? {
                let mut wanted = BTreeSet::new();
                for _ in 0..entries.enter(len)? {
                    wanted.insert(reader.string()?.to_owned());
                }
                keys = Some(wanted);
            }
            reader.skip_tags()?;
            resources.push(Wanted { kind, name, keys });
        }
        let with_synonyms = reader.bool()?;
        if version >= 3 {
            reader.bool()?; // documentation: it stands in ours
        }
        reader.skip_tags()?;
        reader.finish()?;
        Ok(Self {
            resources,
            with_synonyms,
        })
    }

    pub(super) fn answer(self, ingest: &Ingest, header: &Header, user: &Principal) -> Vec<u8> {
        let mut out = Writer::reply(header);
        out.i32(0); // throttle time
        out.array_len(self.resources.len());
        for wanted in &self.resources {
            let outcome = if wanted.kind != TOPIC || user.may_see(&wanted.name) {
                wanted.describe(ingest)
            } else {
                let text = "the user may not know of this topic";
                Err(Refusal::new(ErrorCode::TopicAuthorizationFailed, text))
            };
            let (code, text) = told(&outcome);
            out.i16(code);
            out.nullable_string(text);
            out.i8(wanted.kind);
            out.string(&wanted.name);
            let entries = outcome.unwrap_or_default();
            out.array_len(entries.len());
            for entry in &entries {
                entry.put(&mut out, header.version, self.with_synonyms);
            }
            out.tags();
        }
        out.tags();
        out.finish()
    }
}

impl Wanted {
    fn describe(&self, ingest: &Ingest) -> Result<Vec<Entry>, Refusal> {
        let mut entries = match self.kind {
            TOPIC => topic_entries(ingest, &self.name)?,
            BROKER if is_this_broker(&self.name) => broker_entries(ingest.config()),
            BROKER => {
                let text = format!("Unexpected broker id, expected {BROKER_ID}");
                return Err(Refusal::new(ErrorCode::InvalidRequest, text));
            }
            _ => return Err(unknown_kind()),
        };
        if let Some(keys) = &self.keys {
            entries.retain(|entry| keys.contains(entry.name));
        }
        Ok(entries)
    }
}

impl Entry {
    fn put(&self, out: &mut Writer, version: i16, with_synonyms: bool) {
        out.string(self.name);
        out.nullable_string(Some(&self.value));
        out.bool(self.is_read_only);
        out.i8(self.source as i8);
        out.bool(false); // sensitive
        if with_synonyms {
            out.array_len(1);
            out.string(self.name);
            out.nullable_string(Some(&self.value));
            out.i8(self.source as i8);
            out.tags();
        } else {
            out.array_len(0);
        }
        if version >= 3 {
            out.i8(self.kind as i8);
            out.nullable_string(None); // documentation
        }
        out.tags();
    }
}

fn topic_entries(ingest: &Ingest, name: &str) -> Result<Vec<Entry>, Refusal> {
    if ingest.known(name).is_none() {
        let text = "This server does not host this topic-partition.";
        return Err(Refusal::new(ErrorCode::UnknownTopicOrPartition, text));
    }
    let overrides = ingest.overrides(name);
    let settings = ingest.settings(name);
    let mut entries: Vec<Entry> = SETTINGS
        .into_iter()
        .filter_map(|setting| {
            let given = overrides.value(setting.name);
            let source = match (given, setting.kind) {
                (Some(_), _) => Source::Topic,
                (None, Kind::OneOf([_])) => Source::Fixed,
                (None, _) => Source::File,
            };
            let in_force = given.map(str::to_owned);
            Some(Entry {
                name: setting.name,
                value: in_force.or_else(|| value_in_force(&settings, setting.name))?,
                source,
                kind: type_of(setting.name, setting.kind),
                is_read_only: matches!(setting.kind, Kind::OneOf([_])),
            })
        })
        .collect();
    entries.push(class_entry(&settings));
    Ok(entries)
}

fn class_entry(settings: &TopicSettings) -> Entry {
    Entry {
        name: "kedge.class",
        value: settings.class.to_string(),
        source: Source::File,
        kind: Type::Text,
        is_read_only: true,
    }
}

fn type_of(name: &str, kind: Kind) -> Type {
    match (name, kind) {
        ("max.message.bytes" | "min.insync.replicas", _) => Type::Int,
        ("cleanup.policy", _) => Type::List,
        (_, Kind::Number { .. }) => Type::Long,
        (_, Kind::OneOf(_) | Kind::Ignored) => Type::Text,
    }
}

fn broker_entries(topics: &TopicsConfig) -> Vec<Entry> {
    let default = &topics.default;
    let of_topic = |name| value_in_force(default, name).unwrap_or_default();
    let flag = |value: bool| value.to_string();
    [
        (
            "auto.create.topics.enable",
            flag(topics.auto_create),
            Type::Boolean,
        ),
        ("broker.id", BROKER_ID.to_string(), Type::Int),
        ("default.replication.factor", "1".to_owned(), Type::Int),
        ("delete.topic.enable", flag(true), Type::Boolean),
        (
            "log.retention.bytes",
            of_topic("retention.bytes"),
            Type::Long,
        ),
        ("log.retention.ms", of_topic("retention.ms"), Type::Long),
        (
            "message.max.bytes",
            of_topic("max.message.bytes"),
            Type::Int,
        ),
        ("min.insync.replicas", "1".to_owned(), Type::Int),
        ("num.partitions", default.partitions.to_string(), Type::Int),
    ]
    .into_iter()
    .map(|(name, value, kind)| Entry {
        name,
        value,
        source: Source::File,
        kind,
        is_read_only: true,
    })
    .collect()
}

fn is_this_broker(name: &str) -> bool {
    name == BROKER_ID.to_string()
}

fn unknown_kind() -> Refusal {
    let text = "only topics and this broker have settings here";
    Refusal::new(ErrorCode::InvalidRequest, text)
}

/// A request, decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct AlterConfigs {
    /// What to change.
    pub resources: Vec<Altered>,
    /// Only check whether it could be done.
    pub is_trial: bool,
}

/// One thing to change.
#[derive(Debug, PartialEq, Eq)]
pub struct Altered {
    /// 2 a topic, 4 a broker.
    pub kind: i8,
    /// Its name, unchecked.
    pub name: String,
    /// Setting, operation (0 set, 1 delete, 2 append, 3 subtract), value.
    pub changes: Vec<(String, i8, Option<String>)>,
}

impl AlterConfigs {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let mut entries = Entries::new();
        let mut resources = Vec::new();
        for _ in 0..entries.enter(reader.array_len(3)?)? {
            let kind = reader.i8()?;
            let name = reader.string()?.to_owned();
            let mut changes = Vec::new();
            for _ in 0..entries.enter(reader.array_len(3)?)? {
                let key = reader.string()?.to_owned();
                let operation = reader.i8()?;
                let value = reader.nullable_string()?.map(str::to_owned);
                changes.push((key, operation, value));
                reader.skip_tags()?;
            }
            reader.skip_tags()?;
            resources.push(Altered {
                kind,
                name,
                changes,
            });
        }
        let is_trial = reader.bool()?;
        reader.skip_tags()?;
        reader.finish()?;
        Ok(Self {
            resources,
            is_trial,
        })
    }

    pub(super) async fn answer(
        self,
        ingest: &Ingest,
        header: &Header,
        user: &Principal,
    ) -> Vec<u8> {
        let mut out = Writer::reply(header);
        out.i32(0); // throttle time
        out.array_len(self.resources.len());
        for altered in &self.resources {
            let outcome = match check_admin(user) {
                Ok(()) => altered.alter(ingest, self.is_trial).await,
                Err(refusal) => Err(refusal),
            };
            let (code, text) = told(&outcome);
            out.i16(code);
            out.nullable_string(text);
            out.i8(altered.kind);
            out.string(&altered.name);
            out.tags();
        }
        out.tags();
        out.finish()
    }
}

impl Altered {
    async fn alter(&self, ingest: &Ingest, is_trial: bool) -> Result<(), Refusal> {
        match self.kind {
            TOPIC => {}
            BROKER => {
                let text = "the broker's settings are those of the site's configuration file";
                return Err(Refusal::new(ErrorCode::PolicyViolation, text));
            }
            _ => return Err(unknown_kind()),
        }
        let changes =
            self.changes
                .iter()
                .map(|(name, operation, value)| match (operation, value) {
                    (0, Some(value)) => Ok(SettingChange::Set(name.clone(), value.clone())),
                    (0, None) => Err(Refusal::new(
                        ErrorCode::InvalidRequest,
                        format!("Null value not supported for : {name}"),
                    )),
                    (1, _) => Ok(SettingChange::Unset(name.clone())),
                    (2 | 3, _) => Err(Refusal::new(
                        ErrorCode::InvalidConfig,
                        format!("Can't append to or subtract from {name}: set it"),
                    )),
                    _ => Err(Refusal::new(ErrorCode::InvalidRequest, "Unknown operation")),
                });
        let changes = changes.collect::<Result<Vec<_>, _>>()?;
        Ok(ingest.alter_topic(&self.name, &changes, is_trial).await?)
    }
}
