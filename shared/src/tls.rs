//! Mutual TLS between sites and hubs: files, identity, errors that say what to do.

use std::path::PathBuf;

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
