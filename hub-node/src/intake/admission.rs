//! Lets sites in one after the other: does what [`Gate`] decides.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::gate::{Gate, GateConfig, Verdict};
use super::ingress::sleep_until;

/// A gate that many tasks stand at.
#[derive(Debug)]
pub(super) struct Admission {
    state: Mutex<State>,
    /// What the driver sleeps for may have changed.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    gate: Gate<u64>,
    /// Those in line; who is let in is taken out.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
    next_ticket: u64,
}

/// A place in the line, and then inside; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    admission: Arc<Admission>,
    ticket: u64,
    is_welcome: bool,
}

impl Admission {
    pub(super) fn new(config: GateConfig) -> Self {
        let state = State {
            gate: Gate::new(config, shared::time::now()),
            waiting: BTreeMap::new(),
            next_ticket: 0,
        };
        Self {
            state: Mutex::new(state),
            changed: Notify::new(),
        }
    }

    /// Stands in line until let in. Cancel-safe: who leaves the line frees its place.
    ///
    /// # Errors
    /// When to come back, when there is no place even in the line.
    pub(super) async fn enter(self: &Arc<Self>) -> Result<Place, Duration> {
        let (place, admitted) = self.stand_in_line()?;
        // the sender goes only with this admission, or once it has spoken
        let _said = admitted.await;
        Ok(place)
    }

    fn stand_in_line(self: &Arc<Self>) -> Result<(Place, oneshot::Receiver<()>), Duration> {
        let (let_in, admitted) = oneshot::channel();
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        match state.gate.arrive(ticket, shared::time::now()) {
            Verdict::Later(hint) => return Err(hint),
            Verdict::Waits => {}
        }
        state.waiting.insert(ticket, let_in);
        state.serve();
        drop(state);
        self.changed.notify_one();
        let place = Place {
            admission: Arc::clone(self),
            ticket,
            is_welcome: false,
        };
        Ok((place, admitted))
    }

    /// When one that cannot be served is to come back: every caller is told another time.
    pub(super) fn hint(&self) -> Duration {
        self.lock().gate.hint(shared::time::now())
    }

    /// Whether so many come that each should begin small.
    pub(super) fn is_crowded(&self) -> bool {
        self.lock().gate.is_crowded()
    }

    /// Those who wait, and those who are inside.
    pub(super) fn counts(&self) -> (usize, usize) {
        self.lock().gate.counts()
    }

    /// Lets in as time passes.
    pub(super) async fn run(&self) -> Infallible {
        loop {
            let wake = {
                let mut state = self.lock();
                state.serve();
                state.gate.poll_timeout()
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn serve(&mut self) {
        while let Some(ticket) = self.gate.poll_admit(shared::time::now()) {
            if let Some(let_in) = self.waiting.remove(&ticket) {
                // one that has just left frees its place by itself
                let _left = let_in.send(());
            }
        }
    }
}

impl Place {
    /// It went well: the gate learns how fast that is.
    pub(super) fn welcome(mut self) {
        self.is_welcome = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        match state.waiting.remove(&self.ticket) {
            Some(_) => state.gate.gave_up(&self.ticket),
            None => state.gate.done(self.is_welcome, shared::time::now()),
        }
        state.serve();
        drop(state);
        self.admission.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(most: usize) -> Arc<Admission> {
        Arc::new(Admission::new(GateConfig {
            most,
            rate: 1_000_000,
        }))
    }

    #[tokio::test]
    async fn a_place_that_is_dropped_lets_the_next_in() {
        let admission = admission(1);
        let first = admission.enter().await.unwrap();
        let second = admission.enter();
        tokio::pin!(second);
        tokio::select! {
            biased;
            _ = &mut second => panic!("there is no place"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(admission.counts(), (1, 1));
        first.welcome();
        let _second = second.await.unwrap();
        assert_eq!(admission.counts(), (0, 1));
    }

    #[tokio::test]
    async fn who_leaves_the_line_or_misses_its_turn_frees_its_place() {
        let admission = admission(1);
        let first = admission.enter().await.unwrap();
        let (waiting, _in_line) = admission.stand_in_line().unwrap();
        drop(waiting);
        let (missed, let_in) = admission.stand_in_line().unwrap();
        drop(let_in);
        drop(first);
        assert_eq!(admission.counts(), (0, 1));
        drop(missed);
        assert_eq!(admission.counts(), (0, 0));
    }
}
