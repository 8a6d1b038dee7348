//! The three PEM files of one end: read, checked, compared.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::CertificateInfo;
use crate::time::utc;

/// A file of certificates is a few kilobytes; more is a mistake.
const MAX_FILE: u64 = 1 << 20;

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

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", file.display())]
    Read {
        file: PathBuf,
        error: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {message}", file.display())]
    Content { file: PathBuf, message: String },
    /// The parts do not fit together.
    #[error("certificate {} with key {}: {message}", certificate.display(), key.display())]
    Unusable {
        certificate: PathBuf,
        key: PathBuf,
        message: String,
    },
}

/// What the files hold.
pub(super) struct Material {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) roots: Arc<RootCertStore>,
    authorities: Vec<CertificateDer<'static>>,
}

/// What `check` tells about the files.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// This end's certificate.
    pub certificate: CertificateInfo,
    /// The authorities that are trusted.
    pub authorities: Vec<CertificateInfo>,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// What will be wrong soon.
    pub warnings: Vec<String>,
}

/// Renew within this time before the end; a site may be offline for weeks.
const EXPIRES_SOON_MS: i64 = 30 * 86_400_000;

impl TlsFiles {
    /// Reads the files for a person: dates included.
    ///
    /// # Errors
    /// A file that cannot be read or parsed.
    pub fn inspect(&self, wall_ms: i64) -> Result<Inspection, TlsError> {
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
        if let Err(error) = super::client_config(self, &material) {
            inspection.problems.push(error.to_string());
        }
        Ok(inspection)
    }

    pub(super) fn read(&self) -> Result<Material, TlsError> {
        let chain = certificates(&self.certificate)?;
        let authorities = certificates(&self.ca)?;
        let key = PrivateKeyDer::from_pem_slice(&content(&self.key)?)
            .map_err(|error| bad(&self.key, format!("no private key in PEM form: {error}")))?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots
                .add(authority.clone())
                .map_err(|error| bad(&self.ca, format!("not a usable certificate: {error}")))?;
        }
        Ok(Material {
            chain,
            key,
            roots: Arc::new(roots),
            authorities,
        })
    }

    pub(super) fn unusable(&self, error: impl Display) -> TlsError {
        TlsError::Unusable {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            message: in_words(error.to_string()),
        }
    }
}

/// rustls tells of a key that is another certificate's in the words of its code.
fn in_words(error: String) -> String {
    if error.contains("KeyMismatch") {
        return "the key does not belong to this certificate".to_owned();
    }
    error
}

impl Material {
    /// This end's own certificate.
    pub(super) fn leaf(&self) -> &CertificateDer<'static> {
        self.chain
            .first()
            .expect("a chain is read with at least one certificate")
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key == other.key && self.authorities == other.authorities
    }
}

impl Inspection {
    fn check_dates(&mut self, files: &TlsFiles, wall_ms: i64) {
        let clock = format!("this machine's clock reads {}", utc(wall_ms));
        let own = [(&files.certificate, &self.certificate)];
        let trusted = self
            .authorities
            .iter()
            .map(|authority| (&files.ca, authority));
        for (file, info) in own.into_iter().chain(trusted) {
            let (file, subject) = (file.display(), &info.subject);
            let (from, to) = (utc(info.not_before_ms), utc(info.not_after_ms));
            if wall_ms < info.not_before_ms {
                self.problems.push(format!(
                    "{file}: {subject} is not valid before {from}; {clock}"
                ));
            } else if wall_ms > info.not_after_ms {
                self.problems
                    .push(format!("{file}: {subject} expired on {to}; {clock}"));
            } else if info.not_after_ms - wall_ms < EXPIRES_SOON_MS {
                self.warnings
                    .push(format!("{file}: {subject} expires on {to}: renew it"));
            }
        }
    }
}

fn info(file: &Path, der: &CertificateDer<'_>) -> Result<CertificateInfo, TlsError> {
    CertificateInfo::parse(der).map_err(|error| bad(file, error.to_string()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = content(file)?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates
        .map_err(|error| bad(file, format!("not a certificate in PEM form: {error}")))?;
    if certificates.is_empty() {
        return Err(bad(file, "no certificate in PEM form".to_owned()));
    }
    Ok(certificates)
}

fn content(file: &Path) -> Result<Vec<u8>, TlsError> {
    let read = |error| TlsError::Read {
        file: file.to_owned(),
        error,
    };
    let length = std::fs::metadata(file).map_err(read)?.len();
    if length > MAX_FILE {
        return Err(bad(
            file,
            format!("{length} bytes are too many for certificates or a key"),
        ));
    }
    std::fs::read(file).map_err(read)
}

fn bad(file: &Path, message: String) -> TlsError {
    TlsError::Content {
        file: file.to_owned(),
        message,
    }
}
