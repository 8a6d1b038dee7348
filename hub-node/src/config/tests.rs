//! The example file says the truth, and bad files say what is wrong.

use shared::config::{ConfigError, Document};

use super::*;

const EXAMPLE: &str = include_str!("../../../deploy/config/hub.toml");
const LEAST: &str = "[kafka]\nbootstrap = \"kafka-1.example.com:9092,kafka-2.example.com:9092\"\n";

fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let env = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let document = Document::parse(text, "test.toml", env)?;
    Config::from_document(document, Cluster::Configured)
}

fn problems(text: &str) -> String {
    load(text, &[]).unwrap_err().to_string()
}

/// The example with its optional keys switched on: lines that begin with `#` and no blank.
fn with_optional_keys() -> String {
    let switch_on = |line: &'static str| match line.strip_prefix('#') {
        Some(key) if !key.is_empty() && !key.starts_with(' ') => key,
        Some(_) | None => line,
    };
    EXAMPLE
        .lines()
        .map(switch_on)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_example_shows_the_defaults() {
    assert_eq!(load(EXAMPLE, &[]).unwrap(), load(LEAST, &[]).unwrap());
}

#[test]
fn the_example_shows_every_key() {
    let text = with_optional_keys();
    let mut document = Document::parse(&text, "hub.toml", []).unwrap();
    let config = read::config(&mut document, Cluster::Configured);
    let known = document.known_keys();
    document.finish().unwrap();
    let written = written_keys(&text);
    let missing: Vec<_> = known.iter().filter(|key| !written.contains(key)).collect();
    assert!(known.len() > 35, "{known:?}");
    assert!(missing.is_empty(), "not in the example: {missing:?}");
    assert_eq!(config.kafka.properties.0["security.protocol"], "SASL_SSL");
    assert!(
        config
            .sites
            .rule("shop-7")
            .unwrap()
            .allows_topic("sales.de")
    );
}

/// Keys of a document as they are written, with `[]` for lists of tables.
fn written_keys(text: &str) -> Vec<String> {
    let mut section = String::new();
    let mut keys = Vec::new();
    for line in text.lines() {
        if let Some(name) = line
            .strip_prefix("[[")
            .and_then(|line| line.strip_suffix("]]"))
        {
            keys.push(name.to_owned());
            section = format!("{name}[]");
        } else if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            keys.push(name.to_owned());
            name.clone_into(&mut section);
        } else if let Some((key, _)) = line.split_once(" = ") {
            keys.push(format!("{section}.{key}"));
        }
    }
    keys
}

#[test]
fn a_rule_has_its_own_limit_and_policy_and_the_others_the_default() {
    let text = format!(
        "{LEAST}[listen]\ningress = \"50MB\"\nsite_ingress = \"1MB\"\n\
         [[sites.rule]]\nmatch = \"ship-*\"\ningress = \"20kB\"\npolicy = '''\n[policy]\nrate_up = \"1Mbit\"\n'''\n\
         [[sites.rule]]\nmatch = \"lab-*\"\ningress = \"unlimited\"\n\
         [[sites.rule]]\nmatch = \"*\"\n"
    );
    let config = load(&text, &[]).unwrap();
    assert_eq!(config.listen.ingress, Some(ByteSize(50_000_000)));
    let limits = ["ship-1", "lab-1", "shop-1"].map(|site| config.sites.ingress_of(site));
    assert_eq!(limits, [Some(20_000), None, Some(1_000_000)]);
    let policy = config.sites.policy_for("ship-1").unwrap();
    assert_eq!(&*policy, "[policy]\nrate_up = \"1Mbit\"\n");
    assert_eq!(config.sites.policy_for("shop-1"), None);
    let everyone = load(&format!("{LEAST}[listen]\nsite_ingress = \"1MB\"\n"), &[]).unwrap();
    assert_eq!(everyone.sites.ingress_of("any"), Some(1_000_000));
}

#[test]
fn a_policy_that_every_site_refuses_is_refused_here() {
    let rule =
        |policy: &str| format!("{LEAST}[[sites.rule]]\nmatch = \"*\"\npolicy = '''\n{policy}'''\n");
    for (policy, part) in [
        ("[link]\n", "link: no such key"),
        ("rate_up = \"1Mbit\"\n", "rate_up: no such key"),
        ("policy = 5\n", "not a table"),
        ("[policy\n", "not valid TOML"),
        (
            "[policy]\nrate_up = \"1kbit\"\n",
            "policy.rate_up = \"1kbit\": out of range; accepted: 8kbit to",
        ),
        (
            "[policy]\nrate_pu = \"1Mbit\"\n",
            "policy.rate_pu: no such key; did you mean `rate_up`?",
        ),
        (
            "[[policy.window]]\ndays = [\"Monday\"]\n",
            "policy.window[0].days[0] = \"Monday\": not a day",
        ),
        (
            "[policy]\ntime_zone = \"Berlin\"\n",
            "policy.time_zone = \"Berlin\": not a time zone; accepted:",
        ),
        (
            "[policy]\nclasses = []\n",
            "policy.classes = []: closed at all times",
        ),
    ] {
        let text = problems(&rule(policy));
        assert!(text.contains(part), "{part} in {text}");
        assert!(text.contains("\n  sites.rule[0].policy: "), "{text}");
    }
    let both = problems(&rule("[policy]\nrate_up = 5\nrate_down = \"fast\"\n"));
    assert!(both.starts_with("2 problems"), "{both}");
    let nested = "[policy]\nrate_up = \"1Mbit\"\n[[policy.window]]\nto = \"06:00\"\nclasses = []\n";
    load(&rule(nested), &[]).unwrap();
}

