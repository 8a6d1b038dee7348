//! MQTT 5 at a site: what both versions have ([`mqtt_both`](super::mqtt_both)), and what only 5 has.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use system_tests::mqtt::client::{LIMIT, Welcome};
use system_tests::mqtt::packet::{self, Packet, kind};
use system_tests::mqtt::properties::id;
use system_tests::mqtt::server::{MAX_KEEP_ALIVE_S, fresh};
use system_tests::mqtt::{Client, Hello, Message, Properties, Property, Publish, Server, Version};
use system_tests::wait;

use crate::mqtt_both::{payloads, publish_one_of_each, text};

const VERSION: Version = Version::V5;

/// Subscription options beside the QoS.
const NO_LOCAL: u8 = 4;
const RETAIN_AS_PUBLISHED: u8 = 8;
const RETAINED_IF_NEW: u8 = 0x10;
const RETAINED_NEVER: u8 = 0x20;

/// Reason codes.
const RECEIVE_MAXIMUM_EXCEEDED: u8 = 0x93;
const TOPIC_ALIAS_INVALID: u8 = 0x94;
const PACKET_TOO_LARGE: u8 = 0x95;
/// Malformed packet and protocol error are as good.
const WRONG_ALIAS: [u8; 3] = [TOPIC_ALIAS_INVALID, 0x81, 0x82];

macro_rules! cases {
    ($($case:ident,)*) => {
        $(#[test]
        #[ignore = "system test: make test"]
        fn $case() -> anyhow::Result<()> {
            crate::mqtt_both::$case(super::VERSION)
        })*
    };
}

mod both {
    cases! {
        each_qos_arrives,
        a_second_connect_ends_the_connection,
        a_wrong_protocol_name_is_refused,
        retained_messages_are_kept_and_cleared,
        the_will_of_one_that_vanished_is_published,
        the_will_of_one_that_took_leave_is_not,
        messages_wait_for_one_that_is_away,
        filters_that_overlap_give_the_highest_qos,
        one_that_is_silent_too_long_is_gone,
        what_was_not_acknowledged_comes_again,
        a_forbidden_filter_is_refused,
        wildcards_leave_dollar_topics_alone,
        an_ended_subscription_is_silent,
        a_repeated_publish_of_qos_2_counts_once,
        a_second_connection_takes_the_session_over,
        a_wildcard_is_no_topic,
    }
}

fn connect(name: &str) -> Result<Client> {
    Ok(Client::connect(Server::shared(), &Hello::new(VERSION, name))?.0)
}

fn connect_with(name: &str, properties: Properties) -> Result<(Client, Welcome)> {
    let hello = Hello::new(VERSION, name).with(properties);
    Client::connect(Server::shared(), &hello)
}

fn publish(topic: &str, payload: &str, qos: u8, properties: Properties) -> Publish {
    Publish {
        topic: topic.to_owned(),
        payload: payload.as_bytes().to_vec(),
        qos,
        properties,
        ..Publish::default()
    }
}

/// A message of each QoS with the same properties goes to the writer itself.
fn echo(name: &str, properties: &Properties) -> Result<Vec<Message>> {
    let mut client = connect(name)?;
    client.subscribe(name, 2)?;
    for qos in 0..3 {
        client.publish_as(publish(name, "", qos, properties.clone()))?;
    }
    let messages = client.exactly(3)?;
    let qualities: Vec<_> = messages.iter().map(|message| message.qos).collect();
    ensure!(qualities == [0, 1, 2], "{qualities:?}");
    Ok(messages)
}

