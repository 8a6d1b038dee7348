//! `CreateTopics` 2 to 4, `CreatePartitions` 0 to 3 and `DeleteTopics` 1 to 5.

use std::collections::BTreeMap;

use super::{Entries, Refusal, check_admin, told};
use crate::access::Principal;
use crate::config::{Overrides, SettingError};
use crate::ingest::{Ingest, TopicChangeError};
use crate::kafka::api::Header;
use crate::kafka::codec::{Malformed, Reader, Writer};
use crate::kafka::error::ErrorCode;
use crate::kafka::metadata::BROKER_ID;

/// A request, decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct CreateTopics {
    /// What to make.
    pub topics: Vec<NewTopic>,
    /// Only check whether it could be done.
    pub is_trial: bool,
}

/// One topic to make.
#[derive(Debug, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name, unchecked.
    pub name: String,
    /// -1: as the site's configuration says.
    pub partitions: i32,
    /// -1: one, as many as there are brokers.
    pub replicas: i16,
    /// Brokers of each partition, when the client chose them.
    pub assignments: Vec<(i32, Vec<i32>)>,
    /// Settings; one without a value keeps its default.
    pub settings: Vec<(String, Option<String>)>,
}

impl CreateTopics {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let mut entries = Entries::new();
        let mut topics = Vec::new();
        for _ in 0..entries.enter(reader.array_len(16)?)? {
            topics.push(NewTopic::decode(&mut reader, &mut entries)?);
        }
        reader.i32()?; // timeout: it is done when it is answered
        let is_trial = reader.bool()?;
        reader.finish()?;
        Ok(Self { topics, is_trial })
    }

    pub(super) async fn answer(
        self,
        ingest: &Ingest,
        header: &Header,
        user: &Principal,
    ) -> Vec<u8> {
        let repeated = repeated(self.topics.iter().map(|topic| topic.name.as_str()));
        let mut out = Writer::reply(header);
        out.i32(0); // throttle time
        out.array_len(self.topics.len());
        for topic in &self.topics {
            let outcome = if let Err(refusal) = check_admin(user) {
                Err(refusal)
            } else if repeated.contains(&topic.name) {
                let text = "Create topics request contains the topic more than once.";
                Err(Refusal::new(ErrorCode::InvalidRequest, text))
            } else {
                topic.create(ingest, user, self.is_trial).await
            };
            let (code, text) = told(&outcome);
            out.string(&topic.name);
            out.i16(code);
            out.nullable_string(text);
        }
        out.finish()
    }
}

impl NewTopic {
    fn decode(reader: &mut Reader<'_>, entries: &mut Entries) -> Result<Self, Malformed> {
        let name = reader.string()?.to_owned();
        let partitions = reader.i32()?;
        let replicas = reader.i16()?;
        let mut assignments = Vec::new();
        for _ in 0..entries.enter(reader.array_len(8)?)? {
            let index = reader.i32()?;
            assignments.push((index, decode_brokers(reader, entries)?));
        }
        let mut settings = Vec::new();
        for _ in 0..entries.enter(reader.array_len(4)?)? {
            let name = reader.string()?.to_owned();
            settings.push((name, reader.nullable_string()?.map(str::to_owned)));
        }
        Ok(Self {
            name,
            partitions,
            replicas,
            assignments,
            settings,
        })
    }

    async fn create(
        &self,
        ingest: &Ingest,
        user: &Principal,
        is_trial: bool,
    ) -> Result<(), Refusal> {
        let partitions = self.wanted_partitions()?;
        if !matches!(self.replicas, -1 | 1) {
            let text = format!(
                "Replication factor: {} larger than available brokers: 1.",
                self.replicas
            );
            return Err(Refusal::new(ErrorCode::InvalidReplicationFactor, text));
        }
        let overrides = self.overrides().map_err(TopicChangeError::Setting)?;
        let creator = user.creator();
        let created = ingest.create_topic(&self.name, partitions, overrides, creator, is_trial);
        created.await?;
        Ok(())
    }

    fn wanted_partitions(&self) -> Result<Option<u32>, Refusal> {
        if self.assignments.is_empty() {
            return match self.partitions {
                -1 => Ok(None),
                // below zero is refused as zero is
                count => Ok(Some(u32::try_from(count).unwrap_or(0))),
            };
        }
        let refused = |text: &str| Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, text));
        if self.partitions != -1 || self.replicas != -1 {
            let text = "Both numPartitions or replicationFactor and replicasAssignments were set.";
            return Err(Refusal::new(ErrorCode::InvalidRequest, text));
        }
        let mut indexes: Vec<i32> = self.assignments.iter().map(|(index, _)| *index).collect();
        indexes.sort_unstable();
        if !(0_i32..)
            .zip(&indexes)
            .all(|(expected, found)| expected == *found)
        {
            return refused("partitions should be a consecutive 0-based integer sequence");
        }
        if !self.assignments.iter().all(|(_, brokers)| is_here(brokers)) {
            return refused("this site is the only broker, with id 1");
        }
        Ok(u32::try_from(indexes.len()).ok())
    }

    fn overrides(&self) -> Result<Overrides, SettingError> {
        let mut overrides = Overrides::default();
        for (name, value) in &self.settings {
            match value {
                Some(value) => overrides.set(name, value)?,
                None => overrides.unset(name)?,
            }
        }
        Ok(overrides)
    }
}