#[test]
fn a_file_with_many_mistakes_reports_them_all() {
    let text = problems(
        "[listen]\naddress = \"here\"\nidle_timeout = \"12s\"\nmemory = \"1MiB\"\n\
         [kafka]\ntopic_template = \"{host}\"\nreplication = 1000\n\
         [kafka.properties]\n\"acks\" = \"1\"\n\"sasl.password\" = \"hunter2\"\n\
         [commit]\nlanes = 0\nstep_down = \"5m\"\ncheckpoint_topic = \"kedge.dead-letters\"\n\
         [[sites.rule]]\nmatch = \"shop 1\"\ntopics = \"sales\"\ningress = \"1B\"\npolicy = \"up\"\n",
    );
    for part in [
        "listen.address = \"here\": ",
        "listen.idle_timeout = \"12s\": less than twice keep_alive = 4m",
        "listen.memory = \"1MiB\": out of range; accepted: 16MiB to 256GiB",
        "kafka.bootstrap: missing; for example bootstrap = \"kafka-1:9092,kafka-2:9092\"",
        "kafka.topic_template = \"{host}\": not a topic template; accepted: ",
        "kafka.replication = 1000: out of range; accepted: a whole number from 0 to 100",
        "kafka.properties.\"acks\": set by the hub itself",
        "commit.lanes = 0: out of range; accepted: a whole number from 1 to 256",
        "commit.step_down: 5m is larger than step_down_max = 2m",
        "commit.checkpoint_topic: kedge.dead-letters is also kafka.dead_letter_topic",
        "sites.rule[0].match = \"shop 1\": not a name pattern",
        "sites.rule[0].topics = \"sales\": not a list",
        "sites.rule[0].ingress = \"1B\": out of range; accepted: 1kB to 100GiB, or \"unlimited\"",
        "sites.rule[0].policy = \"up\": ",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn secrets_come_from_the_environment_and_stay_out_of_debug_output() {
    let env = [
        ("KEDGE_KAFKA__PROPERTIES__SASL_PASSWORD", "hunter2"),
        ("KEDGE_COMMIT__LANES", "8"),
    ];
    let config = load(LEAST, &env).unwrap();
    assert_eq!(config.kafka.properties.0["sasl.password"], "hunter2");
    assert_eq!(config.commit.lanes, 8);
    let shown = format!("{config:?}");
    assert!(
        shown.contains("sasl.password") && !shown.contains("hunter2"),
        "{shown}"
    );
}

#[test]
fn without_rules_every_site_is_let_in_and_with_rules_the_first_decides() {
    let everyone = load(LEAST, &[]).unwrap().sites;
    assert!(everyone.rule("any-site").unwrap().allows_topic("any.topic"));
    let text = format!(
        "{LEAST}[[sites.rule]]\nmatch = \"shop-13\"\nallow = false\n\
         [[sites.rule]]\nmatch = \"shop-*\"\ntopics = [\"sales.*\"]\n"
    );
    let sites = load(&text, &[]).unwrap().sites;
    assert!(sites.rule("shop-13").is_none() && sites.rule("train-1").is_none());
    let shop = sites.rule("shop-1").unwrap();
    assert!(shop.allows_topic("sales.de") && !shop.allows_topic("alarms"));
}

#[test]
fn the_embedded_cluster_needs_no_bootstrap() {
    let document = Document::parse("", "test.toml", []).unwrap();
    assert!(Config::from_document(document, Cluster::Embedded).is_ok());
}

#[test]
fn the_lanes_are_told_what_the_file_says() {
    let text = format!(
        "{LEAST}create_partitions = 3\npartition_by = \"site-partition\"\n[commit]\nlanes = 2\n"
    );
    let lanes = load(&text, &[]).unwrap().lanes();
    assert_eq!((lanes.lanes, lanes.topics.partitions), (2, Some(3)));
    assert_eq!(lanes.topics.replication_factor, None);
    assert_eq!(lanes.partition_rule, PartitionRule::Preserve);
    assert!(
        lanes
            .bootstrap_servers
            .starts_with("kafka-1.example.com:9092")
    );
}

#[test]
fn status_finds_the_admin_listener_of_a_broken_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("broken.toml");
    std::fs::write(
        &file,
        "[admin]\nlisten = \"127.0.0.1:7\"\n[nonsense]\nkey = 1\n",
    )
    .unwrap();
    assert_eq!(Config::load_admin(Some(&file)).unwrap().listen.port(), 7);
    std::fs::write(&file, "[admin]\nlisten = \"here\"\n[nonsense]\n").unwrap();
    let error = Config::load_admin(Some(&file)).unwrap_err().to_string();
    assert!(
        error.contains("admin.listen = \"here\"") && !error.contains("nonsense"),
        "{error}"
    );
}
