//! State as bytes: fixed-width little-endian numbers one after the other. What they mean is known to the
//! part that wrote them; the whole is versioned, checksummed and compressed by the chain.

use super::value::Value;
use crate::batch::BatchError;

const TORN: BatchError = BatchError::Malformed("saved state ends early or holds a bad number");

/// Gathers a state.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) out: Vec<u8>,
}

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    pub(super) fn i16(&mut self, value: i16) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn i8(&mut self, value: i8) {
        self.out.push(value.cast_unsigned());
    }

    pub(super) fn value(&mut self, value: Value) {
        let (kind, bits) = value.parts();
        self.u16(kind);
        self.i64(bits);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn i32(&mut self, value: i32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn i64(&mut self, value: i64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn len(&mut self, value: usize) {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX));
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.len(bytes.len());
        self.out.extend_from_slice(bytes);
    }
}

/// Reads a state back.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BatchError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(TORN)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, BatchError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn i16(&mut self) -> Result<i16, BatchError> {
        self.array().map(i16::from_le_bytes)
    }

    pub(super) fn i8(&mut self) -> Result<i8, BatchError> {
        self.array().map(i8::from_le_bytes)
    }

    pub(super) fn value(&mut self) -> Result<Value, BatchError> {
        Ok(Value::from_parts(self.u16()?, self.i64()?))
    }

    pub(super) fn u16s<const N: usize>(&mut self) -> Result<[u16; N], BatchError> {
        let mut numbers = [0; N];
        for number in &mut numbers {
            *number = self.u16()?;
        }
        Ok(numbers)
    }

    pub(super) fn u16(&mut self) -> Result<u16, BatchError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, BatchError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, BatchError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, BatchError> {
        self.array().map(i32::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, BatchError> {
        self.array().map(i64::from_le_bytes)
    }

    /// A count of at most `most`.
    pub(super) fn len(&mut self, most: usize) -> Result<usize, BatchError> {
        usize::try_from(self.u32()?)
            .ok()
            .filter(|len| *len <= most)
            .ok_or(TORN)
    }

    pub(super) fn bytes(&mut self, most: usize) -> Result<&'a [u8], BatchError> {
        let len = self.len(most)?;
        let (head, rest) = self.rest.split_at_checked(len).ok_or(TORN)?;
        self.rest = rest;
        Ok(head)
    }

    pub(super) fn finish(self) -> Result<(), BatchError> {
        self.rest.is_empty().then_some(()).ok_or(TORN)
    }
}

/// A part of the state that can be written and read back in place: the size of every table follows from
/// the limits, so only contents are written.
pub(super) trait Saved {
    fn save(&self, to: &mut Writer);
    /// # Errors
    /// [`BatchError::Malformed`]; the part is in no state to go on with.
    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError>;
}

/// Entries of a table, most of them perhaps empty: runs of empty ones are skipped.
pub(super) fn save_sparse<T>(
    to: &mut Writer,
    entries: &[T],
    is_empty: impl Fn(&T) -> bool,
    mut save: impl FnMut(&mut Writer, &T),
) {
    let mut at = 0;
    while at < entries.len() {
        let skip = entries[at..].iter().take_while(|e| is_empty(e)).count();
        let fill = entries[at + skip..]
            .iter()
            .take_while(|e| !is_empty(e))
            .count();
        to.len(skip);
        to.len(fill);
        for entry in &entries[at + skip..at + skip + fill] {
            save(to, entry);
        }
        at += skip + fill;
    }
}

/// The other direction, into a table of the same size full of empty entries.
pub(super) fn load_sparse<T>(
    from: &mut Reader<'_>,
    entries: &mut [T],
    mut load: impl FnMut(&mut Reader<'_>) -> Result<T, BatchError>,
) -> Result<(), BatchError> {
    let mut at = 0;
    while at < entries.len() {
        let skip = from.len(entries.len() - at)?;
        let fill = from.len(entries.len() - at - skip)?;
        if skip + fill == 0 {
            return Err(TORN);
        }
        for entry in &mut entries[at + skip..at + skip + fill] {
            *entry = load(from)?;
        }
        at += skip + fill;
    }
    Ok(())
}
