//! A small certificate authority for a first deployment: `hub-node certs init|issue`.
//!
//! One directory holds it all: `ca.pem` and `ca-key.pem`, `hub.pem` and `hub-key.pem`, for each further hub
//! `hubs/<host>.pem` and `hubs/<host>-key.pem`, and for each site `sites/<name>.pem` and
//! `sites/<name>-key.pem`. Keys are P-256, readable by their owner only. Nothing
//! is ever overwritten. A larger installation uses its own authority: what certificates must carry is
//! told in `shared::tls`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use shared::crashsafe::{self, Access};
use shared::ids::SiteId;
use shared::tls::{CertificateInfo, SITE_URI_PREFIX};
use shared::units::Span;

/// Valid from a day ago: clocks at sites run late.
const CLOCKS_RUN_LATE: Span = Span::days(1);
/// What may be asked for.
const VALIDITY: std::ops::RangeInclusive<Span> = Span::hours(1)..=Span::days(36_500);

/// What a hub's certificate may name.
const HOSTS: &str = "an IP address, or a host name of letters, digits, `-` and `.`, such as hub.example.com or *.example.com";
/// Of a host name, and of each part between its dots (RFC 1035, section 2.3.4).
const MAX_HOST_LEN: usize = 253;
const MAX_LABEL_LEN: usize = 63;

/// A name or an address by which sites dial a hub.
///
/// # Errors
/// It is neither: what is accepted.
pub fn host(text: &str) -> Result<String, String> {
    if text.parse::<IpAddr>().is_ok() || is_host_name(text) {
        return Ok(text.to_owned());
    }
    let hint = if has_port(text) {
        ", and without the port"
    } else {
        ""
    };
    Err(format!(
        "no host name and no address; accepted: {HOSTS}{hint}"
    ))
}

fn is_host_name(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    // names that end in a number are addresses, so that `192.0.2.300` is a slip
    let is_address = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= MAX_HOST_LEN && !is_address && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=MAX_LABEL_LEN).contains(&label.len())
        && label.bytes().all(is_allowed)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Whether it would be a host without what follows its last colon.
fn has_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(name, port)| {
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        is_number && (name.parse::<IpAddr>().is_ok() || is_host_name(name))
    })
}

/// Where the authority's files are.
#[derive(Debug, Clone)]
pub struct Authority {
    dir: PathBuf,
}

/// A certificate and its key, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The certificate file.
    pub certificate: PathBuf,
    /// The key file.
    pub key: PathBuf,
    /// Valid until, ms since the epoch.
    pub not_after_ms: i64,
}

impl Authority {
    /// The authority in a directory, existing or to be made.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The certificate that both ends need to trust.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Makes the authority.
    ///
    /// # Errors
    /// One is there already, or the file system's.
    pub fn create(&self, validity: Span) -> anyhow::Result<Written> {
        std::fs::create_dir_all(&self.dir)
            .with_context(|| format!("create {}", self.dir.display()))?;
        let mut params = parameters(validity)?;
        // Two authorities of one name are told apart by nobody who reads an error message.
        let name = format!("Kedge CA {:08x}", rand::random::<u32>());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("make a key")?;
        let certificate = params
            .self_signed(&key)
            .context("sign the authority's certificate")?;
        self.write("ca", &certificate, &key)
    }

    /// Makes the first hub's certificate for the names and addresses that sites dial.
    ///
    /// # Errors
    /// A bad name, no authority here, files there already, or the file system's.
    pub fn issue_hub(&self, hosts: &[String], validity: Span) -> anyhow::Result<Written> {
        self.issue_host("hub", hosts, validity)
    }

    /// The same for another hub, in files of its first name.
    ///
    /// # Errors
    /// As [`Self::issue_hub`].
    pub fn issue_another_hub(&self, hosts: &[String], validity: Span) -> anyhow::Result<Written> {
        let hubs = self.dir.join("hubs");
        std::fs::create_dir_all(&hubs).with_context(|| format!("create {}", hubs.display()))?;
        let first = hosts.first().map_or("", String::as_str);
        // a name that could leave the directory is no host's, and is refused before files are written
        self.issue_host(&format!("hubs/{first}"), hosts, validity)
    }

