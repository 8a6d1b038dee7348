//! A WAN laboratory: two network namespaces, a site's and a hub's, joined by links in user space.
//!
//! ```text
//!  namespace of the site                this process                namespace of the hub
//!   10.77.0.1 ── wan0 (TUN) ──► up: queue ► rate ► loss ► delay ──► wan0 (TUN) ── 10.77.0.2
//!                           ◄── down: the same, with its own conditions ◄──
//! ```
//!
//! Each link has a device and addresses of its own. A packet takes the link of the address that it goes to, or with
//! [`Lab::route_by_source`] that of the one that it comes from: several ways to one hub.
//!
//! Programs run inside through [`Lab::command`], sockets of this process through [`Lab::inside`]. What the
//! link does is [`Conditions`] of each direction; it changes while packets are on their way ([`Link::set`],
//! [`Link::outage`], [`Link::schedule`]), and every packet and IP byte is counted ([`Link::counters`]).
//!
//! Time is computed, not measured: a thread that wakes up late delays packets and says so in
//! [`Counters::late_most`], but no rate is lost. All random choices have a seed. It needs root, `ip` and
//! `/dev/net/tun`; without them [`Lab::start`] fails and says which is missing.

mod conditions;
mod device;
mod dice;
mod direction;
mod emulator;
mod forward;
mod lab;
mod namespace;
pub mod probe;
pub mod tcp;

pub use conditions::{Bursts, Conditions, PERCENT, Queue};
pub use direction::Counters;
pub use emulator::{Change, Way};
pub use lab::{End, Lab, Link, Plan};
pub use namespace::{Place, at};
