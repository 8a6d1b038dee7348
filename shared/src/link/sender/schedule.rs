//! Which log is read next, and which of what was read is sent next.
//!
//! ```text
//!  offer ─► waits for company ─► in line (fair between topics) ─► read ─► held ─► sent ─► delivered
//!              (delay.rs)              (topics.rs)                     (turns.rs)  (transit.rs)
//! ```
//! Each class has its own line and holds its own items, so that nothing waits behind what is less urgent:
//! - items under way are bounded together, but a class that has none may always have one;
//! - while anything is in flight, a part of the credit and of the streams is for critical records alone;
//! - a class that may not be sent keeps its place and what it holds, and takes nothing from the others.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::delay::Delays;
use super::port::Held;
use super::topics::{TopicIndex, Topics};
use super::transit::Transit;
use super::turns::Turns;
use crate::class::{Class, ClassRules, ClassSet, PerClass};
use crate::ids::TopicName;
use crate::wire::{Handle, MAX_DATA_HEADER_LEN, MAX_STREAMS_IN_FLIGHT, STREAM_OVERHEAD};

/// With less credit than this, and than a whole read, no read starts while others are under way: streams
/// would get ever smaller.
const MIN_READ_BYTES: u64 = 16 << 10;
/// Credit that only critical records may use: many alarms, or this part of a small window.
const RESERVED_CREDIT: u64 = 64 << 10;
const RESERVED_PART: u64 = 8;
/// Encoded bytes that are not held back for others: several packets, of which only the last is not full.
const GATHERED_BYTES: usize = 8 << 10;
/// Streams in flight that only critical records may use.
const RESERVED_STREAMS: usize = MAX_STREAMS_IN_FLIGHT / 16;

/// Where a log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Idle,
    Waiting(Duration),
    InLine,
}

#[derive(Debug)]
struct Place {
    class: Class,
    topic: TopicIndex,
    standing: Standing,
    /// When the oldest record came that no read has seen; `None`: it was there before, and has waited enough.
    since: Option<Duration>,
    /// Raw bytes of a record, by the last read; 0: not known.
    record_bytes: u64,
}

/// What one class has under way.
#[derive(Debug, Default)]
struct Line {
    topics: Topics,
    reads: usize,
    reserved: u64,
    /// Read, not yet sent.
    held: VecDeque<Held>,
    held_charge: u64,
}

impl Line {
    fn items(&self) -> usize {
        self.reads + self.held.len()
    }
}

#[derive(Debug)]
pub(super) struct Schedule {
    max_reads: usize,
    read_bytes: u32,
    reserve: u64,
    allowed: ClassSet,
    lines: PerClass<Line>,
    places: BTreeMap<Handle, Place>,
    topics: BTreeMap<(Class, TopicName), TopicIndex>,
    turns: Turns,
    transit: Transit,
    delays: Delays,
}

impl Schedule {
    pub(super) fn new(rules: ClassRules, max_reads: usize, read_bytes: u32) -> Self {
        Self {
            max_reads,
            read_bytes,
            reserve: 0,
            allowed: ClassSet::ALL,
            lines: PerClass::default(),
            places: BTreeMap::new(),
            topics: BTreeMap::new(),
            turns: Turns::new(rules.shares),
            transit: Transit::default(),
            delays: Delays::new(rules.max_delay),
        }
    }

    pub(super) fn add(&mut self, handle: Handle, topic: &TopicName, class: Class) {
        let line = &mut self.lines[class];
        let index = *self
            .topics
            .entry((class, topic.clone()))
            .or_insert_with(|| line.topics.add());
        let place = Place {
            class,
            topic: index,
            standing: Standing::Idle,
            since: None,
            record_bytes: 0,
        };
        self.places.insert(handle, place);
    }

    pub(super) fn class(&self, handle: Handle) -> Option<Class> {
        self.places.get(&handle).map(|place| place.class)
    }

    pub(super) fn set_allowed(&mut self, allowed: ClassSet) {
        self.allowed = allowed;
    }

    pub(super) fn set_read_bytes(&mut self, bytes: u32) {
        self.read_bytes = bytes;
    }

    pub(super) fn set_max_delay(&mut self, max_delay: PerClass<Duration>) {
        self.delays.set_max(max_delay);
    }

    pub(super) fn set_send_budget(&mut self, bytes: u64, usual: u64) {
        self.transit.set_budget(bytes, usual);
    }

    /// The window with which the session begins decides what is set aside.
    pub(super) fn set_window(&mut self, window: u64) {
        self.reserve = RESERVED_CREDIT.min(window / RESERVED_PART);
    }

