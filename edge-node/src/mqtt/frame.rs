//! Cuts packets out of a stream. Plain code.
//!
//! ```text
//! byte 0            1 to 4 bytes
//! ├ type | flags    ├ remaining length (7 bits a byte, the lowest first) ├ the rest
//! ```
//! A length above the limit ends the connection before memory is taken for it.

use bytes::{Buf, Bytes, BytesMut};

/// Why the stream can't be gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The remaining length has more than four bytes.
    #[error("a remaining length of more than four bytes")]
    Length,
    /// The packet is larger than allowed.
    #[error("a packet of {bytes} bytes; accepted: {limit}")]
    TooLarge {
        /// All of the packet.
        bytes: usize,
        /// What would have been taken.
        limit: usize,
    },
}

/// A packet: its first byte and what comes after the length.
pub type Frame = (u8, Bytes);

/// The next packet, or the bytes that `buffer` must hold at least before there can be one.
///
/// # Errors
/// [`FrameError`].
pub fn take(buffer: &mut BytesMut, max_bytes: usize) -> Result<Result<Frame, usize>, FrameError> {
    let Some((header, remaining)) = header(buffer)? else {
        return Ok(Err(buffer.len() + 1));
    };
    let total = header + remaining;
    if total > max_bytes {
        return Err(FrameError::TooLarge {
            bytes: total,
            limit: max_bytes,
        });
    }
    if buffer.len() < total {
        return Ok(Err(total));
    }
    let first = buffer[0];
    buffer.advance(header);
    Ok(Ok((first, buffer.split_to(remaining).freeze())))
}

/// Bytes of the fixed header, and those after it.
fn header(buffer: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
    let mut value = 0_usize;
    for (index, byte) in buffer.iter().skip(1).take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((index + 2, value)));
        }
    }
    if buffer.len() >= 5 {
        return Err(FrameError::Length);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_comes_out_however_it_was_cut() {
        let bytes = [0x30, 3, 1, 2, 3, 0xc0, 0];
        for cut in 0..=bytes.len() {
            let mut buffer = BytesMut::from(&bytes[..cut]);
            let mut frames = Vec::new();
            for part in [&[][..], &bytes[cut..]] {
                buffer.extend_from_slice(part);
                while let Ok(frame) = take(&mut buffer, 100).unwrap() {
                    frames.push(frame);
                }
            }
            let expected = [(0x30, Bytes::from_static(&[1, 2, 3])), (0xc0, Bytes::new())];
            assert_eq!(frames, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_length_is_refused_before_its_bytes_are_there() {
        let mut buffer = BytesMut::from(&[0x30, 0xff, 0xff, 0xff, 0x7f][..]);
        let error = take(&mut buffer, 1000).unwrap_err();
        let bytes = 268_435_455 + 5;
        assert_eq!(error, FrameError::TooLarge { bytes, limit: 1000 });
        let mut buffer = BytesMut::from(&[0x30, 0xff, 0xff, 0xff, 0xff][..]);
        assert_eq!(take(&mut buffer, 1000).unwrap_err(), FrameError::Length);
    }

    #[test]
    fn what_is_missing_is_told() {
        let mut buffer = BytesMut::from(&[0x30][..]);
        assert_eq!(take(&mut buffer, 100).unwrap(), Err(2));
        let mut buffer = BytesMut::from(&[0x30, 10, 1][..]);
        assert_eq!(take(&mut buffer, 100).unwrap(), Err(12));
    }
}
