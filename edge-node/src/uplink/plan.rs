//! What the backlog will cost and when each topic will be caught up: the policy played forward.
//!
//! ```text
//!  now ──┬── window ends ──┬── 80 % of the allowance ──┬── a topic is done ──┬── next month ──►
//!        └ the rate and the classes that hold are constant between two of these
//! ```
//! Between two events each class that may leave has its share of the rate, what one leaves over the others
//! take, and the topics of a class share evenly. Records that arrive meanwhile are sent, too, so that a topic
//! is done when nothing of it waits. That is what the scheduler does in the mean; a link that breaks, other
//! records than those measured and a path that changes are not foreseen.
//!
//! Integers only, and time in milliseconds: the same backlog gives the same plan.

use serde::{Deserialize, Serialize};
use shared::class::{Class, ClassSet, ClassShares, PerClass};
use shared::units::BitRate;

use super::policy::{Action, Charged, Decision, Policy};

/// Beyond it a plan is a guess: topics that are not done by then have no end.
const HORIZON_MS: i64 = 400 * 86_400_000;
/// Events of one plan. A policy of many windows and a small rate has a few a day.
const MAX_STEPS: usize = 20_000;
/// The least step, so that rounding can't stand still.
const LEAST_STEP_MS: i64 = 1;

/// What waits of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    /// Its name.
    pub topic: String,
    /// Its class.
    pub class: Class,
    /// Records that wait.
    pub records: u64,
    /// Their bytes as stored.
    pub bytes: u64,
    /// Stored bytes that arrive in a second.
    pub arriving: u64,
}

/// What was measured on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Bytes in IP packets, both ways, for a million stored bytes.
    pub wire_per_million: u64,
    /// What the link carries when no policy slows it.
    pub link: BitRate,
    /// How classes share it.
    pub shares: ClassShares,
}

/// One policy with what was used of its allowance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Whose: for reasons.
    pub of: String,
    /// The policy.
    pub policy: Policy,
    /// Of its allowance.
    pub charged: Charged,
}

/// What will become of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicPlan {
    /// Its name.
    pub topic: String,
    /// Its class.
    pub class: String,
    /// Records that wait.
    pub records: u64,
    /// Their bytes as stored.
    pub bytes: u64,
    /// Bytes on the link until it is caught up, in IP packets.
    pub wire_bytes: u64,
    /// Wall clock when nothing of it will wait; `None`: not within 400 days.
    pub done_ms: Option<i64>,
    /// The same from now.
    pub takes_ms: Option<u64>,
    /// Of the smallest allowance that it counts against, in hundredths of a percent; may be above the whole.
    pub share_of_allowance: Option<u64>,
    /// Why it does not go at once, when its class must wait for a window or the next period.
    pub waits: Option<String>,
}

/// Plays the policies forward. `accounts` hold together: the site's, the hub's, the path's.
#[must_use]
pub fn plan(
    backlog: &[Backlog],
    accounts: &[Account],
    now_ms: i64,
    measured: Measured,
) -> Vec<TopicPlan> {
    let mut run = Run {
        now_ms,
        accounts: accounts.to_vec(),
        topics: backlog.iter().map(|it| Topic::new(it, measured)).collect(),
        measured,
    };
    for _ in 0..MAX_STEPS {
        run.finish();
        if run.topics.iter().all(|topic| topic.done_ms.is_some())
            || run.now_ms - now_ms > HORIZON_MS
        {
            break;
        }
        run.step();
    }
    let smallest = accounts
        .iter()
        .filter_map(|it| it.policy.allowance.as_ref());
    let smallest = smallest.map(|it| it.bytes.bytes()).min();
    let topics = run.topics.iter().zip(backlog);
    topics
        .map(|(topic, backlog)| topic.told(backlog, now_ms, smallest))
        .collect()
}

#[derive(Debug)]
struct Topic {
    class: Class,
    /// Bytes on the link, in millionths, that wait.
    left: u128,
    /// The same that arrive in a millisecond.
    arriving: u128,
    /// The same that were sent.
    sent: u128,
    done_ms: Option<i64>,
    waits: Option<String>,
}

