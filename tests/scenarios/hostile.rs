//! Input that means harm: the peer gets an error and is closed, and nobody else notices.

use std::io::Write as _;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Result, ensure};
use rand::RngExt as _;
use system_tests::broker::Broker;
use system_tests::raw::{self, Raw};
use system_tests::record::Numbered;
use system_tests::rogue::{self, Misdeed};
use system_tests::settings::Settings;
use system_tests::stage::Stage;
use system_tests::writer::{Acked, Pace, Writer};
use system_tests::{hub, seed, wait};

const LIMIT: Duration = Duration::from_secs(60);

/// Row 20: garbage, truncated and oversized frames on the Kafka listener.
#[test]
#[ignore = "system test: make test"]
fn garbage_on_the_kafka_listener_costs_its_sender_only() -> Result<()> {
    let run_seed = seed::announce("garbage");
    let mut random = seed::generator(run_seed, "garbage");
    let mut stage = Stage::start(Broker::shared())?;
    let topic = stage.topic("bystander");
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, Pace::default(), &[])?;
    wait::until_true("the bystander writes", LIMIT, || {
        writer.ledger().acked_count() > 100
    })?;
    let before = stage.site.process()?.resident_bytes();
    let mut frames: Vec<Vec<u8>> = vec![
        // Lengths: the largest, negative, zero.
        0x7fff_ffff_u32.to_be_bytes().to_vec(),
        0xffff_ffff_u32.to_be_bytes().to_vec(),
        0_u32.to_be_bytes().to_vec(),
        // An API that nobody has, and a version of Produce that nobody has.
        raw::framed(&raw::header(999, 0)),
        raw::framed(&raw::header(0, 99)),
        // A produce request with 2^31 - 1 topics, and one with a negative count.
        raw::framed(&[&raw::header(0, 7)[..], &produce_with_topics(i32::MAX)].concat()),
        raw::framed(&[&raw::header(0, 7)[..], &produce_with_topics(-7)].concat()),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
    ];
    frames.extend((0..40).map(|_| {
        let length = random.random_range(1..2_000);
        (0..length).map(|_| random.random()).collect::<Vec<u8>>()
    }));
    frames.extend((0..40).map(|_| {
        let length = random.random_range(1..2_000);
        let body: Vec<u8> = (0..length).map(|_| random.random()).collect();
        raw::framed(
            &[
                &raw::header(random.random_range(0..4), random.random_range(0..9))[..],
                &body,
            ]
            .concat(),
        )
    }));
    for frame in &frames {
        let mut peer = Raw::connect(&stage.site.bootstrap())?;
        peer.send(frame);
    }
    // Those that promise much and send nothing are still connected while the memory is looked at.
    let mut hungry = Vec::new();
    for _ in 0..50 {
        let mut peer = Raw::connect(&stage.site.bootstrap())?;
        peer.send(&100_000_000_u32.to_be_bytes());
        hungry.push(peer);
    }
    for peer in &mut hungry {
        peer.until_closed()?;
    }
    let after = stage.site.process()?.resident_bytes();
    ensure!(
        after < before + (64 << 20),
        "memory went from {before} to {after}"
    );
    let ledger = writer.finish(LIMIT)?;
    ensure!(ledger.refused().is_empty());
    stage.site.process()?.check_alive()?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}

fn produce_with_topics(count: i32) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend((-1_i16).to_be_bytes());
    body.extend((-1_i16).to_be_bytes());
    body.extend(1_000_i32.to_be_bytes());
    body.extend(count.to_be_bytes());
    body
}

/// Row 21: a batch that decompresses to a gigabyte, in every codec that can do that.
#[test]
#[ignore = "system test: make test"]
fn a_decompression_bomb_is_refused_at_the_door() -> Result<()> {
    let mut stage = Stage::start(Broker::shared())?;
    let topic = stage.topic("bomb");
    let mut peer = Raw::connect(&stage.site.bootstrap())?;
    peer.create_topic(&topic)?;
    let before = stage.site.process()?.resident_bytes();
    for (codec, bomb) in [(1, gzip_bomb()?), (4, zstd_bomb()?)] {
        ensure!(bomb.len() < 900_000, "the bomb has {} bytes", bomb.len());
        let code = peer.produce(&topic, 0, &raw::batch(codec, 1, &bomb))?;
        // MESSAGE_TOO_LARGE, CORRUPT_MESSAGE or INVALID_RECORD: none of them makes a client retry for ever.
        ensure!(
            [2, 10, 87].contains(&code),
            "codec {codec}: error code {code}"
        );
    }
    let after = stage.site.process()?.resident_bytes();
    ensure!(
        after < before + (64 << 20),
        "memory went from {before} to {after}"
    );
    let pace = Pace {
        rate: 0,
        total: Some(1_000),
        ..Pace::default()
    };
    let ledger = Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &[])?.complete(LIMIT)?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}

