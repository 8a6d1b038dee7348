use proptest::prelude::*;

use super::*;

fn rule(filter: &str, kafka: &str, key: &str, topic: Option<&str>) -> Rule {
    Rule {
        filter: filter.to_owned(),
        key: key.parse().unwrap(),
        topic: topic.map(|topic| topic.parse().unwrap()),
        ..Rule::everything(TopicName::new(kafka).unwrap())
    }
}

fn rest() -> TopicName {
    TopicName::new("mqtt_messages").unwrap()
}

fn refused(rules: Vec<Rule>) -> String {
    TopicMap::new(rules, Some(rest())).unwrap_err().to_string()
}

#[test]
fn the_first_rule_that_matches_decides() {
    let map = TopicMap::new(
        vec![
            rule("plant/+/temperature", "temperature", "{topic}", None),
            rule("plant/#", "plant", "{1}", None),
        ],
        Some(rest()),
    )
    .unwrap();
    let of = |topic: &str| {
        let rule = map.rule(topic).unwrap();
        (
            rule.kafka.as_str().to_owned(),
            map.key(rule, topic).into_owned(),
        )
    };
    let pair = |kafka: &str, key: &str| (kafka.to_owned(), key.to_owned());
    assert_eq!(
        of("plant/a/temperature"),
        pair("temperature", "plant/a/temperature")
    );
    assert_eq!(of("plant/a/speed"), pair("plant", "a/speed"));
    assert_eq!(of("other"), pair("mqtt_messages", "other"));
    assert_eq!(of("$x/other"), pair("mqtt_messages", "$x/other"));
    let topics: Vec<_> = map.kafka_topics().map(TopicName::as_str).collect();
    assert_eq!(topics, ["temperature", "plant", "mqtt_messages"]);
}

#[test]
fn a_rule_for_everything_takes_no_dollar_topics() {
    let rules = vec![
        rule("#", "a", "{topic}", None),
        rule("$dev/+", "b", "{1}", Some("$dev/{key}")),
    ];
    let map = TopicMap::new(rules, Some(rest())).unwrap();
    let of = |topic: &str| map.rule(topic).unwrap().kafka.as_str().to_owned();
    assert_eq!((of("x"), of("$dev/x")), ("a".to_owned(), "b".to_owned()));
    assert_eq!(of("$other"), "mqtt_messages");
    let (topic, _) = map.back("b", Some(b"x"), None).unwrap();
    assert_eq!(&*topic, "$dev/x");
}

#[test]
fn records_can_not_pretend_to_be_the_nodes_own_messages() {
    let map = TopicMap::new(Vec::new(), Some(rest())).unwrap();
    for (key, is_there) in [
        ("$SYS/broker/version", false),
        ("$SYS", false),
        ("$SYSX/a", true),
    ] {
        let back = map.back("mqtt_messages", Some(key.as_bytes()), None);
        assert_eq!(back.is_some(), is_there, "{key}");
    }
}

#[test]
fn topics_that_nobody_can_publish_to_and_kafkas_own_are_refused() {
    for topic in ["a/#", "", "+", "$SYS/{key}"] {
        let text = refused(vec![rule("a/+", "t", "{1}", Some(topic))]);
        assert!(text.contains("no topic that can be published to"), "{text}");
    }
    let text = refused(vec![rule("a/+", "__consumer_offsets", "{topic}", None)]);
    assert!(text.contains("`__` are not for sites"), "{text}");
}

#[test]
fn a_key_counts_only_wildcards_that_the_filter_has() {
    let map = |filter, key| TopicMap::new(vec![rule(filter, "t", key, None)], Some(rest()));
    for (filter, key) in [
        ("plant/+/x", "{2}"),
        ("plant/a", "{1}"),
        ("+/b/#", "{1}-{3}"),
    ] {
        let error = map(filter, key).unwrap_err();
        assert_eq!(error.key(), "key");
        assert!(error.to_string().contains("fewer wildcards"), "{error}");
    }
    map("+/b/#", "{1}-{2}").unwrap();
}