/// A byte on the link in the units that topics are counted in.
const BYTE: u128 = 1_000_000;

impl Topic {
    fn new(backlog: &Backlog, measured: Measured) -> Self {
        let cost = u128::from(measured.wire_per_million);
        Self {
            class: backlog.class,
            left: u128::from(backlog.bytes) * cost,
            arriving: u128::from(backlog.arriving) * cost / 1_000,
            sent: 0,
            done_ms: None,
            waits: None,
        }
    }

    fn told(&self, backlog: &Backlog, now_ms: i64, allowance: Option<u64>) -> TopicPlan {
        let rest = if self.done_ms.is_some() { 0 } else { self.left };
        let wire_bytes = to_u64((self.sent + rest).div_ceil(BYTE));
        let takes = self.done_ms.map(|at| at.saturating_sub(now_ms));
        TopicPlan {
            topic: backlog.topic.clone(),
            class: backlog.class.to_string(),
            records: backlog.records,
            bytes: backlog.bytes,
            wire_bytes,
            done_ms: self.done_ms,
            takes_ms: takes.map(|millis| u64::try_from(millis).unwrap_or(0)),
            share_of_allowance: allowance
                .map(|all| to_u64(u128::from(wire_bytes) * 10_000 / u128::from(all.max(1)))),
            waits: self.waits.clone(),
        }
    }
}

struct Run {
    now_ms: i64,
    accounts: Vec<Account>,
    topics: Vec<Topic>,
    measured: Measured,
}

impl Run {
    /// Topics of which nothing waits any more.
    fn finish(&mut self) {
        let now = self.now_ms;
        for topic in &mut self.topics {
            if topic.done_ms.is_none() && topic.left < BYTE {
                topic.done_ms = Some(now);
            }
        }
    }

    /// To the next event.
    fn step(&mut self) {
        self.renew();
        let decision = self.decide();
        let speeds = self.speeds(&decision);
        let total: u128 = speeds.iter().sum();
        let mut until = decision
            .next_change_ms
            .map(|at| at.saturating_sub(self.now_ms));
        let mut sooner = |millis: u128| {
            let millis = i64::try_from(millis).unwrap_or(i64::MAX);
            until = Some(until.map_or(millis, |until| until.min(millis)));
        };
        for (topic, speed) in self.topics.iter().zip(&speeds) {
            let gain = speed.saturating_sub(topic.arriving);
            if topic.done_ms.is_none() && gain > 0 {
                sooner(topic.left.div_ceil(gain));
            }
        }
        for account in &self.accounts {
            let left = account.policy.allowance.as_ref();
            let left = left.and_then(|it| it.until_next_action(account.charged.used));
            if let Some(left) = left.filter(|_| total > 0) {
                sooner((u128::from(left) * BYTE).div_ceil(total));
            }
            // a term is over also when nothing else changes by it
            if account.policy.allowance.is_some() {
                sooner(u128::try_from(account.charged.end_ms - self.now_ms).unwrap_or(0));
            }
        }
        let millis = until.unwrap_or(HORIZON_MS).clamp(LEAST_STEP_MS, HORIZON_MS);
        self.note_waits(&decision);
        self.advance(millis, &speeds);
    }

    /// Periods that are over are given anew.
    fn renew(&mut self) {
        for account in &mut self.accounts {
            let Some(calendar) = account.policy.calendar() else {
                continue;
            };
            if account.charged.end_ms <= self.now_ms {
                account.charged = Charged {
                    used: 0,
                    end_ms: calendar.end_ms(self.now_ms),
                };
            }
        }
    }

    fn decide(&self) -> Decision {
        let decide = |account: &Account| account.policy.decide(self.now_ms, account.charged);
        self.accounts
            .iter()
            .fold(Decision::free(), |all, it| all.and(&decide(it), &it.of))
    }

