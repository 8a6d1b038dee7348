//! What an MQTT broker owes its clients in both versions of the protocol: the cases that the Eclipse Paho
//! interoperability suite has for 3.1.1 and for 5, in words of our own. `mqtt_v3` and `mqtt_v5` run them, each
//! as a test of its own.
//!
//! `KEDGE_MQTT=mosquitto` runs them against that broker.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use system_tests::mqtt::client::LIMIT;
use system_tests::mqtt::packet::{self, Packet, kind};
use system_tests::mqtt::properties::id;
use system_tests::mqtt::server::{FORBIDDEN, fresh};
use system_tests::mqtt::{Client, Hello, Message, Properties, Publish, Server, Version};

/// Payloads as text, sorted: topics have no order among each other.
pub(crate) fn payloads(messages: &[Message]) -> Vec<String> {
    let mut all: Vec<_> = messages.iter().map(text).collect();
    all.sort();
    all
}

pub(crate) fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.payload).into_owned()
}

/// A session that outlives its connection: in 3.1.1 it is one that is not clean.
pub(crate) fn lasting(version: Version, client_id: &str) -> Hello {
    let hello = Hello::new(version, client_id).resume();
    match version {
        Version::V3 => hello,
        Version::V5 => hello.with(Properties::none().four(id::SESSION_EXPIRY, 600)),
    }
}

/// One message of each QoS on a topic of its own below `prefix`.
pub(crate) fn publish_one_of_each(client: &mut Client, prefix: &str, retain: bool) -> Result<()> {
    for qos in 0..3 {
        let publish = Publish {
            topic: format!("{prefix}/{qos}"),
            payload: format!("qos {qos}").into_bytes(),
            qos,
            is_retained: retain,
            properties: Properties::none(),
            ..Publish::default()
        };
        ensure!(client.publish_as(publish)? < 128, "QoS {qos} was refused");
    }
    Ok(())
}

pub(crate) fn each_qos_arrives(version: Version) -> Result<()> {
    let server = Server::shared();
    let name = fresh("basic");
    let (first, welcome) = Client::connect(server, &Hello::new(version, &name))?;
    ensure!(!welcome.is_session_present, "{welcome:?}");
    first.disconnect()?;
    let (mut client, welcome) = Client::connect(server, &Hello::new(version, &name))?;
    ensure!(!welcome.is_session_present, "{welcome:?}");
    client.subscribe(&format!("{name}/#"), 2)?;
    for qos in 0..3 {
        client.publish(&format!("{name}/a"), &format!("qos {qos}"), qos)?;
    }
    let messages = client.exactly(3)?;
    let qualities: Vec<_> = messages
        .iter()
        .map(|message| (text(message), message.qos))
        .collect();
    let expected = [0, 1, 2].map(|qos| (format!("qos {qos}"), qos));
    ensure!(qualities == expected, "{qualities:?}");
    client.disconnect()
}

pub(crate) fn a_second_connect_ends_the_connection(version: Version) -> Result<()> {
    let hello = Hello::new(version, &fresh("twice"));
    let (mut client, _) = Client::connect(Server::shared(), &hello)?;
    client.send(&hello.encode())?;
    client.wait_closed(LIMIT).map(drop)
}

pub(crate) fn a_wrong_protocol_name_is_refused(version: Version) -> Result<()> {
    let mut client = Client::open(Server::shared(), version)?;
    let mut hello = Hello::new(version, &fresh("hj"));
    hello.protocol = "hj";
    client.send(&hello.encode())?;
    // it may say why before it closes
    if let Some(Packet::ConnAck { code, .. }) = client.packet(LIMIT)? {
        ensure!(code != 0, "it was accepted");
        client.wait_closed(LIMIT)?;
    }
    Ok(())
}

