//! Records inside an uncompressed batch: a cursor over bytes, nothing copied.
//!
//! ```text
//! length  attributes  timestamp  offset  key length  key   value length  value  headers
//! varint  i8 = 0      delta      delta   varint      …     varint        …      varint count, then
//!                     varlong    varint  (-1: null)        (-1: null)           key, value as above
//! ```
//! Varints are zigzag LEB128, as in Protocol Buffers.

use super::RecordError;

const fn malformed(what: &'static str) -> RecordError {
    RecordError::Malformed(what)
}

/// One record, borrowed from its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Place in the batch, from 0.
    pub offset_delta: u32,
    /// Milliseconds after the batch's base timestamp; may be negative.
    pub timestamp_delta_ms: i64,
    /// Absent when null.
    pub key: Option<&'a [u8]>,
    /// Absent when null: a tombstone in a compacted topic.
    pub value: Option<&'a [u8]>,
    header_count: u32,
    headers: &'a [u8],
}

impl<'a> RecordRef<'a> {
    /// The record's headers in order; names may repeat.
    #[must_use]
    pub fn headers(&self) -> HeaderIter<'a> {
        HeaderIter {
            left: self.header_count,
            bytes: self.headers,
        }
    }
}

/// A record header: a name and a value that may be null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// Not empty by rule, UTF-8 by rule; neither is checked here.
    pub name: &'a [u8],
    /// Absent when null.
    pub value: Option<&'a [u8]>,
}

/// Headers of one record that was checked before.
#[derive(Debug, Clone)]
pub struct HeaderIter<'a> {
    left: u32,
    bytes: &'a [u8],
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        self.left = self.left.checked_sub(1)?;
        let name = take_nullable(&mut self.bytes).ok().flatten()?;
        let value = take_nullable(&mut self.bytes).ok()?;
        Some(Header { name, value })
    }
}

/// Walks the records of a batch in order and stops at the first that is malformed.
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    next: u32,
    count: u32,
    failed: bool,
}

impl<'a> Records<'a> {
    /// A walk over uncompressed `records` that should be `count` in number.
    #[must_use]
    pub fn new(records: &'a [u8], count: u32) -> Self {
        Self {
            rest: records,
            next: 0,
            count,
            failed: false,
        }
    }

    /// Call at the end: every record was there, and nothing else.
    ///
    /// # Errors
    /// [`RecordError::Malformed`] when records are missing or bytes are left over.
    pub fn finish(self) -> Result<(), RecordError> {
        if self.failed || self.next != self.count {
            return Err(malformed("fewer records than its count says"));
        }
        if !self.rest.is_empty() {
            return Err(malformed("bytes after its last record"));
        }
        Ok(())
    }

    fn parse_next(&mut self) -> Result<RecordRef<'a>, RecordError> {
        let length = usize::try_from(take_varlong(&mut self.rest)?)
            .map_err(|_| malformed("negative record length"))?;
        let mut body = take(&mut self.rest, length)?;
        take(&mut body, 1)?; // attributes: unused by every version so far
        let timestamp_delta_ms = take_varlong(&mut body)?;
        if take_varlong(&mut body)? != i64::from(self.next) {
            return Err(malformed("record offsets are not contiguous"));
        }
        let key = take_nullable(&mut body)?;
        let value = take_nullable(&mut body)?;
        let header_count = u32::try_from(take_varlong(&mut body)?)
            .map_err(|_| malformed("negative header count"))?;
        let headers = body;
        for _ in 0..header_count {
            take_nullable(&mut body)?.ok_or(malformed("header without a name"))?;
            take_nullable(&mut body)?;
        }
        if !body.is_empty() {
            return Err(malformed("bytes after a record's headers"));
        }
        Ok(RecordRef {
            offset_delta: self.next,
            timestamp_delta_ms,
            key,
            value,
            header_count,
            headers,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordRef<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.next == self.count {
            return None;
        }
        let record = self.parse_next();
        match &record {
            Ok(_) => self.next += 1,
            Err(_) => self.failed = true,
        }
        Some(record)
    }
}

fn take<'a>(from: &mut &'a [u8], len: usize) -> Result<&'a [u8], RecordError> {
    if len > from.len() {
        return Err(malformed("ends inside a record"));
    }
    let (head, tail) = from.split_at(len);
    *from = tail;
    Ok(head)
}

fn take_nullable<'a>(from: &mut &'a [u8]) -> Result<Option<&'a [u8]>, RecordError> {
    match take_varlong(from)? {
        -1 => Ok(None),
        len => {
            let len = usize::try_from(len).map_err(|_| malformed("negative length in a record"))?;
            take(from, len).map(Some)
        }
    }
}

/// Kafka's zigzag varints have at most ten bytes.
fn take_varlong(from: &mut &[u8]) -> Result<i64, RecordError> {
    let mut value = 0_u64;
    for (i, byte) in from.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            *from = &from[i + 1..];
            return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    Err(malformed("ends inside a number"))
}

fn put_varlong(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.push(rest.to_le_bytes()[0]);
}

fn varlong_len(value: i64) -> usize {
    let zigzag = ((value << 1) ^ (value >> 63)).cast_unsigned();
    let bits = 64 - (zigzag | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varlong(out, -1),
        Some(bytes) => {
            put_varlong(out, signed_len(bytes.len()));
            out.extend_from_slice(bytes);
        }
    }
}

fn signed_len(len: usize) -> i64 {
    i64::try_from(len).expect("no slice is longer than i64::MAX")
}

fn nullable_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| {
        varlong_len(signed_len(bytes.len())) + bytes.len()
    })
}

/// Bytes that a record takes in an uncompressed batch, its length field included.
#[must_use]
pub fn record_len(
    offset_delta: u32,
    timestamp_delta_ms: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header<'_>],
) -> usize {
    let body = body_len(offset_delta, timestamp_delta_ms, key, value, headers);
    varlong_len(signed_len(body)) + body
}

fn body_len(
    offset_delta: u32,
    timestamp_delta_ms: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header<'_>],
) -> usize {
    let headers_len: usize = headers
        .iter()
        .map(|h| nullable_len(Some(h.name)) + nullable_len(h.value))
        .sum();
    1 + varlong_len(timestamp_delta_ms)
        + varlong_len(i64::from(offset_delta))
        + nullable_len(key)
        + nullable_len(value)
        + varlong_len(signed_len(headers.len()))
        + headers_len
}

/// Appends one record in its uncompressed form.
pub fn put_record(
    out: &mut Vec<u8>,
    offset_delta: u32,
    timestamp_delta_ms: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header<'_>],
) {
    put_varlong(
        out,
        signed_len(body_len(
            offset_delta,
            timestamp_delta_ms,
            key,
            value,
            headers,
        )),
    );
    out.push(0);
    put_varlong(out, timestamp_delta_ms);
    put_varlong(out, i64::from(offset_delta));
    put_nullable(out, key);
    put_nullable(out, value);
    put_varlong(out, signed_len(headers.len()));
    for header in headers {
        put_nullable(out, Some(header.name));
        put_nullable(out, header.value);
    }
}
