//! Local clients that say who they are, as their users run them: Kafka and MQTT over TLS with passwords and with
//! certificates, MQTT over WebSocket with TLS.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use system_tests::clients::{ALL, Client, kcat_consume_with};
use system_tests::hub::{Certs, Identity};
use system_tests::settings::Settings;
use system_tests::site::Site;
use system_tests::{paths, ports, process, users};
use toml::{Table, Value, toml};

const LIMIT: Duration = Duration::from_secs(60);
const PASSWORD: &str = "correct horse battery";
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// A site with a listener that asks for passwords and one that asks for certificates.
struct Secured {
    certs: Certs,
    site: Site,
    password_port: u16,
    certificate_port: u16,
    websocket_port: u16,
}

impl Secured {
    /// `section` is `kafka` or `mqtt`; both get their listeners the same way.
    fn start(section: &str) -> Result<Self> {
        let certs = Certs::make()?;
        let ports = [ports::free(), ports::free(), ports::free()];
        let own = certs.hub();
        let listener = |port: u16, rest: Table| {
            let mut listener = rest;
            listener.insert("listen".to_owned(), format!("127.0.0.1:{port}").into());
            listener.insert("certificate".to_owned(), text(&own.certificate).into());
            listener.insert("key".to_owned(), text(&own.key).into());
            if section == "kafka" {
                listener.insert("advertised".to_owned(), format!("localhost:{port}").into());
            }
            Value::from(listener)
        };
        let client_ca = text(&own.ca);
        let mut listeners = vec![
            listener(ports[0], Table::new()),
            listener(ports[1], toml! { client_ca = client_ca }),
        ];
        if section == "mqtt" {
            listeners.push(listener(ports[2], toml! { websocket = true }));
        }
        let till = toml! {
            produce = ["sales*", "mqtt_messages"]
            consume = ["sales*", "mqtt_messages"]
        };
        let machine = toml! {
            name = "machine"
            common_name = "machine-1"
            produce = ["states", "mqtt_messages"]
            consume = ["states", "mqtt_messages"]
        };
        let known = vec![
            users::with_password("till", PASSWORD, till)?,
            Value::from(machine),
        ];
        let over = Settings::default()
            .with(&format!("{section}.listener"), listeners)
            .with("access.user", known);
        let site = Site::alone(&certs, &over)?;
        let [password_port, certificate_port, websocket_port] = ports;
        Ok(Self {
            certs,
            site,
            password_port,
            certificate_port,
            websocket_port,
        })
    }

