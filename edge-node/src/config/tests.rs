//! The example file says the truth, and bad files say what is wrong.

use shared::class::Class;
use shared::config::{ConfigError, Document};

use super::*;
use crate::store::OnFull;

const EXAMPLE: &str = include_str!("../../../deploy/config/edge.toml");
const LEAST: &str = "[uplink]\nhubs = [\"hub.example.com:7443\"]\n";

fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let env = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::from_document(Document::parse(text, "test.toml", env)?)
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
    let mut document = Document::parse(&text, "edge.toml", []).unwrap();
    read::config(&mut document);
    let known = document.known_keys();
    document.finish().unwrap();
    let written = written_keys(&text);
    let missing: Vec<_> = known.iter().filter(|key| !written.contains(key)).collect();
    assert!(known.len() > 40, "{known:?}");
    assert!(missing.is_empty(), "not in the example: {missing:?}");
}

/// Keys of a document as they are written, with `[]` for lists of tables.
fn written_keys(text: &str) -> Vec<String> {
    let mut section = String::new();
    let mut lists: Vec<String> = Vec::new();
    let mut keys = Vec::new();
    // tables inside a list's tables are written without saying so
    let full = |name: &str, lists: &[String]| {
        let inside = |list: &&String| name.starts_with(&format!("{list}."));
        lists.iter().find(inside).map_or_else(
            || name.to_owned(),
            |list| name.replacen(list.as_str(), &format!("{list}[]"), 1),
        )
    };
    for line in text.lines() {
        if let Some(name) = line
            .strip_prefix("[[")
            .and_then(|line| line.strip_suffix("]]"))
        {
            keys.push(full(name, &lists));
            section = format!("{}[]", full(name, &lists));
            lists.push(name.to_owned());
        } else if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            keys.push(full(name, &lists));
            section = full(name, &lists);
        } else if let Some((key, _)) = line.split_once(" = ") {
            keys.push(format!("{section}.{key}"));
        }
    }
    keys
}

