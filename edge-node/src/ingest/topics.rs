//! Topics as clients make, change and delete them.
//!
//! One change at a time, each on disk before it returns. Settings that a client gave a topic are stored
//! before the topic is made, and those of a topic that is not there are forgotten on start, so that a crash
//! between the two leaves neither half.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use shared::ids::{Offset, TopicName};
use tracing::info;

use super::{Ingest, policy};
use crate::config::{Overrides, SettingError, TopicSettings};
use crate::quota::Creator;
use crate::store::{
    AppendError, DeleteError, LogRange, PartitionId, StateChange, StateSpace, Store, StoreError,
    Topic,
};

/// Most partitions of one topic, as in the configuration file.
pub const MAX_PARTITIONS: u32 = 256;

/// Why a topic was not made, changed or deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicChangeError {
    /// Not a name that Kafka accepts.
    #[error("topic name {0}")]
    InvalidName(#[from] shared::ids::NameError),
    /// There is one of this name.
    #[error("Topic '{0}' already exists.")]
    Exists(TopicName),
    /// There is none of this name.
    #[error("This server does not host this topic-partition.")]
    Unknown,
    /// The site's configuration does not allow it.
    #[error("{0}")]
    Refused(&'static str),
    /// A number of partitions that can't be.
    #[error("{0}")]
    Partitions(String),
    /// A setting that can't be.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The topic can't go yet.
    #[error(transparent)]
    Delete(DeleteError),
    /// The offset lies beyond the log's end.
    #[error("The requested offset {0} is beyond the end of the log.")]
    OffsetOutOfRange(Offset),
    /// The disk failed or is full.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<DeleteError> for TopicChangeError {
    fn from(error: DeleteError) -> Self {
        match error {
            DeleteError::UnknownTopic => Self::Unknown,
            DeleteError::Store(error) => Self::Store(error),
            DeleteError::Unsent(_) | DeleteError::TooMany => Self::Delete(error),
        }
    }
}

/// A change of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingChange {
    /// It gets this value.
    Set(String, String),
    /// The file's value holds again.
    Unset(String),
}

/// The settings that clients gave topics.
#[derive(Debug, Default)]
pub(super) struct Given(RwLock<BTreeMap<TopicName, Overrides>>);

impl Given {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<TopicName, Overrides>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<TopicName, Overrides>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, topic: &str) -> Overrides {
        self.read().get(topic).cloned().unwrap_or_default()
    }

    /// Whether one more topic may be there that this user created. What was given to a topic that could then
    /// not be made, or that is deleted, does not count.
    pub(super) fn has_room(&self, creator: Creator<'_>, store: &dyn Store) -> bool {
        let Some(most) = creator.most else {
            return true;
        };
        let given = self.read();
        let of_it = given.iter().filter(|(name, given)| {
            given.creator() == Some(creator.name) && store.topic(name.as_str()).is_some()
        });
        u32::try_from(of_it.count()).is_ok_and(|count| count < most)
    }
}

impl Ingest {
    /// What clients set for a topic.
    #[must_use]
    pub fn overrides(&self, topic: &str) -> Overrides {
        self.inner.given.of(topic)
    }

    /// What holds for a topic: the file's settings, and what clients set over them.
    #[must_use]
    pub fn settings(&self, topic: &str) -> TopicSettings {
        self.overrides(topic)
            .over(self.inner.topics.settings(topic))
    }

