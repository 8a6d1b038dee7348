//! The port to packets: bytes in, [`Incoming`](super::packet::Incoming) out, and answers written into a connection's buffer.
//!
//! What comes in is parsed by `mqtt-protocol-core` ([`decode()`]), one packet of a bounded size at a time,
//! and held against the rules that the crate leaves out. What goes out is written by hand
//! ([`encode`]): a message goes to many subscribers, straight into their buffers; tests read it back
//! with the crate.

mod decode;
mod encode;
#[cfg(test)]
mod tests;
mod text;

pub use decode::{Malformed, connect_version, decode, is_valid_filter, is_valid_topic};
pub use encode::{
    ConnAck, Outgoing, put_ack, put_connack, put_disconnect, put_pingresp, put_publish, put_suback,
    put_unsuback,
};
