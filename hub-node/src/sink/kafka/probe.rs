//! `hub-node check --kafka`: asks the cluster for what a hub needs of it.
//!
//! Nothing is written but the registration of a transactional id that no lane has: a lane's own would fence the hub that
//! holds it. Every question has its limit; the answer is there within half a minute.

use std::collections::BTreeMap;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};
use rdkafka::types::RDKafkaRespErr as E;

use super::client::Clients;
use super::topics::Topics;
use super::words::Words;
use crate::commit::CommitConfig;
use crate::sink::{SinkError, errors};

/// One question to the cluster.
const LIMIT: Duration = Duration::from_secs(5);
/// Connecting to a broker's address, its name's resolution included.
const CONNECT: Duration = Duration::from_secs(3);
/// Brokers that are connected to.
const MAX_BROKERS: usize = 64;

/// What the cluster said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// What keeps the hub from its work, with the key.
    pub problems: Vec<String>,
    /// What is as it should be.
    pub notes: Vec<String>,
}

/// Asks the cluster. The handle is that of a runtime that this thread is not in; blocks for half a minute at most.
#[must_use]
pub fn ask(config: &CommitConfig, handle: tokio::runtime::Handle) -> Asked {
    let mut asked = Asked::default();
    if let Err(problem) = asked.all(config, handle) {
        asked.problems.push(problem);
    }
    asked
}

impl Asked {
    /// The problem that ends the questions is the error.
    fn all(&mut self, config: &CommitConfig, handle: tokio::runtime::Handle) -> Result<(), String> {
        let clients = Clients::new(config);
        let words = Words::default();
        let id = format!("{}-check", config.transactional_id_prefix);
        let producer: BaseProducer<Words> = BaseProducer::from_config_and_context(
            &clients.producer_config(&id, super::client::BATCH_BYTES, false),
            words.clone(),
        )
        .map_err(|error| format!("kafka: {error}"))?;
        let metadata = |topic: &str| producer.client().fetch_metadata(Some(topic), LIMIT);
        let found = metadata(&config.checkpoint_topic).map_err(|error| {
            // what librdkafka says of the connections is told when the client is polled
            producer.poll(Duration::ZERO);
            format!(
                "kafka.bootstrap = \"{}\": no broker answers within {LIMIT:?}: {}",
                config.bootstrap_servers,
                words.explain(&error)
            )
        })?;
        self.brokers(&found);
        self.topic(
            "commit.checkpoint_topic",
            &config.checkpoint_topic,
            &found,
            || {
                let topics = Topics::new(&clients, config, handle)?;
                topics.verify_checkpoints()?;
                Ok(format!("{} partitions, one for each lane", config.lanes))
            },
        );
        match metadata(&config.dead_letter_topic) {
            Ok(found) => self.topic(
                "kafka.dead_letter_topic",
                &config.dead_letter_topic,
                &found,
                || Ok("there".to_owned()),
            ),
            Err(error) => self
                .problems
                .push(format!("kafka.dead_letter_topic: {error}")),
        }
        let (prefix, limit) = (&config.transactional_id_prefix, LIMIT);
        let Err(error) = producer.init_transactions(limit) else {
            let note = format!("kafka: transactional id `{id}` is allowed");
            self.notes.push(note);
            return Ok(());
        };
        let key = format!("commit.transactional_id_prefix = \"{prefix}\"");
        let fatal = producer.client().fatal_error().map(|(code, _)| code);
        Err(match errors::sink_error(&error, fatal) {
            SinkError::Refused(text) => format!(
                "{key}: the cluster refuses transactional id `{id}`: {text}; expected: Describe and Write on \
                 transactional ids `{prefix}-*`"
            ),
            SinkError::Fenced | SinkError::Abortable(_) | SinkError::Unknown(_) => format!(
                "{key}: no transaction of `{id}` within {limit:?}: {}; expected: a cluster whose `__transaction_state` topic \
                 has its replicas",
                words.explain(&error)
            ),
        })
    }

    /// The addresses that the cluster names are those that the hub connects to, whatever `kafka.bootstrap` says.
    fn brokers(&mut self, metadata: &Metadata) {
        let brokers: BTreeMap<i32, (String, u16)> = metadata
            .brokers()
            .iter()
            .take(MAX_BROKERS)
            .map(|it| {
                let port = u16::try_from(it.port()).unwrap_or(0);
                (it.id(), (it.host().to_owned(), port))
            })
            .collect();
        let unheard = connect(&brokers);
        let reached = brokers.iter().filter(|(id, _)| !unheard.contains_key(id));
        let reached: Vec<String> = reached
            .map(|(_, (host, port))| format!("{host}:{port}"))
            .collect();
        self.notes.push(format!(
            "kafka: {} of {} brokers reached: {}",
            reached.len(),
            metadata.brokers().len(),
            reached.join(", ")
        ));
        for (id, why) in &unheard {
            let (host, port) = &brokers[id];
            self.problems.push(format!(
                "kafka.bootstrap: the cluster names {host}:{port} as broker {id}, and it cannot be reached: {why}; \
                 expected: an address for this host in the broker's advertised.listeners"
            ));
        }
    }

