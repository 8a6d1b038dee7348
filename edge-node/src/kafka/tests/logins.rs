//! Logins over real sockets: with a password, with SCRAM, with a certificate; and what a user may do then.

use std::path::Path;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use kafka_protocol::messages::{
    ApiKey, MetadataResponse, SaslAuthenticateRequest, SaslAuthenticateResponse,
    SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable};
use ring::{digest, hmac, pbkdf2};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::connections::{Client, Node, node_with};
use super::{batch, framed, metadata_request, request, text};
use crate::access::{Access, Credential, Mechanism, Rules};
use crate::base64;
use crate::config::{AccessConfig, UserConfig};
use crate::seldom::capture::Lines;
use crate::tls::{Acceptor, ListenerTls};

pub(super) fn till() -> UserConfig {
    UserConfig {
        name: "till".to_owned(),
        credentials: Mechanism::ALL
            .map(|mechanism| Credential::make(mechanism, b"secret", b"0123456789abcdef"))
            .to_vec(),
        password_file: None,
        tokens: Vec::new(),
        common_name: Some("till.example".to_owned()),
        rules: Rules {
            produce: vec!["t".parse().unwrap()],
            ..Rules::none()
        },
    }
}

fn users() -> Access {
    Access::new(&AccessConfig {
        anonymous: None,
        users: vec![till()],
    })
    .unwrap()
}

async fn guarded() -> Node {
    node_with(users(), |config, _| {
        config.refused_delay = std::time::Duration::ZERO
    })
    .await
}

pub(super) async fn handshake(client: &mut Client, mechanism: &str) -> i16 {
    let frame = request(ApiKey::SaslHandshake, 1, 1, |out| {
        let message = SaslHandshakeRequest::default().with_mechanism(text(mechanism));
        message.encode(out, 1).unwrap();
    });
    client.send(&frame).await;
    let (_, mut body) = client.receive().await;
    let answer = SaslHandshakeResponse::decode(&mut body, 1).unwrap();
    assert_eq!(answer.mechanisms.len(), 3);
    answer.error_code
}

pub(super) async fn authenticate(client: &mut Client, bytes: &[u8]) -> (i16, Bytes) {
    let frame = request(ApiKey::SaslAuthenticate, 2, 1, |out| {
        let message =
            SaslAuthenticateRequest::default().with_auth_bytes(Bytes::copy_from_slice(bytes));
        message.encode(out, 2).unwrap();
    });
    client.send(&frame).await;
    let (_, mut body) = client.receive().await;
    assert_eq!(body.get_u8(), 0, "no tagged fields in the header");
    let answer = SaslAuthenticateResponse::decode(&mut body, 2).unwrap();
    assert_eq!(answer.error_code != 0, answer.error_message.is_some());
    (answer.error_code, answer.auth_bytes)
}

#[tokio::test]
async fn nothing_is_served_before_the_login_but_the_login() {
    let node = guarded().await;
    let mut client = node.client().await;
    client.ping(1).await;
    let frame = request(ApiKey::Metadata, 4, 1, |out| {
        metadata_request(None, false).encode(out, 4).unwrap();
    });
    client.send(&frame).await;
    client.expect_close().await;
}

#[tokio::test]
async fn a_stranger_may_neither_announce_much_nor_take_its_time() {
    let node = guarded().await;
    let mut large = node.client().await;
    large.send(&(64 * 1024 + 1_u32).to_be_bytes()).await;
    large.expect_close().await;

    let node = node_with(users(), |config, _| {
        config.login_timeout = std::time::Duration::from_millis(50);
    })
    .await;
    let mut slow = node.client().await;
    slow.send(&[0, 0, 0, 100, 0, 18, 0]).await;
    slow.expect_close().await;
}

#[tokio::test]
async fn a_password_lets_in_and_a_wrong_one_closes() {
    let node = guarded().await;
    let mut client = node.client().await;
    assert_eq!(handshake(&mut client, "GSSAPI").await, 33);
    assert_eq!(handshake(&mut client, "PLAIN").await, 0);
    assert_eq!(authenticate(&mut client, b"\0till\0secret").await.0, 0);
    assert_eq!(client.produce(batch(&["a"], None)).await, 0);

    for wrong in [&b"\0till\0wrong"[..], b"\0boss\0secret", b"nonsense"] {
        let mut client = node.client().await;
        handshake(&mut client, "PLAIN").await;
        assert_eq!(authenticate(&mut client, wrong).await.0, 58);
        client.expect_close().await;
    }
    let mut client = node.client().await;
    assert_eq!(authenticate(&mut client, b"\0till\0secret").await.0, 34);
    client.expect_close().await;
}

