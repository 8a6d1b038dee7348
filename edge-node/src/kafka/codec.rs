//! Kafka's primitives, bounded: nothing is allocated because the wire claims it, and every count is
//! held against the bytes that are there. Plain code.
//!
//! Source: Kafka protocol guide, "Protocol Primitive Types"; KIP-482 for the compact ones.

use bytes::Bytes;

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
}

impl<'a> Reader<'a> {
    /// A cursor at the start of `frame`.
    #[must_use]
    pub fn new(frame: &'a Bytes) -> Self {
        Self { frame, rest: frame }
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

    /// `NULLABLE_STRING`.
    pub fn nullable_string(&mut self) -> Result<Option<&'a str>> {
        match self.i16()? {
            -1 => Ok(None),
            len => {
                let len = usize::try_from(len).map_err(|_| Malformed("negative length"))?;
                self.text(len).map(Some)
            }
        }
    }

    /// `STRING`.
    pub fn string(&mut self) -> Result<&'a str> {
        self.nullable_string()?
            .ok_or(Malformed("null where text is required"))
    }

    /// `COMPACT_STRING`.
    pub fn compact_string(&mut self) -> Result<&'a str> {
        let len = self
            .uvarint()?
            .checked_sub(1)
            .ok_or(Malformed("null where text is required"))?;
        self.text(usize::try_from(len).map_err(|_| Malformed("length above the address space"))?)
    }

    fn text(&mut self, len: usize) -> Result<&'a str> {
        std::str::from_utf8(self.take(len)?).map_err(|_| Malformed("text is not UTF-8"))
    }

    /// `NULLABLE_BYTES` and `RECORDS`: shares the frame's memory.
    pub fn nullable_bytes(&mut self) -> Result<Option<Bytes>> {
        match self.i32()? {
            -1 => Ok(None),
            len => {
                let len = usize::try_from(len).map_err(|_| Malformed("negative length"))?;
                let bytes = self.take(len)?;
                Ok(Some(self.frame.slice_ref(bytes)))
            }
        }
    }

    /// Length of an `ARRAY` whose elements take at least `min_element_bytes`, `None` when it is null.
    pub fn nullable_array(&mut self, min_element_bytes: usize) -> Result<Option<usize>> {
        match self.i32()? {
            -1 => Ok(None),
            len => {
                let len = usize::try_from(len).map_err(|_| Malformed("negative length"))?;
                if len.saturating_mul(min_element_bytes) > self.rest.len() {
                    return Err(Malformed("array longer than its request"));
                }
                Ok(Some(len))
            }
        }
    }

    /// As [`Reader::nullable_array`], not null.
    pub fn array_len(&mut self, min_element_bytes: usize) -> Result<usize> {
        self.nullable_array(min_element_bytes)?
            .ok_or(Malformed("null where an array is required"))
    }

    /// Tagged fields (KIP-482), skipped: none that is known has a meaning here.
    pub fn skip_tags(&mut self) -> Result<()> {
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
pub struct Writer(Vec<u8>);

impl Writer {
    /// A response with header version 0, which every response served here has: flexible ones would
    /// have version 1, but `ApiVersions` always answers with 0 (KIP-511).
    #[must_use]
    pub fn response(correlation: i32) -> Self {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&correlation.to_be_bytes());
        Self(out)
    }

    /// One byte.
    pub fn i8(&mut self, value: i8) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    /// Two bytes, big endian.
    pub fn i16(&mut self, value: i16) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    /// Four bytes, big endian.
    pub fn i32(&mut self, value: i32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    /// Eight bytes, big endian.
    pub fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    /// `BOOLEAN`.
    pub fn bool(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    /// `UNSIGNED_VARINT`.
    pub fn uvarint(&mut self, value: u32) {
        let mut rest = value;
        while rest >= 0x80 {
            self.0.push(rest.to_le_bytes()[0] | 0x80);
            rest >>= 7;
        }
        self.0.push(rest.to_le_bytes()[0]);
    }

    /// `STRING`; text beyond its 32,767 bytes is cut.
    pub fn string(&mut self, text: &str) {
        let mut end = text.len().min(usize::from(i16::MAX.cast_unsigned()));
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.i16(i16::try_from(end).expect("cut to i16::MAX"));
        self.0.extend_from_slice(&text.as_bytes()[..end]);
    }

    /// `NULLABLE_STRING`.
    pub fn nullable_string(&mut self, text: Option<&str>) {
        match text {
            None => self.i16(-1),
            Some(text) => self.string(text),
        }
    }

    /// Length of an `ARRAY`.
    pub fn array_len(&mut self, len: usize) {
        self.i32(i32::try_from(len).expect("no response lists 2^31 things"));
    }

    /// The bytes to send.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let len = i32::try_from(self.0.len() - 4).expect("no response comes near 2 GiB");
        self.0[..4].copy_from_slice(&len.to_be_bytes());
        self.0
    }
}
