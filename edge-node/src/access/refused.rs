//! Logins that were refused, for the operator.

use std::net::SocketAddr;

use tracing::warn;

use crate::seldom::Seldom;

/// Characters of a name that are shown.
const SHOWN: usize = 80;

/// Tells of the refused logins of one listener, seldom.
#[derive(Debug)]
pub struct RefusedLogins {
    protocol: &'static str,
    listener: SocketAddr,
    seldom: Seldom,
}

impl RefusedLogins {
    /// Of a listener that was told nothing of yet.
    #[must_use]
    pub fn new(protocol: &'static str, listener: SocketAddr) -> Self {
        Self {
            protocol,
            listener,
            seldom: Seldom::default(),
        }
    }

    /// `user` is who the client said it is, if it did; `reason` has nothing of what it said.
    pub fn tell(&self, peer: SocketAddr, user: Option<&str>, reason: &str) {
        let Some(left_out) = self.seldom.turn(shared::time::now()) else {
            return;
        };
        let user: Option<String> = user.map(|user| user.chars().take(SHOWN).collect());
        let (protocol, listener) = (self.protocol, self.listener);
        warn!(protocol, %listener, %peer, ?user, reason, left_out, "Login refused");
    }
}
