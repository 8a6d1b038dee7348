//! The answer to a fetch: put together from what the store has, or from what was read before.

use shared::ids::Offset;

use super::{FetchPartition, FetchRequest, NO_OFFSET, as_i64, check_epoch};
use crate::kafka::api::Header;
use crate::kafka::codec::Writer;
use crate::kafka::error::ErrorCode;
use crate::store::{FetchLimit, Fetched, LogRange, PartitionId, Store};

/// A response, and what is needed to know whether it is worth sending.
#[derive(Debug)]
pub struct Assembled {
    /// The response.
    pub bytes: Vec<u8>,
    /// Where its throttle time stands.
    throttle_at: usize,
    /// Bytes of batches in it.
    pub data_bytes: usize,
    /// A partition was refused.
    pub has_error: bool,
    /// There is more than the limits allow.
    pub has_more: bool,
    /// Batches were left out because they are not in memory.
    is_short: bool,
    /// The logs that were read, as they were.
    pub logs: Vec<(PartitionId, LogRange)>,
    /// The log that all its batches are from, when it is one.
    pub source: Option<Source>,
}

/// A log and what was read of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its topic.
    pub topic: String,
    /// The partition's number.
    pub index: i32,
    /// Its id.
    pub id: PartitionId,
    /// What was asked for.
    pub from: Offset,
    /// What comes behind the last batch.
    pub next: Offset,
    /// There is more.
    pub has_more: bool,
}

/// Batches of one log that were read before they were asked for.
#[derive(Debug)]
pub struct Piece {
    /// The log.
    pub id: PartitionId,
    /// What will be asked for.
    pub from: Offset,
    /// What comes behind the last batch.
    pub next: Offset,
    /// The batches.
    pub bytes: Vec<u8>,
}

impl Assembled {
    /// Tells the client to wait before it asks for more.
    pub fn set_throttle(&mut self, throttle_ms: i32) {
        let field = self.bytes.get_mut(self.throttle_at..self.throttle_at + 4);
        if let Some(field) = field {
            field.copy_from_slice(&throttle_ms.to_be_bytes());
        }
    }

    /// Whether it is to be sent although there is time to wait for more.
    #[must_use]
    pub fn is_worth(&self, min_bytes: usize) -> bool {
        let is_for_nothing = self.logs.is_empty();
        self.has_error || self.has_more || is_for_nothing || self.data_bytes >= min_bytes
    }
}

/// Puts the response together, with batches as far as `limit` allows. Blocks for the disk.
#[must_use]
pub fn assemble(
    store: &dyn Store,
    header: &Header,
    request: &FetchRequest,
    limit: FetchLimit,
) -> Assembled {
    let assembly = Assembly::new(store, header.version, limit);
    assembly.assemble(header, request)
}

/// The same without the disk: with the ends of logs, and with the batches of `piece` where they are what is
/// wanted. `None` when there are others to send.
#[must_use]
pub fn assemble_from_memory(
    store: &dyn Store,
    header: &Header,
    request: &FetchRequest,
    piece: Option<&Piece>,
) -> Option<Assembled> {
    let nothing = FetchLimit {
        bytes: 0,
        is_first_whole: false,
    };
    let mut assembly = Assembly::new(store, header.version, nothing);
    assembly.piece = piece;
    let assembled = assembly.assemble(header, request);
    (!assembled.is_short).then_some(assembled)
}

/// The answer to a request that refers to a fetch session.
#[must_use]
pub fn refuse_session(header: &Header) -> Vec<u8> {
    let mut out = Writer::reply(header);
    put_head(&mut out, header.version, ErrorCode::FetchSessionIdNotFound);
    out.array_len(0);
    out.tags();
    out.finish()
}

fn put_head(out: &mut Writer, version: i16, error: ErrorCode) {
    out.i32(0); // throttle time
    if version >= 7 {
        out.i16(error.code());
        out.i32(0); // session
    }
}

struct Assembly<'a> {
    store: &'a dyn Store,
    version: i16,
    /// What is left of it.
    limit: FetchLimit,
    /// What was read before, until it is used.
    piece: Option<&'a Piece>,
    data_bytes: usize,
    has_error: bool,
    has_more: bool,
    is_short: bool,
    logs: Vec<(PartitionId, LogRange)>,
    /// The first log that gave batches, and how many did.
    source: Option<Source>,
    sources: usize,
}

impl<'a> Assembly<'a> {
    fn new(store: &'a dyn Store, version: i16, limit: FetchLimit) -> Self {
        Self {
            store,
            version,
            limit,
            piece: None,
            data_bytes: 0,
            has_error: false,
            has_more: false,
            is_short: false,
            logs: Vec::new(),
            source: None,
            sources: 0,
        }
    }