#[test]
fn a_file_with_many_mistakes_reports_them_all() {
    let text = problems(
        "[store]\nquota = \"1MiB\"\nqueue = \"2 apples\"\n[topics.default]\nretention = \"forever\"\n\
         [[topics.rule]]\npartitions = 0\n[kafka]\nlisten = \"localhost\"\nmax_conections = 3\n\
         [uplink]\nlevel = 99\nhubs = [\"hub\", \"ok:1\"]\n[log]\nlevel = \"=\"\n[amqp]\nlisten = 1\n",
    );
    for part in [
        "store.quota = \"1MiB\": out of range; accepted: 16MiB to",
        "store.queue = \"2 apples\": not a size",
        "topics.default.retention = \"forever\": not a duration",
        "or \"unlimited\"",
        "topics.rule[0].match: missing; for example match = \"sensors.*\"",
        "topics.rule[0].partitions = 0: out of range; accepted: a whole number from 1 to 256",
        "kafka.listen = \"localhost\": not an address and a port; for example \"127.0.0.1:9092\"",
        "kafka.max_conections: no such key; did you mean `max_connections`?",
        "uplink.level = 99: out of range; accepted: a whole number from 1 to 19",
        "uplink.hubs[0] = \"hub\": not a host and port",
        "log.level = \"=\": not a log filter",
        "amqp: no such key; accepted: node, store, topics, access, kafka, http, mqtt, policy, uplink, \
         admin, log",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn values_that_do_not_fit_each_other_are_reported() {
    let text = problems(
        "[store]\nqueue = \"2MiB\"\n\
         [uplink]\nhubs = [\"h:1\"]\nbackoff_min = \"40s\"\n[topics.default]\nmax_batch = \"4MiB\"\n\
         [http]\nlisten = \"127.0.0.1:9092\"\n[kafka]\nmax_request = \"1MiB\"\n",
    );
    for part in [
        "uplink.backoff_min = \"40s\": larger than backoff_max = 30s",
        "store.queue: 2MiB is less than the largest max_batch of a topic = 4MiB",
        "kafka.max_request: 1MiB is less than",
        "http.listen: 127.0.0.1:9092 is also kafka.listen",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn a_hub_is_required_unless_the_uplink_is_off() {
    assert!(problems("").contains("uplink.hubs: missing; for example hubs ="));
    assert_eq!(
        load("[uplink]\nenabled = false\n", &[]).unwrap().uplink,
        None
    );
    let text = problems("[uplink]\nhubs = [\"hub\"]\n");
    assert!(
        text.contains("hubs[0]") && !text.contains("missing"),
        "{text}"
    );
}

#[test]
fn the_environment_wins() {
    let env = [
        ("KEDGE_UPLINK__HUBS", "a:1,b:2"),
        ("KEDGE_NODE__DATA_DIR", "/data"),
        ("KEDGE_STORE__QUOTA", "64MiB"),
        ("KEDGE_TOPICS__DEFAULT__RETENTION", "unlimited"),
        (
            "KEDGE_TOPICS__RULE",
            "[{ match = \"logs.*\", on_full = \"drop-oldest\", live_first = true }]",
        ),
        ("KEDGE_HTTP__ENABLED", "false"),
        ("KEDGE_KAFKA__MAX_CONNECTIONS", "7"),
    ];
    let config = load("[store]\nquota = \"1GiB\"\n", &env).unwrap();
    assert_eq!(config.uplink.unwrap().hubs.len(), 2);
    assert_eq!(config.node.data_dir, PathBuf::from("/data"));
    assert_eq!(config.store.quota, ByteSize::mib(64));
    assert_eq!(config.topics.default.retention, None);
    assert_eq!(config.topics.settings("logs.a").on_full, OnFull::DropOldest);
    assert!(config.topics.settings("logs.a").live_first && config.topics.has_live_first());
    assert!(!config.topics.default.live_first);
    assert_eq!(config.http, None);
    assert_eq!(config.kafka.unwrap().max_connections, 7);
}

#[test]
fn the_first_rule_that_matches_decides() {
    let text = format!(
        "{LEAST}[topics]\nauto_create = false\n[topics.default]\nretention = \"1d\"\npartitions = 3\n\
         [[topics.rule]]\nmatch = \"alarms\"\nretention = \"30d\"\n\
         [[topics.rule]]\nmatch = \"a*\"\nauto_create = true\n"
    );
    let topics = load(&text, &[]).unwrap().topics;
    assert_eq!(topics.settings("alarms").retention, Some(Span::days(30)));
    assert_eq!(topics.settings("alarms").partitions, 3);
    assert_eq!(topics.settings("other").retention, Some(Span::days(1)));
    assert!(topics.may_create("abc") && !topics.may_create("alarms") && !topics.may_create("x"));
    let declared: Vec<_> = topics
        .declared()
        .map(|(name, _)| name.to_string())
        .collect();
    assert_eq!(declared, ["alarms"]);
    assert_eq!(
        topics.settings("alarms").rules().retention_ms,
        Some(30 * 86_400_000)
    );
}

#[test]
fn a_topic_has_the_class_of_its_rule_and_a_class_its_share() {
    let text = format!(
        "{LEAST}[uplink.classes]\nmin_share = 10\nbulk = {{ weight = 2, max_delay = \"5s\" }}\n\
         [uplink.classes.normal]\nmax_delay = \"1s\"\n[topics.default]\nclass = \"bulk\"\n\
         [[topics.rule]]\nmatch = \"alarms\"\nclass = \"critical\"\n[[topics.rule]]\nmatch = \"logs\"\n"
    );
    let config = load(&text, &[]).unwrap();
    assert_eq!(config.topics.settings("alarms").class, Class::Critical);
    assert_eq!(config.topics.settings("logs").class, Class::Bulk);
    let classes = config.uplink.unwrap().classes;
    let parts = Class::all().map(|class| classes.shares.per_mille(class));
    assert_eq!(parts, [720, 180, 100]);
    let delays = Class::all().map(|class| classes.max_delay[class]);
    let seconds = [0, 1, 5].map(|seconds| Some(std::time::Duration::from_secs(seconds)));
    assert_eq!(delays, seconds);
    let text = problems(
        "[uplink]\nhubs = [\"h:1\"]\n[uplink.classes]\nmin_share = 31\nnormal = { max_delay = \"1h\" }\n\
         bulk = { weight = 0 }\nurgent = { weight = 1 }\n[topics.default]\nclass = \"urgent\"\n",
    );
    for part in [
        "uplink.classes.min_share = 31: out of range; accepted: a whole number from 0 to 30",
        "uplink.classes.normal.max_delay = \"1h\": out of range; accepted: 0s to 10m",
        "uplink.classes.bulk.weight = 0: out of range",
        "uplink.classes.urgent: no such key",
        "topics.default.class = \"urgent\": not one of",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn paths_and_policies_are_read_and_checked() {
    let text = format!(
        "{LEAST}[[uplink.path]]\nname = \"wifi\"\ninterface = \"wlan0\"\n\
         [[uplink.path]]\nname = \"lte\"\nlocal = \"192.0.2.5\"\nrate_up = \"1Mbit\"\n\
         [uplink.path.allowance]\nbytes = \"2GB\"\n\
         [policy]\ntime_zone = \"Europe/Berlin\"\n"
    );
    let config = load(&text, &[]).unwrap();
    let rules = config.rules();
    let names: Vec<&str> = rules.paths.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["wifi", "lte"]);
    // the zone of a path that names none is the site's
    assert_eq!(rules.paths[1].1.zone, rules.site.zone);
    assert_eq!(
        rules.paths[1].1.allowance.map(|it| it.bytes.bytes()),
        Some(2_000_000_000)
    );
    let paths = config.uplink.unwrap().paths;
    assert_eq!(paths[0].bind, Bind::Interface("wlan0".to_owned()));
    assert_eq!(paths[1].bind, Bind::Local("192.0.2.5".parse().unwrap()));
    assert_eq!(load(LEAST, &[]).unwrap().rules().paths[0].0, ONLY_PATH);

    let text = problems(&format!(
        "{LEAST}[[uplink.path]]\nname = \"a\"\nlocal = \"0.0.0.0\"\n\
         [[uplink.path]]\nname = \"a\"\nlocal = \"192.0.2.5\"\ninterface = \"eth0\"\n\
         [[uplink.path]]\nname = \"b c\"\nfrom_hub = \"ignore\"\n"
    ));
    for part in [
        "uplink.path[0].local = \"0.0.0.0\": not an address of this machine",
        "uplink.path[1].name = \"a\": another path is named `a`",
        "uplink.path[1].interface = \"eth0\": `local` is given, too",
        "uplink.path[2].name = \"b c\": not a name",
        "uplink.path[2].from_hub: no such key",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
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

#[test]
fn users_are_checked_and_secrets_are_not_told() {
    let text = problems(
        "[uplink]\nenabled = false\n[[access.user]]\nname = \"a,b\"\ncredentials = [\"hunter2\"]\n\
         [[access.user]]\nname = \"x\"\ntokens = [\"hunter2\"]\n[[access.user]]\nname = \"x\"\n\
         common_name = \"c\"\nproduce = [\"a b\"]\n[[access.user]]\npassword_file = \"p\"\ncommon_name = \"c\"\n\
         produce = [\"c d\"]\nadmin = true\n",
    );
    for part in [
        "access.user[0].name = \"a,b\": not a user name; accepted: 1 to 128",
        "access.user[0].credentials[0]: not a credential; accepted: what `edge-node credential`",
        "access.user[1].tokens[0]: not a token's hash; accepted: what",
        "access.user[1].credentials: the user can't prove who it is; accepted: credentials,",
        "access.user[2].name = \"x\": another user has it",
        "access.user[2].produce[0] = \"a b\": not a name pattern",
        "access.user[3].name: missing; for example name = \"till-1\"",
        "access.user[3].common_name = \"c\": empty, or another user has it",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
    // what else is wrong with a user without a name, and no more than that
    assert!(
        text.contains("access.user[3].produce[0] = \"c d\": not a name pattern"),
        "{text}"
    );
    assert!(!text.contains("no such key"), "{text}");
}

/// A word that is no level would be taken for a module, and silence everything else.
#[test]
fn a_log_level_is_one_that_exists() {
    for level in ["verbose", "info,loud", "WARNING"] {
        let text = problems(&format!(
            "{LEAST}[log]\nlevel = \"{level}\"\nformat = \"xml\"\n"
        ));
        assert!(
            text.contains("not a log filter; accepted: off, error"),
            "{text}"
        );
        assert!(text.contains("log.format"), "{text}");
    }
    for level in [
        "info",
        "WARN",
        "off",
        "info,edge_node::kafka=debug",
        "edge_node[span]=trace,warn",
    ] {
        load(&format!("{LEAST}[log]\nlevel = \"{level}\"\n"), &[]).unwrap();
    }
}

/// A listener that says that it wants certificates and has no authority to hold them against would let everybody in.
#[test]
fn client_certificates_without_an_authority_are_refused() {
    for protocol in ["kafka", "mqtt"] {
        let listener = "listen = \"127.0.0.1:0\"\ncertificate = \"c.pem\"\nkey = \"k.pem\"\n";
        let text = format!(
            "{LEAST}[[{protocol}.listener]]\n{listener}client_certificates = \"required\"\n"
        );
        let problems = problems(&text);
        assert!(problems.contains("client_certificates"), "{problems}");
        assert!(problems.contains("accepted: with client_ca"), "{problems}");
    }
}

#[test]
fn quotas_of_users_and_listeners_are_read_and_checked() {
    let text = format!(
        "{LEAST}[access.anonymous]\nmax_topics = 0\n[[access.user]]\nname = \"x\"\ntokens = []\ncommon_name = \"x\"\n\
         producer_byte_rate = 65536\nconsumer_byte_rate = \"1MiB\"\nmax_connections = 3\n[kafka]\nmax_connections = 7\n\
         producer_byte_rate = \"1MiB\"\n[[kafka.listener]]\nlisten = \"127.0.0.1:9093\"\n[[mqtt.listener]]\n\
         listen = \"127.0.0.1:8883\"\nmax_connections = 5\n"
    );
    let config = load(&text, &[]).unwrap();
    let user = config.access.users[0].rules.limits;
    assert_eq!(user.producer_byte_rate, Some(ByteSize::kib(64)));
    assert_eq!(user.consumer_byte_rate, Some(ByteSize::mib(1)));
    assert_eq!((user.max_connections, user.max_topics), (Some(3), None));
    let anonymous = config.access.anonymous.unwrap();
    assert_eq!(anonymous.limits.max_topics, Some(0));
    let kafka = config.kafka.unwrap();
    assert_eq!(kafka.limits.producer_byte_rate, Some(ByteSize::mib(1)));
    assert_eq!(kafka.listeners[0].max_connections, 7);
    assert_eq!(kafka.listeners[0].limits, Limits::default());
    let mqtt = config.mqtt.unwrap();
    assert_eq!(mqtt.listeners[0].limits.max_connections, Some(5));
    let text = format!(
        "{LEAST}[[access.user]]\nname = \"x\"\ncommon_name = \"x\"\nproducer_byte_rate = 5\nmax_connections = 0\n\
         [http]\nconsumer_byte_rate = \"fast\"\n"
    );
    let told = problems(&text);
    for problem in [
        "access.user[0].producer_byte_rate = 5: out of range; accepted: 1KiB to 100GiB, or \"unlimited\"",
        "access.user[0].max_connections = 0: out of range; accepted: a whole number from 1 to 1000000",
        "http.consumer_byte_rate = \"fast\": not a size",
    ] {
        assert!(told.contains(problem), "{problem} in {told}");
    }
}
