//! The server's side of a SCRAM exchange (RFC 5802, RFC 7677), without channel binding. Plain code.
//!
//! ```text
//! client ─ n,,n=till,r=<its nonce> ────────────────────────►
//!        ◄─ r=<both nonces>,s=<salt>,i=4096 ───────────────── server
//! client ─ c=biws,r=<both nonces>,p=<proof> ───────────────►
//!        ◄─ v=<signature> ──────────────────────────────────── server
//! ```
//! Names and passwords are taken as they come (SASLprep leaves ASCII as it is).

use super::{Access, Credential, Mechanism, Principal};
use crate::base64;

/// Longest message of a client, bytes.
const MAX_MESSAGE: usize = 4096;

/// Why an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// Not the message that it should be.
    #[error("SCRAM message is malformed: {0}")]
    Malformed(&'static str),
    /// The user or its password is wrong; which, is not told.
    #[error("user or password is wrong")]
    Denied,
}

/// One exchange, before its first message.
#[derive(Debug)]
pub struct ScramServer {
    mechanism: Mechanism,
    nonce: String,
}

/// One exchange, between its two messages.
#[derive(Debug)]
pub struct ScramProof {
    name: String,
    credential: Credential,
    principal: Option<Principal>,
    /// The client's first message without its header, a comma, and our answer.
    so_far: String,
    /// What the second message must say of channel binding.
    binding: String,
    /// Both nonces, the client's first.
    nonce: String,
    client_nonce: String,
}

impl ScramServer {
    /// An exchange with a fresh nonce.
    #[must_use]
    pub fn new(mechanism: Mechanism) -> Self {
        Self::with_nonce(mechanism, base64::encode(&rand::random::<[u8; 18]>()))
    }

    fn with_nonce(mechanism: Mechanism, nonce: String) -> Self {
        Self { mechanism, nonce }
    }

    /// Answers the client's first message.
    ///
    /// # Errors
    /// [`ScramError::Malformed`].
    pub fn first(
        self,
        access: &Access,
        message: &[u8],
    ) -> Result<(ScramProof, Vec<u8>), ScramError> {
        let message = text(message)?;
        let malformed = ScramError::Malformed("not a first message");
        let mut parts = message.splitn(3, ',');
        let (flag, authzid) = (
            parts.next().ok_or(malformed)?,
            parts.next().ok_or(malformed)?,
        );
        let bare = parts.next().ok_or(malformed)?;
        if flag != "n" && flag != "y" {
            return Err(ScramError::Malformed("channel binding is not served"));
        }
        let mut fields = bare.split(',');
        let name = fields.next().and_then(|field| field.strip_prefix("n="));
        let name = name.and_then(unescaped).ok_or(malformed)?;
        let client_nonce = fields.next().and_then(|field| field.strip_prefix("r="));
        let client_nonce = client_nonce
            .filter(|nonce| !nonce.is_empty())
            .ok_or(malformed)?;
        if !authzid.is_empty()
            && authzid.strip_prefix("a=").and_then(unescaped).as_ref() != Some(&name)
        {
            return Err(ScramError::Malformed(
                "acting for another user is not served",
            ));
        }
        let (credential, principal) = access.scram(&name, self.mechanism);
        let nonce = format!("{client_nonce}{}", self.nonce);
        let answer = format!(
            "r={nonce},s={},i={}",
            base64::encode(credential.salt()),
            credential.iterations()
        );
        let proof = ScramProof {
            name,
            credential,
            principal,
            so_far: format!("{bare},{answer}"),
            binding: base64::encode(format!("{flag},{authzid},").as_bytes()),
            nonce,
            client_nonce: client_nonce.to_owned(),
        };
        Ok((proof, answer.into_bytes()))
    }
}

impl ScramProof {
    /// Who the client says it is.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Judges the client's second message: who it is, and the answer that proves that we know it too.
    ///
    /// # Errors
    /// [`ScramError`].
    pub fn finish(self, message: &[u8]) -> Result<(Principal, Vec<u8>), ScramError> {
        let message = text(message)?;
        let malformed = ScramError::Malformed("not a final message");
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(malformed)?;
        let proof = base64::decode(proof).ok_or(malformed)?;
        let mut fields = without_proof.split(',');
        let binding = fields.next().and_then(|field| field.strip_prefix("c="));
        let nonce = fields.next().and_then(|field| field.strip_prefix("r="));
        let is_ours = nonce.is_some_and(|nonce| self.is_nonce(nonce));
        if binding != Some(self.binding.as_str()) || !is_ours {
            return Err(malformed);
        }
        let auth_message = format!("{},{without_proof}", self.so_far);
        let signature = self
            .credential
            .check_proof(auth_message.as_bytes(), &proof)
            .ok_or(ScramError::Denied)?;
        let principal = self.principal.ok_or(ScramError::Denied)?;
        let answer = format!("v={}", base64::encode(&signature));
        Ok((principal, answer.into_bytes()))
    }
}

impl ScramProof {
    /// RFC 5802, section 5.1: the client says the nonce again. librdkafka before 2.6.1, which most systems have,
    /// puts its own in front once more (librdkafka#4895, and Kafka 3.8.1 takes it). That makes nothing weaker:
    /// the proof is over both nonces all the same.
    fn is_nonce(&self, said: &str) -> bool {
        said == self.nonce || said.strip_prefix(&*self.client_nonce) == Some(&*self.nonce)
    }
}

fn text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MAX_MESSAGE {
        return Err(ScramError::Malformed("too long"));
    }
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))
}

