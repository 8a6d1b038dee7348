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

impl Numbered {
    /// A record of about `size` bytes, a third of it not compressible.
    #[must_use]
    pub fn new(writer: &str, number: u64, size: usize, random: &mut StdRng) -> Self {
        let mut record = Self {
            writer: writer.to_owned(),
            number,
            pad: String::new(),
        };
        let missing = size.saturating_sub(record.encode().len());
        while record.pad.len() < missing / 3 {
            write!(record.pad, "{:016x}", random.random::<u64>()).expect("a string takes it");
        }
        while record.pad.len() < missing {
            record.pad.push_str("temperature=21.5;");
        }
        record.pad.truncate(missing);
        record
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