const BOMB_BYTES: usize = 1 << 30;

fn zstd_bomb() -> Result<Vec<u8>> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1)?;
    pour_zeros(&mut encoder)?;
    Ok(encoder.finish()?)
}

/// Gzip reaches 1:1000 only: a smaller bomb, which is still far over any limit.
fn gzip_bomb() -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..(BOMB_BYTES >> 22) {
        encoder.write_all(&vec![0; 1 << 20])?;
    }
    Ok(encoder.finish()?)
}

fn pour_zeros(into: &mut impl std::io::Write) -> Result<()> {
    for _ in 0..(BOMB_BYTES >> 20) {
        into.write_all(&vec![0; 1 << 20])?;
    }
    Ok(())
}

/// A batch with a wrong checksum, an old magic, a count that lies.
#[test]
#[ignore = "system test: make test"]
fn damaged_batches_are_refused_at_the_door() -> Result<()> {
    let stage = Stage::start(Broker::shared())?;
    let topic = stage.topic("damaged");
    let mut peer = Raw::connect(&stage.site.bootstrap())?;
    peer.create_topic(&topic)?;
    let good = raw::batch(0, 1, &[14, 0, 0, 0, 1, 2, b'x', 0]);
    ensure!(
        peer.produce(&topic, 0, &good)? == 0,
        "the good batch is refused"
    );
    let change = |at: usize, value: u8| {
        let mut batch = good.clone();
        batch[at] = value;
        batch
    };
    let wrong = [
        ("checksum", change(20, good[20] ^ 1)),
        ("magic 1", change(16, 1)),
        ("length", change(11, good[11].wrapping_add(1))),
        ("count", raw::batch(0, 1000, &[14, 0, 0, 0, 1, 2, b'x', 0])),
        (
            "record length",
            raw::batch(0, 1, &[0x80, 0x80, 0x80, 0x80, 0x0f]),
        ),
        ("nothing", Vec::new()),
    ];
    for (what, batch) in wrong {
        let answer = Raw::connect(&stage.site.bootstrap())?.produce(&topic, 0, &batch);
        ensure!(
            answer.as_ref().map_or(true, |code| *code != 0),
            "{what}: {answer:?}"
        );
    }
    stage.reader(&[&topic])?.wait_for(1, LIMIT)?;
    Ok(())
}

/// Garbage on HTTP, on both admin listeners and on the hub's UDP port.
#[test]
#[ignore = "system test: make test"]
fn garbage_on_every_other_listener_costs_its_sender_only() -> Result<()> {
    let run_seed = seed::announce("garbage");
    let mut random = seed::generator(run_seed, "others");
    let mut stage = Stage::start(Broker::shared())?;
    let topic = stage.topic("bystander");
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, Pace::default(), &[])?;
    let reader = stage.reader(&[&topic])?;
    reader.wait_for(500, LIMIT)?;
    let http = stage.site.http().trim_start_matches("http://").to_owned();
    let admins = [stage.site.admin(), stage.hub.admin()].map(|admin| admin.address());
    let huge = format!(
        "POST /v1/topics/{topic}/records HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n["
    );
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(1 << 20));
    for address in [http.as_str(), &admins[0], &admins[1]] {
        for bytes in [
            huge.as_bytes(),
            endless.as_bytes(),
            b"\x00\xff\x16\x03\x01",
            b"POST",
        ] {
            Raw::connect(address)?.send(bytes);
        }
        let noise: Vec<u8> = (0..5_000).map(|_| random.random()).collect();
        Raw::connect(address)?.send(&noise);
    }
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    for _ in 0..2_000 {
        let length = random.random_range(1..1_400);
        let noise: Vec<u8> = (0..length).map(|_| random.random()).collect();
        socket.send_to(&noise, stage.hub.address())?;
    }
    reader.wait_more(500, LIMIT)?;
    stage.site.process()?.check_alive()?;
    stage.hub.process()?.check_alive()?;
    let ledger = writer.finish(LIMIT)?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}

