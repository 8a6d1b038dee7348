//! The MQTT broker against mosquitto: acknowledged publishes, fan-out, memory and processor time with many
//! clients.

mod client;
mod mosquitto;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use system_tests::process::{self, Process};
use system_tests::settings::Settings;
use system_tests::stage::Stage;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use client::{Client, Qos};
use mosquitto::Mosquitto;

use crate::results::{Goal, Row};

const PEER: &str = "mosquitto";
const PAYLOAD: [u8; 200] = [b'x'; 200];
const PUBLISHERS: usize = 100;
/// Publishes of one client that wait for their acknowledgement; mosquitto's default for what it sends.
const IN_FLIGHT: usize = 20;
const WARM_UP: Duration = Duration::from_secs(2);
const MEASURED: Duration = Duration::from_secs(8);
/// Systems take turns, so that what else the machine does meets all of them; the median counts.
const TURNS: usize = 3;

const SUBSCRIBERS: usize = 100;
const FANNED_OUT: u64 = 20_000;
/// What the publisher is ahead of the slowest subscriber: less than what makes mosquitto drop.
const AHEAD: u64 = 500;

const IDLE_CLIENTS: usize = 10_000;
const BUSY_CLIENTS: usize = 1_000;
const BUSY_PERIOD: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(120);
const MIB: f64 = 1024.0 * 1024.0;

/// Measures the rows.
///
/// # Errors
/// When a broker does not start or refuses a client.
pub fn rows() -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut rows = speed(&runtime)?;
    rows.extend(crowd(&runtime)?);
    Ok(rows)
}

/// A site on its own that takes everybody: the hub is not started.
fn start() -> Result<Stage> {
    let settings = Settings::default().with("mqtt.max_connections", 20_000);
    let mut stage = Stage::prepare("127.0.0.1:1", &Settings::default(), &settings)?;
    stage.site.start()?;
    Ok(stage)
}

fn speed(runtime: &tokio::runtime::Runtime) -> Result<Vec<Row>> {
    let stage = start()?;
    let peer = Mosquitto::start()?;
    let ours: SocketAddr = stage.site.mqtt().parse()?;
    let theirs = peer.address();
    let mut publishes = [Vec::new(), Vec::new()];
    let mut deliveries = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        for (at, address) in [ours, theirs].into_iter().enumerate() {
            publishes[at].push(runtime.block_on(publish(address))?);
            deliveries[at].push(runtime.block_on(fan_out(address))?);
        }
    }
    let row = |name: &str, [ours, peer]: [Vec<f64>; 2]| {
        let peer = Some((PEER, median(peer)));
        Row::new(name, "messages/s", median(ours), peer, Goal::AtLeast(1.0))
    };
    Ok(vec![
        row(
            "MQTT QoS 1 publishes by 100 clients, acknowledged after the sync",
            publishes,
        ),
        row(
            "MQTT QoS 0 from 1 publisher to 100 subscribers, delivered",
            deliveries,
        ),
    ])
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Acknowledged publishes a second at QoS 1.
async fn publish(address: SocketAddr) -> Result<f64> {
    let acknowledged = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..PUBLISHERS {
        let client = Client::connect(address, &format!("publisher-{number}")).await?;
        let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        clients.spawn(keep_publishing(client, number, acknowledged, stop));
    }
    sleep(WARM_UP).await;
    let (before, started) = (acknowledged.load(Ordering::Relaxed), Instant::now());
    sleep(MEASURED).await;
    let done = acknowledged.load(Ordering::Relaxed) - before;
    let rate = done as f64 / started.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(rate)
}

