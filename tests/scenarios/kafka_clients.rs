//! Other people's Kafka clients at a site, each from its own registry and at its defaults: they write, read,
//! share a topic in a group, find their place again after the node was killed, and repeat what they got no
//! answer for without doubling it.
//!
//! `KEDGE_MATRIX_KAFKA=1` runs the same against Apache Kafka.

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use system_tests::cutter::PRODUCE;
use system_tests::kafka_node::{Node, PARTITIONS, fresh};
use system_tests::matrix::{
    LIMIT, Member, Program, Seen, check_once, check_once_in_order, check_order,
};
use system_tests::wait;

/// Two tests a client: `groups::NAME`, `retries::NAME`.
macro_rules! matrix {
    ($($test:ident => $program:ident,)*) => {
        mod groups {
            $(#[test]
            #[ignore = "system test: make test"]
            fn $test() -> anyhow::Result<()> {
                super::writes_reads_shares_and_goes_on(super::Program::$program)
            })*
        }

        mod retries {
            $(#[test]
            #[ignore = "system test: make test"]
            fn $test() -> anyhow::Result<()> {
                super::doubles_nothing_when_answers_are_lost(super::Program::$program)
            })*
        }
    };
}

matrix! {
    kcat => Kcat,
    confluent_kafka_python => ConfluentPython,
    kafka_python => KafkaPython,
    aiokafka => Aiokafka,
    kafkajs => Kafkajs,
    franz_go => FranzGo,
    sarama => Sarama,
    java => Java,
}

/// Produce and consume; a group of one, then of two, then of one; the node killed under it; a new member that
/// finds the offsets of those that are gone.
fn writes_reads_shares_and_goes_on(program: Program) -> Result<()> {
    let mut node = Node::start()?;
    let bootstrap = node.bootstrap();
    let (topic, group) = (fresh("matrix"), fresh("group"));
    program.produce(&bootstrap, &topic, 0, 200)?;
    let read = program.consume(&bootstrap, &topic, 200)?;
    check_once_in_order(&read, 0..200).context("consumed without a group")?;

    let mut first = Member::join(program, &bootstrap, &topic, &group)?;
    first.wait_assigned(PARTITIONS)?;
    first.wait_seen(0..200)?;
    let mut second = Member::join(program, &bootstrap, &topic, &group)?;
    wait_shared(&first, &second)?;
    program.produce(&bootstrap, &topic, 200, 100)?;
    wait::until_true("two members see all", LIMIT, || {
        first.seen().len() + second.seen().len() >= 300
    })?;
    second.commit()?;
    let mut seen = second.leave()?;
    first.wait_assigned(PARTITIONS)?;
    first.commit()?;
    node.wait_committed(&group, &topic, 300)?;
    let before = first.seen().len();
    for one in [&seen, &first.seen()] {
        check_order(one).context("a member of two")?;
    }
    seen.extend(first.seen());
    check_once(&seen, 0..300).context("two members")?;

    node.kill_and_restart()?;
    program.produce(&bootstrap, &topic, 300, 50)?;
    first.wait_seen(300..350).context("after the restart")?;
    first.commit()?;
    node.wait_committed(&group, &topic, 350)?;
    let since = first.leave()?.split_off(before);
    check_from(&since, 300).context("a member that lived through a restart")?;

    program.produce(&bootstrap, &topic, 350, 20)?;
    let mut third = Member::join(program, &bootstrap, &topic, &group)?;
    third.wait_seen(350..370)?;
    check_once_in_order(&third.leave()?, 350..370).context("a member that goes on")
}

/// Fails when something comes again from before the offset that was committed. What came after it may: a site
/// forgets its members when it is killed, and some clients read on before they hear that they have to join again.
fn check_from(seen: &[Seen], first: u64) -> Result<()> {
    let early: Vec<_> = seen.iter().filter(|record| record.value < first).collect();
    ensure!(early.is_empty(), "committed, and there again: {early:?}");
    let mut known = HashSet::new();
    let news = seen.iter().filter(|record| known.insert(record.value));
    check_order(&news.cloned().collect::<Vec<_>>())
}

/// Waits until two members hold all partitions between them, and each at least one.
fn wait_shared(first: &Member, second: &Member) -> Result<()> {
    let shared = wait::until_true("two members share", LIMIT, || {
        let (one, other) = (first.assigned(), second.assigned());
        let mut all = [one.clone(), other.clone()].concat();
        all.sort_unstable();
        !one.is_empty() && !other.is_empty() && all == [0, 1, 2]
    });
    shared.with_context(|| {
        format!(
            "they hold {:?} and {:?}",
            first.assigned(),
            second.assigned()
        )
    })
}

/// The connection is cut instead of the answer to a write, several times: what was sent again counts once.
fn doubles_nothing_when_answers_are_lost(program: Program) -> Result<()> {
    const LOST: u32 = 4;
    let node = Node::start()?;
    let bootstrap = node.bootstrap();
    let topic = fresh("retries");
    program.produce_idempotent(&bootstrap, &topic, 0, 10)?;
    // often, and not so often that one batch loses more answers than sarama's three retries
    node.cutter.lose_answers(PRODUCE, 7, LOST);
    program.produce_idempotent(&bootstrap, &topic, 10, 300)?;
    // kcat gathers what waits while it connects again, and so has fewer requests than the others
    let cuts = node.cutter.cuts();
    ensure!((2..=LOST).contains(&cuts), "{cuts} answers were lost");
    check_once_in_order(&node.read(&topic)?, 0..310)
}
