//! `DescribeCluster` 0 and 1 (KIP-700). Plain code.

use crate::kafka::api::Header;
use crate::kafka::codec::{Malformed, Reader, Writer};
use crate::kafka::error::ErrorCode;
use crate::kafka::metadata::{BROKER_ID, Cluster};

/// Asks for brokers; there are no controllers to ask for.
const BROKERS: i8 = 1;

/// Reads a request: the kind of endpoint that it asks for.
///
/// # Errors
/// [`Malformed`].
pub fn decode_cluster(mut reader: Reader<'_>, version: i16) -> Result<i8, Malformed> {
    reader.bool()?; // authorized operations
    let endpoints = if version >= 1 { reader.i8()? } else { BROKERS };
    reader.skip_tags()?;
    reader.finish()?;
    Ok(endpoints)
}

/// Writes the response.
#[must_use]
pub fn encode_cluster(header: &Header, endpoints: i8, cluster: &Cluster<'_>) -> Vec<u8> {
    let is_known = endpoints == BROKERS;
    let mut out = Writer::reply(header);
    out.i32(0); // throttle time
    if is_known {
        out.i16(ErrorCode::None.code());
        out.nullable_string(None);
    } else {
        out.i16(ErrorCode::UnsupportedEndpointType.code());
        out.nullable_string(Some("a site has brokers only"));
    }
    if header.version >= 1 {
        out.i8(endpoints);
    }
    out.string(cluster.id);
    out.i32(BROKER_ID); // controller
    out.array_len(usize::from(is_known));
    if is_known {
        out.i32(BROKER_ID);
        out.string(cluster.host);
        out.i32(i32::from(cluster.port));
        out.nullable_string(None); // rack
        out.tags();
    }
    out.i32(i32::MIN); // authorized operations: not told
    out.tags();
    out.finish()
}
