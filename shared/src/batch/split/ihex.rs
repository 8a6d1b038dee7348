//! Intel HEX, the text form of firmware for microcontrollers, as the bytes that it says: addresses follow from
//! each other and checksums from the bytes, and a byte that is inserted moves no digit of what comes after it.
//!
//! ```text
//! text     :10010000214601360121470136007EFE09D2190140     mark, length, address, type, bytes, checksum
//! packed   style  runs    of each: lines   type  length  address                    bytes of all lines
//!          u8     varint           varint  u8    u8      zigzag, from the end of
//!                                                        the line before
//! ```
//! A run are lines of one type and length whose addresses follow from each other. Style: bit 0 small letters, 1 lines end
//! with CR LF, 2 the last one doesn't end. The format is Intel's Hexadecimal Object File Format Specification, revision A.

use crate::batch::BatchError;
use crate::wire::{Reader, put_varint, put_zigzag};

/// Shorter texts are not worth it.
const MIN_LEN: usize = 1024;

const STYLE_SMALL: u8 = 1;
const STYLE_CRLF: u8 = 2;
const STYLE_OPEN_END: u8 = 4;
const STYLES: u8 = STYLE_SMALL | STYLE_CRLF | STYLE_OPEN_END;

/// Characters of a line beside its bytes and its end.
const LINE_OVERHEAD: usize = 11;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    lines: usize,
    kind: u8,
    len: u8,
    jump: i16,
}

/// A text as packed bytes; `None` unless these give it back byte for byte.
pub(crate) fn pack(text: &[u8]) -> Option<Vec<u8>> {
    if text.len() < MIN_LEN || !text.starts_with(b":") {
        return None;
    }
    let mut parser = Parser {
        rest: text,
        has_small: false,
        has_large: false,
    };
    let (mut runs, mut bytes): (Vec<Run>, Vec<u8>) = (Vec::new(), Vec::new());
    let mut next = 0_u16;
    let mut style = 0;
    while !parser.rest.is_empty() {
        let (address, kind, len) = parser.line(&mut bytes)?;
        let jump = address.wrapping_sub(next).cast_signed();
        next = address.wrapping_add(len.into());
        match runs.last_mut() {
            Some(run) if jump == 0 && (run.kind, run.len) == (kind, len) => run.lines += 1,
            _ => runs.push(Run {
                lines: 1,
                kind,
                len,
                jump,
            }),
        }
        style |= parser.end();
    }
    if parser.has_small {
        style |= STYLE_SMALL;
    }
    let mut packed = vec![style];
    put_varint(&mut packed, runs.len() as u64);
    for run in runs {
        put_varint(&mut packed, run.lines as u64);
        packed.extend([run.kind, run.len]);
        put_zigzag(&mut packed, run.jump.into());
    }
    packed.extend(bytes);
    // mixed letters and ends of lines come back as something else
    (unpack(&packed, text.len()).ok()? == text).then_some(packed)
}

/// The text, of at most `limit` bytes.
///
/// # Errors
/// [`BatchError`] when the bytes are not what [`pack`] makes, or the text is longer.
pub(crate) fn unpack(packed: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
    const MALFORMED: BatchError = BatchError::Malformed("a packed text is broken");
    let mut reader = Reader::new(packed);
    let style = reader.u8()?;
    let end: &[u8] = if style & STYLE_CRLF != 0 {
        b"\r\n"
    } else {
        b"\n"
    };
    let count = reader.varint()?;
    let (mut runs, mut len): (Vec<Run>, usize) = (Vec::new(), 0);
    for _ in 0..count {
        let run = Run {
            lines: usize::try_from(reader.varint()?).unwrap_or(usize::MAX),
            kind: reader.u8()?,
            len: reader.u8()?,
            jump: i16::try_from(reader.zigzag()?).map_err(|_| MALFORMED)?,
        };
        let line = LINE_OVERHEAD + 2 * usize::from(run.len) + end.len();
        len = len.saturating_add(run.lines.saturating_mul(line));
        runs.push(run);
    }
    let open = if style & STYLE_OPEN_END != 0 {
        end.len()
    } else {
        0
    };
    let len = len.checked_sub(open).ok_or(MALFORMED)?;
    if len > limit {
        return Err(BatchError::TooLarge { bytes: len, limit });
    }
    if style & !STYLES != 0 {
        return Err(MALFORMED);
    }
    let mut text = Vec::with_capacity(len + open);
    let mut writer = Writer {
        text: &mut text,
        digits: if style & STYLE_SMALL != 0 {
            b"0123456789abcdef"
        } else {
            b"0123456789ABCDEF"
        },
        sum: 0,
    };
    let mut address = 0_u16;
    for run in runs {
        address = address.wrapping_add_signed(run.jump);
        for _ in 0..run.lines {
            let bytes = reader.bytes(run.len.into())?;
            let [high, low] = address.to_be_bytes();
            writer.line([run.len, high, low, run.kind], bytes, end);
            address = address.wrapping_add(run.len.into());
        }
    }
    if reader.remaining() > 0 {
        return Err(MALFORMED);
    }
    text.truncate(len);
    Ok(text)
}