/// A name with `=2C` and `=3D` for comma and equals sign.
fn unescaped(name: &str) -> Option<String> {
    let mut parts = name.split('=');
    let mut out = parts.next()?.to_owned();
    for part in parts {
        let (sign, rest) = if let Some(rest) = part.strip_prefix("2C") {
            (',', rest)
        } else {
            ('=', part.strip_prefix("3D")?)
        };
        out.push(sign);
        out.push_str(rest);
    }
    (!out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::tests::access_of;

    /// RFC 7677 section 3.
    #[test]
    fn the_example_of_rfc_7677_succeeds() {
        let salt = base64::decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let credential = Credential::make(Mechanism::Sha256, b"pencil", &salt);
        let access = access_of("user", vec![credential]);
        let server = ScramServer::with_nonce(
            Mechanism::Sha256,
            "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_owned(),
        );
        let (proof, answer) = server
            .first(&access, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
            .unwrap();
        assert_eq!(
            String::from_utf8(answer).unwrap(),
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
            p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let (principal, answer) = proof.finish(last).unwrap();
        assert_eq!(principal.name(), Some("user"));
        assert_eq!(
            String::from_utf8(answer).unwrap(),
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
    }

    /// The client's second message as it should be but for the nonce, with a right proof.
    fn last_with_nonce(nonce: &str) -> (ScramProof, String) {
        let salt = [7; 16];
        let mechanism = Mechanism::Sha256;
        let credential = Credential::make(mechanism, b"pencil", &salt);
        let access = access_of("user", vec![credential]);
        let server = ScramServer::with_nonce(mechanism, "theirs".to_owned());
        let (proof, answer) = server.first(&access, b"n,,n=user,r=mine").unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("n=user,r=mine,{answer},{without_proof}");
        let made = client_proof(b"pencil", &salt, signed.as_bytes());
        let last = format!("{without_proof},p={}", base64::encode(&made));
        (proof, last)
    }

    /// RFC 5802, section 3: `ClientKey XOR HMAC(H(ClientKey), AuthMessage)`.
    fn client_proof(password: &[u8], salt: &[u8], message: &[u8]) -> Vec<u8> {
        use ring::{digest, hmac, pbkdf2};
        let mut salted = [0; 32];
        let rounds = std::num::NonZeroU32::new(4096).unwrap();
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            rounds,
            salt,
            password,
            &mut salted,
        );
        let sign =
            |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
        let client_key = sign(&salted, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
        let signature = sign(stored_key.as_ref(), message);
        let pairs = client_key.as_ref().iter().zip(signature.as_ref());
        pairs.map(|(key, sign)| key ^ sign).collect()
    }

    #[test]
    fn the_nonce_of_older_librdkafka_is_taken_and_no_other() {
        for nonce in ["minetheirs", "mineminetheirs"] {
            let (proof, last) = last_with_nonce(nonce);
            assert!(proof.finish(last.as_bytes()).is_ok(), "{nonce}");
        }
        for nonce in [
            "theirs",
            "mine",
            "xminetheirs",
            "minemineminetheirs",
            "minetheirsx",
        ] {
            let (proof, last) = last_with_nonce(nonce);
            let error = proof.finish(last.as_bytes()).unwrap_err();
            assert!(matches!(error, ScramError::Malformed(_)), "{nonce}");
        }
    }

    #[test]
    fn a_wrong_password_and_an_unknown_user_look_the_same() {
        for mechanism in Mechanism::ALL {
            let access = access_of(
                "user",
                vec![Credential::make(mechanism, b"right", &[7; 16])],
            );
            for name in ["user", "nobody"] {
                let first = format!("n,,n={name},r=abc");
                let begin = || ScramServer::with_nonce(mechanism, "xyz".to_owned());
                let (proof, answer) = begin().first(&access, first.as_bytes()).unwrap();
                let again = begin().first(&access, first.as_bytes()).unwrap().1;
                assert_eq!(answer, again, "the salt stays");
                let wrong = base64::encode(&vec![1; mechanism.len()]);
                let last = format!("c=biws,r=abcxyz,p={wrong}");
                assert_eq!(
                    proof.finish(last.as_bytes()).unwrap_err(),
                    ScramError::Denied
                );
            }
        }
    }

    #[test]
    fn messages_that_are_none_are_refused() {
        let access = access_of("user", Vec::new());
        for first in [
            "",
            "n",
            "n,,",
            "n,,n=user",
            "n,,n=,r=a",
            "n,,n=us=er,r=a",
            "p=tls,,n=user,r=a",
            "n,a=boss,n=user,r=a",
            "n,,r=a,n=user",
            "n,,n=user,r=",
        ] {
            let server = ScramServer::new(Mechanism::Sha256);
            assert!(server.first(&access, first.as_bytes()).is_err(), "{first}");
        }
        for last in [
            "",
            "c=biws,r=ax",
            "c=biws,r=other,p=AAAA",
            "c=eSws,r=ax,p=AAAA",
            "c=biws,r=ax,p=?",
        ] {
            let server = ScramServer::with_nonce(Mechanism::Sha256, "x".to_owned());
            let (proof, _) = server.first(&access, b"n,,n=user,r=a").unwrap();
            let error = proof.finish(last.as_bytes()).unwrap_err();
            assert!(matches!(error, ScramError::Malformed(_)), "{last}");
        }
    }

    #[test]
    fn escaped_names_are_read() {
        assert_eq!(unescaped("a=2Cb=3Dc").as_deref(), Some("a,b=c"));
        assert_eq!(unescaped("a=2cb"), None);
    }
}
