//! A failed handshake in words: whose certificate, what is wrong, what to do.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of the errors of TLS only a few can be told better than TLS does"
)]

use quinn::ConnectionError;
use rustls::{CertificateError, Error as TlsError};

use crate::time::utc;

/// QUIC carries TLS alerts as error codes from here (RFC 9001, section 4.8).
const CRYPTO_ERRORS: u64 = 0x100;
const CERTIFICATE_REQUIRED: u8 = 116;
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// This is a site.
    Hub,
    /// This is a hub.
    Site,
}

/// What to tell an operator about a connection that failed. `wall_ms` is what this machine's clock reads.
#[must_use]
pub fn explain(error: &ConnectionError, peer: Peer, wall_ms: i64) -> String {
    let (code, reason, is_remote) = match error {
        ConnectionError::TransportError(error) => {
            (u64::from(error.code), error.reason.clone(), false)
        }
        ConnectionError::ConnectionClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            (u64::from(close.error_code), reason, true)
        }
        ConnectionError::TimedOut => return format!("the {} does not answer", peer.name()),
        ConnectionError::VersionMismatch
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => return error.to_string(),
    };
    let alert = code
        .checked_sub(CRYPTO_ERRORS)
        .and_then(|alert| u8::try_from(alert).ok());
    let Some(told) = alert.and_then(|alert| alert_in_words(alert, peer, is_remote, wall_ms)) else {
        return error.to_string();
    };
    with_reason(told, &reason)
}

/// The same for TLS over TCP: what TLS says, if it was TLS, and what the socket says.
#[must_use]
pub fn explain_tls(
    tls: Option<&TlsError>,
    error: &std::io::Error,
    peer: Peer,
    wall_ms: i64,
) -> String {
    let Some(tls) = tls else {
        return error.to_string();
    };
    let (alert, is_remote) = match tls {
        TlsError::AlertReceived(alert) => (Some(u8::from(*alert)), true),
        TlsError::InvalidCertificate(error) => (Some(alert_of(error)), false),
        TlsError::NoCertificatesPresented => (Some(CERTIFICATE_REQUIRED), false),
        TlsError::NoApplicationProtocol => (Some(NO_APPLICATION_PROTOCOL), false),
        _ => (None, false),
    };
    match alert.and_then(|alert| alert_in_words(alert, peer, is_remote, wall_ms)) {
        Some(told) if is_remote => told,
        Some(told) => with_reason(told, &tls.to_string()),
        None => tls.to_string(),
    }
}

/// The alert (RFC 8446, section 6.2) for a certificate that is refused; `None` of other errors.
pub(super) fn alert_of_error(error: &TlsError) -> Option<u8> {
    match error {
        TlsError::InvalidCertificate(error) => Some(alert_of(error)),
        _ => None,
    }
}

/// The alert that this end would send for it.
fn alert_of(error: &CertificateError) -> u8 {
    match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => 45,
        CertificateError::UnknownIssuer => 48,
        CertificateError::BadSignature => 51,
        CertificateError::Revoked => 44,
        _ => 42,
    }
}

fn with_reason(told: String, reason: &str) -> String {
    // What the other end sends is shown, within bounds and without line breaks.
    let reason: String = reason
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    if reason.is_empty() {
        told
    } else {
        format!("{told} ({reason})")
    }
}

impl Peer {
    const fn name(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::Site => "site",
        }
    }
}

/// TLS alerts (RFC 8446, section 6.2). A remote alert is about our certificate, a local one about theirs.
fn alert_in_words(alert: u8, peer: Peer, is_remote: bool, wall_ms: i64) -> Option<String> {
    let clock = utc(wall_ms);
    let (judge, owner) = match (peer, is_remote) {
        (Peer::Hub, true) => ("the hub", "this site's"),
        (Peer::Hub, false) => ("this site", "the hub's"),
        (Peer::Site, true) => ("the site", "this hub's"),
        (Peer::Site, false) => ("this hub", "the site's"),
    };
    let text = match alert {
        // certificate_expired stands for "not yet valid" too
        45 => format!(
            "{judge} finds {owner} certificate expired or not valid yet; this machine's clock reads \
             {clock}: check both clocks, then the certificate's dates"
        ),
        // unknown_ca
        48 => format!(
            "{owner} certificate comes from an authority that {judge} does not know: the `ca` file \
             there must hold the one that issued it"
        ),
        // bad_certificate, unsupported_certificate, certificate_unknown, access_denied
        42 | 43 | 46 | 49 => format!(
            "{judge} refuses {owner} certificate: its names or its purpose do not fit, or it is broken"
        ),
        // certificate_revoked
        44 => format!("{owner} certificate is revoked"),
        // decrypt_error
        51 => format!(
            "{owner} certificate has a signature that does not fit: another authority of the same name \
             issued it, or it belongs to another key"
        ),
        // certificate_required
        CERTIFICATE_REQUIRED => format!("{judge} requires a certificate and got none"),
        // no_application_protocol
        NO_APPLICATION_PROTOCOL => {
            "both ends run versions that share no protocol (ALPN kedge/1)".to_owned()
        }
        _ => return None,
    };
    Some(text)
}