/// Row 19: a record that the central topic refuses goes alone to the dead letters, from within a batch.
#[test]
#[ignore = "system test: make test"]
fn a_dead_letter_in_a_batch_holds_nothing_up() -> Result<()> {
    let broker = Broker::shared();
    let stage = Stage::start(broker)?;
    let topic = stage.topic("poison");
    broker.create_topic(&topic, 1, &[("max.message.bytes", "20000")])?;
    // One writer, every record of 200 bytes but number 500, all in large batches.
    let batches = [("linger.ms", "200"), ("batch.num.messages", "1000")];
    let site = stage.site.bootstrap();
    let pace = Pace {
        rate: 0,
        total: Some(1_000),
        ..Pace::default()
    };
    let poison = Pace {
        rate: 0,
        total: Some(1),
        size: 60_000,
        ..Pace::default()
    };
    let before = Writer::kafka("before", &site, &topic, pace.clone(), &batches)?;
    let poison = Writer::kafka("poison", &site, &topic, poison, &batches)?;
    let after = Writer::kafka("after", &site, &topic, pace, &batches)?;
    let mut acked: Vec<Acked> = before.complete(LIMIT)?.acked().clone();
    acked.extend(after.complete(LIMIT)?.acked().iter().cloned());
    let refused = poison.complete(LIMIT)?.acked().clone();
    let dead = hub::dead_letter_topic(&stage.run);
    let reader = stage.reader(&[&dead])?;
    reader.wait_for(1, LIMIT)?;
    stage.judge(&acked, LIMIT)?.check()?;
    let letters = reader.seen();
    ensure!(letters.len() == 1, "{} dead letters", letters.len());
    let letter = &letters[0];
    let number = Numbered::decode(letter.payload.as_deref().unwrap_or_default());
    ensure!(
        number.is_some_and(|record| record.writer == refused[0].writer),
        "{letter:?}"
    );
    ensure!(
        letter.header("kedge.reason") == Some("too-large"),
        "{:?}",
        letter.header("kedge.reason")
    );
    ensure!(
        letter.header("kedge.topic") == Some(&topic),
        "{:?}",
        letter.header("kedge.topic")
    );
    drop(letters);
    let ledger = stage.wait_drained(&topic, LIMIT)?;
    ensure!(ledger.committed == 2_001, "{ledger:?}");
    Ok(())
}

/// Peers of the hub's QUIC listener that have no certificate, speak another protocol, or break ours.
#[test]
#[ignore = "system test: make test"]
fn a_peer_that_breaks_the_link_protocol_is_closed_and_others_go_on() -> Result<()> {
    let run_seed = seed::announce("rogue peers");
    let mut random = seed::generator(run_seed, "rogue");
    let hub_settings = Settings::default().with("listen.handshake_timeout", "2s");
    let mut stage = Stage::start_with(Broker::shared(), &hub_settings, &Settings::default())?;
    let topic = stage.topic("bystander");
    let writer = Writer::kafka("w", &stage.site.bootstrap(), &topic, Pace::default(), &[])?;
    let reader = stage.reader(&[&topic])?;
    reader.wait_for(500, LIMIT)?;
    let identity = stage.certs.issue("site-rogue")?;
    let hub = stage.hub.address();
    let mut noise = |length: usize| -> Vec<u8> { (0..length).map(|_| random.random()).collect() };
    let misdeeds = [
        Misdeed::Silence,
        Misdeed::Control(vec![0xff; 64]),
        Misdeed::Control(vec![0; 64]),
        Misdeed::Control(noise(100)),
        Misdeed::Control(noise(100_000)),
        Misdeed::Data(noise(10)),
        Misdeed::Data(noise(100_000)),
    ];
    for misdeed in &misdeeds {
        let reason = rogue::misbehave(hub, &identity, true, None, misdeed)?;
        ensure!(
            !reason.contains("timed out"),
            "{misdeed:?}: forgotten instead of closed"
        );
    }
    rogue::misbehave(hub, &identity, false, None, &Misdeed::Silence)?;
    rogue::misbehave(hub, &identity, true, Some(b"h3"), &Misdeed::Silence)?;
    reader.wait_more(500, LIMIT)?;
    stage.hub.process()?.check_alive()?;
    let ledger = writer.finish(LIMIT)?;
    stage.judge(&ledger.acked(), LIMIT)?.check()
}
