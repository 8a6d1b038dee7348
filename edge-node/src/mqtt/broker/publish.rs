//! Messages into the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use shared::partitioner::partition_for_key;
use shared::record::HEADER_LEN;
use tokio::sync::oneshot;
use tracing::debug;

use super::Broker;
use crate::access::Principal;
use crate::ingest::{Reservation, TopicError};
use crate::mqtt::filters::is_system;
use crate::mqtt::gather::{Item, Synced};
use crate::mqtt::packet::{Message, reason};
use crate::mqtt::record::Draft;
use crate::mqtt::retained::Claim;
use crate::mqtt::session::{Delivery, Fare};
use crate::mqtt::topic_map::{AckRule, RetainRule};
use crate::quota::Creator;
use crate::store::{StateChange, Topic};

/// Why a message was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No rule says which Kafka topic it belongs to, or it is the broker's own topic.
    #[error("messages of this topic are not taken here, or not from this client")]
    NotTaken,
    /// The Kafka topic's largest batch is smaller.
    #[error("a record of {bytes} bytes; accepted: {limit}")]
    TooLarge {
        /// Of the record.
        bytes: usize,
        /// Of the Kafka topic's batches.
        limit: usize,
    },
    /// As many topics as allowed have retained messages.
    #[error("no room for another retained message")]
    Retained,
    /// The Kafka topic is not to be had.
    #[error(transparent)]
    Topic(#[from] TopicError),
}

impl PublishError {
    /// MQTT 5's reason code.
    #[must_use]
    pub fn reason(&self) -> u8 {
        match self {
            Self::NotTaken => reason::NOT_AUTHORIZED,
            Self::TooLarge { .. } => reason::PACKET_TOO_LARGE,
            Self::Retained => reason::QUOTA_EXCEEDED,
            Self::Topic(TopicError::InvalidName(_) | TopicError::Unknown(..)) => {
                reason::TOPIC_INVALID
            }
            Self::Topic(TopicError::TooMany(_)) => reason::QUOTA_EXCEEDED,
            Self::Topic(TopicError::Store(_)) => reason::UNSPECIFIED,
        }
    }
}

/// A message that was handed to the log.
#[derive(Debug)]
pub struct Accepted {
    /// Resolves when it is on disk.
    pub synced: Synced,
    /// The publisher may be told before.
    pub ack_early: bool,
}

impl Broker {
    /// Hands a message of a user (`None`: one that was allowed before) to the log, with a fact that is written if
    /// it is. Waits only while too many wait
    /// already: await one before the next to keep their order.
    ///
    /// # Errors
    /// [`PublishError`] when it never went there.
    pub async fn publish(
        &self,
        user: Option<&Principal>,
        mut message: Message,
        state: Option<StateChange>,
        reservation: Reservation,
    ) -> Result<Accepted, PublishError> {
        if is_system(&message.topic) {
            return Err(PublishError::NotTaken);
        }
        let rule = self
            .map
            .rule(&message.topic)
            .ok_or(PublishError::NotTaken)?;
        if user.is_some_and(|user| !user.may_produce(rule.kafka.as_str())) {
            return Err(PublishError::NotTaken);
        }
        if rule.retain == RetainRule::Never {
            message.retain = false;
        }
        let mut claim = None;
        if message.retain {
            if !message.payload.is_empty() {
                // with what is on its way: a client need not wait for one before it publishes the next
                let claimed = Claim::take(&self.retained, &message.topic, message.weight());
                claim = Some(claimed.ok_or(PublishError::Retained)?);
            }
            // before the append: from then on the tail reads everything
            self.uses_retained.store(true, Ordering::Release);
        }
        let topic = self.topic(rule.kafka.as_str(), user).await?;
        let draft = Draft::new(&self.map, rule, message);
        let (bytes, limit) = (draft.bytes() + HEADER_LEN, topic.rules.max_batch_bytes);
        if bytes > limit {
            return Err(PublishError::TooLarge { bytes, limit });
        }
        let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        let partition = partition_for_key(draft.key().as_bytes(), partitions);
        let (done, synced) = oneshot::channel();
        let item = Item {
            draft,
            state,
            reservation,
            claim,
            done,
        };
        let is_taken = self.gather.append(&topic, partition, item).await;
        // who publishes to a full log is told so
        let ack_early = rule.ack == AckRule::BeforeSync && is_taken;
        Ok(Accepted { synced, ack_early })
    }

    /// Whether a user may publish to a topic.
    pub fn may_publish(&self, user: &Principal, topic: &str) -> bool {
        let rule = self.map.rule(topic).filter(|_| !is_system(topic));
        rule.is_some_and(|rule| user.may_produce(rule.kafka.as_str()))
    }

    async fn topic(&self, name: &str, user: Option<&Principal>) -> Result<Arc<Topic>, TopicError> {
        let creator = user.map_or_else(Creator::default, Principal::creator);
        self.ingest.topic_for(name, Some(creator)).await
    }

    /// Publishes for a client that is not there; nobody waits for it.
    pub(super) fn publish_aside(self: &Arc<Self>, message: Message) {
        let broker = self.clone();
        self.tasks.spawn(async move {
            let mut reservation = Reservation::default();
            reservation
                .grow(broker.ingest.budget(), message.weight())
                .await;
            match broker.publish(None, message, None, reservation).await {
                Ok(accepted) => match accepted.synced.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!(%error, "Will not stored"),
                    Err(_) => debug!("Will not stored: the node stops"),
                },
                Err(error) => debug!(%error, "Will not taken"),
            }
        });
    }

    /// Delivers one of the broker's own messages, which are not in the log.
    pub(super) fn publish_own(&self, message: &Arc<Message>) {
        self.system().put(message, None);
        let mut deliveries = Vec::new();
        self.filters().find(&message.topic, |subscriber| {
            deliveries.push(subscriber.clone())
        });
        let tail = self.tail().processed().clone();
        for subscriber in deliveries {
            let delivery = Delivery {
                message: message.clone(),
                qos: message.qos.min(subscriber.options.qos),
                retain: subscriber.options.retain_as_published,
                identifiers: subscriber.options.identifier.into_iter().collect(),
                place: None,
                is_retained: false,
                shared: None,
                paid: None,
            };
            let mut state = subscriber.session.state();
            state.offer(delivery, &tail, &mut Fare::default());
        }
    }
}