    /// Makes a topic; with `is_trial` it is only checked whether it could be. Returns its settings.
    ///
    /// # Errors
    /// [`TopicChangeError`].
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: Option<u32>,
        mut overrides: Overrides,
        creator: Creator<'_>,
        is_trial: bool,
    ) -> Result<TopicSettings, TopicChangeError> {
        let _changing = self.inner.creating.lock().await;
        let name = TopicName::new(name)?;
        if self.inner.store.topic(name.as_str()).is_some() {
            return Err(TopicChangeError::Exists(name));
        }
        let topics = self.inner.store.topics().len();
        policy::may_create(&self.inner.topics, &name, topics).map_err(TopicChangeError::Refused)?;
        if !self.inner.given.has_room(creator, &*self.inner.store) {
            let text = "the user has created as many topics as it may";
            return Err(TopicChangeError::Refused(text));
        }
        if creator.most.is_some() {
            overrides.set_creator(creator.name);
        }
        if let Some(partitions) = partitions {
            check_partitions(partitions)?;
            overrides.set_partitions(partitions);
        }
        let settings = overrides.over(self.inner.topics.settings(name.as_str()));
        if !is_trial {
            self.give(&name, overrides).await?;
            let topic = self.ensure_aside(name).await?;
            info!(topic = %topic.name, partitions = topic.partitions.len(), "Topic created by a client");
        }
        Ok(settings)
    }

    /// Gives a topic more partitions, `partitions` in all.
    ///
    /// # Errors
    /// [`TopicChangeError`].
    pub async fn add_partitions(
        &self,
        name: &str,
        partitions: u32,
        is_trial: bool,
    ) -> Result<(), TopicChangeError> {
        let _changing = self.inner.creating.lock().await;
        let topic = self.inner.store.topic(name);
        let topic = topic.ok_or(TopicChangeError::Unknown)?;
        let count = topic.partitions.len();
        if usize::try_from(partitions).is_ok_and(|wanted| wanted <= count) {
            return Err(TopicChangeError::Partitions(format!(
                "The topic {name} currently has {count} partition(s); {partitions} would not be an increase."
            )));
        }
        check_partitions(partitions)?;
        if is_trial {
            return Ok(());
        }
        let mut overrides = self.overrides(name);
        overrides.set_partitions(partitions);
        self.give(&topic.name, overrides).await?;
        self.ensure_aside(topic.name.clone()).await?;
        info!(topic = name, partitions, "Topic grown by a client");
        Ok(())
    }

    /// Changes settings of a topic, all or none.
    ///
    /// # Errors
    /// [`TopicChangeError`].
    pub async fn alter_topic(
        &self,
        name: &str,
        changes: &[SettingChange],
        is_trial: bool,
    ) -> Result<(), TopicChangeError> {
        let _changing = self.inner.creating.lock().await;
        let topic = self.inner.store.topic(name);
        let topic = topic.ok_or(TopicChangeError::Unknown)?;
        let mut overrides = self.overrides(name);
        for change in changes {
            match change {
                SettingChange::Set(name, value) => overrides.set(name, value)?,
                SettingChange::Unset(name) => overrides.unset(name)?,
            }
        }
        if is_trial {
            return Ok(());
        }
        self.give(&topic.name, overrides).await?;
        self.ensure_aside(topic.name.clone()).await?;
        info!(topic = name, "Settings of a topic changed by a client");
        Ok(())
    }

    /// Deletes a topic whose records the hub has, or knows to be deleted.
    ///
    /// # Errors
    /// [`TopicChangeError`].
    pub async fn delete_topic(&self, name: &str) -> Result<(), TopicChangeError> {
        let _changing = self.inner.creating.lock().await;
        let topic = self.inner.store.topic(name);
        let topic = topic.ok_or(TopicChangeError::Unknown)?;
        if self
            .inner
            .topics
            .declared()
            .any(|(declared, _)| declared == topic.name)
        {
            return Err(TopicChangeError::Refused(
                "the site's configuration declares this topic",
            ));
        }
        let deleted = topic.name.clone();
        self.aside(move |store| store.delete_topic(deleted.as_str()))
            .await??;
        self.give(&topic.name, Overrides::default()).await?;
        info!(topic = name, "Topic deleted by a client");
        Ok(())
    }

    /// Lets records before an offset go, `None`: all. Returns the log's ends.
    ///
    /// # Errors
    /// [`TopicChangeError`].
    pub async fn delete_records(
        &self,
        partition: PartitionId,
        before: Option<Offset>,
    ) -> Result<LogRange, TopicChangeError> {
        let deleted = self.aside(move |store| {
            let end = store.range(partition)?.end;
            let before = before.unwrap_or(end);
            if before > end {
                return Err(TopicChangeError::OffsetOutOfRange(before));
            }
            Ok(store.delete_records(partition, before)?)
        });
        deleted.await?
    }

    /// Stores what clients set for a topic, and takes it into use.
    pub(super) async fn give(&self, name: &TopicName, given: Overrides) -> Result<(), StoreError> {
        if self.inner.given.of(name.as_str()) == given {
            return Ok(());
        }
        let key = Bytes::copy_from_slice(name.as_str().as_bytes());
        let change = if given == Overrides::default() {
            StateChange::forget(StateSpace::TopicSetting, key)
        } else {
            StateChange::put(StateSpace::TopicSetting, key, given.encode())
        };
        let stored = self.inner.store.put_state(vec![change]).await;
        stored
            .unwrap_or_else(|_| Err(AppendError::Unavailable("it stops".to_owned())))
            .map_err(|error| StoreError::Io(error.to_string()))?;
        if given == Overrides::default() {
            self.inner.given.write().remove(name);
        } else {
            self.inner.given.write().insert(name.clone(), given);
        }
        Ok(())
    }

    /// Reads what clients set, and forgets what belongs to no topic. Blocks: for the start.
    pub(super) fn load_given(&self) -> Result<(), StoreError> {
        let mut given = BTreeMap::new();
        let mut stale = Vec::new();
        for (key, value) in self.inner.store.state(StateSpace::TopicSetting, b"")? {
            let name = std::str::from_utf8(&key).ok();
            let name = name.and_then(|name| TopicName::new(name).ok());
            match name.filter(|name| self.inner.store.topic(name.as_str()).is_some()) {
                Some(name) => drop(given.insert(name, Overrides::parse(&value))),
                None => stale.push(StateChange::forget(StateSpace::TopicSetting, key)),
            }
        }
        *self.inner.given.write() = given;
        if !stale.is_empty() {
            // should it fail, the next start tries again
            drop(self.inner.store.put_state(stale));
        }
        Ok(())
    }

    pub(super) async fn ensure_aside(&self, name: TopicName) -> Result<Arc<Topic>, StoreError> {
        let door = self.clone();
        self.aside(move |_| door.ensure(&name)).await?
    }

    /// Carries out what may wait for the disk.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Store) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&*inner.store))
            .await
            .map_err(|error| StoreError::Io(format!("change of a topic: {error}")))
    }
}