    /// Records came.
    pub(super) fn grew(&mut self, handle: Handle, now: Duration) {
        if let Some(place) = self.places.get_mut(&handle) {
            place.since.get_or_insert(now);
        }
    }

    /// More lies there than the last read took: it waits for nobody.
    pub(super) fn is_behind(&mut self, handle: Handle) {
        if let Some(place) = self.places.get_mut(&handle) {
            place.since = None;
        }
    }

    /// The log has so many unread records.
    pub(super) fn offer(&mut self, handle: Handle, unread: u64) {
        let Some(place) = self.places.get_mut(&handle) else {
            return;
        };
        let is_full = unread.saturating_mul(place.record_bytes) >= self.read_bytes.into();
        // of a log that was not read yet nobody knows how much that is: the first read tells
        let waits = self.delays.is_any(place.class) && place.record_bytes > 0 && !is_full;
        let wait = place.since.filter(|_| waits);
        match (place.standing, wait) {
            (Standing::InLine, _) | (Standing::Waiting(_), Some(_)) => {}
            (Standing::Idle, Some(since)) => {
                place.standing = Standing::Waiting(since);
                self.delays.wait(place.class, handle, since);
            }
            (Standing::Waiting(since), None) => {
                self.delays.take(place.class, handle, since);
                self.put_in_line(handle);
            }
            (Standing::Idle, None) => self.put_in_line(handle),
        }
    }

    fn put_in_line(&mut self, handle: Handle) {
        if let Some(place) = self.places.get_mut(&handle) {
            place.standing = Standing::InLine;
            self.lines[place.class].topics.push(place.topic, handle);
        }
    }

    /// Logs that have waited long enough get in line.
    pub(super) fn release(&mut self, now: Duration) {
        for handle in self.delays.release(now) {
            self.put_in_line(handle);
        }
    }

