//! What is kept in files, and what is told of it.

use shared::config::Document;

use super::*;
use crate::uplink::shaper::Packets;

const NOW: i64 = 1_795_780_800_000;

/// A site in a directory, with an allowance.
fn config(dir: &Path) -> Config {
    config_with(dir, "[policy.allowance]\nbytes = \"100MB\"\n")
}

fn config_with(dir: &Path, policy: &str) -> Config {
    let text = file_with(dir, policy);
    Config::from_document(Document::parse(&text, "test.toml", []).unwrap()).unwrap()
}

fn file_with(dir: &Path, policy: &str) -> String {
    format!("[node]\ndata_dir = {dir:?}\n[uplink]\nhubs = [\"hub.example.com:7443\"]\n{policy}")
}

fn classes(words: &str) -> String {
    format!("[policy]\nclasses = [{words}]\n")
}

/// Pushes it and lets the keeper look.
async fn push(keeper: &mut Keeper, policies: &Policies, text: &str) {
    drop(policies.push(text.to_owned()));
    let pushed = keeper.pushed.recv().await.unwrap();
    keeper.take_pushed(pushed).await;
    keeper.publish(clocks(1));
}

#[test]
fn a_change_that_should_have_been_is_not_waited_for() {
    let second = TICK;
    assert_eq!(until_next([NOW - 5, NOW].into_iter(), NOW), second);
    assert_eq!(
        until_next([NOW - 5, NOW + 20, NOW + 30].into_iter(), NOW),
        Duration::from_millis(20)
    );
    assert_eq!(until_next([NOW + 86_400_000].into_iter(), NOW), second);
}

#[test]
fn damaged_counts_use_up_the_allowance_and_are_told_over_every_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let counts = dir.path().join(COUNTS);
    for damage in [Some(&b"KDGM\x00\x01 torn"[..]), None] {
        if let Some(bytes) = damage {
            std::fs::write(&counts, bytes).unwrap();
        }
        let (_keeper, policies, _in_use) = Keeper::new(&config);
        let view = policies.view();
        assert_eq!(view.allowances[0].used, 100_000_000);
        assert!(policies.decision(0).is_stopped());
        assert!(
            view.problems[0].contains("the allowance of site counts as used up"),
            "{:?}",
            view.problems
        );
    }
    let aside = std::fs::read(counts.with_extension("damaged")).unwrap();
    assert_eq!(aside, b"KDGM\x00\x01 torn");
}

#[test]
fn a_site_that_starts_for_the_first_time_has_all_of_its_allowance() {
    let dir = tempfile::tempdir().unwrap();
    let (_keeper, policies, _in_use) = Keeper::new(&config(dir.path()));
    let view = policies.view();
    assert_eq!(view.allowances[0].used, 0);
    assert_eq!(view.problems, Vec::<String>::new());
}

#[tokio::test]
async fn a_pushed_policy_that_is_refused_is_told_until_another_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, policies, _in_use) = Keeper::new(&config(dir.path()));
    push(&mut keeper, &policies, "[link]").await;
    let problems = policies.view().problems.clone();
    assert!(
        problems[0].contains("hub's policy") && problems[0].contains("link"),
        "{problems:?}"
    );
    push(&mut keeper, &policies, "[policy]\nrate_up = \"1Mbit\"\n").await;
    assert_eq!(policies.view().problems, Vec::<String>::new());
}

#[test]
fn a_kept_policy_that_cannot_be_used_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join(HUB_POLICY),
        "[policy]\nrate_up = \"1bit\"\n",
    )
    .unwrap();
    let (_keeper, policies, _in_use) = Keeper::new(&config(dir.path()));
    let view = policies.view();
    let problem = view.problems.first().expect("it is told");
    for part in [
        "the hub pushed earlier cannot be used",
        "policy.rate_up = \"1bit\"",
    ] {
        assert!(problem.contains(part), "{part} in {problem}");
    }
    assert_eq!(view.source, "file");
}

#[tokio::test]
async fn a_pushed_policy_that_leaves_no_class_beside_the_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_with(dir.path(), &classes("\"bulk\""));
    let (mut keeper, policies, _in_use) = Keeper::new(&config);
    push(&mut keeper, &policies, &classes("\"critical\"")).await;
    let view = policies.view();
    assert!(
        view.problems[0].contains("let no class be sent"),
        "{view:?}"
    );
    assert_eq!(view.source, "file");
    assert!(!policies.decision(0).is_stopped());
    assert!(!dir.path().join(HUB_POLICY).exists());
    push(&mut keeper, &policies, &classes("\"critical\", \"bulk\"")).await;
    let view = policies.view();
    assert_eq!((view.problems.len(), view.source), (0, "file and hub"));
}

