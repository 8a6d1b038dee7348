//! MQTT from outside: a small client of our own that says exactly what it is told to, byte for byte, and the
//! broker that it talks to.
//!
//! The client knows 3.1.1 and 5. It shares no code with the site, so that an error of a library is not on
//! both sides.

pub mod client;
pub mod packet;
pub mod properties;
pub mod reader;
pub mod server;
pub mod writer;

pub use client::{Client, Heard, Hello, Message, Will};
pub use packet::{Packet, Publish, Version};
pub use properties::{Properties, Property};
pub use server::Server;
