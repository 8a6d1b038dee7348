//! Who a certificate is for.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of the kinds of names and extensions only a few matter"
)]

use std::any::Any;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

use crate::ids::{NameError, SiteId};
use crate::time::utc;

/// In front of the site's name, in a subject alternative name of the kind URI.
pub const SITE_URI_PREFIX: &str = "kedge:site:";

/// Why a certificate names no site.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The handshake brought no certificate.
    #[error("no client certificate")]
    NoCertificate,
    /// Not X.509.
    #[error("the certificate cannot be parsed: {0}")]
    Malformed(String),
    /// No subject alternative name with the prefix.
    #[error(
        "the certificate names no site; expected: a subject alternative name URI kedge:site:<name>"
    )]
    NoSite,
    /// More than one: which is meant?
    #[error("the certificate names several sites: `{first}` and `{second}`")]
    SeveralSites { first: String, second: String },
    /// A name that is none.
    #[error("the site in the certificate is no name: {0}")]
    BadName(#[from] NameError),
    /// Outside its dates; a resumed session gets here with an old certificate.
    #[error(
        "the certificate of `{site}` is valid from {from} to {to}; this machine's clock reads {clock}"
    )]
    OutsideValidity {
        site: SiteId,
        from: String,
        to: String,
        clock: String,
    },
}

/// The parts of a certificate that people and checks need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Its subject, for people.
    pub subject: String,
    /// Who issued it, for people.
    pub issuer: String,
    /// It may issue others.
    pub is_authority: bool,
    /// DNS names and addresses.
    pub names: Vec<String>,
    /// The site that it is for; `None` when it names none.
    pub site: Option<SiteId>,
    /// Valid from, ms since the epoch.
    pub not_before_ms: i64,
    /// Valid to.
    pub not_after_ms: i64,
}

impl CertificateInfo {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`].
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let certificate = parse(der)?;
        let names = alternative_names(&certificate)
            .iter()
            .filter_map(shown_name)
            .collect();
        Ok(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            is_authority: certificate.is_ca(),
            names,
            site: site(&certificate).ok(),
            not_before_ms: certificate
                .validity()
                .not_before
                .timestamp()
                .saturating_mul(1_000),
            not_after_ms: certificate
                .validity()
                .not_after
                .timestamp()
                .saturating_mul(1_000),
        })
    }
}

/// The site at the other end of a connection: pass quinn's `Connection::peer_identity()`.
///
/// # Errors
/// [`IdentityError`]: end the connection.
pub fn site_of(identity: Option<Box<dyn Any>>, wall_ms: i64) -> Result<SiteId, IdentityError> {
    let chain = identity
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(IdentityError::NoCertificate)?;
    site_of_chain(&chain, wall_ms)
}

/// The site that a verified chain is for, by its first certificate.
///
/// # Errors
/// [`IdentityError`]: end the connection.
pub fn site_of_chain(chain: &[CertificateDer<'_>], wall_ms: i64) -> Result<SiteId, IdentityError> {
    let der = chain.first().ok_or(IdentityError::NoCertificate)?;
    let site = site_of_certificate(der)?;
    let info = CertificateInfo::parse(der)?;
    if (info.not_before_ms..=info.not_after_ms).contains(&wall_ms) {
        return Ok(site);
    }
    let (from, to) = (utc(info.not_before_ms), utc(info.not_after_ms));
    Err(IdentityError::OutsideValidity {
        site,
        from,
        to,
        clock: utc(wall_ms),
    })
}

/// The site that a certificate is for, whatever its dates.
///
/// # Errors
/// [`IdentityError`].
pub fn site_of_certificate(der: &CertificateDer<'_>) -> Result<SiteId, IdentityError> {
    site(&parse(der)?)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| IdentityError::Malformed(error.to_string()))
}

fn site(certificate: &X509Certificate<'_>) -> Result<SiteId, IdentityError> {
    let mut sites = alternative_names(certificate)
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(SITE_URI_PREFIX),
            _ => None,
        });
    let first = sites.next().ok_or(IdentityError::NoSite)?;
    if let Some(second) = sites.next() {
        return Err(IdentityError::SeveralSites {
            first: first.to_owned(),
            second: second.to_owned(),
        });
    }
    Ok(SiteId::new(first)?)
}

fn alternative_names<'a>(certificate: &'a X509Certificate<'_>) -> &'a [GeneralName<'a>] {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(names.general_names.as_slice()),
            _ => None,
        })
        .unwrap_or_default()
}

fn shown_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from);
            v4.or_else(|_| v6()).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}
