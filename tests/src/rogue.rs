//! A QUIC peer of the hub that keeps no rule.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionError, Endpoint, VarInt};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shared::wire::ALPN;

use crate::hub::Identity;

/// How long the hub may take to end a session that breaks the rules.
const LIMIT: Duration = Duration::from_secs(20);

/// What the peer does after the handshake.
#[derive(Debug, Clone)]
pub enum Misdeed {
    /// Sends these bytes on the control stream.
    Control(Vec<u8>),
    /// Sends these bytes on a data stream, without a hello.
    Data(Vec<u8>),
    /// Says nothing at all.
    Silence,
}

/// Connects, misbehaves, and gives the reason with which the hub ended the session (or refused it).
///
/// # Errors
/// When the hub does not end it in time.
pub fn misbehave(
    hub: SocketAddr,
    identity: &Identity,
    has_certificate: bool,
    alpn: Option<&[u8]>,
    misdeed: &Misdeed,
) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = client_config(identity, has_certificate, alpn.unwrap_or(ALPN))?;
        let mut endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        endpoint.set_default_client_config(config);
        let ended = tokio::time::timeout(LIMIT, act(&endpoint, hub, misdeed)).await;
        endpoint.close(VarInt::from_u32(0), b"");
        Ok(ended.context("the hub keeps the session")??.to_string())
    })
}

async fn act(endpoint: &Endpoint, hub: SocketAddr, misdeed: &Misdeed) -> Result<ConnectionError> {
    let connection = match endpoint.connect(hub, "localhost")?.await {
        Ok(connection) => connection,
        Err(refused) => return Ok(refused),
    };
    // A write may fail because the hub was faster; its reason is what `closed` tells.
    match misdeed {
        Misdeed::Control(bytes) => {
            if let Ok((mut control, _)) = connection.open_bi().await {
                let _refused = control.write_all(bytes).await;
            }
        }
        Misdeed::Data(bytes) => {
            if let Ok(mut data) = connection.open_uni().await {
                let _refused = data.write_all(bytes).await;
                let _refused = data.finish();
            }
        }
        Misdeed::Silence => {}
    }
    Ok(connection.closed().await)
}

/// What a site dials with.
///
/// # Errors
/// When the certificate files cannot be read.
pub fn client_config(
    identity: &Identity,
    has_certificate: bool,
    alpn: &[u8],
) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&identity.ca)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut tls = if has_certificate {
        let chain = CertificateDer::pem_file_iter(&identity.certificate)?;
        let chain = chain.collect::<Result<Vec<_>, _>>()?;
        builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&identity.key)?)?
    } else {
        builder.with_no_client_auth()
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(
        tls,
    )?)))
}