#[test]
#[ignore = "system test: make test"]
fn a_client_without_a_name_is_given_one() -> Result<()> {
    for hello in [Hello::new(VERSION, "").resume(), Hello::new(VERSION, "")] {
        let (client, welcome) = Client::connect(Server::shared(), &hello)?;
        let name = welcome.properties.text(id::ASSIGNED_CLIENT_ID);
        ensure!(name.is_some_and(|name| !name.is_empty()), "{welcome:?}");
        client.disconnect()?;
    }
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn names_that_are_given_differ() -> Result<()> {
    let assigned = || -> Result<_> {
        let (client, welcome) = Client::connect(Server::shared(), &Hello::new(VERSION, ""))?;
        let name = welcome.properties.text(id::ASSIGNED_CLIENT_ID);
        Ok((client, name.context("no name")?.to_owned()))
    };
    let ((_one, first), (_other, second)) = (assigned()?, assigned()?);
    ensure!(first != second, "twice {first}");
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn retained_messages_keep_their_properties() -> Result<()> {
    let name = fresh("retained-properties");
    let properties = Properties::none().user("a", "2").user("c", "3");
    let mut writer = connect(&name)?;
    for qos in 0..3 {
        let mut publish = publish(&format!("{name}/{qos}"), "kept", qos, properties.clone());
        publish.is_retained = true;
        writer.publish_as(publish)?;
    }
    writer.subscribe(&format!("{name}/+"), 2)?;
    for message in writer.exactly(3)? {
        let users = message.properties.users();
        ensure!(users == [("a", "2"), ("c", "3")], "{message:?}");
    }
    (0..3).try_for_each(|qos| writer.retain(&format!("{name}/{qos}"), "", 0).map(drop))
}

#[test]
#[ignore = "system test: make test"]
fn sessions_expire_when_they_were_told_to() -> Result<()> {
    let name = fresh("expiry");
    let expiry = |seconds| Properties::none().four(id::SESSION_EXPIRY, seconds);
    let resume = |seconds| {
        let hello = Hello::new(VERSION, &name).resume().with(expiry(seconds));
        Client::connect(Server::shared(), &hello)
    };
    // 0: with the connection
    let (client, _) = connect_with(&name, expiry(0))?;
    client.disconnect()?;
    let (client, welcome) = resume(0)?;
    ensure!(!welcome.is_session_present, "0 s: {welcome:?}");
    client.disconnect()?;
    // some: not at once
    let (mut client, _) = connect_with(&name, expiry(1))?;
    client.subscribe(&name, 2)?;
    client.disconnect()?;
    let (client, welcome) = resume(1)?;
    ensure!(welcome.is_session_present, "at once: {welcome:?}");
    // but in time; taken from the end of the last connection
    client.disconnect()?;
    wait::let_run(Duration::from_millis(3_200));
    let (client, welcome) = resume(1)?;
    ensure!(!welcome.is_session_present, "after 1 s: {welcome:?}");
    // DISCONNECT has the last word
    client.disconnect_with(&expiry(600))?;
    wait::let_run(Duration::from_millis(2_200));
    let (client, welcome) = resume(600)?;
    ensure!(
        welcome.is_session_present,
        "after 600 s were asked for: {welcome:?}"
    );
    client.disconnect_with(&expiry(0))?;
    let (client, welcome) = resume(0)?;
    ensure!(
        !welcome.is_session_present,
        "DISCONNECT with 0 s: {welcome:?}"
    );
    client.disconnect()
}

#[test]
#[ignore = "system test: make test"]
fn user_properties_arrive_in_order() -> Result<()> {
    let properties = Properties::none()
        .user("a", "2")
        .user("c", "3")
        .user("a", "1");
    for message in echo(&fresh("users"), &properties)? {
        let users = message.properties.users();
        ensure!(users == [("a", "2"), ("c", "3"), ("a", "1")], "{message:?}");
    }
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn payload_format_and_content_type_arrive() -> Result<()> {
    let properties = Properties::none()
        .with(id::PAYLOAD_FORMAT, Property::Byte(1))
        .with(id::CONTENT_TYPE, Property::Text("My name".to_owned()));
    for message in echo(&fresh("format"), &properties)? {
        ensure!(
            message.properties.number(id::PAYLOAD_FORMAT) == Some(1),
            "{message:?}"
        );
        ensure!(
            message.properties.text(id::CONTENT_TYPE) == Some("My name"),
            "{message:?}"
        );
    }
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn messages_expire_while_they_wait() -> Result<()> {
    let name = fresh("message-expiry");
    let lasting = Hello::new(VERSION, &name).resume();
    let lasting = lasting.with(Properties::none().four(id::SESSION_EXPIRY, 600));
    let (mut sleeper, _) = Client::connect(Server::shared(), &lasting)?;
    sleeper.subscribe(&name, 2)?;
    sleeper.disconnect()?;
    let mut writer = connect(&format!("{name}-writer"))?;
    let expiry = |seconds| Properties::none().four(id::MESSAGE_EXPIRY, seconds);
    for (seconds, word) in [(1, "expires"), (60, "stays")] {
        for qos in 1..3 {
            writer.publish_as(publish(
                &name,
                &format!("{word} {qos}"),
                qos,
                expiry(seconds),
            ))?;
        }
    }
    wait::let_run(Duration::from_millis(2_500));
    let (mut sleeper, _) = Client::connect(Server::shared(), &lasting)?;
    let messages = sleeper.exactly(2)?;
    ensure!(
        payloads(&messages) == ["stays 1", "stays 2"],
        "{messages:?}"
    );
    for message in messages {
        let left = message.properties.number(id::MESSAGE_EXPIRY);
        ensure!(
            left.is_some_and(|left| (30..60).contains(&left)),
            "{message:?}"
        );
    }
    sleeper.disconnect_with(&Properties::none().four(id::SESSION_EXPIRY, 0))
}

#[test]
#[ignore = "system test: make test"]
fn no_local_keeps_ones_own_messages_away() -> Result<()> {
    let name = fresh("no-local");
    let (mut one, mut other) = (connect(&name)?, connect(&format!("{name}-other"))?);
    one.subscribe(&name, 2 | NO_LOCAL)?;
    other.subscribe(&name, 2 | NO_LOCAL)?;
    one.publish(&name, "mine", 1)?;
    other.exactly(1).context("the other")?;
    one.nothing_more()
}

#[test]
#[ignore = "system test: make test"]
fn retain_as_published_keeps_the_flag() -> Result<()> {
    let name = fresh("as-published");
    let (mut client, mut other) = (connect(&name)?, connect(&format!("{name}-other"))?);
    client.subscribe(&name, 2 | RETAIN_AS_PUBLISHED)?;
    other.subscribe(&name, 2)?;
    client.publish(&name, "false", 1)?;
    client.retain(&name, "true", 1)?;
    for message in client.exactly(2)? {
        ensure!(
            message.is_retained == (text(&message) == "true"),
            "{message:?}"
        );
    }
    for message in other.exactly(2)? {
        ensure!(!message.is_retained, "{message:?}");
    }
    client.retain(&name, "", 1).map(drop)
}

#[test]
#[ignore = "system test: make test"]
fn retain_handling_says_who_gets_retained_messages() -> Result<()> {
    let name = fresh("handling");
    let filter = format!("{name}/+");
    let mut writer = connect(&format!("{name}-writer"))?;
    publish_one_of_each(&mut writer, &name, true)?;
    // options, how many the first subscription gives, and how many the same once more
    for (options, first, again) in [(RETAINED_IF_NEW, 3, 0), (RETAINED_NEVER, 0, 0), (0, 3, 3)] {
        let mut client = connect(&name)?;
        for count in [first, again] {
            client.subscribe(&filter, 2 | options)?;
            let messages = client
                .exactly(count)
                .with_context(|| format!("options {options}"))?;
            let mut qualities: Vec<_> = messages.iter().map(|message| message.qos).collect();
            qualities.sort_unstable();
            ensure!(count == 0 || qualities == [0, 1, 2], "{qualities:?}");
        }
        client.disconnect()?;
    }
    (0..3).try_for_each(|qos| writer.retain(&format!("{name}/{qos}"), "", 0).map(drop))
}

#[test]
#[ignore = "system test: make test"]
fn a_message_names_each_subscription_that_it_matched() -> Result<()> {
    let name = fresh("identifiers");
    let numbered =
        |number| Properties::none().with(id::SUBSCRIPTION_ID, Property::Variable(number));
    let (mut one, mut other) = (connect(&name)?, connect(&format!("{name}-other"))?);
    one.subscribe_to(&[(name.as_str(), 2)], &numbered(456_789))?;
    other.subscribe_to(&[(name.as_str(), 2)], &numbered(2))?;
    let wide = format!("{name}/#");
    other.subscribe_to(&[(wide.as_str(), 2)], &numbered(3))?;
    other.publish(&name, "identify", 1)?;
    let messages = one.exactly(1).context("one subscription")?;
    let ids = messages[0].properties.numbers(id::SUBSCRIPTION_ID);
    ensure!(ids == [456_789], "{ids:?}");
    let messages = other.exactly(1).context("two subscriptions")?;
    let mut ids = messages[0].properties.numbers(id::SUBSCRIPTION_ID);
    ids.sort_unstable();
    ensure!(ids == [2, 3], "{ids:?}");
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn requests_carry_where_the_response_goes() -> Result<()> {
    let name = fresh("request");
    let (mut asker, mut answerer) = (connect(&name)?, connect(&format!("{name}-other"))?);
    asker.subscribe(&name, 2 | NO_LOCAL)?;
    answerer.subscribe(&name, 2 | NO_LOCAL)?;
    let properties = Properties::none()
        .with(id::RESPONSE_TOPIC, Property::Text(name.clone()))
        .with(id::CORRELATION_DATA, Property::Binary(b"334".to_vec()));
    asker.publish_as(publish(&name, "request", 1, properties))?;
    let request = answerer.exactly(1)?.remove(0);
    ensure!(
        request.properties.text(id::RESPONSE_TOPIC) == Some(&name),
        "{request:?}"
    );
    let correlation = request.properties.find(id::CORRELATION_DATA);
    ensure!(
        correlation == Some(&Property::Binary(b"334".to_vec())),
        "{request:?}"
    );
    answerer.publish_as(publish(&name, "response", 1, request.properties.clone()))?;
    let response = asker.exactly(1)?.remove(0);
    ensure!(text(&response) == "response", "{response:?}");
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn clients_may_use_topic_aliases() -> Result<()> {
    let name = fresh("alias");
    let alias = |number| Properties::none().two(id::TOPIC_ALIAS, number);
    // 0 is none
    let mut client = connect(&name)?;
    client.send(&publish(&name, "alias 0", 0, alias(0)).encode(VERSION))?;
    let code = client.wait_closed(LIMIT)?;
    ensure!(
        code.is_none_or(|code| WRONG_ALIAS.contains(&code)),
        "{code:?}"
    );

    let lasting = Properties::none().four(id::SESSION_EXPIRY, 600);
    let (mut client, welcome) = connect_with(&name, lasting.clone())?;
    let most = welcome
        .properties
        .number(id::TOPIC_ALIAS_MAXIMUM)
        .unwrap_or(0);
    ensure!(most > 0, "no aliases: {welcome:?}");
    client.subscribe(&name, 2)?;
    client.publish_as(publish(&name, "sets it", 1, alias(1)))?;
    client.publish_as(publish("", "uses it", 1, alias(1)))?;
    for message in client.exactly(2)? {
        ensure!(message.topic == name, "{message:?}");
    }
    client.disconnect()?;
    // the session lives, the alias does not
    let hello = Hello::new(VERSION, &name).resume().with(lasting);
    let (mut client, welcome) = Client::connect(Server::shared(), &hello)?;
    ensure!(welcome.is_session_present, "{welcome:?}");
    client.publish(&name, "by name", 1)?;
    client.exactly(1)?;
    let mut publish = publish("", "nowhere", 1, alias(1));
    publish.id = 900;
    client.send(&publish.encode(VERSION))?;
    let code = client.wait_closed(LIMIT)?;
    ensure!(
        code.is_none_or(|code| WRONG_ALIAS.contains(&code)),
        "{code:?}"
    );
    connect(&name)?.disconnect()
}

#[test]
#[ignore = "system test: make test"]
fn more_aliases_than_allowed_end_the_connection() -> Result<()> {
    let name = fresh("aliases");
    let (mut client, welcome) = connect_with(&name, Properties::none())?;
    let most = welcome
        .properties
        .number(id::TOPIC_ALIAS_MAXIMUM)
        .unwrap_or(0);
    let Ok(beyond) = u16::try_from(most + 1) else {
        return Ok(());
    };
    let properties = Properties::none().two(id::TOPIC_ALIAS, beyond);
    client.send(&publish(&name, "", 0, properties).encode(VERSION))?;
    let code = client.wait_closed(LIMIT)?;
    ensure!(
        code.is_none_or(|code| code == TOPIC_ALIAS_INVALID),
        "{code:?}"
    );
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn the_broker_uses_aliases_where_it_may() -> Result<()> {
    let name = fresh("server-alias");
    let (mut client, _) = connect_with(&name, Properties::none().two(id::TOPIC_ALIAS_MAXIMUM, 1))?;
    client.subscribe(&name, 2)?;
    for qos in 0..3 {
        client.publish(&name, "aliased", qos)?;
    }
    for (number, message) in client.exactly(3)?.into_iter().enumerate() {
        let alias = message.properties.number(id::TOPIC_ALIAS);
        ensure!(alias == Some(1), "message {number}: {message:?}");
        let topic = if number == 0 { name.as_str() } else { "" };
        ensure!(message.topic == topic, "message {number}: {message:?}");
    }
    client.disconnect()
}

#[test]
#[ignore = "system test: make test"]
fn the_broker_uses_no_aliases_where_it_may_not() -> Result<()> {
    let none = [
        Properties::none(),
        Properties::none().two(id::TOPIC_ALIAS_MAXIMUM, 0),
    ];
    for properties in none {
        let name = fresh("no-alias");
        let (mut client, _) = connect_with(&name, properties)?;
        client.subscribe(&name, 2)?;
        for qos in 0..3 {
            client.publish(&name, "plain", qos)?;
        }
        for message in client.exactly(3)? {
            ensure!(
                message.properties.number(id::TOPIC_ALIAS).is_none(),
                "{message:?}"
            );
            ensure!(message.topic == name, "{message:?}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn packets_beyond_the_brokers_maximum_end_the_connection() -> Result<()> {
    let name = fresh("too-large");
    let (mut client, welcome) = connect_with(&name, Properties::none())?;
    let Some(most) = welcome.properties.number(id::MAXIMUM_PACKET_SIZE) else {
        return Ok(());
    };
    // its beginning is enough, and whole it would not be read
    let mut bytes = vec![kind::PUBLISH << 4];
    let mut left = most;
    while left > 0 {
        let low = u8::try_from(left % 128)?;
        left /= 128;
        bytes.push(if left > 0 { low | 128 } else { low });
    }
    client.send(&bytes)?;
    let code = client.wait_closed(LIMIT)?;
    ensure!(code.is_none_or(|code| code == PACKET_TOO_LARGE), "{code:?}");
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn packets_beyond_the_clients_maximum_are_not_sent() -> Result<()> {
    let name = fresh("small");
    let properties = Properties::none().four(id::MAXIMUM_PACKET_SIZE, 128);
    let (mut client, _) = connect_with(&name, properties)?;
    client.subscribe(&name, 2)?;
    client.publish(&name, &".".repeat(64), 0)?;
    client.publish(&name, &".".repeat(128), 1)?;
    client.publish(&name, "after it", 1)?;
    let lengths: Vec<_> = client
        .exactly(2)?
        .iter()
        .map(|each| each.payload.len())
        .collect();
    ensure!(lengths == [64, 8], "{lengths:?}");
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn a_long_keep_alive_is_shortened() -> Result<()> {
    let hello = Hello::new(VERSION, &fresh("keep-alive")).keep_alive(2 * MAX_KEEP_ALIVE_S);
    let (client, welcome) = Client::connect(Server::shared(), &hello)?;
    let given = welcome.properties.number(id::SERVER_KEEP_ALIVE);
    ensure!(given == Some(u32::from(MAX_KEEP_ALIVE_S)), "{welcome:?}");
    client.disconnect()
}

#[test]
#[ignore = "system test: make test"]
fn no_more_is_in_flight_than_the_client_takes() -> Result<()> {
    const MOST: u16 = 2;
    let name = fresh("flow");
    let (mut reader, _) = connect_with(&name, Properties::none().two(id::RECEIVE_MAXIMUM, MOST))?;
    reader.subscribe(&name, 2)?;
    let mut writer = connect(&format!("{name}-writer"))?;
    for number in 0..=MOST {
        writer.publish(&name, &format!("message {number}"), 1)?;
    }
    let next = |reader: &mut Client| match reader.packet(LIMIT)? {
        Some(Packet::Publish(publish)) => Ok(publish),
        other => anyhow::bail!("{other:?} instead of a message"),
    };
    let (first, second) = (next(&mut reader)?, next(&mut reader)?);
    ensure!((first.qos, second.qos) == (1, 1), "{first:?}, {second:?}");
    // the third waits for an acknowledgement
    reader.nothing_more()?;
    reader.send(&packet::ack(kind::PUBACK, first.id))?;
    let third = next(&mut reader)?;
    ensure!(text(&third) == "message 2", "{third:?}");
    for each in [second, third] {
        reader.send(&packet::ack(kind::PUBACK, each.id))?;
    }
    reader.disconnect()
}

#[test]
#[ignore = "system test: make test"]
fn more_in_flight_than_the_broker_takes_ends_the_connection() -> Result<()> {
    let name = fresh("flood");
    let (mut client, welcome) = connect_with(&name, Properties::none())?;
    let most = welcome
        .properties
        .number(id::RECEIVE_MAXIMUM)
        .unwrap_or(65_535);
    let mut all = Vec::new();
    for number in 1..=most + 1 {
        // QoS 2 and no PUBREL: each counts until PUBCOMP
        let mut publish = publish(&name, "", 2, Properties::none());
        publish.id = u16::try_from(number).unwrap_or(1);
        all.extend(publish.encode(VERSION));
    }
    client.send(&all)?;
    let code = client.wait_closed(LIMIT)?;
    ensure!(
        code.is_none_or(|code| code == RECEIVE_MAXIMUM_EXCEEDED),
        "{code:?}"
    );
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn a_will_is_published_after_its_delay_or_with_the_end_of_the_session() -> Result<()> {
    // delay and session expiry, and when the will is due, seconds
    for (delay, expiry, due) in [(1, 600, 1.0), (600, 0, 0.0), (600, 1, 1.0)] {
        let name = fresh("will-delay");
        let will = Properties::none().four(id::WILL_DELAY, delay);
        let hello = Hello::new(VERSION, &name)
            .with(Properties::none().four(id::SESSION_EXPIRY, expiry))
            .will(&name, "farewell", will);
        let (client, _) = Client::connect(Server::shared(), &hello)?;
        let mut heir = connect(&format!("{name}-heir"))?;
        heir.subscribe(&name, 2)?;
        client.vanish();
        let gone = Instant::now();
        let message = heir.message_within(Duration::from_secs(5));
        let message = message.with_context(|| format!("delay {delay} s, expiry {expiry} s"))?;
        let took = gone.elapsed().as_secs_f64();
        ensure!(text(&message) == "farewell", "{message:?}");
        // clocks of whole seconds are allowed, and a busy machine
        ensure!(
            (due - 0.05..due + 2.5).contains(&took),
            "delay {delay} s, expiry {expiry} s: published after {took:.2} s"
        );
    }
    Ok(())
}

#[test]
#[ignore = "system test: make test"]
fn a_will_is_not_published_when_the_client_is_back_before_its_delay() -> Result<()> {
    let name = fresh("will-back");
    let will = Properties::none().four(id::WILL_DELAY, 1);
    let hello = Hello::new(VERSION, &name)
        .with(Properties::none().four(id::SESSION_EXPIRY, 600))
        .will(&name, "farewell", will);
    let mut heir = connect(&format!("{name}-heir"))?;
    heir.subscribe(&name, 2)?;
    let (client, _) = Client::connect(Server::shared(), &hello)?;
    client.vanish();
    let (client, welcome) = Client::connect(Server::shared(), &hello.resume())?;
    ensure!(welcome.is_session_present, "{welcome:?}");
    wait::let_run(Duration::from_millis(1_500));
    heir.nothing_more()?;
    client.disconnect_with(&Properties::none().four(id::SESSION_EXPIRY, 0))
}

#[test]
#[ignore = "system test: make test"]
fn a_shared_subscription_gives_each_message_to_one() -> Result<()> {
    const COUNT: usize = 20;
    let name = fresh("shared");
    let shared = format!("$share/{name}/{name}/x");
    let plain = format!("{name}/plain");
    let (mut one, mut other) = (connect(&name)?, connect(&format!("{name}-other"))?);
    for client in [&mut one, &mut other] {
        client.subscribe(&shared, 2)?;
        client.subscribe(&plain, 2)?;
    }
    let mut writer = connect(&format!("{name}-writer"))?;
    writer.publish(&plain, "to both", 1)?;
    one.exactly(1).context("one")?;
    other.exactly(1).context("the other")?;
    for number in 0..COUNT {
        writer.publish(&format!("{name}/x"), &format!("{number:02}"), 1)?;
    }
    let mut all = Vec::new();
    let deadline = Instant::now() + LIMIT;
    while all.len() < COUNT {
        ensure!(Instant::now() < deadline, "{} came", all.len());
        for client in [&mut one, &mut other] {
            all.extend(client.message_within(Duration::from_millis(50)));
        }
    }
    one.nothing_more()?;
    other.nothing_more()?;
    let expected: Vec<_> = (0..COUNT).map(|number| format!("{number:02}")).collect();
    ensure!(payloads(&all) == expected, "{all:?}");
    Ok(())
}
