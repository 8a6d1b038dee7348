//! Large values through the whole system: sent, counted on the link, and compared with what arrived.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use tempfile::TempDir;

use crate::broker::Broker;
use crate::central::{Committed, Reader};
use crate::settings::Settings;
use crate::stage::Stage;
use crate::{paths, wait};

/// Of all images: they are one device's.
const KEY: &[u8] = b"model-7";
/// What a site's record batch and a central topic take.
const MAX_BATCH: usize = 4 << 20;
const LIMIT: Duration = Duration::from_secs(120);
/// An index that was not written for so long says everything.
const QUIET: Duration = Duration::from_secs(3);

/// A system whose topics take large values and whose hub keeps its chunks on the disk.
#[derive(Debug)]
pub struct Gallery {
    stage: Stage,
    topic: String,
    reader: Reader,
    /// Where the hub keeps what it remembers.
    _codec_dir: TempDir,
    /// Records that arrived, and bytes on the link, as far as they were looked at.
    arrived: usize,
    counted: u64,
}

impl Gallery {
    /// Starts the system and waits until it is ready.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn open(broker: &Broker) -> Result<Self> {
        let codec_dir = paths::scratch("codecs")?;
        let hub = Settings::default().with(
            "listen.codec_dir",
            codec_dir.path().to_string_lossy().into_owned(),
        );
        let site = Settings::default().with("topics.default.max_batch", "4MiB");
        let stage = Stage::start_with(broker, &hub, &site)?;
        let topic = stage.topic("images");
        broker.create_topic(&topic, 1, &[("max.message.bytes", &MAX_BATCH.to_string())])?;
        let reader = stage.reader(&[&topic])?;
        Ok(Self {
            stage,
            topic,
            reader,
            _codec_dir: codec_dir,
            arrived: 0,
            counted: 0,
        })
    }

    /// Sends the images, waits until the site knows that the centre has them, and compares every byte. Gives
    /// the bytes on the link, both ways, since it was looked at last.
    ///
    /// # Errors
    /// When an image is not there, not as it was, out of order, or twice.
    pub fn send(&mut self, images: &[Vec<u8>]) -> Result<u64> {
        produce(&self.stage.site.bootstrap(), &self.topic, images)?;
        let expected = self.arrived + images.len();
        self.reader.wait_for(expected, LIMIT)?;
        self.stage.wait_drained(&self.topic, LIMIT)?;
        let arrived = compare(&self.reader.seen()[self.arrived..], images);
        arrived.context("what arrived is not what was sent")?;
        self.arrived = expected;
        let (up, down) = self.stage.link.bytes();
        let before = std::mem::replace(&mut self.counted, up + down);
        Ok(self.counted - before)
    }

    /// SIGKILL of both nodes, and both again on what they left on their disks. The site writes its index of
    /// chunks for at most a tenth of its time, so the kill comes when that was not written for a while.
    ///
    /// # Errors
    /// When the index is not there, or a node does not come up.
    pub fn kill_both(&mut self) -> Result<()> {
        let index = self.stage.site.data_dir().join("codecs/chunks.index");
        let is_quiet = || {
            let age = fs::metadata(&index).ok()?.modified().ok()?.elapsed().ok()?;
            (age > QUIET).then_some(())
        };
        wait::until("the index of chunks is written", LIMIT, is_quiet)?;
        self.stage.site.kill();
        self.stage.hub.kill();
        self.stage.hub.start()?;
        self.stage.site.start()
    }
}

fn compare(arrived: &[Committed], images: &[Vec<u8>]) -> Result<()> {
    ensure!(arrived.len() == images.len(), "{} images", arrived.len());
    for (number, (record, image)) in arrived.iter().zip(images).enumerate() {
        ensure!(record.key.as_deref() == Some(KEY), "key of image {number}");
        let is_same = record.payload.as_ref() == Some(image);
        ensure!(is_same, "image {number} is another");
    }
    Ok(())
}

#[derive(Debug, Default, Clone)]
struct Delivered(Arc<AtomicUsize>);

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.0
            .fetch_add(usize::from(result.is_ok()), Ordering::Relaxed);
    }
}

/// One record an image, in order, until all are acknowledged.
fn produce(bootstrap: &str, topic: &str, images: &[Vec<u8>]) -> Result<()> {
    let delivered = Delivered::default();
    let producer: ThreadedProducer<Delivered> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("message.max.bytes", MAX_BATCH.to_string())
        .create_with_context(delivered.clone())?;
    for image in images {
        let record = BaseRecord::to(topic).key(KEY).payload(image);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    producer.flush(LIMIT)?;
    let count = delivered.0.load(Ordering::Relaxed);
    ensure!(count == images.len(), "{count} images were acknowledged");
    Ok(())
}