/// The client's side of SCRAM, written down apart from ours.
async fn scram(client: &mut Client, mechanism: &str, password: &str) -> i16 {
    assert_eq!(handshake(client, mechanism).await, 0);
    let (hash, mac, stretch) = if mechanism == "SCRAM-SHA-256" {
        (
            &digest::SHA256,
            hmac::HMAC_SHA256,
            pbkdf2::PBKDF2_HMAC_SHA256,
        )
    } else {
        (
            &digest::SHA512,
            hmac::HMAC_SHA512,
            pbkdf2::PBKDF2_HMAC_SHA512,
        )
    };
    let bare = "n=till,r=nonce";
    let (code, first) = authenticate(client, format!("n,,{bare}").as_bytes()).await;
    assert_eq!(code, 0);
    let first = std::str::from_utf8(&first).unwrap();
    let fields: Vec<_> = first
        .split(',')
        .map(|field| field.get(2..).unwrap())
        .collect();
    assert!(fields[0].starts_with("nonce"));
    let rounds = fields[2].parse().unwrap();
    let mut salted = vec![0; hash.output_len()];
    let salt = base64::decode(fields[1]).unwrap();
    pbkdf2::derive(stretch, rounds, &salt, password.as_bytes(), &mut salted);
    let sign = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(mac, key), text);
    let client_key = sign(&salted, b"Client Key");
    let stored = digest::digest(hash, client_key.as_ref());
    let last = format!("c=biws,r={}", fields[0]);
    let auth = format!("{bare},{first},{last}");
    let signature = sign(stored.as_ref(), auth.as_bytes());
    let proof: Vec<u8> = client_key
        .as_ref()
        .iter()
        .zip(signature.as_ref())
        .map(|(a, b)| a ^ b)
        .collect();
    let last = format!("{last},p={}", base64::encode(&proof));
    let (code, answer) = authenticate(client, last.as_bytes()).await;
    if code == 0 {
        let server_key = sign(&salted, b"Server Key");
        let expected = sign(server_key.as_ref(), auth.as_bytes());
        assert_eq!(answer, format!("v={}", base64::encode(expected.as_ref())));
    }
    code
}

#[tokio::test]
async fn scram_lets_in_and_proves_that_the_node_knows_the_password() {
    let node = guarded().await;
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let mut client = node.client().await;
        assert_eq!(scram(&mut client, mechanism, "secret").await, 0);
        assert_eq!(client.produce(batch(&["a"], None)).await, 0);
        let mut client = node.client().await;
        assert_eq!(scram(&mut client, mechanism, "wrong").await, 58);
        client.expect_close().await;
    }
}

#[tokio::test]
async fn a_user_may_do_what_its_rules_say() {
    let node = guarded().await;
    node.ingest.topic("salaries", true).await.unwrap();
    let mut client = node.client().await;
    handshake(&mut client, "PLAIN").await;
    authenticate(&mut client, b"\0till\0secret").await;
    let asked = [("salaries", vec![(0, Some(batch(&["a"], None)))])];
    let frame = request(ApiKey::Produce, 8, 1, |out| {
        super::produce_request(-1, None, &asked)
            .encode(out, 8)
            .unwrap();
    });
    client.send(&frame).await;
    assert_eq!(client.produced().await.1, 29);
    for names in [None, Some(&["t", "salaries", "new"][..])] {
        let frame = request(ApiKey::Metadata, 4, 1, |out| {
            metadata_request(names, true).encode(out, 4).unwrap();
        });
        client.send(&frame).await;
        let (_, mut body) = client.receive().await;
        let found = MetadataResponse::decode(&mut body, 4).unwrap();
        for topic in found.topics {
            let is_ours = topic.name.unwrap().as_str() == "t";
            assert_eq!(topic.error_code, if is_ours { 0 } else { 29 });
        }
    }
    assert!(node.ingest.topic("new", false).await.is_err());
}

/// An authority, a server's certificate and a client's, as files.
struct Certificates {
    dir: tempfile::TempDir,
    authority: CertificateDer<'static>,
    client: (CertificateDer<'static>, Vec<u8>),
}

fn certificates() -> Certificates {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let issue = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        (params.signed_by(&key, &issuer).unwrap(), key)
    };
    let (server, server_key) = issue("localhost");
    let (client, client_key) = issue("till.example");
    let write = |name: &str, pem: String| std::fs::write(dir.path().join(name), pem).unwrap();
    write("ca.pem", authority.pem());
    write("server.pem", server.pem());
    write("server-key.pem", server_key.serialize_pem());
    Certificates {
        authority: authority.der().clone(),
        client: (client.der().clone(), client_key.serialize_der()),
        dir,
    }
}

fn listener_tls(dir: &Path, requires_client: bool) -> ListenerTls {
    ListenerTls {
        certificate: dir.join("server.pem"),
        key: dir.join("server-key.pem"),
        client_ca: Some(dir.join("ca.pem")),
        requires_client,
    }
}

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

