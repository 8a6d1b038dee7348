//! How a log's items flow: where to go on, what to read, what to hold and what to send.

use bytes::Bytes;

use super::log::{Log, Phase};
use super::port::{Begin, Held};
use super::{DataStream, ReadResult, Sender, SenderOutput, State};
use crate::ids::Offset;
use crate::link::broken;
use crate::link::resume::{Mismatch, Resume, compare, resume};
use crate::wire::{
    Checkpoint, CheckpointEntry, Code, DataContent, GAP_NOT_AT_SITE, Handle, LogRange, LogReply,
    charge,
};

/// Most questions to the store about its chain at a time.
const MAX_QUESTIONS: usize = 32;

impl Sender {
    pub(super) fn handle_checkpoints(&mut self, entries: &[CheckpointEntry]) {
        for entry in entries {
            if self.is_denied_still(entry) {
                continue;
            }
            let known = self.logs.get(&entry.handle);
            let Some((range, acked)) = known
                .filter(|log| log.phase == Phase::Declared)
                .map(|log| (log.range, log.known_acked))
            else {
                return self.fail(
                    Code::BadFrame,
                    "checkpoint of a log that was not declared".into(),
                );
            };
            if !self.agree(entry) {
                return self.fail(
                    Code::BadFrame,
                    "names an anchor that was not offered".into(),
                );
            }
            self.resume_log(entry.handle, self.decide(&range, acked, entry.reply));
        }
    }

    /// The hub answers again about a log that it denied: true when it says the same, else the log is a declared
    /// one from here on.
    fn is_denied_still(&mut self, entry: &CheckpointEntry) -> bool {
        let Some(log) = self.logs.get_mut(&entry.handle) else {
            return false;
        };
        if log.phase != Phase::Denied {
            return false;
        }
        if entry.reply == LogReply::Denied {
            return true;
        }
        log.phase = Phase::Declared;
        self.unresolved += 1;
        let handle = entry.handle;
        self.outputs.push_back(SenderOutput::Admitted { handle });
        false
    }

    /// What both ends know where the log goes on; false when the hub names what was not offered.
    fn agree(&mut self, entry: &CheckpointEntry) -> bool {
        let Some(log) = self.logs.get_mut(&entry.handle) else {
            return false;
        };
        if let LogReply::At(checkpoint) = entry.reply {
            log.hub_chain = checkpoint.chain;
        }
        let Some(place) = usize::from(entry.anchor).checked_sub(1) else {
            return true;
        };
        let anchor = log.anchors.get(place).copied();
        log.begin = anchor.map(Begin::Anchor);
        anchor.is_some()
    }

    fn decide(&self, range: &LogRange, acked: Offset, reply: LogReply) -> Resume {
        let decision = resume(range, acked, reply);
        if broken!(self, ResumeFromStart) {
            return Resume::From(range.start);
        }
        if broken!(self, ForgetChainCheck)
            && let Resume::Check(checkpoint) = decision
        {
            return Resume::From(checkpoint.next_offset);
        }
        if broken!(self, ForgetEndCheck) && decision == Resume::Mismatch(Mismatch::BeyondEnd) {
            return Resume::From(range.end);
        }
        if broken!(self, ResumeOneLater)
            && let Resume::From(next) = decision
            && next < range.end
        {
            return Resume::From(next + 1);
        }
        decision
    }

    fn resume_log(&mut self, handle: Handle, decision: Resume) {
        let is_unresolved =
            |sender: &Self| sender.logs.get(&handle).is_some_and(Log::is_unresolved);
        let was_unresolved = is_unresolved(self);
        self.follow(handle, decision);
        if was_unresolved && !is_unresolved(self) {
            self.unresolved -= 1;
            self.recalled.0.retain(|(of, _), _| *of != handle);
        }
    }

