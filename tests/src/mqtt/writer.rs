//! A writer of numbered records over MQTT, as a careful device would be: its session lasts, several publishes
//! are on their way at a time, and what was not acknowledged when the connection broke is sent again in order.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::client::{Client, Heard, Hello};
use super::packet::{self, Packet, Publish, kind};
use crate::record::{Numbered, Shape};
use crate::writer::{Acked, Ledger};
use crate::{seed, wait};

/// Publishes on their way at a time.
const WINDOW: usize = 20;
/// A look at the connection.
const LOOK: Duration = Duration::from_millis(5);

/// What and how it writes.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The connection; its name is the writer's.
    pub hello: Hello,
    pub qos: u8,
    /// MQTT topics are `prefix/0` to `prefix/9`.
    pub prefix: String,
    /// The Kafka topic that they become.
    pub kafka_topic: String,
    /// Records a second.
    pub rate: u32,
    pub seed: u64,
}

/// The writer's thread.
#[derive(Debug)]
pub struct MqttWriter {
    ledger: Arc<Ledger>,
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl MqttWriter {
    /// Starts writing.
    #[must_use]
    pub fn start(address: SocketAddr, plan: Plan) -> Self {
        let (ledger, is_stopping) = (Arc::<Ledger>::default(), Arc::<AtomicBool>::default());
        let job = Job {
            address,
            random: seed::generator(plan.seed, &plan.hello.client_id),
            plan,
            ledger: Arc::clone(&ledger),
            is_stopping: Arc::clone(&is_stopping),
            flight: VecDeque::new(),
            made: 0,
            started: Instant::now(),
            connections: 0,
        };
        Self {
            ledger,
            is_stopping,
            thread: Some(thread::spawn(move || job.run())),
        }
    }

    /// Makes no more records, waits until each is acknowledged, and gives the ledger.
    ///
    /// # Errors
    /// When the broker broke the protocol's rules, or that takes longer than `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<Arc<Ledger>> {
        self.is_stopping.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it was finished before")?;
        wait::until_true("an MQTT writer ends", limit, || thread.is_finished())?;
        match thread.join() {
            Ok(ended) => ended.map(|()| Arc::clone(&self.ledger)),
            Err(_) => bail!("an MQTT writer panicked"),
        }
    }
}

impl Drop for MqttWriter {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }
}

/// A publish on its way.
#[derive(Debug)]
struct Sent {
    publish: Publish,
    number: u64,
    /// PUBREC has come: the message is the broker's, what is left is PUBREL.
    is_received: bool,
}

struct Job {
    address: SocketAddr,
    plan: Plan,
    random: rand::rngs::StdRng,
    ledger: Arc<Ledger>,
    is_stopping: Arc<AtomicBool>,
    flight: VecDeque<Sent>,
    made: u64,
    started: Instant,
    connections: u32,
}

impl Job {
    fn run(mut self) -> Result<()> {
        while !(self.flight.is_empty() && self.is_stopping.load(Ordering::Relaxed)) {
            // A broker that is down is part of the experiment.
            let Ok(mut client) = Client::open_at(self.address, self.plan.hello.version) else {
                wait::let_run(LOOK);
                continue;
            };
            let Ok(welcome) = client.greet(&self.plan.hello) else {
                continue;
            };
            ensure!(welcome.code == 0, "refused: {welcome:?}");
            let name = &self.plan.hello.client_id;
            ensure!(
                welcome.is_session_present || self.connections == 0,
                "the session of {name} was lost"
            );
            self.connections += 1;
            self.serve(&mut client)?;
        }
        Ok(())
    }

    /// Until the connection breaks, or all is done.
    fn serve(&mut self, client: &mut Client) -> Result<()> {
        let version = self.plan.hello.version;
        for sent in &mut self.flight {
            sent.publish.is_repeated = true;
            let bytes = if sent.is_received {
                packet::ack(kind::PUBREL, sent.publish.id)
            } else {
                sent.publish.encode(version)
            };
            if client.send(&bytes).is_err() {
                return Ok(());
            }
        }
        loop {
            let is_stopping = self.is_stopping.load(Ordering::Relaxed);
            if is_stopping && self.flight.is_empty() {
                return Ok(());
            }
            while !is_stopping && self.flight.len() < WINDOW && self.is_due() {
                let bytes = self.make().encode(version);
                if client.send(&bytes).is_err() {
                    return Ok(());
                }
            }
            match client.listen(LOOK)? {
                Heard::Packet(packet) => {
                    if self.take(client, &packet)?.is_err() {
                        return Ok(());
                    }
                }
                Heard::Silence => {}
                Heard::End => return Ok(()),
            }
        }
    }

    fn is_due(&self) -> bool {
        let due = Duration::from_secs(self.made) / self.plan.rate;
        self.started.elapsed() >= due
    }

    fn make(&mut self) -> &Publish {
        let number = self.made;
        self.made += 1;
        let name = &self.plan.hello.client_id;
        let record = Numbered::new(name, number, 150, Shape::Blob, &mut self.random);
        let publish = Publish {
            topic: format!("{}/{}", self.plan.prefix, number % 10),
            payload: record.encode(),
            qos: self.plan.qos,
            // 20 are on their way at most, so none of these is in use
            id: u16::try_from(number % 60_000 + 1).expect("below 65536"),
            ..Publish::default()
        };
        self.flight.push_back(Sent {
            publish,
            number,
            is_received: false,
        });
        &self.flight.back().expect("pushed").publish
    }

    /// Takes an acknowledgement. The inner error is a broken connection.
    fn take(&mut self, client: &mut Client, packet: &Packet) -> Result<Result<()>> {
        let &Packet::Ack { kind, id, code } = packet else {
            bail!("{packet:?} came to a writer");
        };
        // a PUBREL that is sent again may find nothing left (0x92)
        ensure!(code < 0x80 || code == 0x92, "{packet:?}");
        let at = self.flight.iter().position(|sent| sent.publish.id == id);
        let Some(at) = at else {
            bail!("{packet:?} acknowledges nothing");
        };
        match (self.plan.qos, kind) {
            (1, kind::PUBACK) | (2, kind::PUBCOMP) => {
                let sent = self.flight.remove(at).context("it is there")?;
                self.note(&sent);
                Ok(Ok(()))
            }
            (2, kind::PUBREC) => {
                self.flight[at].is_received = true;
                Ok(client.send(&packet::ack(kind::PUBREL, id)))
            }
            _ => bail!("{packet:?} acknowledges a publish of QoS {}", self.plan.qos),
        }
    }

    fn note(&self, sent: &Sent) {
        let acked = Acked {
            topic: self.plan.kafka_topic.clone(),
            writer: self.plan.hello.client_id.clone(),
            number: sent.number,
            hash: crc32c::crc32c(&sent.publish.payload),
            place: None,
            at: Instant::now(),
        };
        self.ledger.note(acked, sent.publish.payload.len());
    }
}
