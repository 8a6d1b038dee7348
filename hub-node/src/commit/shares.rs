//! What sites get of a slow cluster, in virtual time: the queue's turns, the lane's room and the size of
//! transactions together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use shared::ids::{Incarnation, SiteId, TopicName, TopicPartition};

use super::pace::Pace;
use super::queue::{Cost, FairQueue, Queued};
use super::*;

const QUEUE: u64 = 64 << 20;
const TRANSACTION: usize = 16 << 20;
const BATCH: usize = 256 << 10;
/// Kafka's time for any transaction, and its bytes a second.
const FIXED: Duration = Duration::from_millis(20);
const RATE: u64 = 2_000_000;

/// A site that always has more, or one that writes a small record now and then.
struct Site {
    id: SiteId,
    share: RoomShare,
    is_flooding: bool,
    next: u64,
    /// Written and not committed.
    waiting: VecDeque<Duration>,
    waits: Vec<Duration>,
    bytes: u64,
}

fn sites(room: &Arc<Room>, flooding: usize, quiet: usize) -> Vec<Site> {
    let site = |number: usize| Site {
        id: SiteId::new(&format!("site-{number}")).unwrap(),
        share: room.share(),
        is_flooding: number < flooding,
        next: 0,
        waiting: VecDeque::new(),
        waits: Vec::new(),
        bytes: 0,
    };
    (0..flooding + quiet).map(site).collect()
}

/// Runs a lane for so long; a quiet site writes once in `every`.
fn run(sites: &mut [Site], every: Duration, length: Duration) {
    let (mut queue, mut pace) = (FairQueue::default(), Pace::new(TRANSACTION));
    let (mut now, mut written) = (Duration::ZERO, Duration::ZERO);
    while now < length {
        while written <= now {
            for site in sites.iter_mut().filter(|site| !site.is_flooding) {
                site.waiting.push_back(written);
                queue.push(site.hand_over(1_000));
            }
            written += every;
        }
        for site in sites.iter_mut().filter(|site| site.is_flooding) {
            while site.share.may_take(BATCH as u64) {
                queue.push(site.hand_over(BATCH));
            }
        }
        let taken = queue.take(Cost {
            bytes: pace.bytes(),
            records: 20_000,
        });
        let bytes: usize = taken.iter().map(|queued| queued.delivery.bytes).sum();
        let took = FIXED + Duration::from_secs(bytes as u64) / u32::try_from(RATE).unwrap();
        pace.committed(bytes, took);
        now += took;
        for queued in taken {
            let site = sites.iter_mut().find(|site| site.id == queued.key.site);
            let site = site.unwrap();
            site.bytes += queued.delivery.bytes as u64;
            if let Some(at) = site.waiting.pop_front() {
                site.waits.push(now - at);
            }
        }
    }
}

#[test]
fn a_flood_of_one_site_keeps_the_others_waiting_for_a_moment_only() {
    let room = Arc::new(Room::new(QUEUE));
    let mut sites = sites(&room, 1, 20);
    run(
        &mut sites,
        Duration::from_millis(100),
        Duration::from_secs(120),
    );
    // it takes one transaction to learn how slow the cluster is
    let late = sites[1..]
        .iter()
        .flat_map(|site| site.waits.iter().skip(200));
    let worst = late.max().unwrap();
    assert!(*worst < Duration::from_millis(1_500), "{worst:?}");
    let flood = sites[0].bytes as f64 / (RATE * 120) as f64;
    assert!(flood > 0.85, "the flood got {flood} of the cluster");
}

#[test]
fn sites_that_all_want_more_get_the_same() {
    let room = Arc::new(Room::new(QUEUE));
    let mut sites = sites(&room, 40, 1);
    run(
        &mut sites,
        Duration::from_millis(100),
        Duration::from_secs(600),
    );
    let bytes = sites[..40].iter().map(|site| site.bytes);
    let (least, most) = (bytes.clone().min().unwrap(), bytes.max().unwrap());
    assert!(most <= least + 12 * BATCH as u64, "{least} to {most}");
    // a turn of each of the forty
    let worst = sites[40].waits.iter().skip(1_000).max().unwrap();
    let round = Duration::from_secs(41 * BATCH as u64) / u32::try_from(RATE).unwrap();
    assert!(*worst < round + Duration::from_secs(2), "{worst:?}");
}

impl Site {
    fn hand_over(&mut self, bytes: usize) -> Queued {
        let log = TopicPartition {
            topic: TopicName::new("t").unwrap(),
            partition: 0,
            track: shared::ids::Track::First,
        };
        let base_offset = self.next;
        self.next += 1;
        Queued {
            origin: 0,
            session: SessionId(1),
            key: Arc::new(LogKey {
                site: self.id.clone(),
                incarnation: Incarnation(1),
                log: log.clone(),
            }),
            delivery: Arc::new(Delivery {
                log,
                base_offset,
                next: Checkpoint {
                    next_offset: self.next,
                    chain: 0,
                },
                content: Content::Records(Vec::new()),
                bytes,
                hold: Some(Arc::new(self.share.take(bytes as u64))),
            }),
            skip_below: 0,
        }
    }
}
