//! Kafka's primitives, bounded: nothing is allocated because the wire claims it, and every count is
//! held against the bytes that are there. Plain code.
//!
//! Reader and writer know whether the message is of a flexible version: then texts, bytes and arrays are
//! the compact ones, and [`Reader::skip_tags`] and [`Writer::tags`] have something to do. So one decoder
//! serves all versions of an API.
//!
//! Source: Kafka protocol guide, "Protocol Primitive Types"; KIP-482 for the compact ones.

use bytes::Bytes;

use super::api::Header;

/// Why bytes are not the request that they claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("request is malformed: {0}")]
pub struct Malformed(pub &'static str);

type Result<T> = std::result::Result<T, Malformed>;

/// A cursor over one request; strings are borrowed from it and bytes share its memory.
#[derive(Debug)]
pub struct Reader<'a> {
    frame: &'a Bytes,
    rest: &'a [u8],
    is_flexible: bool,
}

impl<'a> Reader<'a> {
    /// A cursor at the start of `frame`.
    #[must_use]
    pub fn new(frame: &'a Bytes) -> Self {
        Self {
            frame,
            rest: frame,
            is_flexible: false,
        }
    }

    /// What follows is of a flexible version.
    pub fn set_flexible(&mut self) {
        self.is_flexible = true;
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, tail) = self
            .rest
            .split_at_checked(len)
            .ok_or(Malformed("ends early"))?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, tail) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(Malformed("ends early"))?;
        self.rest = tail;
        Ok(*head)
    }

    /// One byte.
    pub fn i8(&mut self) -> Result<i8> {
        self.array().map(i8::from_be_bytes)
    }

    /// Two bytes, big endian.
    pub fn i16(&mut self) -> Result<i16> {
        self.array().map(i16::from_be_bytes)
    }

    /// Four bytes, big endian.
    pub fn i32(&mut self) -> Result<i32> {
        self.array().map(i32::from_be_bytes)
    }

    /// Eight bytes, big endian.
    pub fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// `BOOLEAN`: any byte but 0 is true.
    pub fn bool(&mut self) -> Result<bool> {
        self.i8().map(|byte| byte != 0)
    }

    /// `UNSIGNED_VARINT`, at most 32 bits.
    pub fn uvarint(&mut self) -> Result<u32> {
        let mut value = 0_u64;
        for shift in (0..35).step_by(7) {
            let [byte] = self.array::<1>()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| Malformed("number above 32 bits"));
            }
        }
        Err(Malformed("number above 32 bits"))
    }

    /// A length that is one less than what is written, `None` for null (KIP-482).
    fn compact_len(&mut self) -> Result<Option<usize>> {
        match self.uvarint()?.checked_sub(1) {
            None => Ok(None),
            Some(len) => usize::try_from(len)
                .map(Some)
                .map_err(|_| Malformed("length above the address space")),
        }
    }

    fn len_i16(&mut self) -> Result<Option<usize>> {
        match self.i16()? {
            -1 => Ok(None),
            len => usize::try_from(len)
                .map(Some)
                .map_err(|_| Malformed("negative length")),
        }
    }

    fn len_i32(&mut self) -> Result<Option<usize>> {
        if self.is_flexible {
            return self.compact_len();
        }
        match self.i32()? {
            -1 => Ok(None),
            len => usize::try_from(len)
                .map(Some)
                .map_err(|_| Malformed("negative length")),
        }
    }

    /// `NULLABLE_STRING` of a header, which is never compact.
    pub fn header_string(&mut self) -> Result<Option<&'a str>> {
        let len = self.len_i16()?;
        len.map(|len| self.text(len)).transpose()
    }

    /// `NULLABLE_STRING`.
    pub fn nullable_string(&mut self) -> Result<Option<&'a str>> {
        let len = if self.is_flexible {
            self.compact_len()?
        } else {
            self.len_i16()?
        };
        len.map(|len| self.text(len)).transpose()
    }

    /// `STRING`.
    pub fn string(&mut self) -> Result<&'a str> {
        self.nullable_string()?
            .ok_or(Malformed("null where text is required"))
    }

    fn text(&mut self, len: usize) -> Result<&'a str> {
        std::str::from_utf8(self.take(len)?).map_err(|_| Malformed("text is not UTF-8"))
    }

    /// `NULLABLE_BYTES` and `RECORDS`: shares the frame's memory.
    pub fn nullable_bytes(&mut self) -> Result<Option<Bytes>> {
        let Some(len) = self.len_i32()? else {
            return Ok(None);
        };
        let bytes = self.take(len)?;
        Ok(Some(self.frame.slice_ref(bytes)))
    }

    /// Length of an `ARRAY` whose elements take at least `min_element_bytes`, `None` when it is null.
    pub fn nullable_array(&mut self, min_element_bytes: usize) -> Result<Option<usize>> {
        let len = self.len_i32()?;
        if len.is_some_and(|len| len.saturating_mul(min_element_bytes) > self.rest.len()) {
            return Err(Malformed("array longer than its request"));
        }
        Ok(len)
    }

    /// As [`Reader::nullable_array`], not null.
    pub fn array_len(&mut self, min_element_bytes: usize) -> Result<usize> {
        self.nullable_array(min_element_bytes)?
            .ok_or(Malformed("null where an array is required"))
    }

    /// Tagged fields (KIP-482), skipped: none that is known has a meaning here. Nothing in a version that
    /// has none.
    pub fn skip_tags(&mut self) -> Result<()> {
        if !self.is_flexible {
            return Ok(());
        }
        for _ in 0..self.uvarint()? {
            self.uvarint()?;
            let len = usize::try_from(self.uvarint()?)
                .map_err(|_| Malformed("length above the address space"))?;
            self.take(len)?;
        }
        Ok(())
    }

    /// Call at the end: a request has no bytes after its last field.
    pub fn finish(&self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed("bytes after its last field"))
        }
    }
}

