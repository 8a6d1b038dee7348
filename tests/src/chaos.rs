//! Everything at once: a seeded schedule of faults over all parts of the system.
//!
//! Each target (edge, hub, Kafka, link, disk, clock) is well for a while and then has one of its faults for
//! a while, independently of the others. The faults of one target never overlap; those of several do.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::link::Faults;
use crate::stage::Stage;
use crate::volume::Volume;
use crate::{seed, wait};

/// What can be hurt.
#[derive(Debug)]
pub struct World<'a> {
    pub broker: &'a Broker,
    pub stage: &'a mut Stage,
    pub volume: Option<&'a Volume>,
    pub clock: &'a Clock,
}

/// One kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    EdgeKilled,
    EdgeFrozen,
    HubKilled,
    HubFrozen,
    KafkaKilled,
    KafkaFrozen,
    LinkCut,
    LinkBad,
    LinkForgot,
    DiskFull,
    ClockJumped,
}

impl fmt::Display for Trouble {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, out)
    }
}

/// A part of the system, when it is next hurt or healed, and how.
#[derive(Debug)]
struct Target {
    troubles: &'static [Trouble],
    /// Milliseconds that it is well, and that a fault lasts.
    well_ms: (u64, u64),
    ill_ms: (u64, u64),
    now: Option<Trouble>,
    due: Instant,
}

/// The schedule.
#[derive(Debug)]
pub struct Chaos {
    random: StdRng,
    targets: Vec<Target>,
    /// How many faults of each kind there were, in the order of their first appearance.
    pub counts: Vec<(Trouble, u32)>,
    started: Instant,
}

/// How often the schedule is looked at.
const STEP: Duration = Duration::from_millis(10);

impl Chaos {
    /// A schedule from a seed.
    #[must_use]
    pub fn new(run_seed: u64) -> Self {
        use Trouble::{
            ClockJumped, DiskFull, EdgeFrozen, EdgeKilled, HubFrozen, HubKilled, KafkaFrozen,
            KafkaKilled, LinkBad, LinkCut, LinkForgot,
        };
        let target = |troubles, well_ms, ill_ms| Target {
            troubles,
            well_ms,
            ill_ms,
            now: None,
            due: Instant::now(),
        };
        let mut chaos = Self {
            random: seed::generator(run_seed, "chaos"),
            targets: vec![
                target(
                    &[EdgeKilled, EdgeKilled, EdgeFrozen],
                    (2_000, 9_000),
                    (10, 2_000),
                ),
                target(
                    &[HubKilled, HubKilled, HubFrozen],
                    (3_000, 12_000),
                    (10, 3_000),
                ),
                target(
                    &[KafkaKilled, KafkaFrozen],
                    (10_000, 25_000),
                    (1_000, 5_000),
                ),
                target(
                    &[LinkCut, LinkBad, LinkForgot],
                    (2_000, 9_000),
                    (500, 6_000),
                ),
                target(&[DiskFull], (15_000, 30_000), (1_000, 4_000)),
                target(&[ClockJumped], (8_000, 20_000), (1_000, 8_000)),
            ],
            counts: Vec::new(),
            started: Instant::now(),
        };
        for index in 0..chaos.targets.len() {
            let well = chaos.targets[index].well_ms;
            chaos.targets[index].due = chaos.after(well);
        }
        chaos
    }

    /// Hurts and heals for `length`, then heals everything.
    ///
    /// # Errors
    /// When a process cannot be started again.
    pub fn run(&mut self, world: &mut World<'_>, length: Duration) -> Result<()> {
        let end = Instant::now() + length;
        while Instant::now() < end {
            for index in 0..self.targets.len() {
                if self.targets[index].due <= Instant::now() {
                    self.turn(index, world)?;
                }
            }
            wait::let_run(STEP);
        }
        for index in 0..self.targets.len() {
            if self.targets[index].now.is_some() {
                self.turn(index, world)?;
            }
        }
        Ok(())
    }

    fn turn(&mut self, index: usize, world: &mut World<'_>) -> Result<()> {
        let target = &mut self.targets[index];
        let (well, ill) = (target.well_ms, target.ill_ms);
        if let Some(trouble) = target.now.take() {
            self.targets[index].due = self.after(well);
            self.note(trouble, "ends");
            return heal(trouble, world);
        }
        let choice = self.random.random_range(0..target.troubles.len());
        let trouble = target.troubles[choice];
        target.now = Some(trouble);
        self.targets[index].due = self.after(ill);
        self.note(trouble, "begins");
        match self.counts.iter_mut().find(|(known, _)| *known == trouble) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((trouble, 1)),
        }
        hurt(trouble, world, &mut self.random)
    }

    fn after(&mut self, (least, most): (u64, u64)) -> Instant {
        Instant::now() + Duration::from_millis(self.random.random_range(least..=most))
    }

    fn note(&self, trouble: Trouble, what: &str) {
        seed::say(&format!(
            "  {:7.2} s  {trouble} {what}",
            self.started.elapsed().as_secs_f64()
        ));
    }
}

fn hurt(trouble: Trouble, world: &mut World<'_>, random: &mut StdRng) -> Result<()> {
    let stage = &mut *world.stage;
    match trouble {
        Trouble::EdgeKilled => stage.site.kill(),
        Trouble::EdgeFrozen => stage.site.process()?.freeze(),
        Trouble::HubKilled => stage.hub.kill(),
        Trouble::HubFrozen => stage.hub.process()?.freeze(),
        Trouble::KafkaKilled => world.broker.kill(),
        Trouble::KafkaFrozen => world.broker.freeze(),
        Trouble::LinkCut => stage.link.cut(),
        Trouble::LinkBad => stage.link.set(|faults| {
            *faults = Faults {
                loss: random.random_range(0.01..0.2),
                duplicate: random.random_range(0.0..0.1),
                reorder: random.random_range(0.0..0.1),
                delay: Duration::from_millis(random.random_range(0..100)),
                jitter: Duration::from_millis(random.random_range(0..50)),
                ..Faults::default()
            };
        }),
        Trouble::LinkForgot => stage.link.forget(),
        Trouble::DiskFull => world.volume.map_or(Ok(()), Volume::fill)?,
        Trouble::ClockJumped => {
            let seconds = random.random_range(-86_400..86_400);
            world.clock.jump(seconds)?;
        }
    }
    Ok(())
}

fn heal(trouble: Trouble, world: &mut World<'_>) -> Result<()> {
    let stage = &mut *world.stage;
    match trouble {
        Trouble::EdgeKilled => stage.site.launch()?,
        Trouble::EdgeFrozen => stage.site.process()?.thaw(),
        Trouble::HubKilled => stage.hub.launch()?,
        Trouble::HubFrozen => stage.hub.process()?.thaw(),
        Trouble::KafkaKilled => world.broker.launch()?,
        Trouble::KafkaFrozen => world.broker.thaw(),
        Trouble::LinkCut | Trouble::LinkBad | Trouble::LinkForgot => stage.link.heal(),
        Trouble::DiskFull => world.volume.into_iter().for_each(Volume::relieve),
        Trouble::ClockJumped => world.clock.jump(0)?,
    }
    Ok(())
}
