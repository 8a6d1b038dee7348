//! The three PEM files of one end: read, checked, compared.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::CertificateInfo;
use super::pem::{self, TlsError};
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

    /// What keeps each of the files from being read, where [`TlsFiles::inspect`] tells the first only.
    #[must_use]
    pub fn unreadable(&self) -> Vec<TlsError> {
        let certificates = |file: &Path| pem::certificates(file, &pem::read(file)?).map(drop);
        let key = || pem::private_key(&self.key, &pem::read(&self.key)?).map(drop);
        let found = [
            certificates(&self.certificate),
            key(),
            certificates(&self.ca),
        ];
        found.into_iter().filter_map(Result::err).collect()
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

    pub(super) fn unusable(&self, error: impl Display) -> TlsError {
        TlsError::unusable(&self.certificate, &self.key, &error.to_string())
    }
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
    CertificateInfo::parse(der).map_err(|error| TlsError::content(file, error.to_string()))
}