    /// What the cluster says of a topic of the hub's own; `look` looks closer at one that is there.
    fn topic(
        &mut self,
        key: &str,
        name: &str,
        metadata: &Metadata,
        look: impl FnOnce() -> Result<String, SinkError>,
    ) {
        let found = metadata.topics().iter().find(|topic| topic.name() == name);
        let state = match found.map(|topic| (topic.error(), topic.partitions().len())) {
            Some((None, 1..)) => look().map_err(|error| error.to_string()),
            None
            | Some((
                None
                | Some(
                    E::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                    | E::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
                ),
                _,
            )) => Ok("not there yet: it is made when it is needed".to_owned()),
            Some((Some(E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED), _)) => {
                Err("the hub's user may not see it; expected: Describe".to_owned())
            }
            Some((Some(other), _)) => Err(Code::from(other).to_string()),
        };
        match state {
            Ok(state) => self.notes.push(format!("kafka: topic `{name}`: {state}")),
            Err(why) => self.problems.push(format!("{key} = \"{name}\": {why}")),
        }
    }
}

/// Why brokers cannot be connected to, by id; those that can are left out.
fn connect(brokers: &BTreeMap<i32, (String, u16)>) -> BTreeMap<i32, String> {
    let deadline = Instant::now() + CONNECT;
    let (told, results) = mpsc::channel();
    for (id, (host, port)) in brokers {
        let (id, host, port, told) = (*id, host.clone(), *port, told.clone());
        // a name's resolution has no limit of its own: a thread that hangs ends with the command
        let connecting = std::thread::Builder::new().spawn(move || {
            let result = reach(&host, port);
            drop(told.send((id, result)));
        });
        drop(connecting);
    }
    drop(told);
    let late = || format!("no answer within {CONNECT:?}");
    let mut unheard: BTreeMap<i32, String> = brokers.keys().map(|id| (*id, late())).collect();
    while let Ok((id, result)) =
        results.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        match result {
            Ok(()) => drop(unheard.remove(&id)),
            Err(error) => drop(unheard.insert(id, error)),
        }
    }
    unheard
}

fn reach(host: &str, port: u16) -> Result<(), String> {
    let found = (host, port)
        .to_socket_addrs()
        .map_err(|error| error.to_string())?;
    let mut last = "the name has no address".to_owned();
    for address in found {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

impl ProducerContext for Words {
    type DeliveryOpaque = ();

    fn delivery(&self, _nothing_is_sent: &DeliveryResult<'_>, _tag: ()) {}
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::RDKafkaApiKey as Api;
    use shared::config::Document;

    use super::*;
    use crate::config::{Cluster, Config};

    fn asked(bootstrap: &str) -> Asked {
        let text = format!("[kafka]\nbootstrap = \"{bootstrap}\"\n");
        let document = Document::parse(&text, "test.toml", []).unwrap();
        let config = Config::from_document(document, Cluster::Configured).unwrap();
        let mut lanes = config.lanes();
        // the mock knows no requests of administrators
        lanes.topics.by_asking = true;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        ask(&lanes, runtime.handle().clone())
    }

    #[test]
    fn a_cluster_that_has_it_all_is_fine() {
        let mock = MockCluster::new(1).unwrap();
        mock.create_topic("__kedge_checkpoints", 4, 1).unwrap();
        let bootstrap = mock.bootstrap_servers();
        let asked = asked(&bootstrap);
        assert_eq!(asked.problems, Vec::<String>::new());
        let told = asked.notes.join("\n");
        for part in [
            format!("1 of 1 brokers reached: {bootstrap}"),
            "topic `__kedge_checkpoints`: 4 partitions, one for each lane".to_owned(),
            "topic `kedge.dead-letters`: not there yet".to_owned(),
            "transactional id `kedge-check` is allowed".to_owned(),
        ] {
            assert!(told.contains(&part), "{part} in {told}");
        }
    }

    #[test]
    fn what_the_cluster_refuses_is_told_with_its_key() {
        let mock = MockCluster::new(1).unwrap();
        mock.create_topic("__kedge_checkpoints", 3, 1).unwrap();
        let denied = E::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED;
        mock.request_errors(Api::InitProducerId, &[denied; 20]);
        let asked = asked(&mock.bootstrap_servers());
        let told = asked.problems.join("\n");
        for part in [
            "commit.checkpoint_topic = \"__kedge_checkpoints\"",
            "it has 3 partitions and `lanes` is 4",
            "commit.transactional_id_prefix = \"kedge\": the cluster refuses transactional id `kedge-check`",
            "Describe and Write on transactional ids `kedge-*`",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
    }

    #[test]
    fn a_cluster_that_is_not_there_is_told_with_its_address_and_why() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let asked = asked(&address.to_string());
        let [problem] = &asked.problems[..] else {
            panic!("{asked:?}");
        };
        let start = format!("kafka.bootstrap = \"{address}\": no broker answers");
        assert!(problem.starts_with(&start), "{problem}");
        assert!(problem.contains("Connection refused"), "{problem}");
    }

    #[test]
    fn a_broker_whose_address_leads_nowhere_is_told() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        let there = BTreeMap::from([(1, ("127.0.0.1".to_owned(), port))]);
        assert_eq!(connect(&there), BTreeMap::new());
        drop(free);
        assert!(connect(&there)[&1].contains("refused"));
    }
}
