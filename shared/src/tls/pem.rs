//! PEM files: bounded, and refused with their name.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A file of certificates is a few kilobytes; more is a mistake.
const MAX_FILE: u64 = 1 << 20;

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
    /// The other end would not take it.
    #[error("{0}")]
    Refused(String),
}

impl TlsError {
    /// A file that does not hold what it should.
    #[must_use]
    pub fn content(file: &Path, message: String) -> Self {
        Self::Content {
            file: file.to_owned(),
            message,
        }
    }

    /// A certificate that does not go with a key, in rustls's words or better ones.
    #[must_use]
    pub fn unusable(certificate: &Path, key: &Path, error: &str) -> Self {
        let message = if error.contains("KeyMismatch") {
            "the key does not belong to this certificate"
        } else {
            error
        };
        Self::Unusable {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            message: message.to_owned(),
        }
    }
}

/// A file's bytes, at most 1 MiB.
///
/// # Errors
/// When it cannot be read or is larger.
pub fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |error| TlsError::Read {
        file: file.to_owned(),
        error,
    };
    let length = std::fs::metadata(file).map_err(failed)?.len();
    if length > MAX_FILE {
        let message = format!("{length} bytes are too many for certificates or a key");
        return Err(TlsError::content(file, message));
    }
    std::fs::read(file).map_err(failed)
}

/// The certificates in `pem`, which `file` held; at least one.
///
/// # Errors
/// When it holds none, or something else.
pub fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| {
        TlsError::content(file, format!("not a certificate in PEM form: {error}"))
    })?;
    if found.is_empty() {
        let message = "no certificate in PEM form".to_owned();
        return Err(TlsError::content(file, message));
    }
    Ok(found)
}

/// The private key in `pem`, which `file` held.
///
/// # Errors
/// When it holds none.
pub fn private_key(file: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|error| TlsError::content(file, format!("no private key in PEM form: {error}")))
}

/// Trust in these authorities, which `file` held, and in nothing else.
///
/// # Errors
/// When one cannot be used.
pub fn roots(
    file: &Path,
    authorities: &[CertificateDer<'static>],
) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| {
            TlsError::content(file, format!("not a usable certificate: {error}"))
        })?;
    }
    Ok(roots)
}
