//! Lines of the log that clients cause: one in a while, with how many were left out. Plain code.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Time from one line to the next.
pub const PERIOD: Duration = Duration::from_secs(10);

/// Says whose turn it is to be told.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Duration>,
    left_out: u64,
}

impl Seldom {
    /// `Some`: tell it, and that so many were left out since the line before. `now` is of a clock that is not set.
    pub fn turn(&self, now: Duration) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_early = |last: Duration| now.saturating_sub(last) < PERIOD;
        if state.last.is_some_and(is_early) {
            state.left_out += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

/// The lines of the log that a test causes.
#[cfg(test)]
pub(crate) mod capture {
    use std::fmt::{Debug, Write as _};
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::subscriber::DefaultGuard;
    use tracing::{Event, Level, Metadata, Subscriber, span};

    /// Lines at WARN and above of this thread, until it is dropped.
    pub(crate) struct Lines {
        lines: Arc<Mutex<Vec<String>>>,
        _guard: DefaultGuard,
    }

    struct Listener(Arc<Mutex<Vec<String>>>);

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            write!(self.0, "{}={value:?} ", field.name()).unwrap();
        }
    }

    impl Subscriber for Listener {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= Level::WARN
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut line = Line(String::new());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    impl Lines {
        pub(crate) fn new() -> Self {
            let lines = Arc::<Mutex<Vec<String>>>::default();
            let _guard = tracing::subscriber::set_default(Listener(lines.clone()));
            Self { lines, _guard }
        }

        /// Those that have this text.
        pub(crate) fn with(&self, text: &str) -> Vec<String> {
            let lines = self.lines.lock().unwrap();
            let found = lines.iter().filter(|line| line.contains(text));
            found.cloned().collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_while_tells_how_many_were_left_out() {
        let seldom = Seldom::default();
        let turns = [0, 1, 9_999, 10_000, 10_001, 20_000, 100_000];
        let told = turns.map(|ms| seldom.turn(Duration::from_millis(ms)));
        assert_eq!(told, [Some(0), None, None, Some(2), None, Some(1), Some(0)]);
    }
}