    /// Millionths of bytes a millisecond of each topic.
    fn speeds(&self, decision: &Decision) -> Vec<u128> {
        let rate = decision
            .rate_up
            .map_or(self.measured.link, |rate| rate.min(self.measured.link));
        // bits a second to millionths of bytes a millisecond: / 8 / 1,000 x 1,000,000
        let mut free = u128::from(rate.bits()) * BYTE / 8_000;
        let mut speeds = vec![0; self.topics.len()];
        let may = |topic: &Topic| decision.classes.contains(topic.class);
        // those that have caught up take what arrives
        let mut open: Vec<usize> = (0..self.topics.len())
            .filter(|index| may(&self.topics[*index]))
            .filter(|index| {
                self.topics[*index].done_ms.is_none() || self.topics[*index].arriving > 0
            })
            .collect();
        // who wants less than its share leaves the rest to the others: as many rounds as there are topics
        while !open.is_empty() && free > 0 {
            let shares = self.shares(&open, free);
            let is_sated = |index: &usize| {
                let topic = &self.topics[*index];
                topic.done_ms.is_some() && topic.arriving <= shares[self.place(&open, *index)]
            };
            let sated: Vec<usize> = open.iter().copied().filter(is_sated).collect();
            if sated.is_empty() {
                for (index, share) in open.iter().zip(shares) {
                    speeds[*index] = share;
                }
                break;
            }
            for index in &sated {
                speeds[*index] = self.topics[*index].arriving;
                free = free.saturating_sub(speeds[*index]);
            }
            open.retain(|index| !sated.contains(index));
        }
        speeds
    }

    fn place(&self, open: &[usize], index: usize) -> usize {
        open.iter().position(|other| *other == index).unwrap_or(0)
    }

    /// Of what is free: by class, and within a class evenly.
    fn shares(&self, open: &[usize], free: u128) -> Vec<u128> {
        let class_of = |index: &usize| self.topics[*index].class;
        let present: ClassSet = open.iter().map(class_of).collect();
        let weight = |class: Class| u128::from(self.measured.shares.per_mille(class).max(1));
        let total: u128 = present.iter().map(weight).sum();
        let counts = PerClass::from_fn(|class| {
            open.iter().filter(|index| class_of(index) == class).count() as u128
        });
        let share = |index: &usize| {
            let class = class_of(index);
            free * weight(class) / total.max(1) / counts[class].max(1)
        };
        open.iter().map(share).collect()
    }

    /// Why topics stand still.
    fn note_waits(&mut self, decision: &Decision) {
        let (accounts, now_ms) = (&self.accounts, self.now_ms);
        for topic in &mut self.topics {
            let is_held = !decision.classes.contains(topic.class);
            if is_held && topic.done_ms.is_none() && topic.waits.is_none() {
                topic.waits = Some(why(accounts, now_ms, topic.class));
            }
        }
    }

    fn advance(&mut self, millis: i64, speeds: &[u128]) {
        let time = u128::try_from(millis).unwrap_or(0);
        let mut moved = 0_u128;
        for (topic, speed) in self.topics.iter_mut().zip(speeds) {
            let waiting = topic.left + topic.arriving * time;
            let sent = (speed * time).min(waiting);
            topic.left = waiting - sent;
            if topic.done_ms.is_none() {
                topic.sent += sent;
            }
            moved += sent;
        }
        for account in &mut self.accounts {
            let bytes = to_u64(moved.div_ceil(BYTE));
            account.charged.used = account.charged.used.saturating_add(bytes);
        }
        self.now_ms = self.now_ms.saturating_add(millis);
    }
}

/// Why a class may not leave: what each policy that keeps it has for a reason.
fn why(accounts: &[Account], now_ms: i64, class: Class) -> String {
    let reason = |account: &Account| {
        let policy = &account.policy;
        let held = policy.decide(now_ms, account.charged);
        if held.classes.contains(class) {
            return None;
        }
        let at_first = policy.decide(now_ms, Charged::default());
        let allowance = held.reason.strip_prefix(&at_first.reason);
        let allowance = allowance.map(|text| text.trim_start_matches("; "));
        let is_left_out = policy.windows.is_empty() && !at_first.classes.is_empty();
        let text = if at_first.classes.contains(class) {
            allowance.unwrap_or(&held.reason).to_owned()
        } else if is_left_out {
            format!("`classes` leaves {class} out")
        } else {
            at_first.reason
        };
        Some(format!("{}: {text}", account.of))
    };
    let reasons: Vec<String> = accounts.iter().filter_map(reason).collect();
    reasons.join("; ")
}