struct Parser<'a> {
    rest: &'a [u8],
    has_small: bool,
    has_large: bool,
}

impl Parser<'_> {
    /// Address, type and length of the next line; its bytes are appended.
    fn line(&mut self, bytes: &mut Vec<u8>) -> Option<(u16, u8, u8)> {
        self.rest = self.rest.strip_prefix(b":")?;
        let [len, high, low, kind] = [self.byte()?, self.byte()?, self.byte()?, self.byte()?];
        let mut sum = [len, high, low, kind]
            .into_iter()
            .fold(0_u8, u8::wrapping_add);
        for _ in 0..len {
            let byte = self.byte()?;
            sum = sum.wrapping_add(byte);
            bytes.push(byte);
        }
        let check = self.byte()?;
        let is_right = sum.wrapping_add(check) == 0 && !(self.has_small && self.has_large);
        is_right.then_some((u16::from_be_bytes([high, low]), kind, len))
    }

    /// Takes the end of a line; what that says of the style.
    fn end(&mut self) -> u8 {
        if let Some(rest) = self.rest.strip_prefix(b"\r\n") {
            self.rest = rest;
            STYLE_CRLF
        } else if let Some(rest) = self.rest.strip_prefix(b"\n") {
            self.rest = rest;
            0
        } else {
            STYLE_OPEN_END
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let (pair, rest) = self.rest.split_first_chunk::<2>()?;
        self.rest = rest;
        let high = self.digit(pair[0])?;
        let low = self.digit(pair[1])?;
        Some(high << 4 | low)
    }

    fn digit(&mut self, digit: u8) -> Option<u8> {
        match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'A'..=b'F' => {
                self.has_large = true;
                Some(digit - b'A' + 10)
            }
            b'a'..=b'f' => {
                self.has_small = true;
                Some(digit - b'a' + 10)
            }
            _ => None,
        }
    }
}

struct Writer<'a> {
    text: &'a mut Vec<u8>,
    digits: &'static [u8; 16],
    sum: u8,
}

