//! Real handshakes on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use quinn::{ConnectionError, Endpoint};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use tempfile::TempDir;

use super::*;
use crate::time::wall_ms;

type Ca = Issuer<'static, KeyPair>;

struct Authority {
    issuer: Ca,
    pem: String,
}

fn authority(name: &str) -> Authority {
    authority_but(name, Dates::Valid, BasicConstraints::Constrained(0), None)
}

/// One that issues these; without an issuer it is its own.
fn authority_but(
    name: &str,
    dates: Dates,
    below: BasicConstraints,
    issuer: Option<&Authority>,
) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(below);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    dates.set(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = match issuer {
        Some(issuer) => params.signed_by(&key, &issuer.issuer),
        None => params.self_signed(&key),
    };
    let pem = certificate.unwrap().pem();
    Authority {
        issuer: Issuer::new(params, key),
        pem,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Dates {
    Valid,
    Past,
    Future,
}

impl Dates {
    fn set(self, params: &mut CertificateParams) {
        match self {
            Self::Valid => {}
            Self::Past => {
                params.not_before = date_time_ymd(2001, 1, 1);
                params.not_after = date_time_ymd(2002, 1, 1);
            }
            Self::Future => params.not_before = date_time_ymd(2900, 1, 1),
        }
    }
}

fn issue(
    ca: &Authority,
    names: Vec<SanType>,
    usage: ExtendedKeyUsagePurpose,
    dates: Dates,
) -> [String; 2] {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.extended_key_usages = vec![usage];
    dates.set(&mut params);
    let key = KeyPair::generate().unwrap();
    [
        params.signed_by(&key, &ca.issuer).unwrap().pem(),
        key.serialize_pem(),
    ]
}

fn hub(ca: &Authority, dates: Dates) -> [String; 2] {
    let names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
    issue(ca, names, ExtendedKeyUsagePurpose::ServerAuth, dates)
}

fn site(ca: &Authority, dates: Dates) -> [String; 2] {
    let names = vec![SanType::URI("kedge:site:shop-1".try_into().unwrap())];
    issue(ca, names, ExtendedKeyUsagePurpose::ClientAuth, dates)
}

fn files(dir: &Path, name: &str, [certificate, key]: [String; 2], ca: &str) -> TlsFiles {
    let write = |suffix: &str, content: &str| {
        let path = dir.join(format!("{name}{suffix}"));
        std::fs::write(&path, content).unwrap();
        path
    };
    TlsFiles {
        certificate: write(".pem", &certificate),
        key: write("-key.pem", &key),
        ca: write("-ca.pem", ca),
    }
}

fn listen(tls: &ServerTls) -> (Endpoint, SocketAddr) {
    let config = quinn::ServerConfig::with_crypto(tls.config());
    let endpoint = Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

/// The outcome at the hub and at the site: a hub's refusal reaches the site after its own handshake.
async fn meet(
    server: &Endpoint,
    address: SocketAddr,
    client: Arc<QuicClientConfig>,
) -> (Result<SiteResult, ConnectionError>, ConnectionError) {
    let dial = async {
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let config = quinn::ClientConfig::new(client);
        match endpoint
            .connect_with(config, address, "127.0.0.1")
            .unwrap()
            .await
        {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    };
    let accept = async {
        let connection = server.accept().await.unwrap().await?;
        let site = site_of(connection.peer_identity(), wall_ms());
        connection.close(7_u32.into(), b"done");
        Ok(site)
    };
    tokio::join!(accept, dial)
}

type SiteResult = Result<crate::ids::SiteId, IdentityError>;

pub(crate) struct World {
    dir: TempDir,
    ca: Authority,
    rogue: Authority,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            ca: authority("ours"),
            rogue: authority("rogue"),
        }
    }

    /// A hub on 127.0.0.1.
    pub(crate) fn good_hub(&self) -> ServerTls {
        self.hub(hub(&self.ca, Dates::Valid))
    }

    /// The site `shop-1`.
    pub(crate) fn good_site(&self) -> ClientTls {
        self.site(site(&self.ca, Dates::Valid))
    }

    /// Calls itself `shop-1`, but its certificate is from elsewhere.
    pub(crate) fn rogue_site(&self) -> ClientTls {
        self.site(site(&self.rogue, Dates::Valid))
    }

    fn hub(&self, certificate: [String; 2]) -> ServerTls {
        ServerTls::load(files(self.dir.path(), "hub", certificate, &self.ca.pem)).unwrap()
    }

    fn site(&self, certificate: [String; 2]) -> ClientTls {
        ClientTls::load(files(self.dir.path(), "site", certificate, &self.ca.pem)).unwrap()
    }
}

#[tokio::test]
async fn a_site_is_known_by_its_certificate() {
    let world = World::new();
    let client = world.site(site(&world.ca, Dates::Valid));
    let (server, address) = listen(&world.hub(hub(&world.ca, Dates::Valid)));
    let (at_hub, at_site) = meet(&server, address, client.config()).await;
    assert_eq!(at_hub.unwrap().unwrap().as_str(), "shop-1");
    assert!(
        matches!(at_site, ConnectionError::ApplicationClosed(_)),
        "{at_site}"
    );
    assert_eq!(client.site().unwrap().as_str(), "shop-1");
}

#[tokio::test]
async fn the_hub_refuses_sites_without_a_good_certificate_and_says_why() {
    let world = World::new();
    let server_tls = world.hub(hub(&world.ca, Dates::Valid));
    let (server, address) = listen(&server_tls);
    let for_servers = issue(
        &world.ca,
        vec![SanType::URI("kedge:site:shop-1".try_into().unwrap())],
        ExtendedKeyUsagePurpose::ServerAuth,
        Dates::Valid,
    );
    for (certificate, at_hub, at_site) in [
        (
            site(&world.rogue, Dates::Valid),
            "does not know",
            "this site's certificate comes from",
        ),
        (
            site(&world.ca, Dates::Past),
            "the site's certificate expired",
            "this site's certificate expired",
        ),
        (
            site(&world.ca, Dates::Future),
            "not valid yet",
            "clock reads",
        ),
        (
            site(&authority("ours"), Dates::Valid),
            "the site's certificate has a signature that does not fit",
            "another authority of the same name",
        ),
        (
            for_servers,
            "purpose",
            "the hub refuses this site's certificate",
        ),
    ] {
        let client = world.site(certificate);
        let (hub_result, site_error) = meet(&server, address, client.config()).await;
        let hub_text = explain(&hub_result.unwrap_err(), Peer::Site, wall_ms());
        let site_text = explain(&site_error, Peer::Hub, wall_ms());
        assert!(hub_text.contains(at_hub), "{hub_text}");
        assert!(site_text.contains(at_site), "{site_text}");
    }
}

#[tokio::test]
async fn the_hub_refuses_a_site_without_certificate() {
    let world = World::new();
    let (server, address) = listen(&world.hub(hub(&world.ca, Dates::Valid)));
    let material = files(
        world.dir.path(),
        "x",
        site(&world.ca, Dates::Valid),
        &world.ca.pem,
    )
    .read();
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(material.unwrap().roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let client = Arc::new(QuicClientConfig::try_from(config).unwrap());
    let (hub_result, site_error) = meet(&server, address, client).await;
    assert!(hub_result.is_err());
    let text = explain(&site_error, Peer::Hub, wall_ms());
    assert!(
        text.contains("the hub requires a certificate and got none"),
        "{text}"
    );
}

#[tokio::test]
async fn a_site_refuses_hubs_without_a_good_certificate_and_says_why() {
    let world = World::new();
    let other_name = issue(
        &world.ca,
        vec![SanType::DnsName("elsewhere.example".try_into().unwrap())],
        ExtendedKeyUsagePurpose::ServerAuth,
        Dates::Valid,
    );
    let client = world.site(site(&world.ca, Dates::Valid));
    for (certificate, part) in [
        (
            hub(&world.rogue, Dates::Valid),
            "the hub's certificate comes from an authority",
        ),
        (hub(&world.ca, Dates::Past), "the hub's certificate expired"),
        (
            hub(&world.ca, Dates::Future),
            "not valid yet; this machine's clock reads 2",
        ),
        (
            site(&world.ca, Dates::Valid),
            "this site refuses the hub's certificate",
        ),
        (other_name, "this site refuses the hub's certificate"),
    ] {
        let (server, address) = listen(&world.hub(certificate));
        let (hub_result, site_error) = meet(&server, address, client.config()).await;
        assert!(hub_result.is_err());
        let text = explain(&site_error, Peer::Hub, wall_ms());
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn another_protocol_version_is_named() {
    let world = World::new();
    let (server, address) = listen(&world.hub(hub(&world.ca, Dates::Valid)));
    let tls = files(
        world.dir.path(),
        "x",
        site(&world.ca, Dates::Valid),
        &world.ca.pem,
    );
    let material = tls.read().unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(material.roots)
        .with_client_auth_cert(material.chain, material.key)
        .unwrap();
    config.alpn_protocols = vec![b"kedge/99".to_vec()];
    let client = Arc::new(QuicClientConfig::try_from(config).unwrap());
    let (_, site_error) = meet(&server, address, client).await;
    let text = explain(&site_error, Peer::Hub, wall_ms());
    assert!(text.contains("share no protocol"), "{text}");
}

#[tokio::test]
async fn renewed_files_are_used_by_the_next_connection() {
    let world = World::new();
    let server_tls = world.hub(hub(&world.ca, Dates::Valid));
    let (server, address) = listen(&server_tls);
    let client = world.site(site(&world.ca, Dates::Past));
    assert!(meet(&server, address, client.config()).await.0.is_err());
    assert!(!client.refresh(wall_ms()).unwrap());
    let before = client.config();
    files(
        world.dir.path(),
        "site",
        site(&world.ca, Dates::Valid),
        &world.ca.pem,
    );
    assert!(client.refresh(wall_ms()).unwrap());
    assert!(!Arc::ptr_eq(&before, &client.config()));
    assert!(
        meet(&server, address, client.config())
            .await
            .0
            .unwrap()
            .is_ok()
    );
    // The hub rolls over to another authority: the site's certificate is not good any more.
    files(
        world.dir.path(),
        "hub",
        hub(&world.ca, Dates::Valid),
        &world.rogue.pem,
    );
    assert!(server_tls.refresh(wall_ms()).unwrap());
    server.set_server_config(Some(quinn::ServerConfig::with_crypto(server_tls.config())));
    assert!(meet(&server, address, client.config()).await.0.is_err());
}

#[test]
fn half_written_files_leave_the_old_ones_in_use() {
    let world = World::new();
    let client = world.site(site(&world.ca, Dates::Valid));
    let before = client.config();
    std::fs::write(world.dir.path().join("site.pem"), "-----BEGIN CERT").unwrap();
    let error = client.refresh(wall_ms()).unwrap_err().to_string();
    assert!(
        error.contains("site.pem") && error.contains("certificate"),
        "{error}"
    );
    assert!(Arc::ptr_eq(&before, &client.config()));
}

#[test]
fn only_one_uri_of_ours_names_a_site() {
    let world = World::new();
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = |text: &str| SanType::DnsName(text.try_into().unwrap());
    let named = |names: Vec<SanType>| {
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let pair = issue(&world.ca, names, usage, Dates::Valid);
        world.site(pair).site()
    };
    let with_others = vec![dns("shop-2"), uri("spiffe://x/y"), uri("kedge:site:shop-1")];
    assert_eq!(named(with_others).unwrap().as_str(), "shop-1");
    assert_eq!(
        named(vec![dns("kedge:site:shop-1")]),
        Err(IdentityError::NoSite)
    );
    assert_eq!(named(vec![]), Err(IdentityError::NoSite));
    let two = named(vec![uri("kedge:site:a"), uri("kedge:site:b")]);
    assert!(
        matches!(two, Err(IdentityError::SeveralSites { .. })),
        "{two:?}"
    );
    let bad = named(vec![uri("kedge:site:a/b")]);
    assert!(matches!(bad, Err(IdentityError::BadName(_))), "{bad:?}");
}

#[test]
fn a_resumed_session_with_an_old_certificate_is_refused() {
    let world = World::new();
    let pair = files(
        world.dir.path(),
        "x",
        site(&world.ca, Dates::Past),
        &world.ca.pem,
    );
    let chain: Box<dyn std::any::Any> = Box::new(pair.read().unwrap().chain);
    let error = site_of(Some(chain), wall_ms()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("valid from 2001-01-01 00:00:00 UTC"),
        "{error}"
    );
    assert_eq!(site_of(None, 0), Err(IdentityError::NoCertificate));
}

/// What an inspection says, a line for each: how bad, of which setting, what.
fn remarks(files: &TlsFiles, role: Role) -> Vec<String> {
    let inspection = files.inspect(role, wall_ms()).unwrap();
    let line = |how: &str, remark: &Remark| format!("{how} {}: {}", remark.key, remark.message);
    let problems = inspection.problems.iter().map(|it| line("problem", it));
    let warnings = inspection.warnings.iter().map(|it| line("warning", it));
    problems.chain(warnings).collect()
}

#[test]
fn an_inspection_finds_an_authority_that_is_the_wrong_one() {
    let world = World::new();
    let dir = world.dir.path();
    let issued = [
        (Role::Site, site(&world.ca, Dates::Valid)),
        (Role::Hub, hub(&world.ca, Dates::Valid)),
    ];
    for (role, pair) in issued {
        let good = files(dir, "good", pair.clone(), &world.ca.pem);
        assert_eq!(remarks(&good, role), Vec::<String>::new(), "{role:?}");
        let rogue = remarks(&files(dir, "bad", pair.clone(), &world.rogue.pem), role);
        let [line] = &rogue[..] else {
            panic!("{role:?}: {rogue:?}");
        };
        assert!(line.starts_with("warning ca: "), "{line}");
        for part in [
            "bad-ca.pem: not the authority that issued",
            "bad.pem",
            "expected: ",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        // its own certificate in place of its authority's
        let own = pair[0].clone();
        let own = remarks(&files(dir, "own", pair, &own), role);
        let line = own.iter().find(|line| line.starts_with("problem ca: "));
        assert!(line.unwrap().contains("is no authority"), "{own:?}");
    }
}

#[test]
fn an_inspection_finds_a_certificate_for_the_other_end() {
    let world = World::new();
    let pair = site(&world.ca, Dates::Valid);
    let told = remarks(
        &files(world.dir.path(), "x", pair, &world.ca.pem),
        Role::Hub,
    );
    let [line] = &told[..] else {
        panic!("{told:?}");
    };
    assert!(
        line.starts_with("problem certificate: ") && line.contains("for server authentication"),
        "{line}"
    );
}

#[test]
fn an_inspection_tells_dates_and_mismatches() {
    let world = World::new();
    let dir = world.dir.path();
    let good = files(dir, "a", site(&world.ca, Dates::Valid), &world.ca.pem);
    assert_eq!(remarks(&good, Role::Site), Vec::<String>::new());
    let inspection = good.inspect(Role::Site, wall_ms()).unwrap();
    assert_eq!(inspection.certificate.site.unwrap().as_str(), "shop-1");
    for (dates, told) in [
        (Dates::Past, "expired on 2002-01-01"),
        (Dates::Future, "is not valid before 2900-01-01"),
    ] {
        let old = files(dir, "b", site(&world.ca, dates), &world.ca.pem);
        let problems = remarks(&old, Role::Site);
        let [line] = &problems[..] else {
            panic!("{problems:?}");
        };
        assert!(line.starts_with("problem certificate: "), "{line}");
        assert!(
            line.contains(told) && line.contains("clock reads"),
            "{line}"
        );
    }
    let [certificate, _] = site(&world.ca, Dates::Valid);
    let [_, key] = site(&world.ca, Dates::Valid);
    let mixed = files(dir, "c", [certificate, key], &world.ca.pem);
    let problems = remarks(&mixed, Role::Site).join("\n");
    assert!(
        problems.starts_with("problem key: ") && problems.contains("c-key.pem"),
        "{problems}"
    );
    assert!(
        problems.contains("the key does not belong to this certificate"),
        "{problems}"
    );
    let missing = TlsFiles {
        ca: dir.join("none.pem"),
        ..good
    };
    assert!(
        missing
            .inspect(Role::Site, wall_ms())
            .unwrap_err()
            .to_string()
            .contains("none.pem")
    );
}

#[test]
fn an_old_authority_is_a_problem_alone_and_a_warning_beside_a_good_one() {
    let world = World::new();
    let old = authority_but("old", Dates::Past, BasicConstraints::Constrained(0), None);
    let told = |issuer: &Authority, ca: &str| {
        let issued = site(issuer, Dates::Valid);
        remarks(&files(world.dir.path(), "d", issued, ca), Role::Site)
    };
    for (told, start) in [
        (told(&old, &old.pem), "problem ca: "),
        (
            told(&world.ca, &(old.pem.clone() + &world.ca.pem)),
            "warning ca: ",
        ),
    ] {
        let [line] = &told[..] else {
            panic!("{told:?}");
        };
        assert!(
            line.starts_with(start) && line.contains("expired on"),
            "{line}"
        );
    }
}

#[test]
fn a_chain_with_an_expired_link_is_a_problem_and_replaces_nothing() {
    let root = authority_but("root", Dates::Valid, BasicConstraints::Unconstrained, None);
    let chain = |dates| {
        let below = BasicConstraints::Constrained(0);
        let between = authority_but("between", dates, below, Some(&root));
        let [certificate, key] = site(&between, Dates::Valid);
        [certificate + &between.pem, key]
    };
    let dir = tempfile::tempdir().unwrap();
    let good = files(dir.path(), "site", chain(Dates::Valid), &root.pem);
    assert_eq!(remarks(&good, Role::Site), Vec::<String>::new());
    let client = ClientTls::load(good).unwrap();
    let bad = files(dir.path(), "site", chain(Dates::Past), &root.pem);
    let told = remarks(&bad, Role::Site);
    let [line] = &told[..] else {
        panic!("{told:?}");
    };
    assert!(line.starts_with("problem certificate: "), "{line}");
    assert!(line.contains("between it and its authority"), "{line}");
    let refused = client.refresh(wall_ms()).unwrap_err().to_string();
    assert!(
        refused.contains("between it and its authority"),
        "{refused}"
    );
}

#[test]
fn a_certificate_that_nobody_takes_does_not_replace_a_good_one() {
    let world = World::new();
    let client = world.site(site(&world.ca, Dates::Valid));
    let server = world.hub(hub(&world.ca, Dates::Valid));
    let replace = |role: &str, issued| files(world.dir.path(), role, issued, &world.ca.pem);
    replace("site", site(&world.ca, Dates::Past));
    replace("hub", site(&world.ca, Dates::Valid));
    for (error, expected) in [
        (client.refresh(wall_ms()).unwrap_err(), "expired"),
        (
            server.refresh(wall_ms()).unwrap_err(),
            "server authentication",
        ),
    ] {
        assert!(error.to_string().contains(expected), "{error}");
    }
    // one that is over makes way for anything
    assert!(client.refresh(i64::MAX).unwrap());
}