pub(crate) fn retained_messages_are_kept_and_cleared(version: Version) -> Result<()> {
    let server = Server::shared();
    let name = fresh("retained");
    let (mut writer, _) = Client::connect(server, &Hello::new(version, &name))?;
    publish_one_of_each(&mut writer, &name, true)?;
    writer.subscribe(&format!("{name}/+"), 2)?;
    let messages = writer.exactly(3)?;
    ensure!(
        payloads(&messages) == ["qos 0", "qos 1", "qos 2"],
        "{messages:?}"
    );
    for message in &messages {
        ensure!(message.is_retained, "{message:?}");
        ensure!(
            text(message) == format!("qos {}", message.qos),
            "{message:?}"
        );
    }
    for qos in 0..3 {
        writer.retain(&format!("{name}/{qos}"), "", qos)?;
    }
    writer.disconnect()?;
    let (mut reader, _) = Client::connect(server, &Hello::new(version, &name))?;
    reader.subscribe(&format!("{name}/+"), 2)?;
    reader.nothing_more()
}

pub(crate) fn the_will_of_one_that_vanished_is_published(version: Version) -> Result<()> {
    let server = Server::shared();
    let name = fresh("will");
    let topic = format!("{name}/gone");
    let (mut heir, _) = Client::connect(server, &Hello::new(version, &format!("{name}-heir")))?;
    heir.subscribe(&topic, 2)?;
    let properties = Properties::none().user("a", "2").user("c", "3");
    let hello = Hello::new(version, &name).will(&topic, "farewell", properties);
    let (client, _) = Client::connect(server, &hello)?;
    client.vanish();
    let messages = heir.exactly(1)?;
    ensure!(text(&messages[0]) == "farewell", "{messages:?}");
    if version == Version::V5 {
        let users = messages[0].properties.users();
        ensure!(users == [("a", "2"), ("c", "3")], "{users:?}");
    }
    Ok(())
}

pub(crate) fn the_will_of_one_that_took_leave_is_not(version: Version) -> Result<()> {
    let server = Server::shared();
    let name = fresh("no-will");
    let topic = format!("{name}/gone");
    let (mut heir, _) = Client::connect(server, &Hello::new(version, &format!("{name}-heir")))?;
    heir.subscribe(&topic, 2)?;
    let hello = Hello::new(version, &name).will(&topic, "farewell", Properties::none());
    Client::connect(server, &hello)?.0.disconnect()?;
    heir.nothing_more()
}

pub(crate) fn messages_wait_for_one_that_is_away(version: Version) -> Result<()> {
    let server = Server::shared();
    let name = fresh("offline");
    let hello = lasting(version, &name);
    let (mut sleeper, _) = Client::connect(server, &hello)?;
    sleeper.subscribe(&format!("{name}/#"), 2)?;
    sleeper.disconnect()?;
    let (mut writer, _) = Client::connect(server, &Hello::new(version, &format!("{name}-writer")))?;
    publish_one_of_each(&mut writer, &name, false)?;
    writer.disconnect()?;
    let (mut sleeper, welcome) = Client::connect(server, &hello)?;
    ensure!(welcome.is_session_present, "{welcome:?}");
    let mut messages = vec![sleeper.message()?, sleeper.message()?];
    // what had QoS 0 may be kept or not
    if messages.iter().any(|message| message.qos == 0) {
        messages.push(sleeper.message()?);
    }
    sleeper.nothing_more().or_else(|more| {
        ensure!(messages.len() == 2, "{more}");
        Ok(())
    })?;
    let kept = payloads(&messages);
    ensure!(
        kept.ends_with(&["qos 1".to_owned(), "qos 2".to_owned()]),
        "{kept:?}"
    );
    // for what comes after it: nothing of this session is left
    Client::connect(server, &Hello::new(version, &name))?
        .0
        .disconnect()
}

