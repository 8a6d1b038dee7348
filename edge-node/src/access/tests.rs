//! Users as the configuration makes them.

use std::io::Write as _;

use super::*;

fn user(name: &str, credentials: Vec<Credential>) -> UserConfig {
    UserConfig {
        name: name.to_owned(),
        credentials,
        password_file: None,
        tokens: Vec::new(),
        common_name: None,
        rules: Rules::all(),
    }
}

pub(super) fn access_of(name: &str, credentials: Vec<Credential>) -> Access {
    let users = vec![user(name, credentials)];
    Access::new(&AccessConfig {
        anonymous: None,
        users,
    })
    .unwrap()
}

#[test]
fn without_users_everybody_may_do_everything() {
    let access = Access::new(&AccessConfig::default()).unwrap();
    let anybody = access.anonymous().unwrap();
    assert!(anybody.may_produce("any") && anybody.may_consume("any") && anybody.may_administer());
    assert!(!access.has_users());
}

#[test]
fn with_users_the_anonymous_are_refused_unless_they_have_rules() {
    assert_eq!(access_of("u", Vec::new()).anonymous(), None);
    let access = Access::new(&AccessConfig {
        anonymous: Some(Rules::none()),
        users: vec![user("u", Vec::new())],
    });
    assert!(!access.unwrap().anonymous().unwrap().may_produce("t"));
}

#[test]
fn passwords_are_checked_against_what_was_made_of_them() {
    for mechanism in Mechanism::ALL {
        let credential = Credential::make(mechanism, b"secret", &[1; 16]);
        let again: Credential = credential.to_string().parse().unwrap();
        assert_eq!(again, credential);
        let access = access_of("u", vec![again]);
        for _ in 0..2 {
            assert_eq!(access.verify("u", b"wrong"), None);
            assert_eq!(access.verify("U", b"secret"), None);
            assert_eq!(access.verify("u", b"secret").unwrap().name(), Some("u"));
        }
        assert_eq!(access.verify("u", &[b'x'; MAX_PASSWORD + 1]), None);
    }
    assert_eq!(access_of("u", Vec::new()).verify("u", b""), None);
}

#[test]
fn a_password_file_serves_every_mechanism() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"from a file\r\n").unwrap();
    let config = |path: &Path| AccessConfig {
        anonymous: None,
        users: vec![UserConfig {
            password_file: Some(path.to_owned()),
            ..user("u", Vec::new())
        }],
    };
    let access = Access::new(&config(file.path())).unwrap();
    assert!(access.verify("u", b"from a file").is_some());
    for mechanism in Mechanism::ALL {
        assert!(access.scram("u", mechanism).1.is_some());
    }
    let missing = Access::new(&config(Path::new("/missing"))).unwrap_err();
    assert!(missing.to_string().contains("user `u`"), "{missing}");
    for bad in [&b""[..], b"\n", b"two\nlines\n"] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bad).unwrap();
        assert!(Access::new(&config(file.path())).is_err(), "{bad:?}");
    }
}

#[test]
fn tokens_and_certificates_stand_for_users() {
    let hash: TokenHash = TokenHash::of("a long random token")
        .to_string()
        .parse()
        .unwrap();
    let access = Access::new(&AccessConfig {
        anonymous: None,
        users: vec![UserConfig {
            tokens: vec![hash],
            common_name: Some("till-7.example".to_owned()),
            ..user("u", Vec::new())
        }],
    })
    .unwrap();
    assert_eq!(
        access.by_token("a long random token").unwrap().name(),
        Some("u")
    );
    assert_eq!(access.by_token("another"), None);
    assert_eq!(
        access.by_common_name("till-7.example").unwrap().name(),
        Some("u")
    );
    assert_eq!(access.by_common_name("u"), None);
}

#[test]
fn what_is_no_credential_is_refused_without_being_told() {
    let good = Credential::make(Mechanism::Sha256, b"p", &[1; 16]).to_string();
    for bad in [
        "hunter2".to_owned(),
        good.replace("SHA-256", "SHA-1"),
        good.replace("SHA-256", "SHA-512"),
        good.replace("$4096:", "$0:"),
        good.replace("$4096:", "$4000000000:"),
        format!("{good}$x"),
    ] {
        let error = bad.parse::<Credential>().unwrap_err();
        assert!(!error.contains("hunter2"));
    }
    for bad in ["", "sha256:", "sha256:zz", "hunter2"] {
        assert!(bad.parse::<TokenHash>().is_err());
    }
}

#[tokio::test]
async fn passwords_are_checked_beside_the_runtime() {
    let access = Arc::new(access_of(
        "u",
        vec![Credential::make(Mechanism::Sha256, b"p", &[1; 16])],
    ));
    for _ in 0..2 {
        assert!(access.check_password("u", b"p").await.is_some());
        assert!(access.check_password("u", b"q").await.is_none());
    }
}