    fn follow(&mut self, handle: Handle, decision: Resume) {
        let is_credulous = broken!(self, ForgetProof);
        let Some(log) = self.logs.get_mut(&handle) else {
            return;
        };
        match decision {
            Resume::From(next) => {
                // a store that knows it already is not told again: there may be thousands of logs
                if next > log.first_unacked {
                    self.outputs.push_back(SenderOutput::Acked {
                        handle,
                        next_offset: next,
                    });
                }
                log.acked = next;
                log.read = next;
                log.phase = Phase::Ready;
                self.enqueue(handle);
            }
            Resume::Check(checkpoint) => {
                log.phase = Phase::Checking(checkpoint);
                self.unasked.push_back((handle, checkpoint.next_offset));
            }
            Resume::Probe(Checkpoint { next_offset, chain })
                if self.recalled.0.get(&(handle, next_offset)) == Some(&chain) =>
            {
                self.follow(handle, Resume::From(next_offset));
            }
            // what lies above the store's own cursor may be another history
            Resume::Probe(Checkpoint { next_offset, .. })
                if next_offset >= log.range.end
                    || (next_offset > log.first_unacked && !is_credulous) =>
            {
                self.follow(handle, Resume::Mismatch(Mismatch::NotABoundary));
            }
            Resume::Probe(Checkpoint {
                next_offset: next, ..
            }) => {
                log.acked = next;
                log.read = next;
                log.phase = Phase::Ready;
                log.is_unproven = true;
                self.enqueue(handle);
            }
            Resume::Mismatch(mismatch) => {
                log.phase = Phase::Parked;
                self.outputs
                    .push_back(SenderOutput::HistoryMismatch { handle, mismatch });
                if let State::Open(session) = &self.state {
                    let patience = self.config.handshake_timeout;
                    let deadline = session.last_heard.saturating_add(patience);
                    self.renewal.get_or_insert(deadline);
                }
            }
            Resume::Denied => {
                log.phase = Phase::Denied;
                self.outputs.push_back(SenderOutput::Denied { handle });
            }
        }
    }

    /// The answer to [`SenderOutput::Chain`]: the store's chain at that offset, `None` when it is not a
    /// boundary that the store knows.
    pub fn handle_chain(&mut self, handle: Handle, offset: Offset, chain: Option<u64>) {
        let Some(log) = self.logs.get(&handle) else {
            return;
        };
        match log.phase {
            Phase::Checking(checkpoint) if checkpoint.next_offset == offset => {
                self.questions -= 1;
                self.resume_log(handle, compare(checkpoint, chain));
            }
            Phase::Trimmed if log.range.start == offset => {
                self.questions -= 1;
                match chain {
                    Some(chain) => self.hold_trimmed(handle, chain),
                    None => self.find_start(handle),
                }
            }
            Phase::Checking(_)
            | Phase::Trimmed
            | Phase::Undeclared
            | Phase::Declared
            | Phase::Ready
            | Phase::Reading { .. }
            | Phase::Parked
            | Phase::Denied => {}
        }
    }

    /// What lies between what the hub holds and the log's start is no longer at the site.
    fn hold_trimmed(&mut self, handle: Handle, chain: u64) {
        let Some(log) = self.logs.get_mut(&handle) else {
            return;
        };
        let held = Held {
            handle,
            base_offset: log.read,
            next_offset: log.range.start,
            chain,
            is_chain_known: false,
            content: DataContent::Gap {
                reason: GAP_NOT_AT_SITE,
            },
            payload: Bytes::new(),
        };
        log.phase = Phase::Ready;
        self.hold(held);
    }

    /// The log was trimmed further since: a read tells its start.
    fn find_start(&mut self, handle: Handle) {
        if let Some(log) = self.logs.get_mut(&handle) {
            log.is_start_known = false;
            log.phase = Phase::Ready;
            self.enqueue(handle);
        }
    }

