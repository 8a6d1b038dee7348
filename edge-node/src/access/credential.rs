//! What is kept in place of passwords and tokens. Plain code.
//!
//! A credential is written `SCRAM-SHA-256$4096:<salt>$<stored key>:<server key>` (the form that PostgreSQL
//! keeps too), each part in base64; a token's hash `sha256:<64 hex digits>`.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use ring::{digest, hmac, pbkdf2};

use super::sha256;
use crate::base64;

/// Rounds that a password is stretched by; RFC 7677 asks for at least 4096, and so does Kafka.
pub(super) const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("not 0");
/// Each login with a password costs so many rounds at most.
const MAX_ITERATIONS: u32 = 1_000_000;
const MAX_SALT: usize = 64;

/// Which SCRAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// `SCRAM-SHA-256`, RFC 7677.
    Sha256,
    /// `SCRAM-SHA-512`, as Kafka has it.
    Sha512,
}

impl Mechanism {
    /// Both, the usual one first.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Its SASL name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha512 => "SCRAM-SHA-512",
        }
    }

    /// By its SASL name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|mechanism| mechanism.name() == name)
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha512 => &digest::SHA512,
        }
    }

    fn stretch(self) -> pbkdf2::Algorithm {
        match self {
            Self::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Self::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        }
    }

    pub(super) fn len(self) -> usize {
        self.digest().output_len()
    }

    pub(super) fn hmac(self, key: &[u8], message: &[u8]) -> hmac::Tag {
        let algorithm = match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha512 => hmac::HMAC_SHA512,
        };
        hmac::sign(&hmac::Key::new(algorithm, key), message)
    }

    pub(super) fn hash(self, bytes: &[u8]) -> Vec<u8> {
        digest::digest(self.digest(), bytes).as_ref().to_vec()
    }
}

/// What proves a password without being one (RFC 5802 section 3).
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    mechanism: Mechanism,
    iterations: NonZeroU32,
    salt: Vec<u8>,
    stored_key: Vec<u8>,
    server_key: Vec<u8>,
}

impl Credential {
    /// Of a password, with [`ITERATIONS`].
    #[must_use]
    pub fn make(mechanism: Mechanism, password: &[u8], salt: &[u8]) -> Self {
        Self::make_with(mechanism, password, salt, ITERATIONS)
    }

    pub(super) fn make_with(
        mechanism: Mechanism,
        password: &[u8],
        salt: &[u8],
        iterations: NonZeroU32,
    ) -> Self {
        let mut salted = vec![0; mechanism.len()];
        pbkdf2::derive(mechanism.stretch(), iterations, salt, password, &mut salted);
        let client_key = mechanism.hmac(&salted, b"Client Key");
        Self {
            mechanism,
            iterations,
            salt: salt.to_vec(),
            stored_key: mechanism.hash(client_key.as_ref()),
            server_key: mechanism.hmac(&salted, b"Server Key").as_ref().to_vec(),
        }
    }

    /// Fits no password.
    pub(super) fn unusable(mechanism: Mechanism, salt: &[u8]) -> Self {
        let stored_key: Vec<u8> = (0..mechanism.len()).map(|_| rand::random()).collect();
        Self {
            mechanism,
            iterations: ITERATIONS,
            salt: salt.to_vec(),
            server_key: stored_key.clone(),
            stored_key,
        }
    }

    /// Which SCRAM it is for.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Whether the password is the one.
    #[must_use]
    pub fn is_made_from(&self, password: &[u8]) -> bool {
        let other = Self::make_with(self.mechanism, password, &self.salt, self.iterations);
        is_same(&self.stored_key, &other.stored_key)
    }

    pub(super) fn salt(&self) -> &[u8] {
        &self.salt
    }

    pub(super) fn iterations(&self) -> u32 {
        self.iterations.get()
    }

    /// Whether a client's proof shows that it knows the password; then the server's own signature
    /// (RFC 5802 section 3).
    pub(super) fn check_proof(&self, auth_message: &[u8], proof: &[u8]) -> Option<Vec<u8>> {
        let signature = self.mechanism.hmac(&self.stored_key, auth_message);
        if proof.len() != signature.as_ref().len() {
            return None;
        }
        let client_key: Vec<u8> = proof
            .iter()
            .zip(signature.as_ref())
            .map(|(a, b)| a ^ b)
            .collect();
        let is_right = is_same(&self.mechanism.hash(&client_key), &self.stored_key);
        is_right.then(|| {
            let signature = self.mechanism.hmac(&self.server_key, auth_message);
            signature.as_ref().to_vec()
        })
    }
}

/// In a time that doesn't depend on where they differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |found, (a, b)| found | (a ^ b));
    a.len() == b.len() && difference == 0
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}${}:{}${}:{}",
            self.mechanism.name(),
            self.iterations,
            base64::encode(&self.salt),
            base64::encode(&self.stored_key),
            base64::encode(&self.server_key)
        )
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mechanism.name())
    }
}

impl FromStr for Credential {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or(
            "not a credential; accepted: what `edge-node credential` prints, such as \
             SCRAM-SHA-256$4096:<salt>$<stored key>:<server key>",
        )
    }
}

fn parse(text: &str) -> Option<Credential> {
    let mut parts = text.split('$');
    let mechanism = Mechanism::named(parts.next()?)?;
    let (iterations, salt) = parts.next()?.split_once(':')?;
    let (stored_key, server_key) = parts.next()?.split_once(':')?;
    let iterations = iterations.parse::<u32>().ok()?;
    let credential = Credential {
        mechanism,
        iterations: NonZeroU32::new(iterations).filter(|_| iterations <= MAX_ITERATIONS)?,
        salt: base64::decode(salt)?,
        stored_key: base64::decode(stored_key)?,
        server_key: base64::decode(server_key)?,
    };
    let len = mechanism.len();
    let is_whole = parts.next().is_none()
        && (1..=MAX_SALT).contains(&credential.salt.len())
        && credential.stored_key.len() == len
        && credential.server_key.len() == len;
    is_whole.then_some(credential)
}

/// The hash of a bearer token. Tokens are long and random, so that one round is enough.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Of a token as clients send it.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(sha256(token.as_bytes()))
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash")
    }
}

impl FromStr for TokenHash {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.strip_prefix("sha256:").and_then(|hex| {
            let digits = hex.bytes().map(|byte| char::from(byte).to_digit(16));
            let digits = digits.collect::<Option<Vec<_>>>()?;
            let mut hash = [0; 32];
            if digits.len() != 2 * hash.len() {
                return None;
            }
            for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
                *byte = u8::try_from(pair.iter().fold(0, |all, digit| all << 4 | digit)).ok()?;
            }
            Some(Self(hash))
        });
        parsed.ok_or(
            "not a token's hash; accepted: what `edge-node credential --token` prints, such as \
             sha256:<64 hex digits>",
        )
    }
}
