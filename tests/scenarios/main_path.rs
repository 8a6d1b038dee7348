//! A record accepted at a site is in Kafka, exactly once.

use std::time::Duration;

use anyhow::{Result, ensure};
use system_tests::broker::Broker;
use system_tests::clients::{self, Client};
use system_tests::stage::Stage;
use system_tests::writer::{Pace, Writer};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
#[ignore = "system test: make test"]
fn a_record_of_kcat_at_the_site_reaches_kcat_at_the_centre() -> Result<()> {
    let broker = Broker::shared();
    let stage = Stage::start(broker)?;
    let topic = stage.topic("hello");
    let lines = ["first".to_owned(), "second".to_owned()];
    Client::Kcat.produce(&stage.site.bootstrap(), &topic, &lines, None, &[])?;
    stage.reader(&[&topic])?.wait_for(2, LIMIT)?;
    let mut seen = clients::kcat_consume(broker.bootstrap(), &topic)?;
    seen.sort();
    assert_eq!(seen, lines);
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn kafka_and_http_writers_find_all_their_records_once_and_in_order() -> Result<()> {
    let stage = Stage::start(Broker::shared())?;
    let (fast, posted) = (stage.topic("fast"), stage.topic("posted"));
    let pace = Pace {
        rate: 0,
        total: Some(50_000),
        ..Pace::default()
    };
    let kafka = Writer::kafka("kafka", &stage.site.bootstrap(), &fast, pace.clone(), &[])?;
    let pace = Pace {
        rate: 0,
        total: Some(1_000),
        ..pace
    };
    let http = Writer::http("http", &stage.site.http(), &posted, pace);
    let (kafka, http) = (kafka.complete(LIMIT)?, http.complete(LIMIT)?);
    assert_eq!((kafka.acked_count(), http.acked_count()), (50_000, 1_000));
    let mut acked = kafka.acked().clone();
    acked.extend(http.acked().iter().cloned());
    stage.judge(&acked, LIMIT)?.check()
}

#[test]
#[ignore = "system test: make test"]
fn the_delivery_ledger_adds_up() -> Result<()> {
    let stage = Stage::start(Broker::shared())?;
    let topic = stage.topic("ledger");
    let pace = Pace {
        rate: 0,
        total: Some(5_000),
        ..Pace::default()
    };
    Writer::kafka("w", &stage.site.bootstrap(), &topic, pace, &[])?.complete(LIMIT)?;
    stage.reader(&[&topic])?.wait_for(5_000, LIMIT)?;
    let ledger = stage.wait_drained(&topic, LIMIT)?;
    ensure!(
        ledger.accepted == 5_000 && ledger.committed == 5_000,
        "{ledger:?}"
    );
    ensure!(ledger.queued + ledger.dropped() == 0, "{ledger:?}");
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn every_client_with_every_codec_gets_its_records_through() -> Result<()> {
    let stage = Stage::start(Broker::shared())?;
    for client in clients::ALL {
        let codecs = clients::CODECS
            .iter()
            .map(|codec| Some(*codec))
            .chain([None]);
        let topic = stage.topic(client.name());
        let mut expected = Vec::new();
        for codec in codecs {
            let word = codec.unwrap_or("default");
            let lines: Vec<_> = (0..100)
                .map(|number| format!("{} {word} {number:03}", client.name()))
                .collect();
            client.produce(&stage.site.bootstrap(), &topic, &lines, codec, &[])?;
            expected.extend(lines);
        }
        let reader = stage.reader(&[&topic])?;
        reader.wait_for(expected.len(), LIMIT)?;
        let payload = |record: &[u8]| String::from_utf8_lossy(record).into_owned();
        let mut seen: Vec<_> = reader
            .seen()
            .iter()
            .map(|record| payload(record.payload.as_deref().unwrap_or_default()))
            .collect();
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected, "{}", client.name());
    }
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn idempotent_clients_work_at_the_site() -> Result<()> {
    let stage = Stage::start(Broker::shared())?;
    let matrix: [(Client, &[(&str, &str)]); 4] = [
        (Client::Kcat, &[("enable.idempotence", "true")]),
        (
            Client::ConfluentPython,
            &[("enable.idempotence", "true"), ("acks", "all")],
        ),
        (Client::KafkaPython, &[("enable_idempotence", "true")]),
        (
            Client::Java,
            &[("acks", "all"), ("enable.idempotence", "true")],
        ),
    ];
    for (client, settings) in matrix {
        let topic = stage.topic(&format!("idempotent-{}", client.name()));
        let lines: Vec<_> = (0..200).map(|number| format!("{number:03}")).collect();
        client.produce(&stage.site.bootstrap(), &topic, &lines, None, settings)?;
        let reader = stage.reader(&[&topic])?;
        reader.wait_for(lines.len(), LIMIT)?;
        assert_eq!(reader.count(), lines.len(), "{}", client.name());
    }
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn every_acks_setting_is_served() -> Result<()> {
    let stage = Stage::start(Broker::shared())?;
    for acks in ["0", "1", "all"] {
        let topic = stage.topic(&format!("acks-{acks}"));
        let lines: Vec<_> = (0..100).map(|number| format!("{number:03}")).collect();
        let settings = [("acks", acks)];
        Client::Kcat.produce(&stage.site.bootstrap(), &topic, &lines, None, &settings)?;
        stage.reader(&[&topic])?.wait_for(lines.len(), LIMIT)?;
    }
    Ok(())
}