#[test]
fn a_record_has_the_mqtt_topic_that_leads_back_to_it() {
    let rules = vec![
        rule(
            "plant/+/temperature",
            "temperature",
            "{1}",
            Some("plant/{key}/temperature"),
        ),
        rule("line/#", "lines", "{1}", None),
    ];
    let map = TopicMap::new(rules, Some(rest())).unwrap();
    let back = |kafka: &str, key: &str, carried: Option<&str>| {
        map.back(kafka, Some(key.as_bytes()), carried)
            .map(|(topic, _)| topic.to_string())
    };
    assert_eq!(
        back("temperature", "a", None).as_deref(),
        Some("plant/a/temperature")
    );
    assert_eq!(
        back("temperature", "a/b", None),
        None,
        "it would be another topic's"
    );
    assert_eq!(back("temperature", "+", None), None);
    assert_eq!(
        back("lines", "x", None),
        None,
        "nothing says its MQTT topic"
    );
    assert_eq!(
        back("lines", "x", Some("line/x")).as_deref(),
        Some("line/x")
    );
    assert_eq!(back("mqtt_messages", "a/b", None).as_deref(), Some("a/b"));
    assert_eq!(back("mqtt_messages", "plant/a/temperature", None), None);
    assert_eq!(map.back("mqtt_messages", None, None), None);
}

#[test]
fn rules_that_loop_or_can_not_be_told_apart_are_refused() {
    let both = vec![
        rule("a/#", "x", "{topic}", None),
        rule("a/+", "y", "{topic}", None),
    ];
    assert!(refused(both).contains("never reached"));
    let looping = vec![
        rule("a/#", "x", "{topic}", None),
        rule("b/+", "y", "{1}", Some("a/{key}")),
    ];
    assert!(refused(looping).contains("would loop"));
    let elsewhere = vec![rule("b/+", "y", "{1}", Some("c/{key}"))];
    assert!(refused(elsewhere).contains("would loop"));
    let twice = vec![
        rule("a/+", "x", "{1}", Some("a/{key}")),
        rule("b/+", "x", "{topic}", None),
    ];
    assert!(refused(twice).contains("nobody knows"));
    let rest = vec![rule("a/+", "mqtt_messages", "{1}", None)];
    assert!(refused(rest).contains("nobody knows"));
    assert!(refused(vec![rule("a/#/b", "x", "{topic}", None)]).contains("not an MQTT"));
    assert!("{nothing}".parse::<Template>().is_err());
}

proptest! {
    #[test]
    fn a_message_comes_back_as_its_topic(topic in "[a-c]{1,2}(/[a-c]{0,2}){0,3}") {
        let rules = vec![
            rule("a/+", "x", "{1}", Some("a/{key}")),
            rule("b/#", "y", "k-{1}", None),
            rule("+/c", "z", "{topic}", None),
        ];
        let map = TopicMap::new(rules, Some(rest())).unwrap();
        let rule = map.rule(&topic).unwrap();
        let key = map.key(rule, &topic);
        let carried = map.needs_topic(rule).then_some(&*topic);
        let back = map.back(rule.kafka.as_str(), Some(key.as_bytes()), carried);
        prop_assert_eq!(back, Some((Arc::from(&*topic), rule)));
    }
}

#[test]
fn a_rule_that_takes_all_of_a_filter_leaves_nothing_to_those_behind_it() {
    let rules = vec![rule("plant/+/temperature", "temperature", "{topic}", None)];
    let map = TopicMap::new(rules, Some(rest())).unwrap();
    let behind = |filter: &'static str| -> Vec<String> {
        map.behind(filter).map(ToString::to_string).collect()
    };
    assert_eq!(behind("plant/+/temperature"), ["temperature"]);
    assert_eq!(behind("plant/1/temperature"), ["temperature"]);
    assert_eq!(behind("plant/#"), ["temperature", "mqtt_messages"]);
    assert_eq!(behind("other"), ["mqtt_messages"]);
}