    fn issue_host(&self, file: &str, hosts: &[String], validity: Span) -> anyhow::Result<Written> {
        let mut names = Vec::with_capacity(hosts.len());
        for text in hosts {
            // rcgen takes any ASCII for a host name, and the first one becomes a file's
            if let Err(error) = host(text) {
                bail!("--host {text:?}: {error}");
            }
            names.push(match text.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(
                    text.as_str()
                        .try_into()
                        .with_context(|| format!("--host {text:?}: no host name"))?,
                ),
            });
        }
        let Some(first) = hosts.first() else {
            bail!("a hub needs the name that sites dial")
        };
        self.issue(
            file,
            first,
            names,
            ExtendedKeyUsagePurpose::ServerAuth,
            validity,
        )
    }

    /// Makes a site's certificate.
    ///
    /// # Errors
    /// No authority here, files there already, or the file system's.
    pub fn issue_site(&self, site: &SiteId, validity: Span) -> anyhow::Result<Written> {
        // before anything is made in a directory that is not the authority's
        self.issuer()?;
        let sites = self.dir.join("sites");
        std::fs::create_dir_all(&sites).with_context(|| format!("create {}", sites.display()))?;
        let uri = format!("{SITE_URI_PREFIX}{site}");
        let name = SanType::URI(uri.try_into().context("a site's name is ASCII")?);
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        self.issue(
            &format!("sites/{site}"),
            site.as_str(),
            vec![name],
            usage,
            validity,
        )
    }

    fn issue(
        &self,
        file: &str,
        name: &str,
        names: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
        validity: Span,
    ) -> anyhow::Result<Written> {
        let mut params = parameters(validity)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = names;
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("make a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer()?)
            .context("sign the certificate")?;
        self.write(file, &certificate, &key)
    }

    fn issuer(&self) -> anyhow::Result<Issuer<'static, KeyPair>> {
        let read = |file: PathBuf| {
            std::fs::read_to_string(&file).with_context(|| {
                format!(
                    "read {}: make an authority first with `hub-node certs init`",
                    file.display()
                )
            })
        };
        let key = KeyPair::from_pem(&read(self.dir.join("ca-key.pem"))?)
            .context("read the authority's key")?;
        Issuer::from_ca_cert_pem(&read(self.certificate())?, key)
            .context("read the authority's certificate")
    }

    fn write(
        &self,
        name: &str,
        certificate: &rcgen::Certificate,
        key: &KeyPair,
    ) -> anyhow::Result<Written> {
        let written = Written {
            certificate: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}-key.pem")),
            not_after_ms: CertificateInfo::parse(certificate.der())?.not_after_ms,
        };
        // Before either is written: a certificate must not end up beside another's key.
        for file in [&written.certificate, &written.key] {
            if file.exists() {
                bail!("{} exists: it is not overwritten", file.display());
            }
        }
        let create = |file: &Path, content: String, access| {
            crashsafe::create(file, content.as_bytes(), access)
                .with_context(|| format!("write {}", file.display()))
        };
        create(&written.key, key.serialize_pem(), Access::Private)?;
        create(&written.certificate, certificate.pem(), Access::Public)?;
        Ok(written)
    }
}

