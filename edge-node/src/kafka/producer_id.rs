//! `InitProducerId` 0 and 1: an id for an idempotent producer (KIP-98). Plain code.

use super::codec::{Malformed, Reader, Writer};
use super::error::ErrorCode;

/// True when the producer asks for transactions, which are not served.
///
/// # Errors
/// [`Malformed`].
pub fn decode_is_transactional(mut reader: Reader<'_>) -> Result<bool, Malformed> {
    let transactional_id = reader.nullable_string()?;
    reader.i32()?; // transaction timeout
    reader.finish()?;
    Ok(transactional_id.is_some())
}

/// Writes the response: the same in both versions.
#[must_use]
pub fn encode(correlation: i32, id: Result<i64, ErrorCode>) -> Vec<u8> {
    let mut out = Writer::response(correlation);
    out.i32(0); // throttle time
    match id {
        Ok(id) => {
            out.i16(ErrorCode::None.code());
            out.i64(id);
            out.i16(0);
        }
        Err(error) => {
            out.i16(error.code());
            out.i64(-1);
            out.i16(-1);
        }
    }
    out.finish()
}