async fn keep_publishing(
    mut client: Client,
    number: usize,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    let topic = format!("bench/publish/{number}");
    let mut in_flight = 0;
    while !stop.load(Ordering::Relaxed) || in_flight > 0 {
        if !stop.load(Ordering::Relaxed) {
            for _ in in_flight..IN_FLIGHT {
                client.publish(&topic, Qos::AtLeastOnce, &PAYLOAD);
            }
            in_flight = IN_FLIGHT;
            client.flush().await?;
        }
        let acked = timeout(LIMIT, client.acknowledgements()).await??;
        in_flight -= acked;
        acknowledged.fetch_add(acked as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Deliveries a second, over all subscribers, of what one client publishes at QoS 0.
async fn fan_out(address: SocketAddr) -> Result<f64> {
    let counts: Arc<Vec<AtomicU64>> =
        Arc::new((0..SUBSCRIBERS).map(|_| AtomicU64::default()).collect());
    let mut subscribers = JoinSet::new();
    for number in 0..SUBSCRIBERS {
        let mut client = Client::connect(address, &format!("subscriber-{number}")).await?;
        client.subscribe("bench/fan-out").await?;
        let counts = Arc::clone(&counts);
        subscribers.spawn(async move {
            let mut received = 0;
            while received < FANNED_OUT {
                received += client.messages().await? as u64;
                counts[number].store(received, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    let mut publisher = Client::connect(address, "publisher").await?;
    let started = Instant::now();
    let run = async {
        for number in 1..=FANNED_OUT {
            publisher.publish("bench/fan-out", Qos::AtMostOnce, &PAYLOAD);
            if number % 50 != 0 && number != FANNED_OUT {
                continue;
            }
            publisher.flush().await?;
            while number > AHEAD + slowest(&counts) {
                sleep(Duration::from_micros(500)).await;
            }
        }
        while let Some(ended) = subscribers.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    };
    let all = timeout(LIMIT, run).await;
    all.with_context(|| format!("the slowest subscriber has {}", slowest(&counts)))??;
    Ok((FANNED_OUT * SUBSCRIBERS as u64) as f64 / started.elapsed().as_secs_f64())
}

fn slowest(counts: &[AtomicU64]) -> u64 {
    let counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
    counts.min().unwrap_or_default()
}

/// What a broker takes.
#[derive(Debug)]
struct Cost {
    /// With idle clients, and with a thousand that publish besides.
    idle_mib: f64,
    busy_mib: f64,
    /// Of one processor while they publish.
    processors: f64,
}

fn crowd(runtime: &tokio::runtime::Runtime) -> Result<Vec<Row>> {
    process::allow_open_files(IDLE_CLIENTS as u64 + 4096)?;
    let mut stage = start()?;
    let address = stage.site.mqtt().parse()?;
    let ours = runtime.block_on(cost(address, stage.site.process()?))?;
    let peer = Mosquitto::start()?;
    let theirs = runtime.block_on(cost(peer.address(), peer.process()))?;
    let name = "MQTT, resident with 10,000 idle clients";
    let busy = "10,000 idle clients and 1,000 that publish 10 messages/s at QoS 1";
    Ok(vec![
        Row::new(
            name,
            "MiB",
            ours.idle_mib,
            Some((PEER, theirs.idle_mib)),
            Goal::AtMost(3.0),
        ),
        Row::new(
            &format!("{name}, as such"),
            "MiB",
            ours.idle_mib,
            None,
            Goal::Below(256.0),
        ),
        Row::new(
            &format!("MQTT, resident with {busy}"),
            "MiB",
            ours.busy_mib,
            Some((PEER, theirs.busy_mib)),
            Goal::AtMost(3.0),
        ),
        Row::new(
            &format!("MQTT, processors with {busy}"),
            "of one",
            ours.processors,
            Some((PEER, theirs.processors)),
            Goal::AtMost(3.0),
        ),
    ])
}

async fn cost(address: SocketAddr, process: &Process) -> Result<Cost> {
    let mut idle = Vec::with_capacity(IDLE_CLIENTS);
    for number in 0..IDLE_CLIENTS {
        let mut client = Client::connect(address, &format!("idle-{number}")).await?;
        client.subscribe(&format!("bench/idle/{number}")).await?;
        idle.push(client);
    }
    sleep(WARM_UP).await;
    let idle_mib = process.resident_bytes() as f64 / MIB;

    let stop = Arc::new(AtomicBool::new(false));
    let mut busy = JoinSet::new();
    for number in 0..BUSY_CLIENTS {
        let mut client = Client::connect(address, &format!("busy-{number}")).await?;
        let stop = Arc::clone(&stop);
        busy.spawn(async move {
            let topic = format!("bench/busy/{number}");
            let mut due = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                client.publish(&topic, Qos::AtLeastOnce, &PAYLOAD);
                client.flush().await?;
                timeout(LIMIT, client.acknowledgements()).await??;
                due += BUSY_PERIOD;
                tokio::time::sleep_until(due).await;
            }
            anyhow::Ok(())
        });
    }
    sleep(WARM_UP).await;
    let (before, started) = (process::cpu_time(process.id()), Instant::now());
    sleep(MEASURED).await;
    let used = process::cpu_time(process.id()).saturating_sub(before);
    let processors = used.as_secs_f64() / started.elapsed().as_secs_f64();
    let busy_mib = process.resident_bytes() as f64 / MIB;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = busy.join_next().await {
        ended??;
    }
    drop(idle);
    Ok(Cost {
        idle_mib,
        busy_mib,
        processors,
    })
}