/// A request, decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct CreatePartitions {
    /// What to grow.
    pub topics: Vec<Growth>,
    /// Only check whether it could be done.
    pub is_trial: bool,
}

/// One topic that is to grow.
#[derive(Debug, PartialEq, Eq)]
pub struct Growth {
    /// Its name, unchecked.
    pub name: String,
    /// Partitions in all.
    pub count: i32,
    /// Brokers of the new ones, when the client chose them.
    pub assignments: Option<Vec<Vec<i32>>>,
}

impl CreatePartitions {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let mut entries = Entries::new();
        let mut topics = Vec::new();
        for _ in 0..entries.enter(reader.array_len(6)?)? {
            let name = reader.string()?.to_owned();
            let count = reader.i32()?;
            let mut assignments = None;
            if let Some(len) = reader.nullable_array(1)? {
                let mut of_all = Vec::new();
                for _ in 0..entries.enter(len)? {
                    of_all.push(decode_brokers(&mut reader, &mut entries)?);
                    reader.skip_tags()?;
                }
                assignments = Some(of_all);
            }
            reader.skip_tags()?;
            topics.push(Growth {
                name,
                count,
                assignments,
            });
        }
        reader.i32()?; // timeout: it is done when it is answered
        let is_trial = reader.bool()?;
        reader.skip_tags()?;
        reader.finish()?;
        Ok(Self { topics, is_trial })
    }

    pub(super) async fn answer(
        self,
        ingest: &Ingest,
        header: &Header,
        user: &Principal,
    ) -> Vec<u8> {
        let repeated = repeated(self.topics.iter().map(|topic| topic.name.as_str()));
        let mut out = Writer::reply(header);
        out.i32(0); // throttle time
        out.array_len(self.topics.len());
        for topic in &self.topics {
            let outcome = if let Err(refusal) = check_admin(user) {
                Err(refusal)
            } else if repeated.contains(&topic.name) {
                let text = "Duplicate topic in request.";
                Err(Refusal::new(ErrorCode::InvalidRequest, text))
            } else {
                topic.grow(ingest, self.is_trial).await
            };
            let (code, text) = told(&outcome);
            out.string(&topic.name);
            out.i16(code);
            out.nullable_string(text);
            out.tags();
        }
        out.tags();
        out.finish()
    }
}

impl Growth {
    async fn grow(&self, ingest: &Ingest, is_trial: bool) -> Result<(), Refusal> {
        let mut assignments = self.assignments.iter().flatten();
        if !assignments.all(|brokers| is_here(brokers)) {
            let text = "this site is the only broker, with id 1";
            return Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, text));
        }
        let count = u32::try_from(self.count).unwrap_or(0);
        Ok(ingest.add_partitions(&self.name, count, is_trial).await?)
    }
}

/// A request, decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct DeleteTopics {
    /// Names, unchecked.
    pub names: Vec<String>,
}

impl DeleteTopics {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let mut entries = Entries::new();
        let mut names = Vec::new();
        for _ in 0..entries.enter(reader.array_len(1)?)? {
            names.push(reader.string()?.to_owned());
        }
        reader.i32()?; // timeout: it is done when it is answered
        reader.skip_tags()?;
        reader.finish()?;
        Ok(Self { names })
    }

    pub(super) async fn answer(
        self,
        ingest: &Ingest,
        header: &Header,
        user: &Principal,
    ) -> Vec<u8> {
        let mut out = Writer::reply(header);
        out.i32(0); // throttle time
        out.array_len(self.names.len());
        for name in &self.names {
            let outcome = match check_admin(user) {
                Ok(()) => ingest.delete_topic(name).await.map_err(Refusal::from),
                Err(refusal) => Err(refusal),
            };
            let (code, text) = told(&outcome);
            out.string(name);
            out.i16(code);
            if header.version >= 5 {
                out.nullable_string(text);
            }
            out.tags();
        }
        out.tags();
        out.finish()
    }
}

fn decode_brokers(reader: &mut Reader<'_>, entries: &mut Entries) -> Result<Vec<i32>, Malformed> {
    let mut brokers = Vec::new();
    for _ in 0..entries.enter(reader.array_len(4)?)? {
        brokers.push(reader.i32()?);
    }
    Ok(brokers)
}

fn is_here(brokers: &[i32]) -> bool {
    brokers == [BROKER_ID]
}

/// Names that stand there more than once.
fn repeated<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    let repeated = counts.into_iter().filter(|(_, count)| *count > 1);
    repeated.map(|(name, _)| name.to_owned()).collect()
}