/// One response, its length prefix included.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    is_flexible: bool,
}

impl Writer {
    /// A response with header version 0, which all have that are not flexible, and `ApiVersions` in every
    /// version (KIP-511).
    #[must_use]
    pub fn response(correlation: i32) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&correlation.to_be_bytes());
        Self {
            bytes,
            is_flexible: false,
        }
    }

    /// The response to a request: with header version 1 when it is of a flexible version.
    #[must_use]
    pub fn reply(header: &Header) -> Self {
        let mut out = Self::response(header.correlation);
        out.is_flexible = header.is_flexible();
        out.tags();
        out
    }

    /// What follows is of a flexible version.
    pub fn set_flexible(&mut self) {
        self.is_flexible = true;
    }

    /// No tagged fields; nothing in a version that has none.
    pub fn tags(&mut self) {
        if self.is_flexible {
            self.bytes.push(0);
        }
    }

    /// `RECORDS` or `BYTES` that `put` appends, with their length in front.
    pub fn records<T>(&mut self, put: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let start = self.bytes.len();
        // room for the longest length
        let room = if self.is_flexible { 5 } else { 4 };
        self.bytes.extend_from_slice(&[0; 5][..room]);
        let result = put(&mut self.bytes);
        let len = self.bytes.len() - start - room;
        let len = u32::try_from(len).expect("no response comes near 2 GiB");
        let place = &mut self.bytes[start..start + room];
        if self.is_flexible {
            put_padded_uvarint(place, len + 1);
        } else {
            place.copy_from_slice(&len.to_be_bytes());
        }
        result
    }

    /// Where the next field will stand.
    #[must_use]
    pub fn position(&self) -> usize {
        self.bytes.len()
    }

    /// Writes over a field.
    pub fn set_i16(&mut self, at: usize, value: i16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    /// Writes over a field.
    pub fn set_i64(&mut self, at: usize, value: i64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// One byte.
    pub fn i8(&mut self, value: i8) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// Two bytes, big endian.
    pub fn i16(&mut self, value: i16) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// Four bytes, big endian.
    pub fn i32(&mut self, value: i32) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// Eight bytes, big endian.
    pub fn i64(&mut self, value: i64) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// `BOOLEAN`.
    pub fn bool(&mut self, value: bool) {
        self.bytes.push(u8::from(value));
    }

    /// `UNSIGNED_VARINT`.
    pub fn uvarint(&mut self, value: u32) {
        let mut rest = value;
        while rest >= 0x80 {
            self.bytes.push(rest.to_le_bytes()[0] | 0x80);
            rest >>= 7;
        }
        self.bytes.push(rest.to_le_bytes()[0]);
    }

    /// `STRING`; text beyond its 32,767 bytes is cut.
    pub fn string(&mut self, text: &str) {
        let mut end = text.len().min(usize::from(i16::MAX.cast_unsigned()));
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let len = i16::try_from(end).expect("cut to i16::MAX");
        if self.is_flexible {
            self.uvarint(u32::from(len.cast_unsigned()) + 1);
        } else {
            self.i16(len);
        }
        self.bytes.extend_from_slice(&text.as_bytes()[..end]);
    }

    /// `NULLABLE_STRING`.
    pub fn nullable_string(&mut self, text: Option<&str>) {
        match text {
            None if self.is_flexible => self.uvarint(0),
            None => self.i16(-1),
            Some(text) => self.string(text),
        }
    }

    /// Length of an `ARRAY`.
    pub fn array_len(&mut self, len: usize) {
        let len = i32::try_from(len).expect("no response lists 2^31 things");
        if self.is_flexible {
            self.uvarint(len.cast_unsigned() + 1);
        } else {
            self.i32(len);
        }
    }

    /// The bytes to send.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let len = i32::try_from(self.bytes.len() - 4).expect("no response comes near 2 GiB");
        self.bytes[..4].copy_from_slice(&len.to_be_bytes());
        self.bytes
    }
}

/// An `UNSIGNED_VARINT` in all five bytes: as good as the shortest form, which the protocol doesn't ask for.
fn put_padded_uvarint(out: &mut [u8], value: u32) {
    let mut rest = value;
    let last = out.len() - 1;
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = (rest.to_le_bytes()[0] & 0x7f) | if at < last { 0x80 } else { 0 };
        rest >>= 7;
    }
}