async fn connect(node: &Node, files: &Certificates, is_client_known: bool) -> std::io::Result<Tls> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(files.authority.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = if is_client_known {
        let (certificate, key) = files.client.clone();
        let key = PrivateKeyDer::Pkcs8(key.into());
        builder
            .with_client_auth_cert(vec![certificate], key)
            .unwrap()
    } else {
        builder.with_no_client_auth()
    };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(node.address).await?;
    connector
        .connect(ServerName::try_from("localhost").unwrap(), stream)
        .await
}

/// Produces one record over TLS: the error code, or how the connection ended.
async fn produce_over(mut stream: Tls, records: Bytes) -> std::io::Result<i16> {
    let asked = [("t", vec![(0, Some(records))])];
    let frame = request(ApiKey::Produce, 8, 1, |out| {
        super::produce_request(-1, None, &asked)
            .encode(out, 8)
            .unwrap();
    });
    stream.write_all(&framed(&frame)).await?;
    let len = stream.read_u32().await?;
    let mut body = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut body).await?;
    let mut body = Bytes::from(body).slice(4..);
    let answer = kafka_protocol::messages::ProduceResponse::decode(&mut body, 8).unwrap();
    Ok(answer.responses[0].partition_responses[0].error_code)
}

#[tokio::test]
async fn a_certificate_stands_for_its_user_over_tls() {
    let files = certificates();
    for requires_client in [true, false] {
        let acceptor = Acceptor::load(listener_tls(files.dir.path(), requires_client)).unwrap();
        let node = node_with(users(), |config, _| config.tls = Some(Arc::new(acceptor))).await;
        let stream = connect(&node, &files, true).await.unwrap();
        // larger than what is read from TLS at once
        let large = "x".repeat(300_000);
        assert_eq!(
            produce_over(stream, batch(&[&large], None)).await.unwrap(),
            0
        );
        let outcome = match connect(&node, &files, false).await {
            Ok(stream) => produce_over(stream, batch(&["a"], None)).await,
            Err(error) => Err(error),
        };
        assert!(outcome.is_err(), "who it is was not said");
    }
}

#[tokio::test]
async fn plain_text_at_a_tls_listener_ends_its_connection_only() {
    let files = certificates();
    let acceptor = Acceptor::load(listener_tls(files.dir.path(), false)).unwrap();
    let node = node_with(Access::open(), |config, _| {
        config.tls = Some(Arc::new(acceptor))
    })
    .await;
    let mut client = node.client().await;
    client.send_ping(1).await;
    // TLS says why: an alert of seven bytes
    client.skip(7).await;
    client.expect_close().await;
    let stream = connect(&node, &files, false).await.unwrap();
    assert_eq!(produce_over(stream, batch(&["a"], None)).await.unwrap(), 0);
}

#[test]
fn renewed_files_are_used_and_bad_ones_are_not() {
    let files = certificates();
    let acceptor = Acceptor::load(listener_tls(files.dir.path(), false)).unwrap();
    let before = acceptor.config();
    assert!(!acceptor.refresh().unwrap());
    std::fs::write(files.dir.path().join("server.pem"), "nonsense").unwrap();
    assert!(acceptor.refresh().is_err());
    assert!(Arc::ptr_eq(&before, &acceptor.config()));
    let renewed = certificates();
    for name in ["server.pem", "server-key.pem"] {
        std::fs::copy(renewed.dir.path().join(name), files.dir.path().join(name)).unwrap();
    }
    assert!(acceptor.refresh().unwrap());
    assert!(!Arc::ptr_eq(&before, &acceptor.config()));
}

#[tokio::test]
async fn refused_logins_are_told_once_in_a_while_and_without_the_secret() {
    let lines = Lines::new();
    let node = guarded().await;
    for _ in 0..3 {
        let mut client = node.client().await;
        assert_eq!(handshake(&mut client, "PLAIN").await, 0);
        let (code, _) = authenticate(&mut client, b"\0till\0wr0ng").await;
        assert_eq!(code, 58);
        client.expect_close().await;
    }
    let told = lines.with("Login refused");
    assert_eq!(told.len(), 1, "{told:?}");
    let address = node.address.to_string();
    for part in [
        "kafka",
        "till",
        "127.0.0.1",
        "user or password is wrong",
        &address,
    ] {
        assert!(told[0].contains(part), "{part}: {told:?}");
    }
    assert!(!told[0].contains("wr0ng"));
    // nor what a client says that isn't a name
    let node = guarded().await;
    let mut client = node.client().await;
    assert_eq!(handshake(&mut client, "SCRAM-SHA-256").await, 0);
    let first = b"n,,n=guest,r=abc";
    assert_eq!(authenticate(&mut client, first).await.0, 0);
    assert_eq!(authenticate(&mut client, b"c=biws,r=x,p=wr0ng").await.0, 58);
    let told = lines.with("guest");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(!told[0].contains("wr0ng"));
}
