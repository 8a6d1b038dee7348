//! What TCP carries inside TLS: frames of control bytes and of pieces of data streams.
//!
//! ```text
//!  0      1          …          …
//!  ├ type ├ number   ├ length   ├ bytes …
//!  │ u8   │ varint   │ varint   │ at most 16 KiB
//! ```
//! | type | frame | number | bytes |
//! | --- | --- | --- | --- |
//! | 1 | control | 0 | the next of the control stream |
//! | 2 | end of control | 0 | none |
//! | 3 | piece | data stream | the next of this stream, more follow |
//! | 4 | last piece | data stream | the last of this stream |
//! | 5 | window | limit | none |
//! | 6 | close | code | the reason |

use bytes::{Buf as _, Bytes, BytesMut};

use crate::wire::{Reader, put_varint};

/// Most bytes in one frame.
pub(super) const MAX_PAYLOAD: usize = 16 << 10;
/// Most bytes before them: the type and two varints.
pub(super) const MAX_HEADER: usize = 21;
/// What a piece costs of the window beside its bytes: bookkeeping.
pub(super) const PIECE_OVERHEAD: u64 = 32;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Control(Bytes),
    ControlEnd,
    Piece {
        stream: u64,
        is_last: bool,
        bytes: Bytes,
    },
    /// The sum of what all pieces since the connection began may cost.
    Window(u64),
    Close {
        code: u64,
        reason: Bytes,
    },
}

/// The peer broke the framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bad transport frame: {0}")]
pub(super) struct Violation(pub(super) &'static str);

const CONTROL: u8 = 1;
const CONTROL_END: u8 = 2;
const PIECE: u8 = 3;
const LAST_PIECE: u8 = 4;
const WINDOW: u8 = 5;
const CLOSE: u8 = 6;

impl Frame {
    /// Appends the frame. Its bytes are at most [`MAX_PAYLOAD`].
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Control(bytes) => put(out, CONTROL, 0, bytes),
            Self::ControlEnd => put(out, CONTROL_END, 0, b""),
            Self::Piece {
                stream,
                is_last,
                bytes,
            } => put(out, piece_type(*is_last), *stream, bytes),
            Self::Window(limit) => put(out, WINDOW, *limit, b""),
            Self::Close { code, reason } => put(out, CLOSE, *code, reason),
        }
    }

    /// Takes a frame off the front; `None` when it is not whole yet. Type and length are held against
    /// their limits before the bytes are waited for.
    pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Self>, Violation> {
        let mut reader = Reader::new(buffer);
        let header = (|| {
            let kind = reader.u8()?;
            let number = reader.varint()?;
            let len = reader.varint()?;
            Ok::<_, crate::wire::WireError>((kind, number, len))
        })();
        let (kind, number, len) = match header {
            Ok(header) => header,
            Err(_) if buffer.len() < MAX_HEADER => return Ok(None),
            Err(_) => return Err(Violation("number")),
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > MAX_PAYLOAD {
            return Err(Violation("too long"));
        }
        if matches!(kind, CONTROL_END | WINDOW) && len > 0 {
            return Err(Violation("bytes where none belong"));
        }
        if !(CONTROL..=CLOSE).contains(&kind) {
            return Err(Violation("unknown type"));
        }
        let header_len = buffer.len() - reader.remaining();
        if reader.remaining() < len {
            return Ok(None);
        }
        buffer.advance(header_len);
        let bytes = buffer.split_to(len).freeze();
        Ok(Some(match kind {
            CONTROL => Self::Control(bytes),
            CONTROL_END => Self::ControlEnd,
            PIECE | LAST_PIECE => Self::Piece {
                stream: number,
                is_last: kind == LAST_PIECE,
                bytes,
            },
            WINDOW => Self::Window(number),
            _ => Self::Close {
                code: number,
                reason: bytes,
            },
        }))
    }
}

/// Appends a frame whose bytes lie in several places.
pub(super) fn put_piece(out: &mut Vec<u8>, stream: u64, is_last: bool, parts: &[Bytes]) {
    let len: usize = parts.iter().map(Bytes::len).sum();
    put_header(out, piece_type(is_last), stream, len);
    for part in parts {
        out.extend_from_slice(part);
    }
}

fn put(out: &mut Vec<u8>, kind: u8, number: u64, bytes: &[u8]) {
    put_header(out, kind, number, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_header(out: &mut Vec<u8>, kind: u8, number: u64, len: usize) {
    debug_assert!(len <= MAX_PAYLOAD, "a frame of {len} bytes");
    out.push(kind);
    put_varint(out, number);
    put_varint(out, len as u64);
}

const fn piece_type(is_last: bool) -> u8 {
    if is_last { LAST_PIECE } else { PIECE }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        prop_oneof![
            bytes().prop_map(Frame::Control),
            Just(Frame::ControlEnd),
            (any::<u64>(), any::<bool>(), bytes()).prop_map(|(stream, is_last, bytes)| {
                Frame::Piece {
                    stream,
                    is_last,
                    bytes,
                }
            }),
            any::<u64>().prop_map(Frame::Window),
            (any::<u64>(), bytes()).prop_map(|(code, reason)| Frame::Close { code, reason }),
        ]
    }

    fn take_all(buffer: &mut BytesMut) -> Vec<Frame> {
        std::iter::from_fn(|| Frame::take(buffer).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(frames in proptest::collection::vec(any_frame(), 0..8), cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            for frame in &frames {
                frame.put(&mut bytes);
            }
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            let mut buffer = BytesMut::from(head);
            let mut seen = take_all(&mut buffer);
            buffer.extend_from_slice(tail);
            seen.extend(take_all(&mut buffer));
            prop_assert_eq!(seen, frames);
            prop_assert!(buffer.is_empty());
        }
    }

    #[test]
    fn any_bytes_are_taken_or_refused() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let mut buffer = BytesMut::from(bytes.as_slice());
            while let Ok(Some(_)) = Frame::take(&mut buffer) {}
        });
    }

    #[test]
    fn what_is_too_long_or_unknown_is_refused_before_it_is_there() {
        for (bytes, why) in [
            (vec![PIECE, 0, 0x81, 0x80, 0x01], "too long"),
            (vec![9, 0, 0], "unknown type"),
            (vec![WINDOW, 9, 1], "bytes where none belong"),
        ] {
            let mut buffer = BytesMut::from(bytes.as_slice());
            assert_eq!(Frame::take(&mut buffer), Err(Violation(why)));
        }
    }
}