fn parameters(validity: Span) -> anyhow::Result<CertificateParams> {
    anyhow::ensure!(
        VALIDITY.contains(&validity),
        "--valid {validity}: accepted: {} to {}",
        VALIDITY.start(),
        VALIDITY.end()
    );
    let now =
        u64::try_from(shared::time::wall_ms()).context("this machine's clock is before 1970")?;
    let epoch = date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let from = now.saturating_sub(CLOCKS_RUN_LATE.as_millis());
    params.not_before = epoch + std::time::Duration::from_millis(from);
    params.not_after = epoch + std::time::Duration::from_millis(now + validity.as_millis());
    Ok(params)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use shared::tls::{ClientTls, ServerTls, TlsFiles, site_of};

    use super::*;

    fn files(authority: &Authority, written: &Written) -> TlsFiles {
        TlsFiles {
            certificate: written.certificate.clone(),
            key: written.key.clone(),
            ca: authority.certificate(),
        }
    }

    #[tokio::test]
    async fn issued_certificates_carry_a_real_connection() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::at(&dir.path().join("certs"));
        authority.create(Span::days(10)).unwrap();
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let hub = authority.issue_hub(&hosts, Span::days(1)).unwrap();
        let site = authority
            .issue_site(&SiteId::new("shop-1").unwrap(), Span::days(1))
            .unwrap();

        let server = ServerTls::load(files(&authority, &hub)).unwrap();
        let client = ClientTls::load(files(&authority, &site)).unwrap();
        let config = quinn::ServerConfig::with_crypto(server.config());
        let listener = quinn::Endpoint::server(config, ([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        for host in &hosts {
            let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
            let config = quinn::ClientConfig::new(client.config());
            let dial = endpoint.connect_with(config, address, host).unwrap();
            let accept = async { listener.accept().await.unwrap().await };
            let (dialled, accepted) = tokio::join!(dial, accept);
            dialled.unwrap();
            let identity = accepted.unwrap().peer_identity();
            let found = site_of(identity, shared::time::wall_ms()).unwrap();
            assert_eq!(found.as_str(), "shop-1");
        }
    }

    #[test]
    fn where_there_is_no_authority_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::at(&dir.path().join("crets"));
        let error = authority.issue_site(&SiteId::new("shop-1").unwrap(), Span::days(1));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("make an authority first"), "{error}");
        assert!(!dir.path().join("crets").exists());
    }

    #[test]
    fn keys_are_private_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::at(dir.path());
        let ca = authority.create(Span::days(10)).unwrap();
        let mode = std::fs::metadata(&ca.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = std::fs::read(&ca.key).unwrap();
        let error = authority.create(Span::days(10)).unwrap_err().to_string();
        assert!(error.contains("ca.pem exists"), "{error}");
        assert_eq!(std::fs::read(&ca.key).unwrap(), before);
        let site = SiteId::new("shop-1").unwrap();
        authority.issue_site(&site, Span::days(1)).unwrap();
        assert!(authority.issue_site(&site, Span::days(1)).is_err());
    }

    #[test]
    fn another_hub_is_issued_beside_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::at(dir.path());
        authority.create(Span::days(10)).unwrap();
        let hosts = |first: &str| vec![first.to_owned(), "192.0.2.2".to_owned()];
        let valid = Span::days(1);
        authority
            .issue_hub(&hosts("hub.example.com"), valid)
            .unwrap();
        let other = hosts("hub2.example.com");
        let written = authority.issue_another_hub(&other, valid).unwrap();
        assert_eq!(
            written.certificate,
            dir.path().join("hubs/hub2.example.com.pem")
        );
        assert_eq!(
            written.key,
            dir.path().join("hubs/hub2.example.com-key.pem")
        );
        ServerTls::load(files(&authority, &written)).unwrap();
        let error = authority.issue_another_hub(&other, valid).unwrap_err();
        assert!(error.to_string().contains("exists"), "{error}");
        authority
            .issue_another_hub(&hosts("../escape"), valid)
            .unwrap_err();
        assert!(!dir.path().join("escape.pem").exists());
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for text in [
            "localhost",
            "hub.example.com",
            "*.example.com",
            "hub-2",
            "4hubs.example",
            "192.0.2.1",
            "2001:db8::1",
        ] {
            assert_eq!(host(text), Ok(text.to_owned()));
        }
        let (long_label, long_name) = ("a".repeat(64), "a.".repeat(127) + "a");
        for text in [
            "",
            "bad host",
            "*",
            "a.*.example",
            ".example",
            "example.",
            "-hub",
            "hub-",
            "../escape",
            "h\u{fc}b",
            "192.0.2.300",
            "[::1]",
            long_label.as_str(),
            long_name.as_str(),
        ] {
            let error = host(text).unwrap_err();
            assert!(
                error.contains("accepted: an IP address") && !error.contains("port"),
                "{text}: {error}"
            );
        }
        for text in ["localhost:7443", "192.0.2.1:7443", "[::1]:7443"] {
            let error = host(text).unwrap_err();
            assert!(error.contains("without the port"), "{text}: {error}");
        }
    }

    #[test]
    fn a_validity_beyond_all_dates_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::at(dir.path());
        for valid in [Span::days(3_000_000), Span::secs(1)] {
            let error = authority.create(valid).unwrap_err().to_string();
            assert!(error.contains("accepted: 1h to 36500d"), "{error}");
        }
        authority.create(Span::days(36_500)).unwrap();
    }

    #[test]
    fn without_an_authority_the_error_names_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let site = SiteId::new("shop-1").unwrap();
        let error = Authority::at(dir.path())
            .issue_site(&site, Span::days(1))
            .unwrap_err();
        assert!(
            format!("{error:#}").contains("hub-node certs init"),
            "{error:#}"
        );
    }
}
