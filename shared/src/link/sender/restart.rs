//! The hub cannot read on in a log: what it dropped is sent again.

use super::Sender;
use super::log::Phase;
use super::port::Begin;
use crate::wire::{Code, Restart};

impl Sender {
    /// What was sent beyond `next_offset` is void, and so is what was read and what is being read.
    pub(super) fn handle_restart(&mut self, restart: Restart) {
        let Restart {
            handle,
            next_offset: next,
        } = restart;
        let Some(log) = self.logs.get_mut(&handle) else {
            return self.fail(Code::BadFrame, "restarts an unknown log".into());
        };
        let kept = log.in_flight.iter().take_while(|(end, _)| *end <= next);
        let kept = kept.count();
        let chain = match kept.checked_sub(1).and_then(|last| log.in_flight.get(last)) {
            Some((end, chain)) if *end == next => *chain,
            None if next == log.acked => 0,
            Some(_) | None => {
                return self.fail(Code::BadFrame, "restarts where nothing ended".into());
            }
        };
        self.in_flight -= log.in_flight.len() - kept;
        log.in_flight.truncate(kept);
        self.schedule.drop_held(handle);
        log.held = 0;
        log.read = next;
        log.hub_chain = chain;
        log.begin = Some(Begin::Fresh);
        log.is_restarted = true;
        log.is_stale = matches!(log.phase, Phase::Reading { .. });
        self.enqueue(handle);
    }
}
