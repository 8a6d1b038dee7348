//! Passwords checked beside the runtime's threads.

use std::sync::Arc;

use super::{Access, Principal};

/// Passwords that are checked at a time; more wait. A site has few processors and other work.
pub const CHECKS_AT_ONCE: usize = 2;

impl Access {
    /// As [`Access::verify`], without holding up a runtime's thread.
    pub async fn check_password(
        self: &Arc<Self>,
        name: &str,
        password: &[u8],
    ) -> Option<Principal> {
        if let Some(user) = self.users.get(name)
            && self.is_remembered(user, password)
        {
            return Some(user.principal.clone());
        }
        let permit = Arc::clone(&self.checks).acquire_owned().await.ok()?;
        let (access, name, password) = (Arc::clone(self), name.to_owned(), password.to_vec());
        let checked = tokio::task::spawn_blocking(move || {
            // held to the end of the work, also when who asked has gone
            let _permit = permit;
            access.verify(&name, &password)
        });
        checked.await.ok().flatten()
    }
}