    /// When [`Schedule::release`] has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.delays.deadline()
    }

    /// The log to read next, and at most how many bytes. It is out of line from here on.
    pub(super) fn next_reader(
        &mut self,
        available: u64,
        in_flight: usize,
        max_batch_bytes: u32,
    ) -> Option<(Handle, u32)> {
        let most = self.read_bytes.min(max_batch_bytes);
        let least = MIN_READ_BYTES.min(most.into());
        for class in self.allowed.iter() {
            if self.lines[class].topics.is_empty() || !self.has_slot(class) {
                continue;
            }
            let credit = self.credit_for(class, available, in_flight);
            if credit < least && !(credit > 0 && self.is_first_of_all(class, in_flight)) {
                continue;
            }
            let Some(handle) = self.lines[class].topics.pop(most) else {
                continue;
            };
            if let Some(place) = self.places.get_mut(&handle) {
                place.standing = Standing::Idle;
            }
            let max_bytes = u32::try_from(credit).map_or(most, |credit| most.min(credit));
            return Some((handle, max_bytes));
        }
        None
    }

    /// While the link is busy a class keeps one item ready, and lets the rest gather in the logs.
    fn has_slot(&self, class: Class) -> bool {
        let total: usize = self.allowed.iter().map(|of| self.lines[of].items()).sum();
        let own = self.lines[class].items();
        own == 0 || (total < self.max_reads && self.transit.has_room(class))
    }

    /// What is left for a read, when all that is held or read in it and in more urgent classes is sent.
    fn credit_for(&self, class: Class, available: u64, in_flight: usize) -> u64 {
        let before = self.not_after(class);
        let taken: u64 = before
            .map(|of| self.lines[of].reserved + self.lines[of].held_charge)
            .sum();
        available
            .saturating_sub(taken)
            .saturating_sub(self.reserve_before(class, in_flight))
            .saturating_sub(STREAM_OVERHEAD)
    }

    /// This class and the more urgent ones, of those that may be sent.
    fn not_after(&self, class: Class) -> impl Iterator<Item = Class> {
        self.allowed.iter().filter(move |of| *of <= class)
    }

    /// Nothing is under way whose acknowledgement would give credit back.
    fn is_first_of_all(&self, class: Class, in_flight: usize) -> bool {
        in_flight == 0 && self.not_after(class).all(|of| self.lines[of].items() == 0)
    }

    /// Set aside only while something is in flight: else the rest might be too little for ever.
    fn reserve_before(&self, class: Class, in_flight: usize) -> u64 {
        if class == Class::Critical || in_flight == 0 {
            0
        } else {
            self.reserve
        }
    }

    /// A read begins. What it may cost is reserved, and what comes from here on waits anew.
    pub(super) fn begin_read(&mut self, handle: Handle, reserved: u64) {
        let Some(place) = self.places.get_mut(&handle) else {
            return;
        };
        place.since = None;
        let line = &mut self.lines[place.class];
        line.reads += 1;
        line.reserved += reserved;
        line.topics.charge(place.topic, signed(reserved));
    }

    /// A read ends; it brought so many records that cost so much.
    pub(super) fn end_read(&mut self, handle: Handle, reserved: u64, records: u64, charge: u64) {
        let Some(place) = self.places.get_mut(&handle) else {
            return;
        };
        if let Some(bytes) = charge.checked_div(records) {
            place.record_bytes = bytes;
        }
        let line = &mut self.lines[place.class];
        line.reads -= 1;
        line.reserved -= reserved;
        let excess = signed(charge).saturating_sub(signed(reserved));
        line.topics.charge(place.topic, excess);
    }

    pub(super) fn hold(&mut self, item: Held) {
        let Some(class) = self.class(item.handle) else {
            return;
        };
        let line = &mut self.lines[class];
        line.held_charge += item.charge();
        line.held.push_back(item);
    }

    /// What is held of a log is void, and it waits for nobody.
    pub(super) fn drop_held(&mut self, handle: Handle) {
        let Some(class) = self.class(handle) else {
            return;
        };
        let line = &mut self.lines[class];
        line.held.retain(|item| item.handle != handle);
        line.held_charge = line.held.iter().map(Held::charge).sum();
        self.is_behind(handle);
    }

    /// The next item to send, if credit and transport have room for it.
    pub(super) fn next_item(&mut self, available: u64, in_flight: usize) -> Option<(Class, Held)> {
        let wanting = self.wanting();
        let makes_way = |class: &Class| self.transit.makes_way(*class, self.allowed);
        let class = self
            .turns
            .next(wanting.iter().filter(|class| !makes_way(class)).collect())?;
        let charge = self.lines[class].held.front()?.charge();
        let most = match class {
            Class::Critical => MAX_STREAMS_IN_FLIGHT,
            Class::Normal | Class::Bulk => MAX_STREAMS_IN_FLIGHT - RESERVED_STREAMS,
        };
        let needed = charge.saturating_add(self.reserve_before(class, in_flight));
        if in_flight >= most || needed > available || !self.transit.has_room(class) {
            return None;
        }
        let line = &mut self.lines[class];
        let item = line.held.pop_front()?;
        line.held_charge -= charge;
        let bytes = item.payload.len() + MAX_DATA_HEADER_LEN;
        self.turns.sent(class, bytes as u64, wanting);
        Some((class, item))
    }

    /// Those that have something to send.
    fn wanting(&self) -> ClassSet {
        let is_ready = |class: &Class| !self.lines[*class].held.is_empty() && !self.gathers(*class);
        self.allowed.iter().filter(is_ready).collect()
    }

    /// The link has carried so many bytes of what the transport was handed. True while that may end a turn for whose
    /// end a more urgent class waits.
    pub(super) fn carried(&mut self, bytes: u64) -> bool {
        let wanting = self.wanting();
        let Some(class) = self.turns.next(wanting) else {
            return false;
        };
        let waits = |of: Class| {
            of < class && self.transit.has_room(of) && self.transit.is_much_between(of, class)
        };
        let is_awaited = !self.transit.has_room(class) && wanting.iter().any(waits);
        if is_awaited {
            self.turns.carried(class, bytes);
        }
        is_awaited
    }

    /// What is held waits for the reads under way, to share packets with what they bring: only where records wait
    /// for company anyway.
    fn gathers(&self, class: Class) -> bool {
        let line = &self.lines[class];
        let held = || line.held.iter().map(|item| item.payload.len());
        line.reads > 0 && self.delays.is_any(class) && held().sum::<usize>() < GATHERED_BYTES
    }

    /// The transport has so many bytes more.
    pub(super) fn handed(&mut self, class: Class, bytes: u64) {
        self.transit.hand(class, bytes);
    }

    /// The peer's transport has what was handed over.
    pub(super) fn delivered(&mut self, class: Class, bytes: u64) {
        self.transit.deliver(class, bytes);
    }

    /// Bytes with the transport.
    pub(super) fn bytes_in_transit(&self) -> u64 {
        self.transit.bytes(ClassSet::ALL)
    }

    /// Those of them that may not be sent any more.
    pub(super) fn bytes_forbidden(&self) -> u64 {
        self.bytes_in_transit() - self.transit.bytes(self.allowed)
    }

    /// Reads under way and items that are held.
    pub(super) fn items(&self) -> usize {
        self.lines.iter().map(|(_, line)| line.items()).sum()
    }

    /// The session is over.
    pub(super) fn clear(&mut self) {
        self.delays.clear();
        for class in Class::all() {
            self.lines[class].held.clear();
            self.lines[class].topics.clear();
        }
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
