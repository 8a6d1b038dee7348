//! Who a connection is: `SaslHandshake` 0-1, `SaslAuthenticate` 0-2 with PLAIN (RFC 4616) and SCRAM, and client
//! certificates.
//!
//! ```text
//! handshake(mechanism) ─► authenticate(bytes) ─► a principal, or a refusal and the end of the connection
//!                              └──◄── once more for SCRAM
//! ```
//! A connection that has to log in is served nothing else before. Version 0 of the handshake, after which bytes
//! would come without frames of the protocol, is refused: every client of the last years has version 1.

use std::sync::Arc;

use ::bytes::Bytes;

use super::api::Header;
use super::codec::{Malformed, Reader, Writer};
use super::error::ErrorCode;
use crate::access::scram::{ScramError, ScramProof, ScramServer};
use crate::access::{Access, MAX_PASSWORD, Mechanism, Principal};
use crate::quota::Place;

const PLAIN: &str = "PLAIN";
/// In the order of preference.
const MECHANISMS: [&str; 3] = ["SCRAM-SHA-256", "SCRAM-SHA-512", PLAIN];

/// Where a connection is in its login.
#[derive(Debug)]
pub(super) struct Login {
    access: Arc<Access>,
    /// Who it is; `None` until it has said so.
    principal: Option<Principal>,
    /// Who it said that it is, in the login that is under way.
    claimed: Option<String>,
    /// Its place among its user's connections.
    place: Option<Place>,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle,
    Plain,
    Scram(Mechanism),
    Proof(Box<ScramProof>),
}

/// What a step of a login came to.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) response: Vec<u8>,
    /// Why the client is refused: close the connection after the response.
    pub(super) refusal: Option<String>,
}

impl Login {
    /// A connection's login, with the common name of its certificate, which was verified.
    pub(super) fn new(access: Arc<Access>, common_name: Option<&str>) -> Self {
        let certified = common_name.and_then(|name| access.by_common_name(name));
        let principal = certified.or_else(|| access.anonymous());
        Self {
            access,
            principal,
            claimed: None,
            place: None,
            state: State::Idle,
        }
    }

    /// Who it is; `None`: it must log in first.
    pub(super) fn principal(&self) -> Option<&Principal> {
        self.principal.as_ref()
    }

    /// Who it said that it is, in the login that is under way.
    pub(super) fn claimed(&self) -> Option<&str> {
        self.claimed.as_deref()
    }

    /// Takes a place among the user's connections, unless it has one. False: there is none.
    pub(super) fn has_place(&mut self) -> bool {
        if self.place.is_none() {
            let principal = self.principal.as_ref();
            self.place = principal.and_then(|principal| principal.quota().connect());
        }
        self.place.is_some()
    }

    /// `SaslHandshake`.
    pub(super) fn handshake(&mut self, header: &Header, mechanism: &str) -> Step {
        let error = if header.version == 0 {
            ErrorCode::UnsupportedVersion
        } else if mechanism == PLAIN {
            self.state = State::Plain;
            ErrorCode::None
        } else if let Some(mechanism) = Mechanism::named(mechanism) {
            self.state = State::Scram(mechanism);
            ErrorCode::None
        } else {
            ErrorCode::UnsupportedSaslMechanism
        };
        let mut out = Writer::reply(header);
        out.i16(error.code());
        out.array_len(MECHANISMS.len());
        MECHANISMS.iter().for_each(|name| out.string(name));
        Step {
            response: out.finish(),
            refusal: None,
        }
    }

    /// `SaslAuthenticate`.
    pub(super) async fn authenticate(&mut self, header: &Header, bytes: &Bytes) -> Step {
        let outcome = self.advance(bytes).await;
        // it may be another user's connection from here on
        self.place = None;
        if outcome.is_err() {
            self.principal = None;
        }
        let (error, text, answer) = match outcome {
            Ok(answer) => (ErrorCode::None, None, answer),
            Err((error, text)) => (error, Some(text), Vec::new()),
        };
        let mut out = Writer::reply(header);
        out.i16(error.code());
        out.nullable_string(text.as_deref());
        out.records(|to| to.extend_from_slice(&answer));
        if header.version >= 1 {
            out.i64(0); // the session has no end
        }
        out.tags();
        Step {
            response: out.finish(),
            refusal: text,
        }
    }

    async fn advance(&mut self, bytes: &Bytes) -> Result<Vec<u8>, (ErrorCode, String)> {
        let state = std::mem::replace(&mut self.state, State::Idle);
        if !matches!(state, State::Proof(_)) {
            self.claimed = None;
        }
        match state {
            State::Idle => {
                let text = "no SaslHandshake before".to_owned();
                Err((ErrorCode::IllegalSaslState, text))
            }
            State::Plain => {
                let (name, password) = plain(bytes).ok_or_else(|| {
                    let text = "not a PLAIN message".to_owned();
                    (ErrorCode::SaslAuthenticationFailed, text)
                })?;
                self.claimed = Some(name.to_owned());
                let found = self.access.check_password(name, password).await;
                self.principal = Some(found.ok_or_else(|| denied(ScramError::Denied))?);
                Ok(Vec::new())
            }
            State::Scram(mechanism) => {
                let server = ScramServer::new(mechanism);
                let (proof, answer) = server.first(&self.access, bytes).map_err(denied)?;
                self.claimed = Some(proof.name().to_owned());
                self.state = State::Proof(Box::new(proof));
                Ok(answer)
            }
            State::Proof(proof) => {
                let (principal, answer) = proof.finish(bytes).map_err(denied)?;
                self.principal = Some(principal);
                Ok(answer)
            }
        }
    }
}

fn denied(error: ScramError) -> (ErrorCode, String) {
    let text = format!("Authentication failed: {error}");
    (ErrorCode::SaslAuthenticationFailed, text)
}

/// Authorization id, name and password between NULs; the first must be empty or the name.
fn plain(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let (authzid, name, password) = (parts.next()?, parts.next()?, parts.next()?);
    let is_fine = (authzid.is_empty() || authzid == name)
        && !password.is_empty()
        && password.len() <= MAX_PASSWORD
        && !password.contains(&0);
    let name = std::str::from_utf8(name).ok()?;
    is_fine.then_some((name, password))
}

/// Reads `SaslHandshake`: the mechanism.
///
/// # Errors
/// [`Malformed`].
pub(super) fn decode_handshake(mut reader: Reader<'_>) -> Result<String, Malformed> {
    let mechanism = reader.string()?.to_owned();
    reader.finish()?;
    Ok(mechanism)
}

/// Reads `SaslAuthenticate`: the mechanism's message.
///
/// # Errors
/// [`Malformed`].
pub(super) fn decode_authenticate(mut reader: Reader<'_>) -> Result<Bytes, Malformed> {
    let bytes = reader.nullable_bytes()?;
    reader.skip_tags()?;
    reader.finish()?;
    bytes.ok_or(Malformed("null where bytes are required"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_messages_are_read_and_others_refused() {
        assert_eq!(plain(b"\0u\0p"), Some(("u", &b"p"[..])));
        assert_eq!(plain(b"u\0u\0p"), Some(("u", &b"p"[..])));
        for bad in [
            &b""[..],
            b"\0u",
            b"\0u\0",
            b"boss\0u\0p",
            b"\0u\0p\0",
            b"\0\xff\0p",
        ] {
            assert_eq!(plain(bad), None, "{bad:?}");
        }
    }
}