#[tokio::test]
async fn a_kept_policy_holds_while_the_file_leaves_a_class_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.toml");
    std::fs::write(dir.path().join(HUB_POLICY), classes("\"critical\"")).unwrap();
    let bulk = file_with(dir.path(), &classes("\"bulk\""));
    let free = file_with(dir.path(), "");
    std::fs::write(&file, &bulk).unwrap();
    let config = Config::load(Some(&file)).unwrap();
    let (mut keeper, policies, _in_use) = Keeper::new(&config);
    let view = policies.view();
    assert!(
        view.problems[0].contains("let no class be sent"),
        "{view:?}"
    );
    assert!(!policies.decision(0).is_stopped());
    let whose = |view: &View| -> Vec<&str> { view.rules.over_all.iter().map(|it| it.0).collect() };
    assert_eq!(whose(&view), ["site"]);
    for (text, source, problems) in [(&free, "file and hub", 0), (&bulk, "file", 1)] {
        std::fs::write(&file, text).unwrap();
        keeper.reload().await;
        keeper.publish(clocks(1));
        let view = policies.view();
        assert_eq!((view.source, view.problems.len()), (source, problems));
        let is_used = source == "file and hub";
        assert_eq!(whose(&view).contains(&"hub"), is_used);
        assert!(!policies.decision(0).is_stopped());
    }
}

#[test]
fn another_file_with_the_same_date_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let (held, next) = (dir.path().join("edge.toml"), dir.path().join("next.toml"));
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for (file, text) in [(&held, "a = 1"), (&next, "a = 2")] {
        std::fs::write(file, text).unwrap();
        let opened = std::fs::File::options().write(true).open(file).unwrap();
        opened.set_modified(date).unwrap();
    }
    let before = stamp(&held);
    assert_eq!(stamp(&held), before);
    std::fs::rename(&next, &held).unwrap();
    assert!(before.is_some() && stamp(&held) != before);
}

/// An hour of Berlin in the file and one of UTC from the hub: the same in winter, not in summer.
#[test]
fn a_policy_of_the_hub_is_used_while_the_clocks_leave_something_beside_the_files() {
    const WINTER: i64 = 1_767_571_200_000;
    const SUMMER: i64 = WINTER + 180 * 86_400_000;
    let hour = |zone: &str, from: &str, to: &str| {
        format!(
            "[policy]\ntime_zone = \"{zone}\"\nclasses = []\n[[policy.window]]\nfrom = \"{from}\"\n\
             to = \"{to}\"\nclasses = [\"critical\"]\n"
        )
    };
    let dir = tempfile::tempdir().unwrap();
    let site = config_with(dir.path(), &hour("Europe/Berlin", "10:00", "11:00"));
    let (mut keeper, _policies, _in_use) = Keeper::new(&site);
    keeper.hub = policy::pushed(&hour("UTC", "09:00", "10:00")).unwrap();
    for (wall_ms, is_used) in [(WINTER, true), (SUMMER, false), (WINTER, true)] {
        let now = Clocks {
            wall_ms,
            ..clocks(1)
        };
        keeper.look_at_hub(now);
        assert_eq!(keeper.has_hub_policy, is_used);
        assert_eq!(keeper.unused_problem.is_none(), is_used);
    }
}

/// While a small allowance is used fast, its fence is met all the time.
#[tokio::test]
async fn the_file_is_read_again_while_an_allowance_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.toml");
    let spends = "[policy]\nrate_up = \"8Mbit\"\n[policy.allowance]\nbytes = \"50MB\"\n";
    std::fs::write(&file, file_with(dir.path(), spends)).unwrap();
    let config = Config::load(Some(&file)).unwrap();
    let (keeper, policies, _in_use) = Keeper::new(&config);
    let shaper = Arc::clone(&policies.shapers[0]);
    let packet = Packets::udp(1_400, None, "192.0.2.1:7443".parse().unwrap());
    let sends = async {
        loop {
            shaper.admit(packet).await;
        }
    };
    let closed = spends.replace("8Mbit\"", "8Mbit\"\nclasses = []");
    std::fs::write(&file, file_with(dir.path(), &closed)).unwrap();
    let mut seen = policies.view.clone();
    let closes = async {
        while !policies.decision(0).is_stopped() {
            seen.changed().await.unwrap();
        }
    };
    tokio::select! {
        () = keeper.run(CancellationToken::new()) => panic!("it ended"),
        () = sends => {}
        closes = tokio::time::timeout(5 * FILE_EVERY, closes) => {
            assert!(closes.is_ok(), "{:?}", policies.view());
        }
    }
}

#[test]
fn settings_that_need_a_restart_are_named_and_those_of_a_policy_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.toml");
    let read = |text: &str| {
        std::fs::write(&file, text).unwrap();
        settings_of(&file)
    };
    let before = read(
        "[uplink]\nhubs = [\"a:1\"]\n[policy]\nrate_up = \"1Mbit\"\n[[uplink.path]]\nname = \"x\"\n",
    );
    let policy = read(
        "# one\n[policy]\nclasses = []\n[uplink]\nhubs = [ \"a:1\" ]\n[[uplink.path]]\nname = \"x\"\nrate_up = \"2Mbit\"\n",
    );
    assert_eq!(differing(&before, &policy), Vec::<String>::new());
    let others = read(
        "[uplink]\nhubs = [\"b:1\"]\n[uplink.classes.normal]\nmax_delay = \"5s\"\n[[topics.rule]]\nmatch = \"t\"\n",
    );
    assert_eq!(
        differing(&before, &others),
        [
            "topics.rule",
            "uplink.classes.normal.max_delay",
            "uplink.hubs"
        ]
    );
}
