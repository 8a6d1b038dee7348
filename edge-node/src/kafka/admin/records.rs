//! `DeleteRecords` 0 to 2.
//!
//! The cut is made between batches, so a few records before the offset may stay; the answer says where the
//! log begins. Records that the hub lacks leave a gap that it is told of.

use super::{Entries, Refusal, check_admin};
use crate::access::Principal;
use crate::ingest::Ingest;
use crate::kafka::api::Header;
use crate::kafka::codec::{Malformed, Reader, Writer};
use crate::kafka::error::ErrorCode;
use crate::kafka::fetch::{NO_OFFSET, as_i64};

/// In the place of an offset: all that there is.
const ALL: i64 = -1;

/// A request, decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct DeleteRecords {
    /// Topics by name, unchecked: partitions, and the offset before which records go.
    pub topics: Vec<(String, Vec<(i32, i64)>)>,
}

impl DeleteRecords {
    /// Reads a request.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let mut entries = Entries::new();
        let mut topics = Vec::new();
        for _ in 0..entries.enter(reader.array_len(3)?)? {
            let name = reader.string()?.to_owned();
            let mut partitions = Vec::new();
            for _ in 0..entries.enter(reader.array_len(12)?)? {
                partitions.push((reader.i32()?, reader.i64()?));
                reader.skip_tags()?;
            }
            reader.skip_tags()?;
            topics.push((name, partitions));
        }
        reader.i32()?; // timeout: it is done when it is answered
        reader.skip_tags()?;
        reader.finish()?;
        Ok(Self { topics })
    }

    pub(super) async fn answer(
        self,
        ingest: &Ingest,
        header: &Header,
        user: &Principal,
    ) -> Vec<u8> {
        let mut out = Writer::reply(header);
        out.i32(0); // throttle time
        out.array_len(self.topics.len());
        for (name, partitions) in &self.topics {
            out.string(name);
            out.array_len(partitions.len());
            for (index, before) in partitions {
                let outcome = match check_admin(user) {
                    Ok(()) => delete(ingest, name, *index, *before).await,
                    Err(refusal) => Err(refusal),
                };
                let (code, low) = match outcome {
                    Ok(low) => (ErrorCode::None, low),
                    Err(refusal) => (refusal.code, NO_OFFSET),
                };
                out.i32(*index);
                out.i64(low);
                out.i16(code.code());
                out.tags();
            }
            out.tags();
        }
        out.tags();
        out.finish()
    }
}

async fn delete(ingest: &Ingest, name: &str, index: i32, before: i64) -> Result<i64, Refusal> {
    let unknown = || Refusal::new(ErrorCode::UnknownTopicOrPartition, "no such partition");
    let topic = ingest.topic(name, false).await.map_err(|_| unknown())?;
    let index = usize::try_from(index).ok();
    let id = index.and_then(|index| topic.partitions.get(index).copied());
    let id = id.ok_or_else(unknown)?;
    let before = match before {
        ALL => None,
        offset => Some(
            u64::try_from(offset)
                .map_err(|_| Refusal::new(ErrorCode::OffsetOutOfRange, "a negative offset"))?,
        ),
    };
    let range = ingest.delete_records(id, before).await?;
    Ok(as_i64(range.first))
}
