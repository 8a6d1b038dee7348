//! `[uplink.classes]`: how the classes of topics share the link.

use std::time::Duration;

use shared::class::{Class, ClassShares, PerClass};
use shared::config::Section;
use shared::units::Span;

/// An alarm has the link nearly to itself, and what has time takes what the others leave.
const DEFAULT_WEIGHTS: PerClass<u32> = PerClass::new([16, 4, 1]);
/// In percent: a backlog makes way even on a link that is always full.
const DEFAULT_MIN_SHARE: u32 = 5;
/// An alarm waits for nobody; what nobody chose a class for waits as the path suggests; and what has time
/// shares its packets.
const DEFAULT_DELAYS: PerClass<Option<Span>> =
    PerClass::new([Some(Span::millis(0)), None, Some(Span::secs(1))]);
/// The longest `max_delay`: beyond it a record is old before it leaves.
pub const LONGEST_DELAY: Span = Span::minutes(10);

/// `[uplink.classes]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassesConfig {
    /// Of a link that is full.
    pub shares: ClassShares,
    /// How long a record may wait for others to share its batch. `None`: half a round trip.
    pub max_delay: PerClass<Option<Duration>>,
}

impl ClassesConfig {
    pub(super) fn read(mut section: Section) -> Self {
        let most = ClassShares::LARGEST_MIN_SHARE;
        let min_share = section.number("min_share", DEFAULT_MIN_SHARE, 0..=most);
        let mut weights = DEFAULT_WEIGHTS;
        let mut max_delay = PerClass::default();
        for class in Class::all() {
            let mut of = section.section(class.as_str());
            weights[class] = of.number("weight", DEFAULT_WEIGHTS[class], 1..=1_000);
            let delay = match DEFAULT_DELAYS[class] {
                Some(delay) => Some(of.span("max_delay", delay, Span::millis(0)..=LONGEST_DELAY)),
                None => optional_delay(&mut of),
            };
            max_delay[class] = delay.map(Span::duration);
        }
        Self {
            shares: ClassShares::new(weights, min_share),
            max_delay,
        }
    }
}

fn optional_delay(section: &mut Section) -> Option<Span> {
    let delay = section.optional::<Span>("max_delay");
    if delay.is_some_and(|delay| delay > LONGEST_DELAY) {
        section.problem(
            "max_delay",
            format!("out of range; accepted: 0s to {LONGEST_DELAY}"),
        );
    }
    delay
}