fn to_u64(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// What will hold when an allowance runs out, for people: `None` while it doesn't.
#[must_use]
pub const fn in_words(action: Action) -> Option<&'static str> {
    match action {
        Action::Continue => None,
        Action::CriticalOnly => Some("only critical records are sent"),
        Action::Stop => Some("nothing is sent"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::units::ByteSize;

    use super::*;
    use crate::uplink::policy::{Allowance, Limits, Period, Window, Zone};

    /// 2026-11-27 12:00 UTC, a Friday
    const NOON: i64 = 1_795_780_800_000;
    const HOUR: i64 = 3_600_000;

    fn backlog(topic: &str, class: Class, bytes: u64) -> Backlog {
        Backlog {
            topic: topic.to_owned(),
            class,
            records: bytes / 100,
            bytes,
            arriving: 0,
        }
    }

    fn measured(link: BitRate) -> Measured {
        Measured {
            wire_per_million: 250_000,
            link,
            shares: ClassShares::default(),
        }
    }

    fn account(policy: Policy, used: u64) -> Account {
        let end_ms = policy
            .calendar()
            .map_or(0, |calendar| calendar.end_ms(NOON));
        Account {
            of: "site".to_owned(),
            policy,
            charged: Charged { used, end_ms },
        }
    }

    fn takes(plan: &[TopicPlan], topic: usize) -> u64 {
        plan[topic].takes_ms.unwrap() / 1_000
    }

    #[test]
    fn one_topic_takes_its_bytes_over_the_rate() {
        let waiting = [backlog("a", Class::Bulk, 4_000_000)];
        let plan = plan(&waiting, &[], NOON, measured(BitRate::kbit(80)));
        // a million bytes on the link at 10,000 a second
        assert_eq!(takes(&plan, 0), 100);
        assert_eq!(plan[0].wire_bytes, 1_000_000);
        assert_eq!(
            (plan[0].share_of_allowance, plan[0].waits.as_ref()),
            (None, None)
        );
    }

    #[test]
    fn classes_share_by_weight_and_take_what_is_left_over() {
        let waiting = [
            backlog("alarms", Class::Critical, 400_000),
            backlog("logs", Class::Bulk, 4_000_000),
        ];
        let plan = plan(&waiting, &[], NOON, measured(BitRate::kbit(80)));
        // 100 kB at 760/810 of 10 kB/s, then bulk has it all
        assert_eq!(takes(&plan, 0), 10);
        assert_eq!(takes(&plan, 1), 110);
    }

    #[test]
    fn a_class_that_may_not_leave_waits_for_its_window() {
        let policy = Policy {
            limits: Limits {
                classes: ClassSet::CRITICAL_ONLY,
                ..Limits::default()
            },
            windows: vec![Window {
                days: "mon-sun".parse().unwrap(),
                from: "22:00".parse().unwrap(),
                to: "06:00".parse().unwrap(),
                limits: Limits {
                    rate_up: Some(BitRate::kbit(40)),
                    ..Limits::default()
                },
            }],
            zone: Zone::utc(),
            allowance: None,
        };
        let waiting = [backlog("logs", Class::Bulk, 4_000_000)];
        let plan = plan(
            &waiting,
            &[account(policy, 0)],
            NOON,
            measured(BitRate::mbit(1)),
        );
        assert_eq!(plan[0].done_ms, Some(NOON + 10 * HOUR + 200_000));
        assert_eq!(plan[0].waits.as_deref(), Some("site: outside all windows"));
    }

    #[test]
    fn a_class_that_a_policy_leaves_out_waits_for_a_reason() {
        let waits = |classes| {
            let policy = Policy {
                limits: Limits {
                    classes,
                    ..Limits::default()
                },
                ..Policy::default()
            };
            let waiting = [backlog("sales", Class::Bulk, 1_000)];
            let accounts = [account(policy, 0)];
            let found = plan(&waiting, &accounts, NOON, measured(BitRate::mbit(1)));
            assert_eq!(found[0].done_ms, None);
            found[0].waits.clone().unwrap()
        };
        assert_eq!(waits(ClassSet::EMPTY), "site: `classes` is empty");
        assert_eq!(
            waits(ClassSet::CRITICAL_ONLY),
            "site: `classes` leaves bulk out"
        );
    }

    #[test]
    fn an_allowance_that_runs_out_is_waited_for() {
        let policy = Policy {
            allowance: Some(Allowance {
                bytes: ByteSize(10_000_000),
                period: Period::Day,
                at_80: Action::CriticalOnly,
                at_100: Action::Stop,
            }),
            // it lets all through, and is no reason
            windows: vec![Window {
                days: "mon-sun".parse().unwrap(),
                from: "00:00".parse().unwrap(),
                to: "24:00".parse().unwrap(),
                limits: Limits::default(),
            }],
            zone: Zone::utc(),
            ..Policy::default()
        };
        let waiting = [
            backlog("alarms", Class::Critical, 4_000),
            backlog("logs", Class::Bulk, 60_000_000),
        ];
        let plan = plan(
            &waiting,
            &[account(policy, 7_000_000)],
            NOON,
            measured(BitRate::mbit(8)),
        );
        // 1 MB today, 8 MB on each of the next days: 15 MB are done on the second
        let done = plan[1].done_ms.unwrap();
        let midnight = NOON + 12 * HOUR;
        assert!(
            done > midnight + 24 * HOUR && done < midnight + 25 * HOUR,
            "{done}"
        );
        assert_eq!(plan[1].share_of_allowance, Some(15_000));
        let waits = plan[1].waits.as_ref().unwrap();
        assert!(
            waits.starts_with("site: 80 % of 10MB a day used"),
            "{waits}"
        );
        assert!(plan[0].takes_ms.unwrap() < 1_000);
    }

    #[test]
    fn what_arrives_faster_than_it_leaves_is_never_caught_up() {
        let mut flood = backlog("flood", Class::Normal, 1_000);
        flood.arriving = 1_000_000;
        let quiet = backlog("quiet", Class::Critical, 1_000);
        let plan = plan(&[flood, quiet], &[], NOON, measured(BitRate::kbit(800)));
        assert_eq!(plan[0].done_ms, None);
        assert!(plan[1].done_ms.is_some());
    }

    #[test]
    fn nothing_that_waits_is_done() {
        let plan = plan(
            &[backlog("a", Class::Normal, 0)],
            &[],
            NOON,
            measured(BitRate::kbit(8)),
        );
        assert_eq!((plan[0].done_ms, plan[0].wire_bytes), (Some(NOON), 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However it is shared, the last byte leaves when all have at the rate.
        #[test]
        fn the_link_is_never_idle_while_something_waits(
            sizes in prop::collection::vec((1_000_u64..50_000_000, 0_usize..3), 1..6),
            kbit in 32_u64..10_000,
        ) {
            let waiting: Vec<Backlog> = sizes
                .iter()
                .map(|(bytes, class)| backlog("t", Class::all()[*class], *bytes))
                .collect();
            let plan = plan(&waiting, &[], NOON, measured(BitRate::kbit(kbit)));
            let total: u64 = plan.iter().map(|topic| topic.wire_bytes).sum();
            let expected = i64::try_from(total * 8 / kbit).unwrap();
            let last = plan.iter().map(|topic| topic.done_ms.unwrap()).max().unwrap() - NOON;
            prop_assert!((last - expected).abs() <= expected / 1_000 + 20, "{} {}", last, expected);
        }
    }
}
