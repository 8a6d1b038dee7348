//! The three PEM files of one end: read, checked, compared.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::pem::{self, TlsError};
use super::{CertificateInfo, explain, provider};
use crate::time::utc;

/// The three PEM files of one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// This end's certificate, then intermediates.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificates of the authorities that the other end's certificate must come from.
    pub ca: PathBuf,
}

/// What the files hold.
pub(super) struct Material {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) roots: Arc<RootCertStore>,
    authorities: Vec<CertificateDer<'static>>,
}

/// Whose files they are: what the certificate has to be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A site's: for client authentication.
    Site,
    /// A hub's: for server authentication.
    Hub,
}

/// What there is to say about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// The setting that names it, without its section: `certificate`, `key`, `ca`.
    pub key: &'static str,
    /// The file and what is the matter with it.
    pub message: String,
}

/// What `check` tells about the files.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// This end's certificate.
    pub certificate: CertificateInfo,
    /// The authorities that are trusted.
    pub authorities: Vec<CertificateInfo>,
    /// What is wrong, one sentence each.
    pub problems: Vec<Remark>,
    /// What will be wrong soon, or may be meant.
    pub warnings: Vec<Remark>,
}

/// Renew within this time before the end; a site may be offline for weeks.
const EXPIRES_SOON_MS: i64 = 30 * 86_400_000;

/// Names of the settings, without their section.
const CERTIFICATE: &str = "certificate";
const KEY: &str = "key";
const CA: &str = "ca";

impl TlsFiles {
    /// Reads the files for a person: dates included.
    ///
    /// # Errors
    /// A file that cannot be read or parsed.
    pub fn inspect(&self, role: Role, wall_ms: i64) -> Result<Inspection, TlsError> {
        let material = self.read()?;
        let certificate = info(&self.certificate, material.leaf())?;
        let authorities = material.authorities.iter().map(|der| info(&self.ca, der));
        let authorities = authorities.collect::<Result<Vec<_>, _>>()?;
        let mut inspection = Inspection {
            certificate,
            authorities,
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        inspection.check_dates(self, wall_ms);
        inspection.check_authorities(self);
        inspection.check_issuer(self, &material, role, wall_ms);
        if let Err(error) = super::client_config(self, &material) {
            inspection.problems.push(Remark {
                key: KEY,
                message: error.to_string(),
            });
        }
        Ok(inspection)
    }

    /// What keeps each of the files from being read, where [`TlsFiles::inspect`] tells the first only.
    #[must_use]
    pub fn unreadable(&self) -> Vec<Remark> {
        let certificates = |file: &Path| pem::certificates(file, &pem::read(file)?).map(drop);
        let key = || pem::private_key(&self.key, &pem::read(&self.key)?).map(drop);
        let roots = || {
            let found = pem::certificates(&self.ca, &pem::read(&self.ca)?)?;
            pem::roots(&self.ca, &found).map(drop)
        };
        let found = [
            (CERTIFICATE, certificates(&self.certificate)),
            (KEY, key()),
            (CA, roots()),
        ];
        let errors = found
            .into_iter()
            .filter_map(|(key, read)| Some((key, read.err()?)));
        errors
            .map(|(key, error)| Remark {
                key,
                message: format!("{error}; expected: {}", expected(key)),
            })
            .collect()
    }

    pub(super) fn read(&self) -> Result<Material, TlsError> {
        let certificates = |file: &Path| pem::certificates(file, &pem::read(file)?);
        let chain = certificates(&self.certificate)?;
        let authorities = certificates(&self.ca)?;
        let key = pem::private_key(&self.key, &pem::read(&self.key)?)?;
        let roots = pem::roots(&self.ca, &authorities)?;
        Ok(Material {
            chain,
            key,
            roots: Arc::new(roots),
            authorities,
        })
    }

    /// Why the other end would not take this end's certificate, where it is not for its authority.
    pub(super) fn refusal(&self, material: &Material, role: Role, wall_ms: i64) -> Option<String> {
        let info = info(&self.certificate, material.leaf()).ok()?;
        if let Some(Date::Outside(message)) = dates(&self.certificate, &info, wall_ms) {
            return Some(message);
        }
        let error = material.verify(role, within(&info, wall_ms)).err()?;
        // unknown_ca, decrypt_error: both ends may have authorities of their own
        let is_the_authority = matches!(explain::alert_of_error(&error), Some(48 | 51));
        (!is_the_authority).then(|| self.refused(&info, role, &error))
    }

    fn refused(&self, info: &CertificateInfo, role: Role, error: &rustls::Error) -> String {
        let (file, subject) = (self.certificate.display(), &info.subject);
        let (other, usage) = match role {
            Role::Site => ("the hub", "client authentication"),
            Role::Hub => ("sites", "server authentication"),
        };
        if explain::alert_of_error(error) == Some(45) {
            return format!(
                "{file}: {subject} is refused by {other}: a certificate between it and its authority is expired or not valid \
                 yet; expected: a chain in which all are valid"
            );
        }
        format!(
            "{file}: {subject} is refused by {other}: {error}; expected: a certificate for {usage}, as `hub-node certs` makes \
             it"
        )
    }

    pub(super) fn unusable(&self, error: impl Display) -> TlsError {
        TlsError::unusable(&self.certificate, &self.key, &error.to_string())
    }
}

/// The time, or the nearest at which the certificate is valid.
fn within(info: &CertificateInfo, wall_ms: i64) -> i64 {
    wall_ms.clamp(
        info.not_before_ms,
        info.not_after_ms.max(info.not_before_ms),
    )
}

impl Material {
    /// This end's own certificate.
    pub(super) fn leaf(&self) -> &CertificateDer<'static> {
        self.chain
            .first()
            .expect("a chain is read with at least one certificate")
    }