impl Writer<'_> {
    fn line(&mut self, head: [u8; 4], bytes: &[u8], end: &[u8]) {
        self.text.push(b':');
        self.sum = 0;
        for byte in head.iter().chain(bytes) {
            self.byte(*byte);
        }
        self.byte(self.sum.wrapping_neg());
        self.text.extend_from_slice(end);
    }

    fn byte(&mut self, byte: u8) {
        self.sum = self.sum.wrapping_add(byte);
        let digit = |nibble: u8| self.digits[usize::from(nibble & 15)];
        self.text.extend([digit(byte >> 4), digit(byte)]);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Firmware of so many bytes, in lines of 16.
    pub(crate) fn text(bytes: &[u8], end: &str, is_small: bool) -> String {
        let mut text = String::new();
        let mut line = |kind: u8, address: u16, bytes: &[u8]| {
            let [high, low] = address.to_be_bytes();
            let mut all = vec![u8::try_from(bytes.len()).unwrap(), high, low, kind];
            all.extend(bytes);
            let sum = all.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            all.push(sum.wrapping_neg());
            let digits: String = all.iter().map(|byte| format!("{byte:02X}")).collect();
            text += &format!(":{digits}{end}");
        };
        for (bank, bytes) in (0_u16..).zip(bytes.chunks(1 << 16)) {
            line(4, 0, &bank.to_be_bytes());
            for (at, bytes) in (0_u16..=u16::MAX).step_by(16).zip(bytes.chunks(16)) {
                line(0, at, bytes);
            }
        }
        line(1, 0, &[]);
        if is_small { text.to_lowercase() } else { text }
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| (i * i % 251) as u8).collect()
    }

    #[test]
    fn firmware_takes_little_more_than_its_bytes() {
        for (end, is_small) in [("\n", false), ("\r\n", false), ("\r\n", true)] {
            let text = text(&bytes(100_000), end, is_small);
            let packed = pack(text.as_bytes()).unwrap();
            assert!(packed.len() < 100_050, "{}", packed.len());
            assert_eq!(unpack(&packed, text.len()).unwrap(), text.as_bytes());
            let limit = text.len() - 1;
            let bytes = text.len();
            assert_eq!(
                unpack(&packed, limit),
                Err(BatchError::TooLarge { bytes, limit })
            );
            let open = text.trim_end();
            let packed = pack(open.as_bytes()).unwrap();
            assert_eq!(unpack(&packed, bytes).unwrap(), open.as_bytes());
        }
    }

    #[test]
    fn it_has_the_bytes_of_the_document() {
        let text = b":0B0010006164647265737320676170A7\n:00000001FF\n";
        let mut packed = vec![0x00, 0x02, 0x01, 0x00, 0x0b, 0x20, 0x01, 0x01, 0x00, 0x35];
        packed.extend(b"address gap");
        assert_eq!((text.len(), packed.len()), (46, 21));
        assert_eq!(unpack(&packed, text.len()).unwrap(), text);
    }

    #[test]
    fn what_would_not_come_back_is_not_packed() {
        let good = text(&bytes(2_000), "\n", false);
        assert!(pack(good.as_bytes()).is_some());
        let at = good.find("FA").unwrap();
        let edits: [&dyn Fn(&mut String); 6] = [
            &|text| text.replace_range(at..at + 1, "f"),
            &|text| text.replace_range(20..21, "G"),
            &|text| text.replace_range(17..18, "\n"),
            &|text| text.push('x'),
            &|text| *text = text.replacen('\n', "\r\n", 1),
            &|text| text.truncate(MIN_LEN - 1),
        ];
        for (i, edit) in edits.iter().enumerate() {
            let mut text = good.clone();
            edit(&mut text);
            assert_eq!(pack(text.as_bytes()), None, "{i}");
        }
        // a wrong checksum
        let mut text = good.into_bytes();
        let last = text.iter().position(|byte| *byte == b'\n').unwrap() - 1;
        text[last] = if text[last] == b'0' { b'1' } else { b'0' };
        assert_eq!(pack(&text), None);
    }

    #[test]
    fn a_few_bytes_do_not_become_many() {
        let mut packed = vec![0, 1];
        put_varint(&mut packed, u64::MAX);
        packed.extend([0, 0, 0]);
        let found = unpack(&packed, 1 << 20);
        assert!(
            matches!(found, Err(BatchError::TooLarge { .. })),
            "{found:?}"
        );
        assert!(unpack(&[STYLE_OPEN_END, 0], 100).is_err());
        assert!(unpack(&[8, 0], 100).is_err());
        assert!(unpack(&[0, 0, 7], 100).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(packed in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(text) = unpack(&packed, 4096) {
                prop_assert!(text.len() <= 4096);
            }
        }

        #[test]
        fn whatever_is_packed_comes_back(
            lines in prop::collection::vec(("[0-9A-Fa-f]{0,40}", "(\r\n|\n|)"), 30..90)
        ) {
            let text: String = lines.iter().map(|(line, end)| format!(":{line}{end}")).collect();
            if let Some(packed) = pack(text.as_bytes()) {
                prop_assert_eq!(unpack(&packed, text.len()).unwrap(), text.into_bytes());
            }
        }
    }
}
