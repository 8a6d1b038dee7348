//! Mutual TLS between sites and hubs: files, identity, errors that say what to do.
//!
//! TLS 1.3 only, ring, ALPN [`ALPN`], the same over QUIC and over TCP. Each end trusts the authorities in its `ca` file and nothing
//! else: the system's store is never read.
//!
//! - A **site** is who its certificate says: exactly one subject alternative name of the form
//!   `kedge:site:<name>` (a URI). The common name and all other names are ignored, and so is whatever a
//!   message claims. The certificate must be for client authentication.
//! - A **hub** carries the DNS name or address that sites dial as a subject alternative name, and is for
//!   server authentication: a site's certificate cannot pass for a hub.
//!
//! Certificates are renewed by replacing the files: [`ClientTls::refresh`] and [`ServerTls::refresh`]
//! read them again, and connections from then on use what they found. A resumed session skips the
//! chain's verification; [`site_of`] therefore looks at the validity dates each time.

mod explain;
mod files;
mod identity;
pub mod pem;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;

pub use explain::{Peer, explain, explain_tls};
use files::Material;
pub use files::{Date, Inspection, Remark, Role, TlsFiles, dates};
pub use identity::{
    CertificateInfo, IdentityError, SITE_URI_PREFIX, site_of, site_of_certificate, site_of_chain,
};
pub use pem::TlsError;

/// The protocol and its version, negotiated in the handshake.
pub const ALPN: &[u8] = b"kedge/1";

/// What a site dials with.
#[derive(Debug)]
pub struct ClientTls {
    files: TlsFiles,
    current: Mutex<Current<ClientConfigs>>,
}

/// What a hub accepts with.
#[derive(Debug)]
pub struct ServerTls {
    files: TlsFiles,
    current: Mutex<Current<ServerConfigs>>,
}

struct Current<C> {
    material: Material,
    configs: C,
}

/// One for each transport: they share certificates, not session tickets.
struct ClientConfigs {
    quic: Arc<QuicClientConfig>,
    tcp: Arc<rustls::ClientConfig>,
}

struct ServerConfigs {
    quic: Arc<QuicServerConfig>,
    tcp: Arc<rustls::ServerConfig>,
}

impl<C> std::fmt::Debug for Current<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let current = Mutex::new(Current::load(&files, client_configs)?);
        Ok(Self { files, current })
    }

    /// What to dial with. The same until the files change, so that sessions can be resumed.
    #[must_use]
    pub fn config(&self) -> Arc<QuicClientConfig> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.configs.quic)
    }

    /// The same for TLS over TCP.
    #[must_use]
    pub fn tcp_config(&self) -> Arc<rustls::ClientConfig> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.configs.tcp)
    }

    /// Reads the files again; true when they changed. Call before dialling.
    ///
    /// # Errors
    /// [`TlsError`]: what was loaded before stays in use; so it does when it is good at `wall_ms` and the new one is not.
    pub fn refresh(&self, wall_ms: i64) -> Result<bool, TlsError> {
        refresh(
            &self.files,
            &self.current,
            (Role::Site, wall_ms),
            client_configs,
        )
    }

    /// This site's name.
    ///
    /// # Errors
    /// The certificate names no site.
    pub fn site(&self) -> Result<crate::ids::SiteId, IdentityError> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        site_of_certificate(current.material.leaf())
    }
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let current = Mutex::new(Current::load(&files, server_configs)?);
        Ok(Self { files, current })
    }

    /// What to accept with.
    #[must_use]
    pub fn config(&self) -> Arc<QuicServerConfig> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.configs.quic)
    }

    /// The same for TLS over TCP.
    #[must_use]
    pub fn tcp_config(&self) -> Arc<rustls::ServerConfig> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.configs.tcp)
    }

    /// Reads the files again; true when they changed and [`ServerTls::config`] is another. Session
    /// tickets given out before are void then.
    ///
    /// # Errors
    /// [`TlsError`]: what was loaded before stays in use; so it does when it is good at `wall_ms` and the new one is not.
    pub fn refresh(&self, wall_ms: i64) -> Result<bool, TlsError> {
        refresh(
            &self.files,
            &self.current,
            (Role::Hub, wall_ms),
            server_configs,
        )
    }
}

impl<C> Current<C> {
    fn load(
        files: &TlsFiles,
        build: fn(&TlsFiles, &Material) -> Result<C, TlsError>,
    ) -> Result<Self, TlsError> {
        let material = files.read()?;
        let configs = build(files, &material)?;
        Ok(Self { material, configs })
    }
}

fn refresh<C>(
    files: &TlsFiles,
    current: &Mutex<Current<C>>,
    (role, wall_ms): (Role, i64),
    build: fn(&TlsFiles, &Material) -> Result<C, TlsError>,
) -> Result<bool, TlsError> {
    let material = files.read()?;
    let is_good = {
        let current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.material.is_same(&material) {
            return Ok(false);
        }
        files.refusal(&current.material, role, wall_ms).is_none()
    };
    let configs = build(files, &material)?;
    if let Some(refusal) = files.refusal(&material, role, wall_ms).filter(|_| is_good) {
        return Err(TlsError::Refused(refusal));
    }
    *current.lock().unwrap_or_else(PoisonError::into_inner) = Current { material, configs };
    Ok(true)
}

fn client_configs(files: &TlsFiles, material: &Material) -> Result<ClientConfigs, TlsError> {
    let quic = QuicClientConfig::try_from(client_config(files, material)?)
        .map_err(|error| files.unusable(error))?;
    Ok(ClientConfigs {
        quic: Arc::new(quic),
        tcp: Arc::new(client_config(files, material)?),
    })
}

fn server_configs(files: &TlsFiles, material: &Material) -> Result<ServerConfigs, TlsError> {
    let quic = QuicServerConfig::try_from(server_config(files, material)?)
        .map_err(|error| files.unusable(error))?;
    Ok(ServerConfigs {
        quic: Arc::new(quic),
        tcp: Arc::new(server_config(files, material)?),
    })
}

fn client_config(files: &TlsFiles, material: &Material) -> Result<rustls::ClientConfig, TlsError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| files.unusable(error))?
        .with_root_certificates(Arc::clone(&material.roots))
        .with_client_auth_cert(material.chain.clone(), material.key.clone_key())
        .map_err(|error| files.unusable(error))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn server_config(files: &TlsFiles, material: &Material) -> Result<rustls::ServerConfig, TlsError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&material.roots), provider())
            .build()
            .map_err(|error| files.unusable(error))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| files.unusable(error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(material.chain.clone(), material.key.clone_key())
        .map_err(|error| files.unusable(error))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Tickets that carry their own state: rustls' table holds 256 sites only.
    config.ticketer =
        rustls::crypto::ring::Ticketer::new().map_err(|error| files.unusable(error))?;
    // Nothing is accepted before the handshake is over: a site's first flight could be replayed.
    config.max_early_data_size = 0;
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