    /// The answer to [`SenderOutput::Read`]. Answers that nobody waits for are ignored.
    pub fn handle_read(&mut self, handle: Handle, result: ReadResult) {
        let State::Open(session) = self.state else {
            return;
        };
        let Some(log) = self.logs.get_mut(&handle) else {
            return;
        };
        let Phase::Reading { reserved, end } = log.phase else {
            return;
        };
        log.phase = Phase::Ready;
        let read = result.into_held(handle);
        let (records, cost) = read
            .as_ref()
            .map_or((0, 0), |read| (read.records(), read.charge()));
        self.schedule.end_read(handle, reserved, records, cost);
        if std::mem::take(&mut log.is_stale) {
            self.schedule.is_behind(handle);
            return self.enqueue(handle);
        }
        let Some(mut read) = read else {
            // unless it grew while it was read, there is nothing up to its end: the store let go of what it
            // took for acknowledged, or the driver was wrong and the log waits until it grows
            if log.range.end == end && end <= log.first_unacked {
                log.range.start = end;
                log.is_start_known = true;
            } else if log.range.end == end {
                log.range.end = log.read;
            }
            return self.enqueue(handle);
        };
        log.is_start_known = true;
        let is_rest_of_gap = log.is_rest_of_gap(&read);
        // not a boundary because it was trimmed since the hub was asked, or because it became part of a gap
        let is_gone = read.base_offset > log.read
            || (is_rest_of_gap && read.base_offset <= log.first_unacked);
        if log.is_unproven && is_gone {
            log.is_unproven = false;
            if log.read > log.first_unacked {
                self.outputs.push_back(SenderOutput::Acked {
                    handle,
                    next_offset: log.read,
                });
            }
        }
        if is_rest_of_gap {
            read.base_offset = log.read;
        }
        if read.raw_len() > session.max_batch_bytes {
            log.phase = Phase::Parked;
            self.outputs.push_back(SenderOutput::TooLarge {
                handle,
                offset: read.base_offset,
                bytes: read.raw_len(),
                limit: session.max_batch_bytes,
            });
        } else if log.is_unproven
            || read.base_offset < log.read
            || read.next_offset <= read.base_offset
        {
            self.resume_log(handle, Resume::Mismatch(Mismatch::NotABoundary));
        } else if read.base_offset > log.read {
            // trimmed while it was read: the gap goes first, then it is read again
            log.range.start = read.base_offset;
            self.schedule.is_behind(handle);
            self.enqueue(handle);
        } else {
            if read.next_offset < end {
                self.schedule.is_behind(handle);
            }
            self.hold(read);
        }
    }

    fn hold(&mut self, held: Held) {
        let Some(log) = self.logs.get_mut(&held.handle) else {
            return;
        };
        let handle = held.handle;
        log.read = held.next_offset;
        log.range.end = log.range.end.max(log.read);
        log.hub_chain = held.chain;
        log.held += 1;
        if matches!(held.content, DataContent::Records(_)) {
            log.begin = None;
        }
        self.schedule.hold(held);
        self.enqueue(handle);
    }

    /// Puts a log in line if it has something to send.
    pub(super) fn enqueue(&mut self, handle: Handle) {
        if let Some(log) = self.logs.get(&handle)
            && log.phase == Phase::Ready
            && log.read < log.range.end
            && !log.is_full()
        {
            self.schedule.offer(handle, log.range.end - log.read);
        }
    }

    pub(super) fn poll_data(&mut self) -> Option<SenderOutput> {
        let is_free = broken!(self, IgnoreCredit);
        let available = if is_free {
            u64::MAX
        } else {
            self.credit.available()
        };
        let (class, held) = self.schedule.next_item(available, self.in_flight)?;
        self.credit.take(held.charge());
        self.in_flight += 1;
        let log = self.logs.get_mut(&held.handle)?;
        let header = held.header(log.seq, std::mem::take(&mut log.is_restarted));
        log.seq = log.seq.wrapping_add(1);
        log.held -= 1;
        log.in_flight.push_back((held.next_offset, held.chain));
        let stream = DataStream {
            class,
            base_offset: held.base_offset,
            next_offset: held.next_offset,
            head: header.encode(),
            header,
            payload: held.payload,
        };
        self.schedule.handed(class, stream.len());
        Some(SenderOutput::Data(stream))
    }

    pub(super) fn poll_question(&mut self) -> Option<SenderOutput> {
        if self.questions >= MAX_QUESTIONS {
            return None;
        }
        let (handle, offset) = self.unasked.pop_front()?;
        self.questions += 1;
        Some(SenderOutput::Chain { handle, offset })
    }

    pub(super) fn poll_read(&mut self, max_batch_bytes: u32) -> Option<SenderOutput> {
        if self.questions >= MAX_QUESTIONS {
            return None;
        }
        let available = self.credit.available();
        let (handle, max_bytes) =
            self.schedule
                .next_reader(available, self.in_flight, max_batch_bytes)?;
        let log = self.logs.get_mut(&handle)?;
        if log.read < log.range.start && log.is_start_known {
            if broken!(self, ForgetTrimmedGap) {
                log.read = log.range.start;
            } else {
                log.phase = Phase::Trimmed;
                self.questions += 1;
                return Some(SenderOutput::Chain {
                    handle,
                    offset: log.range.start,
                });
            }
        }
        let reserved = charge(max_bytes);
        log.phase = Phase::Reading {
            reserved,
            end: log.range.end,
        };
        self.schedule.begin_read(handle, reserved);
        Some(SenderOutput::Read {
            handle,
            from: log.read,
            max_bytes,
            chain: log.hub_chain,
            begin: log.begin,
        })
    }
}