    /// Whether the other end would take this end's certificate if it trusted what this one does.
    fn verify(&self, role: Role, at_ms: i64) -> Result<(), rustls::Error> {
        let leaf = self.leaf();
        let intermediates = self.chain.get(1..).unwrap_or_default();
        let secs = u64::try_from(at_ms.div_euclid(1_000)).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(secs));
        match role {
            Role::Site => {
                let roots = Arc::clone(&self.roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let verifier = verifier
                    .build()
                    .map_err(|error| rustls::Error::General(error.to_string()))?;
                verifier
                    .verify_client_cert(leaf, intermediates, now)
                    .map(drop)
            }
            Role::Hub => verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(leaf)?,
                &self.roots,
                intermediates,
                now,
                provider().signature_verification_algorithms.all,
            ),
        }
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key == other.key && self.authorities == other.authorities
    }
}

impl Inspection {
    fn check_dates(&mut self, files: &TlsFiles, wall_ms: i64) {
        match dates(&files.certificate, &self.certificate, wall_ms) {
            Some(Date::Outside(message)) => self.problems.push(Remark {
                key: CERTIFICATE,
                message,
            }),
            Some(Date::Soon(message)) => self.warnings.push(Remark {
                key: CERTIFICATE,
                message,
            }),
            None => {}
        }
        let of_authorities = self.authorities.iter();
        let of_authorities: Vec<_> = of_authorities
            .map(|info| dates(&files.ca, info, wall_ms))
            .collect();
        // while authorities change, an old one beside the new does no harm
        let is_one_good = of_authorities
            .iter()
            .any(|date| !matches!(date, Some(Date::Outside(_))));
        for date in of_authorities.into_iter().flatten() {
            let (is_problem, message) = match date {
                Date::Outside(message) => (!is_one_good, message),
                Date::Soon(message) => (false, message),
            };
            let remarks = if is_problem {
                &mut self.problems
            } else {
                &mut self.warnings
            };
            remarks.push(Remark { key: CA, message });
        }
    }

    /// A certificate that may issue none vouches for nobody.
    fn check_authorities(&mut self, files: &TlsFiles) {
        let file = files.ca.display();
        let idle = self.authorities.iter();
        // one of version 1 that issued itself says nothing of what it may
        let idle = idle.filter(|info| !info.is_authority && info.subject != info.issuer);
        for info in idle {
            let (subject, issuer) = (&info.subject, &info.issuer);
            self.problems.push(Remark {
                key: CA,
                message: format!(
                    "{file}: {subject} is no authority and vouches for nobody; expected: the certificate of the one that \
                     issues them, here {issuer}"
                ),
            });
        }
    }

    /// Both ends usually have certificates of one authority: that another file stands there is seen at the own one.
    fn check_issuer(&mut self, files: &TlsFiles, material: &Material, role: Role, wall_ms: i64) {
        let info = &self.certificate;
        // dates have their own words
        let at = within(info, wall_ms);
        let Err(error) = material.verify(role, at) else {
            return;
        };
        let (certificate, ca) = (files.certificate.display(), files.ca.display());
        let (subject, issuer) = (&info.subject, &info.issuer);
        let other = match role {
            Role::Site => "the hub",
            Role::Hub => "sites",
        };
        match explain::alert_of_error(&error) {
            // an own certificate outside its dates is told above, and so may be the one between
            Some(45) if self.problems.iter().any(|it| it.key == CERTIFICATE) => {}
            // a file without any authority has its own words
            Some(48 | 51) if self.problems.iter().any(|it| it.key == CA) => {}
            // unknown_ca, decrypt_error
            Some(48 | 51) => self.warnings.push(Remark {
                key: CA,
                message: format!(
                    "{ca}: not the authority that issued {CERTIFICATE} = \"{certificate}\" ({subject}, issued by {issuer}); \
                     expected: that authority's certificate, unless those of {other} come from another one"
                ),
            }),
            _ => {
                let message = files.refused(info, role, &error);
                self.problems.push(Remark {
                    key: CERTIFICATE,
                    message,
                });
            }
        }
    }
}

/// What a certificate's dates say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Date {
    /// It is not valid.
    Outside(String),
    /// It will not be for long.
    Soon(String),
}

/// Looks at the dates of a certificate from a file; `None`: nothing to say.
#[must_use]
pub fn dates(file: &Path, info: &CertificateInfo, wall_ms: i64) -> Option<Date> {
    let (file, subject, clock) = (file.display(), &info.subject, utc(wall_ms));
    let (from, to) = (utc(info.not_before_ms), utc(info.not_after_ms));
    if wall_ms < info.not_before_ms {
        Some(Date::Outside(format!(
            "{file}: {subject} is not valid before {from}; this machine's clock reads {clock}"
        )))
    } else if wall_ms > info.not_after_ms {
        Some(Date::Outside(format!(
            "{file}: {subject} expired on {to}; this machine's clock reads {clock}"
        )))
    } else {
        (info.not_after_ms - wall_ms < EXPIRES_SOON_MS)
            .then(|| Date::Soon(format!("{file}: {subject} expires on {to}: renew it")))
    }
}

fn expected(key: &str) -> &'static str {
    match key {
        CERTIFICATE => "this node's certificate in PEM form, then intermediates",
        KEY => {
            "that certificate's private key in PEM form, readable by the user that the node runs as"
        }
        _ => "certificates of authorities in PEM form",
    }
}

fn info(file: &Path, der: &CertificateDer<'_>) -> Result<CertificateInfo, TlsError> {
    CertificateInfo::parse(der).map_err(|error| TlsError::content(file, error.to_string()))
}
