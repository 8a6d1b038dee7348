//! TLS for local clients: a listener's own certificate, and client certificates where it asks for them.
//!
//! TLS 1.2 and 1.3, ring. Trust is what the listener's `client_ca` says and nothing else. Files are read on
//! start, and again when they changed: connections from then on use the new ones; files that can't be used
//! leave the old ones in place.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use shared::tls::pem;
use shared::tls::{CertificateInfo, Date, Remark, TlsError, dates};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How often files are looked at.
const REFRESH: Duration = Duration::from_secs(10);

/// Names of the settings, without their section.
const CERTIFICATE: &str = "certificate";
const KEY: &str = "key";
const CLIENT_CA: &str = "client_ca";

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
    /// What `check` tells about the files: problems, then warnings. Each names its setting, without the section.
    #[must_use]
    pub fn inspect(&self, wall_ms: i64) -> (Vec<Remark>, Vec<Remark>) {
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let mut is_readable = true;
        let certificates = |file: &Path| pem::certificates(file, &pem::read(file)?);
        let client_ca = self.client_ca.as_deref();
        let files = [
            (CERTIFICATE, Some(self.certificate.as_path())),
            (CLIENT_CA, client_ca),
        ];
        for (key, file) in files {
            let Some(file) = file else { continue };
            let read = certificates(file).and_then(|found| {
                // intermediates have their own dates, and clients may have newer ones
                let end = if key == CERTIFICATE { 1 } else { found.len() };
                let infos = found.iter().take(end).map(CertificateInfo::parse);
                infos
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|error| TlsError::content(file, error.to_string()))
            });
            match read {
                Ok(infos) => {
                    for info in infos {
                        match dates(file, &info, wall_ms) {
                            Some(Date::Outside(message)) => problems.push(Remark { key, message }),
                            Some(Date::Soon(message)) => warnings.push(Remark { key, message }),
                            None => {}
                        }
                    }
                }
                Err(error) => {
                    is_readable = false;
                    let message = format!("{error}; expected: certificates in PEM form");
                    problems.push(Remark { key, message });
                }
            }
        }
        if let Err(error) = pem::read(&self.key).and_then(|text| pem::private_key(&self.key, &text))
        {
            is_readable = false;
            problems.push(Remark {
                key: KEY,
                message: format!(
                    "{error}; expected: a private key in PEM form, readable by the user that the node runs as"
                ),
            });
        }
        let built = self.read().and_then(|pems| self.build(&pems));
        // files that can be read and do not fit together
        if let (true, Err(error)) = (is_readable, built) {
            let key = match &error {
                TlsError::Content { file, .. } if Some(file) == self.client_ca.as_ref() => {
                    CLIENT_CA
                }
                TlsError::Content { .. } | TlsError::Read { .. } | TlsError::Refused(_) => {
                    CERTIFICATE
                }
                TlsError::Unusable { .. } => KEY,
            };
            let message = error.to_string();
            problems.push(Remark { key, message });
        }
        (problems, warnings)
    }

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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    /// Certificate and key of their own authority, valid to the end of a year.
    fn pair(year: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec!["site.example".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn each_file_of_a_listener_is_looked_at_and_named_by_its_setting() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let ((certificate, key), (old, _), (_, other_key)) = (pair(2900), pair(2001), pair(2900));
        let good = ListenerTls {
            certificate: write("a.pem", &certificate),
            key: write("a-key.pem", &key),
            client_ca: None,
            requires_client: true,
        };
        let told = |files: &ListenerTls| {
            let (problems, warnings) = files.inspect(shared::time::wall_ms());
            assert!(warnings.is_empty(), "{warnings:?}");
            let line = |it: &Remark| format!("{}: {}", it.key, it.message);
            problems.iter().map(line).collect::<Vec<_>>()
        };
        assert_eq!(told(&good), Vec::<String>::new());
        for (files, parts) in [
            (
                ListenerTls {
                    client_ca: Some(write("old.pem", &old)),
                    ..good.clone()
                },
                ["client_ca: ", "old.pem", "expired on 2001-12-31"],
            ),
            (
                ListenerTls {
                    key: write("other-key.pem", &other_key),
                    ..good.clone()
                },
                [
                    "key: ",
                    "other-key.pem",
                    "does not belong to this certificate",
                ],
            ),
            (
                ListenerTls {
                    certificate: dir.path().join("none.pem"),
                    ..good
                },
                ["certificate: ", "none.pem", "expected: certificates in PEM"],
            ),
        ] {
            let lines = told(&files);
            let [line] = &lines[..] else {
                panic!("{lines:?}");
            };
            assert!(line.starts_with(parts[0]), "{line}");
            assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        }
    }
}
