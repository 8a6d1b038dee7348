//! A subscriber with a lasting session that comes back whenever its connection breaks, and keeps what it saw.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::client::{Client, Heard, Hello};
use crate::record::Numbered;
use crate::wait;

const LOOK: Duration = Duration::from_millis(20);

/// Numbers in the order in which they came, by MQTT topic.
pub type Seen = BTreeMap<String, Vec<u64>>;

/// The subscriber's thread.
#[derive(Debug)]
pub struct MqttReader {
    seen: Arc<Mutex<Seen>>,
    is_stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl MqttReader {
    /// Subscribes, and goes on until it is finished.
    ///
    /// # Errors
    /// When the subscription is refused.
    pub fn start(address: SocketAddr, hello: Hello, filter: &str, qos: u8) -> Result<Self> {
        let mut client = Client::open_at(address, hello.version)?;
        let welcome = client.greet(&hello)?;
        ensure!(welcome.code == 0, "refused: {welcome:?}");
        client.subscribe(filter, qos)?;
        let (seen, is_stopping) = (Arc::default(), Arc::<AtomicBool>::default());
        let (into, stop) = (Arc::clone(&seen), Arc::clone(&is_stopping));
        let thread = thread::spawn(move || read(address, &hello, client, &into, &stop));
        Ok(Self {
            seen,
            is_stopping,
            thread: Some(thread),
        })
    }

    /// What it saw.
    ///
    /// # Panics
    /// When its thread panicked.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.lock().expect("no holder panics").clone()
    }

    /// How many messages it saw.
    ///
    /// # Panics
    /// When its thread panicked.
    #[must_use]
    pub fn count(&self) -> usize {
        let seen = self.seen.lock().expect("no holder panics");
        seen.values().map(Vec::len).sum()
    }

    /// Stops, and gives what it saw.
    ///
    /// # Errors
    /// When the broker broke the protocol's rules.
    pub fn finish(mut self) -> Result<Seen> {
        self.is_stopping.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it was finished before")?;
        match thread.join() {
            Ok(ended) => ended.map(|()| self.seen()),
            Err(_) => bail!("an MQTT reader panicked"),
        }
    }
}

impl Drop for MqttReader {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }
}

fn read(
    address: SocketAddr,
    hello: &Hello,
    mut client: Client,
    seen: &Mutex<Seen>,
    is_stopping: &AtomicBool,
) -> Result<()> {
    let hello = hello.clone().resume();
    while !is_stopping.load(Ordering::Relaxed) {
        let is_broken = match client.listen(LOOK)? {
            // what it can't send now it sends when it comes again
            Heard::Packet(packet) => client.handle(packet, "a message").is_err(),
            Heard::Silence => false,
            Heard::End => true,
        };
        for message in client.take_messages() {
            let record = Numbered::decode(&message.payload).context("a message of nobody")?;
            let mut seen = seen.lock().expect("no holder panics");
            seen.entry(message.topic).or_default().push(record.number);
        }
        if is_broken {
            let Some(next) = come_back(address, &hello, is_stopping)? else {
                return Ok(());
            };
            let last = std::mem::replace(&mut client, next);
            client.go_on_from(last);
        }
    }
    Ok(())
}

fn come_back(
    address: SocketAddr,
    hello: &Hello,
    is_stopping: &AtomicBool,
) -> Result<Option<Client>> {
    while !is_stopping.load(Ordering::Relaxed) {
        let client = Client::open_at(address, hello.version);
        let welcomed = client.and_then(|mut client| Ok((client.greet(hello)?, client)));
        match welcomed {
            Ok((welcome, client)) => {
                ensure!(
                    welcome.is_session_present,
                    "the session was lost: {welcome:?}"
                );
                return Ok(Some(client));
            }
            // a broker that is down is part of the experiment
            Err(_) => wait::let_run(LOOK),
        }
    }
    Ok(None)
}
