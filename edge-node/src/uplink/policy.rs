//! What the link may be used for ([`shared::policy`]), and the books of what was used of it.

mod book;

pub use shared::policy::{
    Action, Allowance, Calendar, Charged, Days, Decision, Limits, Period, Policy, Term, TimeOfDay,
    Window, Zone,
};

pub use book::{Book, Clocks, Seen};

pub(super) use book::{Entry, Left};