pub(crate) fn filters_that_overlap_give_the_highest_qos(version: Version) -> Result<()> {
    let name = fresh("overlap");
    let (mut client, _) = Client::connect(Server::shared(), &Hello::new(version, &name))?;
    let (wide, narrow) = (format!("{name}/#"), format!("{name}/+"));
    let filters = [(wide.as_str(), 2), (narrow.as_str(), 1)];
    let codes = client.subscribe_to(&filters, &Properties::none())?;
    ensure!(codes == [2, 1], "{codes:?}");
    client.publish(&format!("{name}/a"), "overlapping", 2)?;
    let mut qualities = vec![client.message()?.qos];
    // one message, or one for each filter
    if client.nothing_more().is_err() {
        qualities.push(client.message()?.qos);
        client.nothing_more()?;
    }
    qualities.sort_unstable();
    ensure!(qualities == [2] || qualities == [1, 2], "{qualities:?}");
    Ok(())
}

pub(crate) fn one_that_is_silent_too_long_is_gone(version: Version) -> Result<()> {
    let server = Server::shared();
    let name = fresh("silent");
    let topic = format!("{name}/gone");
    let (mut heir, _) = Client::connect(server, &Hello::new(version, &format!("{name}-heir")))?;
    heir.subscribe(&topic, 2)?;
    let hello = Hello::new(version, &name).keep_alive(1);
    let hello = hello.will(&topic, "silent", Properties::none());
    let (mut client, _) = Client::connect(server, &hello)?;
    // one and a half times the keep-alive, by the standard
    ensure!(heir.message()?.payload == b"silent", "another message came");
    heir.nothing_more()?;
    client.wait_closed(Duration::from_secs(2)).map(drop)
}

pub(crate) fn what_was_not_acknowledged_comes_again(version: Version) -> Result<()> {
    let server = Server::shared();
    let name = fresh("again");
    let hello = lasting(version, &name);
    let (mut client, _) = Client::connect(server, &hello)?;
    client.subscribe(&format!("{name}/#"), 2)?;
    client.acknowledges = false;
    for qos in 1..3 {
        client.publish(&format!("{name}/{qos}"), &format!("qos {qos}"), qos)?;
    }
    client.ping()?;
    client.disconnect()?;
    let (mut client, welcome) = Client::connect(server, &hello)?;
    ensure!(welcome.is_session_present, "{welcome:?}");
    let messages = client.exactly(2)?;
    ensure!(payloads(&messages) == ["qos 1", "qos 2"], "{messages:?}");
    client.disconnect()?;
    Client::connect(server, &Hello::new(version, &name))?
        .0
        .disconnect()
}

pub(crate) fn a_forbidden_filter_is_refused(version: Version) -> Result<()> {
    let name = fresh("forbidden");
    let (mut client, _) = Client::connect(Server::shared(), &Hello::new(version, &name))?;
    let codes = client.subscribe_to(&[(FORBIDDEN, 2)], &Properties::none())?;
    // 5 may say why: not authorized
    let is_refused = codes == [0x80] || version == Version::V5 && codes == [0x87];
    ensure!(is_refused, "{codes:?}");
    client.ping()
}

pub(crate) fn wildcards_leave_dollar_topics_alone(version: Version) -> Result<()> {
    let server = Server::shared();
    let name = fresh("dollar");
    let (mut client, _) = Client::connect(server, &Hello::new(version, &name))?;
    client.subscribe(&format!("+/{name}"), 2)?;
    client.subscribe("#", 0)?;
    // A broker may refuse such a publish, or close.
    let (mut writer, _) = Client::connect(server, &Hello::new(version, &format!("{name}-writer")))?;
    let _refused = writer.publish(&format!("$topic/{name}"), "hidden", 1);
    let (mut writer, _) = Client::connect(server, &Hello::new(version, &format!("{name}-other")))?;
    writer.publish(&format!("topic/{name}"), "seen", 1)?;
    // Other scenarios' messages and the retained ones match `#` as well.
    let mut seen = 0;
    while seen == 0 {
        let message = client.message()?;
        ensure!(!message.topic.starts_with('$'), "{message:?}");
        seen += u8::from(message.topic == format!("topic/{name}"));
    }
    Ok(())
}

