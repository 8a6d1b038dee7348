//! The harness against the bare broker: what it measures with must be right before it judges anything.

use std::time::Duration;

use anyhow::Result;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use system_tests::broker::Broker;
use system_tests::central::Reader;
use system_tests::clients::{self, Client};
use system_tests::oracle;
use system_tests::record::{Numbered, Shape};
use system_tests::seed;
use system_tests::writer::{Pace, Writer};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
#[ignore = "system test: make test"]
fn the_oracle_is_content_with_a_bare_broker_and_sees_what_is_injected() -> Result<()> {
    let broker = Broker::shared();
    let topic = format!("bare-{}", seed::fresh());
    broker.create_topic(&topic, 3, &[])?;
    let pace = Pace {
        rate: 0,
        total: Some(5_000),
        ..Pace::default()
    };
    let writer = Writer::kafka("bare", broker.bootstrap(), &topic, pace, &[])?;
    let ledger = writer.complete(LIMIT)?;
    assert_eq!(ledger.acked_count(), 5_000);

    let reader = Reader::start(broker.bootstrap(), &[&topic])?;
    reader.wait_for(5_000, LIMIT)?;
    oracle::judge(&ledger.acked(), &reader.seen(), ToOwned::to_owned).check()?;

    // A second copy of record 7, and an acknowledgement for a record that nobody stored.
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap())
        .create()?;
    let mut random = seed::generator(1, "bare");
    let again = (0..8)
        .map(|number| Numbered::new("bare", number, 200, Shape::Blob, &mut random))
        .last();
    let payload = again.map(|record| record.encode()).unwrap_or_default();
    producer
        .send(BaseRecord::<(), _>::to(&topic).payload(&payload))
        .map_err(|(error, _)| error)?;
    producer.flush(LIMIT)?;
    reader.wait_for(5_001, LIMIT)?;
    let mut acked = ledger.acked().clone();
    acked[0].number = 5_000;
    let verdict = oracle::judge(&acked, &reader.seen(), ToOwned::to_owned);
    assert_eq!(
        (verdict.duplicated.count, verdict.missing.count),
        (1, 1),
        "{verdict}"
    );
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn every_client_reaches_the_bare_broker() -> Result<()> {
    let broker = Broker::shared();
    for client in clients::ALL {
        let topic = format!("bare-{}-{}", client.name(), seed::fresh());
        broker.create_topic(&topic, 1, &[])?;
        let lines: Vec<_> = (0..50)
            .map(|number| format!("{} {number}", client.name()))
            .collect();
        client.produce(broker.bootstrap(), &topic, &lines, Some("lz4"), &[])?;
        assert_eq!(
            clients::kcat_consume(broker.bootstrap(), &topic)?,
            lines,
            "{}",
            client.name()
        );
    }
    assert!(
        Client::Kcat
            .produce(
                "127.0.0.1:1",
                "x",
                &["x".to_owned()],
                None,
                &[("message.timeout.ms", "1000")]
            )
            .is_err()
    );
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn a_killed_broker_comes_back_with_what_it_had() -> Result<()> {
    let broker = Broker::start()?;
    if !broker.is_local() {
        return Ok(());
    }
    let topic = format!("bare-{}", seed::fresh());
    broker.create_topic(&topic, 2, &[])?;
    let reader = Reader::start(broker.bootstrap(), &[&topic])?;
    let writer = Writer::kafka("killed", broker.bootstrap(), &topic, Pace::default(), &[])?;
    reader.wait_for(500, LIMIT)?;
    broker.kill();
    broker.restart()?;
    let seen = reader.count();
    reader.wait_for(seen + 500, LIMIT)?;
    let ledger = writer.finish(LIMIT)?;
    reader.wait_for(ledger.acked_count(), LIMIT)?;
    oracle::judge(&ledger.acked(), &reader.seen(), ToOwned::to_owned).check()
}
