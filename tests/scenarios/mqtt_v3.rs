//! MQTT 3.1.1 at a site: see [`mqtt_both`](super::mqtt_both).

use anyhow::{Result, ensure};
use system_tests::mqtt::client::LIMIT;
use system_tests::mqtt::{Client, Hello, Packet, Server, Version};

/// A test for each case that both versions have.
macro_rules! cases {
    ($($case:ident,)*) => {
        $(#[test]
        #[ignore = "system test: make test"]
        fn $case() -> anyhow::Result<()> {
            crate::mqtt_both::$case(super::VERSION)
        })*
    };
}

const VERSION: Version = Version::V3;

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

#[test]
#[ignore = "system test: make test"]
fn a_session_without_a_name_has_to_be_clean() -> Result<()> {
    let mut client = Client::open(Server::shared(), VERSION)?;
    client.send(&Hello::new(VERSION, "").resume().encode())?;
    match client.packet(LIMIT)? {
        // identifier rejected
        Some(Packet::ConnAck { code, .. }) => ensure!(code == 2, "return code {code}"),
        other => ensure!(other.is_none(), "{other:?}"),
    }
    client.wait_closed(LIMIT)?;
    let (client, welcome) = Client::connect(Server::shared(), &Hello::new(VERSION, ""))?;
    ensure!(!welcome.is_session_present, "{welcome:?}");
    client.disconnect()
}