pub(crate) fn an_ended_subscription_is_silent(version: Version) -> Result<()> {
    let server = Server::shared();
    let name = fresh("unsubscribe");
    let topics = ["a", "b", "c"].map(|topic| format!("{name}/{topic}"));
    let (mut client, _) = Client::connect(server, &Hello::new(version, &name))?;
    for topic in &topics {
        client.subscribe(topic, 2)?;
    }
    let codes = client.unsubscribe(&topics[0])?;
    ensure!(
        codes == vec![0; usize::from(version == Version::V5)],
        "{codes:?}"
    );
    let (mut writer, _) = Client::connect(server, &Hello::new(version, &format!("{name}-writer")))?;
    for topic in &topics {
        writer.publish(topic, topic, 1)?;
    }
    let messages = client.exactly(2)?;
    ensure!(payloads(&messages) == topics[1..], "{messages:?}");
    Ok(())
}

/// Beyond the suite: a PUBLISH of QoS 2 that is sent twice before PUBREL is one message.
pub(crate) fn a_repeated_publish_of_qos_2_counts_once(version: Version) -> Result<()> {
    let name = fresh("repeated");
    let hello = lasting(version, &name);
    let server = Server::shared();
    let (mut reader, _) = Client::connect(server, &Hello::new(version, &format!("{name}-reader")))?;
    reader.subscribe(&name, 2)?;
    let (mut client, _) = Client::connect(server, &hello)?;
    let mut publish = Publish {
        topic: name.clone(),
        payload: b"once".to_vec(),
        qos: 2,
        id: 77,
        ..Publish::default()
    };
    client.send(&publish.encode(version))?;
    client.wait_ack(kind::PUBREC, 77)?;
    client.vanish();
    let (mut client, welcome) = Client::connect(server, &hello)?;
    ensure!(welcome.is_session_present, "{welcome:?}");
    publish.is_repeated = true;
    client.send(&publish.encode(version))?;
    client.wait_ack(kind::PUBREC, 77)?;
    client.send(&packet::ack(kind::PUBREL, 77))?;
    client.wait_ack(kind::PUBCOMP, 77)?;
    // the same again: a PUBREL whose answer was lost
    client.send(&packet::ack(kind::PUBREL, 77))?;
    let code = client.wait_ack(kind::PUBCOMP, 77)?;
    ensure!(code == 0 || code == 0x92, "{code:#x}");
    let messages = reader.exactly(1).context("the reader")?;
    ensure!(text(&messages[0]) == "once", "{messages:?}");
    client.disconnect()?;
    Client::connect(server, &Hello::new(version, &name))?
        .0
        .disconnect()
}

/// Beyond the suite: the same client identifier elsewhere takes the session over.
pub(crate) fn a_second_connection_takes_the_session_over(version: Version) -> Result<()> {
    let name = fresh("takeover");
    let hello = lasting(version, &name);
    let server = Server::shared();
    let (mut first, _) = Client::connect(server, &hello)?;
    first.subscribe(&name, 1)?;
    let (mut second, welcome) = Client::connect(server, &hello)?;
    ensure!(welcome.is_session_present, "{welcome:?}");
    let goodbye = first.wait_closed(LIMIT)?;
    // "session taken over", where the version can say it
    ensure!(goodbye.is_none_or(|code| code == 0x8E), "{goodbye:?}");
    second.publish(&name, "here", 1)?;
    ensure!(second.exactly(1)?.len() == 1, "not there");
    second.disconnect()?;
    Client::connect(server, &Hello::new(version, &name))?
        .0
        .disconnect()
}

/// Beyond the suite: what is no topic to publish to ends the connection, and what is no filter is no
/// subscription.
pub(crate) fn a_wildcard_is_no_topic(version: Version) -> Result<()> {
    let server = Server::shared();
    for topic in ["a/+", "#", "a/#/b"] {
        let (mut client, _) = Client::connect(server, &Hello::new(version, &fresh("wild")))?;
        let publish = Publish {
            topic: topic.to_owned(),
            ..Publish::default()
        };
        client.send(&publish.encode(version))?;
        client
            .wait_closed(LIMIT)
            .with_context(|| topic.to_owned())?;
    }
    Ok(())
}
