//! TLS for local clients: a listener's own certificate, and client certificates where it asks for them.
//!
//! TLS 1.2 and 1.3, ring. Trust is what the listener's `client_ca` says and nothing else. Files are read on
//! start, and again when they changed: connections from then on use the new ones; files that can't be used
//! leave the old ones in place.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use shared::tls::TlsError;
use shared::tls::pem;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How often files are looked at.
const REFRESH: Duration = Duration::from_secs(10);

/// The PEM files of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// Its certificate, then intermediates.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// Authorities of client certificates; `None`: clients are not asked for any.
    pub client_ca: Option<PathBuf>,
    /// Clients without a certificate are refused.
    pub requires_client: bool,
}

/// What a listener accepts TLS with.
#[derive(Debug)]
pub struct Acceptor {
    files: ListenerTls,
    current: Mutex<Current>,
}

#[derive(Debug, Clone)]
struct Current {
    pems: Pems,
    config: Arc<ServerConfig>,
}

/// The files' content, to notice when it changes.
#[derive(Clone, PartialEq, Eq)]
struct Pems {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl std::fmt::Debug for Pems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pems").finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn load(files: ListenerTls) -> Result<Self, TlsError> {
        let pems = files.read()?;
        let config = files.build(&pems)?;
        Ok(Self {
            files,
            current: Mutex::new(Current { pems, config }),
        })
    }

    /// What to accept with. The same until the files change, so that sessions can be resumed.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.config)
    }

    /// Reads the files again; true when they changed. Blocks for the disk.
    ///
    /// # Errors
    /// [`TlsError`]: what was loaded before stays in use.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        let pems = self.files.read()?;
        {
            let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            if current.pems == pems {
                return Ok(false);
            }
        }
        let config = self.files.build(&pems)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Current { pems, config };
        Ok(true)
    }
}

/// Uses renewed files soon after they are in place, until `stop`.
pub async fn keep_fresh(acceptor: Arc<Acceptor>, stop: CancellationToken) {
    let mut is_told = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(REFRESH) => {}
            () = stop.cancelled() => return,
        }
        let looked = Arc::clone(&acceptor);
        match tokio::task::spawn_blocking(move || looked.refresh()).await {
            Ok(Ok(is_new)) => {
                is_told = false;
                if is_new {
                    info!("Renewed certificate in use");
                }
            }
            Ok(Err(error)) if !is_told => {
                is_told = true;
                warn!(%error, "Renewed certificate can't be used, the old one stays");
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

impl ListenerTls {
    fn read(&self) -> Result<Pems, TlsError> {
        Ok(Pems {
            certificate: pem::read(&self.certificate)?,
            key: pem::read(&self.key)?,
            client_ca: self.client_ca.as_deref().map(pem::read).transpose()?,
        })
    }

    fn build(&self, pems: &Pems) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = pem::certificates(&self.certificate, &pems.certificate)?;
        let key = pem::private_key(&self.key, &pems.key)?;
        let unusable = |error: rustls::Error| {
            TlsError::unusable(&self.certificate, &self.key, &error.to_string())
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match (&self.client_ca, &pems.client_ca) {
            (Some(file), Some(pem)) => {
                let roots = pem::roots(file, &pem::certificates(file, pem)?)?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if self.requires_client {
                    verifier
                } else {
                    verifier.allow_unauthenticated()
                };
                let verifier = verifier
                    .build()
                    .map_err(|error| TlsError::content(file, error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            (Some(_) | None, _) => builder.with_no_client_auth(),
        };
        let config = builder.with_single_cert(chain, key).map_err(unusable)?;
        Ok(Arc::new(config))
    }
}

/// The common name of a verified client certificate: the one that `[[access.user]] common_name` means. `None`
/// when it has none, or several.
#[must_use]
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(name)
}
