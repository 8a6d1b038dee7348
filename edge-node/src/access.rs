//! Who may do what: users, how they prove who they are, and which topics they may write and read. The
//! same for every protocol.
//!
//! ```text
//! [[access.user]] ─► Access ─► a password, a token, a certificate's common name, a SCRAM exchange
//!                                  └─► Principal ─► may_produce(topic), may_consume(topic), …
//! ```
//! Without users and without `[access.anonymous]` everybody may do everything, as on a network that only
//! trusted programs reach. With users, whoever doesn't say who it is has the rules of
//! `[access.anonymous]`, and without that section is refused.
//!
//! Passwords are not kept: a user has SCRAM credentials (RFC 5802), made by `edge-node credential` or, from
//! a password file, on start. Nothing here tells by its answer or its error which users there are.

mod credential;
mod login;
mod refused;
mod rules;
pub mod scram;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ring::{digest, hmac};
use tokio::sync::Semaphore;

pub use credential::{Credential, Mechanism, TokenHash};
pub use login::CHECKS_AT_ONCE;
pub use refused::RefusedLogins;
pub use rules::{Principal, Rules};

use crate::config::{AccessConfig, UserConfig};

/// A password file holds one line; more is a mistake.
const MAX_PASSWORD_FILE: u64 = 4096;
/// Longest password that is looked at, bytes.
pub const MAX_PASSWORD: usize = 1024;

/// Why the users cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A password file cannot be read.
    #[error("password_file of user `{user}`: cannot read {}: {error}", file.display())]
    Read {
        user: String,
        file: PathBuf,
        error: std::io::Error,
    },
    /// It holds no password.
    #[error("password_file of user `{user}`: {}: {message}", file.display())]
    Content {
        user: String,
        file: PathBuf,
        message: String,
    },
}

/// All users and their rules. Shared by the listeners; set up on start.
#[derive(Debug)]
pub struct Access {
    users: BTreeMap<String, Arc<User>>,
    tokens: HashMap<TokenHash, Arc<User>>,
    common_names: HashMap<String, Arc<User>>,
    /// What those may do who don't say who they are; `None`: nothing, not even connect.
    anonymous: Option<Principal>,
    /// Of this process: keys what is remembered of passwords, and the salts of users that don't exist.
    secret: hmac::Key,
    /// Passwords being checked: each costs milliseconds of a processor.
    checks: Arc<Semaphore>,
}

/// One user.
struct User {
    principal: Principal,
    credentials: Vec<Credential>,
    /// Keyed hash of the password that was right last: the next login with it costs microseconds.
    verified: Mutex<Option<hmac::Tag>>,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("User").field(&self.principal).finish()
    }
}