    fn assemble(mut self, header: &Header, request: &FetchRequest) -> Assembled {
        let mut out = Writer::reply(header);
        let throttle_at = out.position();
        put_head(&mut out, self.version, ErrorCode::None);
        out.array_len(request.topics.len());
        for topic in &request.topics {
            let known = if request.refused.contains(&topic.name) {
                Err(ErrorCode::TopicAuthorizationFailed)
            } else {
                let known = self.store.topic(&topic.name);
                known.ok_or(ErrorCode::UnknownTopicOrPartition)
            };
            out.string(&topic.name);
            out.array_len(topic.partitions.len());
            for wanted in &topic.partitions {
                let id = known.as_ref().map_err(|error| *error).and_then(|known| {
                    let index = usize::try_from(wanted.index).ok();
                    let id = index.and_then(|index| known.partitions.get(index).copied());
                    id.ok_or(ErrorCode::UnknownTopicOrPartition)
                });
                self.put_partition(&mut out, &topic.name, id, wanted);
                out.tags();
            }
            out.tags();
        }
        out.tags();
        Assembled {
            bytes: out.finish(),
            throttle_at,
            data_bytes: self.data_bytes,
            has_error: self.has_error,
            has_more: self.has_more,
            is_short: self.is_short,
            logs: self.logs,
            source: self.source.filter(|_| self.sources == 1),
        }
    }

    fn put_partition(
        &mut self,
        out: &mut Writer,
        topic: &str,
        id: Result<PartitionId, ErrorCode>,
        wanted: &FetchPartition,
    ) {
        out.i32(wanted.index);
        // what is known once the records are read stands before them
        let error_at = out.position();
        out.i16(ErrorCode::None.code());
        let ends_at = out.position();
        out.i64(NO_OFFSET); // high watermark
        out.i64(NO_OFFSET); // last stable offset
        if self.version >= 5 {
            out.i64(NO_OFFSET); // log start
        }
        out.array_len(0); // aborted transactions
        if self.version >= 11 {
            out.i32(-1); // no replica is nearer
        }
        match out.records(|bytes| self.read(topic, id, wanted, bytes)) {
            Ok(range) => {
                let (start, end) = (as_i64(range.first), as_i64(range.end));
                out.set_i64(ends_at, end);
                out.set_i64(ends_at + 8, end);
                if self.version >= 5 {
                    out.set_i64(ends_at + 16, start);
                }
            }
            Err(error) => {
                self.has_error = true;
                out.set_i16(error_at, error.code());
            }
        }
    }

    fn read(
        &mut self,
        topic: &str,
        id: Result<PartitionId, ErrorCode>,
        wanted: &FetchPartition,
        bytes: &mut Vec<u8>,
    ) -> Result<LogRange, ErrorCode> {
        let id = id?;
        check_epoch(wanted.leader_epoch)?;
        let from = u64::try_from(wanted.offset).map_err(|_| ErrorCode::OffsetOutOfRange)?;
        let limit = FetchLimit {
            bytes: usize::try_from(wanted.max_bytes)
                .unwrap_or(0)
                .min(self.limit.bytes),
            ..self.limit
        };
        let before = bytes.len();
        let is_full = limit.bytes == 0 && !limit.is_first_whole;
        let fetched = if is_full {
            self.store.range(id).map(|range| {
                let next = self.put_piece(id, from, range, bytes);
                self.is_short |= next == from && (range.start..range.end).contains(&from);
                Fetched { range, next }
            })
        } else {
            self.store.fetch(id, from, limit, bytes)
        };
        let fetched = fetched.map_err(|error| {
            bytes.truncate(before);
            ErrorCode::from(&error)
        })?;
        let range = fetched.range;
        if from < range.start || from > range.end {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        let appended = bytes.len() - before;
        // what comes next has no room: nor is it looked for in other logs
        let is_stuck =
            fetched.next < range.end && !limit.is_first_whole && limit.bytes == self.limit.bytes;
        self.limit.bytes = self.limit.bytes.saturating_sub(appended);
        if is_stuck {
            self.limit.bytes = 0;
        }
        // the first batch of all may exceed the limits, the others may not
        self.limit.is_first_whole &= appended == 0;
        self.data_bytes += appended;
        let has_more = fetched.next < range.end;
        self.has_more |= has_more;
        if appended > 0 {
            self.sources += 1;
            self.source.get_or_insert_with(|| Source {
                topic: topic.to_owned(),
                index: wanted.index,
                id,
                from,
                next: fetched.next,
                has_more,
            });
        }
        self.logs.push((id, range));
        Ok(range)
    }

    /// Appends what was read before, when it is what is wanted and the log still has it. Returns what comes
    /// behind it.
    fn put_piece(
        &mut self,
        id: PartitionId,
        from: Offset,
        range: LogRange,
        bytes: &mut Vec<u8>,
    ) -> Offset {
        let is_wanted = |piece: &mut &Piece| (piece.id, piece.from) == (id, from);
        match self.piece.take_if(is_wanted) {
            Some(piece) if range.first <= from => {
                bytes.extend_from_slice(&piece.bytes);
                piece.next
            }
            Some(_) | None => from,
        }
    }
}