    fn ca(&self) -> String {
        text(&self.certs.hub().ca)
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn lines(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("line {number}")).collect()
}

/// What a client is told about a listener with TLS and passwords, in its own words.
fn settings_of(client: Client, mechanism: &str, ca: &str) -> Vec<(String, String)> {
    let (user, password) = ("till", PASSWORD);
    let pairs = match client {
        Client::Kcat | Client::ConfluentPython => vec![
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", mechanism),
            ("sasl.username", user),
            ("sasl.password", password),
            ("ssl.ca.location", ca),
        ],
        Client::KafkaPython => vec![
            ("security_protocol", "SASL_SSL"),
            ("sasl_mechanism", mechanism),
            ("sasl_plain_username", user),
            ("sasl_plain_password", password),
            ("ssl_cafile", ca),
        ],
        Client::Java => {
            let module = match mechanism {
                "PLAIN" => "plain.PlainLoginModule",
                _ => "scram.ScramLoginModule",
            };
            let jaas = format!(
                "org.apache.kafka.common.security.{module} required username=\"{user}\" password=\"{password}\";"
            );
            let pairs = [
                ("security.protocol", "SASL_SSL"),
                ("sasl.mechanism", mechanism),
                ("sasl.jaas.config", jaas.as_str()),
                ("ssl.truststore.type", "PEM"),
                ("ssl.truststore.location", ca),
            ];
            return owned(&pairs);
        }
    };
    owned(&pairs)
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn borrowed(pairs: &[(String, String)]) -> Vec<(&str, &str)> {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect()
}

fn kcat_read(bootstrap: &str, topic: &str, settings: &[(String, String)]) -> Result<Vec<String>> {
    let mut read = kcat_consume_with(bootstrap, topic, &borrowed(settings))?;
    read.sort();
    Ok(read)
}

/// kcat, librdkafka 2.16, kafka-python and the Java client, each by each mechanism over TLS; what they wrote is
/// read the same way.
#[test]
#[ignore = "system test: make test"]
fn kafka_clients_log_in_over_tls_by_every_mechanism() -> Result<()> {
    let stage = Secured::start("kafka")?;
    let (ca, bootstrap) = (stage.ca(), format!("localhost:{}", stage.password_port));
    let written = lines(20);
    for mechanism in MECHANISMS {
        for client in ALL {
            let topic = format!("sales-{}-{mechanism}", client.name());
            let settings = settings_of(client, mechanism, &ca);
            client
                .produce(&bootstrap, &topic, &written, None, &borrowed(&settings))
                .with_context(|| format!("{} with {mechanism}", client.name()))?;
            let read = kcat_read(
                &bootstrap,
                &topic,
                &settings_of(Client::Kcat, mechanism, &ca),
            )?;
            let mut expected = written.clone();
            expected.sort();
            ensure!(read == expected, "{topic}: {read:?}");
        }
    }
    Ok(())
}

/// A wrong password, a user that there isn't, no password, an authority that the client does not know, and a topic
/// that the user may not write: each is told as what it is.
#[test]
#[ignore = "system test: make test"]
fn kafka_clients_are_told_why_they_are_refused() -> Result<()> {
    let stage = Secured::start("kafka")?;
    let (ca, bootstrap) = (stage.ca(), format!("localhost:{}", stage.password_port));
    let good = settings_of(Client::ConfluentPython, "SCRAM-SHA-512", &ca);
    let with = |key: &str, value: &str| {
        let mut settings = good.clone();
        settings.retain(|(name, _)| name != key);
        settings.push((key.to_owned(), value.to_owned()));
        settings
    };
    let strangers = Certs::make()?;
    let stranger = text(&strangers.hub().ca);
    for (topic, settings, told) in [
        ("sales", good.clone(), "stored"),
        ("sales", with("sasl.password", "wrong"), "_AUTHENTICATION"),
        ("sales", with("sasl.username", "nobody"), "_AUTHENTICATION"),
        ("sales", with("ssl.ca.location", &stranger), "_SSL"),
        ("states", good.clone(), "TOPIC_AUTHORIZATION_FAILED"),
    ] {
        let mut python = Command::new(paths::python()?);
        python.args(["-c", TOLD, &bootstrap, topic]);
        python.args(settings.iter().map(|(key, value)| format!("{key}={value}")));
        let said = process::run("a refused client", python, LIMIT)?;
        ensure!(said.contains(told), "{topic}: {said} instead of {told}");
    }
    Ok(())
}

/// Writes one record and says what came of it.
const TOLD: &str = r#"
import sys, time
from confluent_kafka import Producer, KafkaException
bootstrap, topic, *settings = sys.argv[1:]
told = []
config = {"bootstrap.servers": bootstrap, "message.timeout.ms": 8000, "error_cb": lambda error: told.append(error.name())}
config.update(setting.split("=", 1) for setting in settings)
done = lambda error, _: told.append(error.name() if error else "stored")
try:
    producer = Producer(config)
    producer.produce(topic, b"x", on_delivery=done)
    producer.flush(20)
except KafkaException as error:
    told.append(f"failed {error}")
print(told)
"#;

/// Kafka clients that bring a certificate are the user that it names; one without is not let in.
#[test]
#[ignore = "system test: make test"]
fn kafka_clients_are_known_by_their_certificates() -> Result<()> {
    let stage = Secured::start("kafka")?;
    let bootstrap = format!("localhost:{}", stage.certificate_port);
    let machine = stage.certs.issue("machine-1")?;
    let settings = certified(&machine);
    let written = lines(20);
    for client in [Client::Kcat, Client::ConfluentPython] {
        client.produce(&bootstrap, "states", &written, None, &borrowed(&settings))?;
    }
    let read = kcat_read(&bootstrap, "states", &settings)?;
    ensure!(read.len() == 40, "{read:?}");
    let python = owned(&[
        ("security_protocol", "SSL"),
        ("ssl_cafile", &text(&machine.ca)),
        ("ssl_certfile", &text(&machine.certificate)),
        ("ssl_keyfile", &text(&machine.key)),
    ]);
    Client::KafkaPython.produce(&bootstrap, "states", &written, None, &borrowed(&python))?;

    let mut quick = settings;
    quick.push(("message.timeout.ms".to_owned(), "5000".to_owned()));
    let forbidden = Client::ConfluentPython;
    let refused = forbidden.produce(&bootstrap, "sales", &written, None, &borrowed(&quick));
    ensure!(
        refused.is_err(),
        "the certificate's user may not write this topic"
    );
    let unknown = certified(&stage.certs.issue("machine-2")?);
    for mut settings in [
        unknown,
        owned(&[
            ("security.protocol", "SSL"),
            ("ssl.ca.location", &stage.ca()),
        ]),
    ] {
        settings.push(("message.timeout.ms".to_owned(), "5000".to_owned()));
        let client = Client::ConfluentPython;
        let refused = client.produce(&bootstrap, "states", &written, None, &borrowed(&settings));
        ensure!(refused.is_err(), "{settings:?} was let in");
    }
    let read = kcat_read(&bootstrap, "states", &certified(&machine))?;
    ensure!(read.len() == 60, "{} records", read.len());
    Ok(())
}

fn certified(identity: &Identity) -> Vec<(String, String)> {
    owned(&[
        ("security.protocol", "SSL"),
        ("ssl.ca.location", &text(&identity.ca)),
        ("ssl.certificate.location", &text(&identity.certificate)),
        ("ssl.key.location", &text(&identity.key)),
    ])
}

/// mosquitto's client; fails when it does.
fn mosquitto(program: &str, port: u16, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(["-h", "localhost", "-p", &port.to_string()]);
    command.args(arguments);
    process::run(program, command, LIMIT)
}

/// A retained message out and in again: one connection each.
fn there_and_back(port: u16, version: &str, payload: &str, login: &[&str]) -> Result<()> {
    let topic = format!("plant/{payload}");
    let common = ["-V", version, "-t", &topic, "-q", "1"];
    let publish = [&common[..], login, &["-m", payload, "-r"]].concat();
    mosquitto("mosquitto_pub", port, &publish)?;
    let subscribe = [&common[..], login, &["-C", "1", "-W", "20"]].concat();
    let said = mosquitto("mosquitto_sub", port, &subscribe)?;
    ensure!(said.trim() == payload, "{said:?}");
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn mqtt_clients_log_in_over_tls_with_passwords_and_certificates() -> Result<()> {
    let stage = Secured::start("mqtt")?;
    let ca = stage.ca();
    let machine = stage.certs.issue("machine-1")?;
    let (certificate, key) = (text(&machine.certificate), text(&machine.key));
    for version in ["mqttv311", "mqttv5"] {
        let login = ["--cafile", ca.as_str(), "-u", "till", "-P", PASSWORD];
        there_and_back(
            stage.password_port,
            version,
            &format!("password-{version}"),
            &login,
        )?;
        let login = ["--cafile", &ca, "--cert", &certificate, "--key", &key];
        let payload = format!("certificate-{version}");
        there_and_back(stage.certificate_port, version, &payload, &login)?;
    }
    let message = ["-t", "plant/refused", "-m", "x", "-q", "1"];
    let refused: [(u16, Vec<&str>); 4] = [
        (
            stage.password_port,
            vec!["--cafile", &ca, "-u", "till", "-P", "wrong"],
        ),
        (stage.password_port, vec!["--cafile", &ca]),
        (
            stage.certificate_port,
            vec!["--cafile", &ca, "-u", "till", "-P", PASSWORD],
        ),
        (stage.password_port, vec!["-u", "till", "-P", PASSWORD]),
    ];
    for (port, login) in refused {
        let outcome = mosquitto("mosquitto_pub", port, &[&message[..], &login].concat());
        ensure!(outcome.is_err(), "{login:?} was let in");
    }
    let seen = stage.site.ledger("mqtt_messages")?;
    ensure!(seen.accepted == 4, "{seen:?}");
    Ok(())
}

/// paho over WebSocket with TLS, in both versions; a wrong password is told as one.
#[test]
#[ignore = "system test: make test"]
fn mqtt_clients_log_in_over_websocket_with_tls() -> Result<()> {
    let stage = Secured::start("mqtt")?;
    for (version, password, told) in [
        ("4", PASSWORD, "got hello"),
        ("5", PASSWORD, "got hello"),
        ("4", "wrong", "refused"),
        ("5", "wrong", "refused"),
    ] {
        let mut python = Command::new(paths::python()?);
        let port = stage.websocket_port.to_string();
        python.args(["-c", WEBSOCKET, &port, &stage.ca(), version, password]);
        let said = process::run("paho", python, LIMIT)?;
        ensure!(said.trim() == told, "MQTT {version}: {said}");
    }
    Ok(())
}

/// Subscribes, publishes with QoS 2, and says what came.
const WEBSOCKET: &str = r#"
import queue, sys
import paho.mqtt.client as mqtt
port, ca, version, password = sys.argv[1:]
told = queue.Queue()
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=int(version), transport="websockets")
client.tls_set(ca_certs=ca)
client.username_pw_set("till", password)
def connected(client, _, flags, reason, properties):
    if reason.is_failure:
        told.put("refused")
    else:
        client.subscribe("plant/web", qos=2)
client.on_connect = connected
client.on_subscribe = lambda client, *_: client.publish("plant/web", "hello", qos=2)
client.on_message = lambda client, _, message: told.put("got " + message.payload.decode())
client.connect("localhost", int(port), keepalive=20)
client.loop_start()
print(told.get(timeout=20))
client.disconnect()
client.loop_stop()
"#;