fn check_partitions(partitions: u32) -> Result<(), TopicChangeError> {
    if (1..=MAX_PARTITIONS).contains(&partitions) {
        return Ok(());
    }
    Err(TopicChangeError::Partitions(format!(
        "{partitions} partitions: accepted is 1 to {MAX_PARTITIONS}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::tests::any_topic;
    use crate::ingest::tests::fake::FakeStore;
    use crate::ingest::{IngestLimits, TopicError};

    fn door(store: &Arc<FakeStore>) -> Ingest {
        Ingest::new(store.clone(), any_topic(), IngestLimits::default())
    }

    fn set(name: &str, value: &str) -> SettingChange {
        SettingChange::Set(name.to_owned(), value.to_owned())
    }

    #[tokio::test]
    async fn what_clients_set_survives_a_restart_and_goes_with_the_topic() {
        let store = FakeStore::shared();
        let ingest = door(&store);
        let mut overrides = Overrides::default();
        overrides.set("retention.ms", "5000").unwrap();
        ingest
            .create_topic("a", Some(2), overrides, Creator::default(), false)
            .await
            .unwrap();
        let change = [
            set("retention.bytes", "1048576"),
            set("retention.ms", "7000"),
        ];
        ingest.alter_topic("a", &change, true).await.unwrap();
        assert_eq!(ingest.settings("a").retention_bytes, None, "a trial");
        ingest.alter_topic("a", &change, false).await.unwrap();
        ingest.add_partitions("a", 3, false).await.unwrap();

        let restarted = door(&store);
        restarted.apply_topics().unwrap();
        let topic = restarted.topic("a", false).await.unwrap();
        assert_eq!(topic.partitions.len(), 3, "the default is 4");
        assert_eq!(topic.rules.retention_ms, Some(7000));
        assert_eq!(topic.rules.retention_bytes, Some(1 << 20));
        let unset = [SettingChange::Unset("retention.bytes".to_owned())];
        restarted.alter_topic("a", &unset, false).await.unwrap();
        let topic = restarted.topic("a", false).await.unwrap();
        assert_eq!(topic.rules.retention_bytes, None);

        restarted.delete_topic("a").await.unwrap();
        assert!(restarted.topics().is_empty());
        assert_eq!(restarted.overrides("a"), Overrides::default());
        let topic = restarted.topic("a", true).await.unwrap();
        assert_eq!(topic.partitions.len(), 4);
    }

    #[tokio::test]
    async fn what_can_not_be_is_refused_and_changes_nothing() {
        let store = FakeStore::shared();
        let ingest = door(&store);
        let none = Overrides::default;
        ingest
            .create_topic("a", None, none(), Creator::default(), true)
            .await
            .unwrap();
        assert!(ingest.topics().is_empty(), "a trial");
        let made = ingest
            .create_topic("a", None, none(), Creator::default(), false)
            .await;
        assert_eq!(made.unwrap().partitions, 4);
        let again = ingest
            .create_topic("a", None, none(), Creator::default(), false)
            .await;
        assert!(matches!(again, Err(TopicChangeError::Exists(_))));
        let name = ingest
            .create_topic("a b", None, none(), Creator::default(), false)
            .await;
        assert!(matches!(name, Err(TopicChangeError::InvalidName(_))));
        let own = ingest
            .create_topic("__x", None, none(), Creator::default(), false)
            .await;
        assert!(matches!(own, Err(TopicChangeError::Refused(_))));
        for count in [0, 257] {
            let made = ingest
                .create_topic("b", Some(count), none(), Creator::default(), false)
                .await;
            assert!(matches!(made, Err(TopicChangeError::Partitions(_))));
        }
        for count in [0, 4, 257] {
            let grown = ingest.add_partitions("a", count, false).await;
            assert!(matches!(grown, Err(TopicChangeError::Partitions(_))));
        }
        let changes = [set("retention.ms", "1"), set("retention.bytes", "x")];
        let altered = ingest.alter_topic("a", &changes, false).await;
        assert!(matches!(altered, Err(TopicChangeError::Setting(_))));
        assert_eq!(ingest.overrides("a"), none(), "all or none");
        for name in ["b", ""] {
            let gone = ingest.delete_topic(name).await;
            assert_eq!(gone, Err(TopicChangeError::Unknown));
        }
    }

    #[tokio::test]
    async fn a_user_creates_as_many_topics_as_it_may_over_restarts() {
        let store = FakeStore::shared();
        let user = |name| Creator {
            name,
            most: Some(2),
        };
        let ingest = door(&store);
        ingest.topic_for("a", Some(user("x"))).await.unwrap();
        let of_x = user("x");
        ingest
            .create_topic("b", None, Overrides::default(), of_x, false)
            .await
            .unwrap();
        let ingest = door(&store);
        ingest.apply_topics().unwrap();
        let beyond = ingest.topic_for("c", Some(of_x)).await;
        assert!(matches!(beyond, Err(TopicError::TooMany(_))));
        let beyond = ingest
            .create_topic("c", None, Overrides::default(), of_x, true)
            .await;
        assert!(matches!(beyond, Err(TopicChangeError::Refused(_))));
        ingest.topic_for("a", Some(of_x)).await.unwrap();
        for other in [Some(user("y")), Some(Creator::default())] {
            let name = other.map_or("", |it| it.name);
            ingest
                .topic_for(&format!("of-{name}"), other)
                .await
                .unwrap();
        }
        ingest.delete_topic("a").await.unwrap();
        ingest.topic_for("c", Some(of_x)).await.unwrap();
    }

    /// As after a disk that failed between the two steps of making a topic.
    #[tokio::test]
    async fn a_topic_that_could_not_be_made_does_not_count_for_its_creator() {
        let store = FakeStore::shared();
        let ingest = door(&store);
        let of_x = Creator {
            name: "x",
            most: Some(1),
        };
        let mut lost = Overrides::default();
        lost.set_creator(of_x.name);
        let name = TopicName::new("lost").unwrap();
        ingest.give(&name, lost).await.unwrap();
        ingest.topic_for("a", Some(of_x)).await.unwrap();
        for name in ["b", "lost"] {
            let beyond = ingest.topic_for(name, Some(of_x)).await;
            assert!(matches!(beyond, Err(TopicError::TooMany(_))), "{name}");
        }
    }

    #[tokio::test]
    async fn a_topic_goes_when_its_records_are_at_the_hub_or_deleted() {
        let store = FakeStore::shared();
        let ingest = door(&store);
        let topic = ingest.topic("a", true).await.unwrap();
        let batch =
            crate::ingest::tests::batch_of(&[b"a", b"b"], shared::record::Compression::None);
        let pending = ingest.append(&topic, 0, batch).await.unwrap();
        pending.synced().await.unwrap();
        let unsent = TopicChangeError::Delete(DeleteError::Unsent(2));
        assert_eq!(ingest.delete_topic("a").await, Err(unsent));
        let id = topic.partitions[0];
        let beyond = ingest.delete_records(id, Some(3)).await;
        assert_eq!(beyond, Err(TopicChangeError::OffsetOutOfRange(3)));
        let range = ingest.delete_records(id, None).await.unwrap();
        assert_eq!((range.start, range.first, range.end), (0, 2, 2));
        ingest.delete_topic("a").await.unwrap();
        let logs = store.logs();
        assert_eq!(logs.len(), 1, "the hub is still told of the gap: {logs:?}");
        let again = ingest.topic("a", true).await.unwrap();
        assert_eq!(again.partitions[0], id);
        assert_eq!(
            store.range(id).unwrap().end,
            2,
            "offsets are never given twice"
        );
    }
}
