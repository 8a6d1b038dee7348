//! Both halves of the link protocol as plain state machines, and their simulation.
//!
//! [`Sender`] is the site's half, one a connection; [`Receiver`] is the hub's. Inputs go in through
//! `handle_*(…, now)`, everything to do comes out of `poll_output()`, to be called until it is `None`
//! after every input; `poll_timeout()` says when to call `handle_timeout(now)` at the latest. `now` is
//! the time since an origin of the driver's choice. There is no I/O here, no clock and no randomness.
//!
//! ```text
//!  site                                       hub
//!  Hello(incarnation, logs) ───────────────►  Attach → the lane's checkpoints
//!  compare with the store   ◄───────────────  Welcome(codecs, credit, checkpoints)
//!  data streams, any order  ═══════════════►  put in order, Deliver → lane → commit
//!  Acked → the store        ◄───────────────  Ack(next offsets, credit), only for what is committed
//! ```
//!
//! Always true, for every log of a session:
//! - nothing is sent before the hub's checkpoint came and the site's history was found to agree;
//! - what is sent starts at the checkpoint and is contiguous, each offset once;
//! - `acked <= sent <= end` at the site, `committed <= delivered` at the hub;
//! - the sum of the charges of all streams (their size class + 256 each) stays within the hub's credit
//!   limit.
//!
//! A session that breaks any rule ends with a [`Code`]; the next one starts from
//! the hub's committed checkpoints. Nothing of a session outlives it, so nothing needs to be repaired.

mod receiver;
mod resume;
mod sender;
mod window;

#[cfg(test)]
mod mutation;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use receiver::{Delivered, LogAnswer, Receiver, ReceiverConfig, ReceiverOutput};
pub use resume::Mismatch;
pub use sender::{Begin, DataStream, ReadResult, Sender, SenderConfig, SenderOutput, Unsettled};

use std::time::Duration;

use crate::wire::Code;

/// The end of a session, the last output of either half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// Why; also the application error code for the connection's close.
    pub code: Code,
    /// True when the peer said so.
    pub by_peer: bool,
    /// Come back no earlier than this, if the peer said.
    pub retry_after: Option<Duration>,
    /// For the log.
    pub text: String,
}

/// True in a test build that has this rule switched off, to prove that the simulation notices.
macro_rules! broken {
    ($owner:expr, $mutation:ident) => {{
        #[cfg(test)]
        let broken = $owner.mutation == Some(crate::link::mutation::Mutation::$mutation);
        #[cfg(not(test))]
        let broken = false;
        broken
    }};
}
use broken;
