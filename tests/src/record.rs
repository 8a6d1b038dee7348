//! Numbered records: what a writer writes and the oracle reads back.

use std::fmt::Write as _;

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

/// The content of a test record. Its text says who wrote it, so that the oracle needs nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    /// The writer's name, unique in the run.
    pub writer: String,
    /// 0, 1, 2, … for each writer.
    pub number: u64,
    /// Makes the record as long as the writer wants it.
    pub pad: String,
}

/// What a record's pad looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// A third random hex digits, the rest a repeated word.
    #[default]
    Blob,
    /// Readings of a device, as a site would send them.
    Telemetry,
}

impl Numbered {
    /// A record of about `size` bytes.
    #[must_use]
    pub fn new(writer: &str, number: u64, size: usize, shape: Shape, random: &mut StdRng) -> Self {
        let mut record = Self {
            writer: writer.to_owned(),
            number,
            pad: String::new(),
        };
        let missing = size.saturating_sub(record.encode().len());
        match shape {
            Shape::Blob => record.pad_with_blob(missing, random),
            Shape::Telemetry => record.pad_with_telemetry(missing, random),
        }
        record.pad.truncate(missing);
        record
    }

    fn pad_with_blob(&mut self, missing: usize, random: &mut StdRng) {
        while self.pad.len() < missing / 3 {
            write!(self.pad, "{:016x}", random.random::<u64>()).expect("a string takes it");
        }
        while self.pad.len() < missing {
            self.pad.push_str("temperature=21.5;");
        }
    }

    fn pad_with_telemetry(&mut self, missing: usize, random: &mut StdRng) {
        while self.pad.len() < missing {
            write!(
                self.pad,
                "device=pump-{:02} celsius={:.2} bar={:.3} volt={:.2} rssi=-{} state={} ",
                random.random_range(0..40),
                random.random_range(18.0..24.0),
                random.random_range(1.9..2.1),
                random.random_range(3.55..3.65),
                random.random_range(60..80),
                if random.random_bool(0.99) {
                    "ok"
                } else {
                    "check"
                },
            )
            .expect("a string takes it");
        }
    }

    /// The payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers encode")
    }

    /// Reads a payload back; `None` when it is not one of ours.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok()
    }
}