impl Access {
    /// Everybody may do everything.
    #[must_use]
    pub fn open() -> Self {
        Self {
            users: BTreeMap::new(),
            tokens: HashMap::new(),
            common_names: HashMap::new(),
            anonymous: Some(Principal::anonymous(Rules::all())),
            secret: hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; 32]>()),
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
        }
    }

    /// The users of the configuration. Reads password files and derives their credentials, which takes some
    /// milliseconds each.
    ///
    /// # Errors
    /// [`AccessError`]: a password file that can't be used.
    pub fn new(config: &AccessConfig) -> Result<Self, AccessError> {
        let mut access = Self::open();
        access.anonymous = match &config.anonymous {
            Some(rules) => Some(Principal::anonymous(rules.clone())),
            None if config.users.is_empty() => Some(Principal::anonymous(Rules::all())),
            None => None,
        };
        for user in &config.users {
            access.add(user)?;
        }
        Ok(access)
    }

    fn add(&mut self, config: &UserConfig) -> Result<(), AccessError> {
        let mut credentials = config.credentials.clone();
        if let Some(file) = &config.password_file {
            let password = read_password(&config.name, file)?;
            let made = Mechanism::ALL.map(|mechanism| {
                Credential::make(mechanism, &password, &rand::random::<[u8; 16]>())
            });
            credentials.extend(made);
        }
        let user = Arc::new(User {
            principal: Principal::user(&config.name, config.rules.clone()),
            credentials,
            verified: Mutex::new(None),
        });
        for token in &config.tokens {
            self.tokens.insert(token.clone(), Arc::clone(&user));
        }
        if let Some(name) = &config.common_name {
            self.common_names.insert(name.clone(), Arc::clone(&user));
        }
        self.users.insert(config.name.clone(), user);
        Ok(())
    }

    /// True when there are users: listeners ask who a client is.
    #[must_use]
    pub fn has_users(&self) -> bool {
        !self.users.is_empty()
    }

    /// Who a client is that doesn't say it; `None`: it must.
    #[must_use]
    pub fn anonymous(&self) -> Option<Principal> {
        self.anonymous.clone()
    }

    /// The user whose bearer token this is.
    #[must_use]
    pub fn by_token(&self, token: &str) -> Option<Principal> {
        // a table of hashes: how long the look-up takes tells nothing of a token
        let user = self.tokens.get(&TokenHash::of(token))?;
        Some(user.principal.clone())
    }

    /// The user that a client certificate stands for. The caller has verified the certificate.
    #[must_use]
    pub fn by_common_name(&self, common_name: &str) -> Option<Principal> {
        let user = self.common_names.get(common_name)?;
        Some(user.principal.clone())
    }

    /// Whether the password is the user's. Takes milliseconds of a processor unless the same password was
    /// right before: on a runtime's thread use [`Access::check_password`].
    #[must_use]
    pub fn verify(&self, name: &str, password: &[u8]) -> Option<Principal> {
        if password.len() > MAX_PASSWORD {
            return None;
        }
        let user = self.users.get(name);
        if let Some(user) = user
            && self.is_remembered(user, password)
        {
            return Some(user.principal.clone());
        }
        let credential = user.and_then(|user| Some((user, user.credentials.first()?)));
        let Some((user, credential)) = credential else {
            // as long as for a user that there is and that has a password
            let _unused = Credential::make(Mechanism::Sha256, password, &[0; 16]);
            return None;
        };
        if !credential.is_made_from(password) {
            return None;
        }
        let tag = hmac::sign(&self.secret, password);
        *user.verified.lock().unwrap_or_else(PoisonError::into_inner) = Some(tag);
        Some(user.principal.clone())
    }

    fn is_remembered(&self, user: &User, password: &[u8]) -> bool {
        let verified = user.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified
            .as_ref()
            .is_some_and(|tag| hmac::verify(&self.secret, password, tag.as_ref()).is_ok())
    }

    /// What a SCRAM exchange needs of a user. A user that there isn't gets a credential that fits no password,
    /// the same each time.
    fn scram(&self, name: &str, mechanism: Mechanism) -> (Credential, Option<Principal>) {
        let user = self.users.get(name);
        let found = user.and_then(|user| {
            let mut all = user.credentials.iter();
            let credential = all.find(|credential| credential.mechanism() == mechanism)?;
            Some((credential.clone(), Some(user.principal.clone())))
        });
        found.unwrap_or_else(|| {
            let salt = hmac::sign(&self.secret, name.as_bytes());
            let salt = salt
                .as_ref()
                .first_chunk::<16>()
                .copied()
                .unwrap_or_default();
            (Credential::unusable(mechanism, &salt), None)
        })
    }
}

fn read_password(user: &str, file: &Path) -> Result<Vec<u8>, AccessError> {
    let read = |error| AccessError::Read {
        user: user.to_owned(),
        file: file.to_owned(),
        error,
    };
    let bad = |message: &str| AccessError::Content {
        user: user.to_owned(),
        file: file.to_owned(),
        message: message.to_owned(),
    };
    if std::fs::metadata(file).map_err(read)?.len() > MAX_PASSWORD_FILE {
        return Err(bad("too large for a password; accepted: one line"));
    }
    let text = std::fs::read(file).map_err(read)?;
    let password = text.strip_suffix(b"\n").unwrap_or(&text);
    let password = password.strip_suffix(b"\r").unwrap_or(password);
    match password.len() {
        0 => Err(bad("empty; accepted: one line")),
        1..=MAX_PASSWORD if !password.contains(&b'\n') => Ok(password.to_vec()),
        _ => Err(bad("not one line of at most 1024 bytes")),
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
