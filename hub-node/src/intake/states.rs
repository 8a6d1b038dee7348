//! What codecs remember of logs, beyond sessions: the states that sites and this hub saved at the same
//! places, so that a connection that comes back need not learn anew.
//!
//! A state lost costs bytes and nothing else, so this is a cache. With a directory states are there and take no
//! memory, bounded by their own limit; without one they take what the codecs of open sessions leave of one bound, and the least recently used
//! goes first. The two newest states of a log are kept: the site may have lost the newest. A state is found by
//! site, log and position, never by what a message says about another site.

mod files;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use shared::ids::{SiteId, TopicPartition, Track};
use shared::wire::Anchor;
use tracing::debug;

use self::files::{Files, SUFFIX};

/// States of one log.
const PER_LOG: usize = 2;
/// What a state in memory takes beyond its bytes: its place in the maps, and the pages around it.
const STATE_OVERHEAD: usize = 6 << 10;
/// `KDGS`, then the codec, the position and the state, which carries its own checksum.
const MAGIC: [u8; 4] = *b"KDGS";
const HEAD_LEN: usize = MAGIC.len() + 1 + 8;

/// Whose state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct StateKey {
    pub(super) site: SiteId,
    pub(super) log: TopicPartition,
}

/// A state as the codec saved it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) anchor: Anchor,
    pub(super) state: Bytes,
}

/// The states of all sites, and how much memory open sessions' codecs take.
#[derive(Debug)]
pub struct CodecStates {
    limit: usize,
    directory: Option<PathBuf>,
    saved: Mutex<Shelf>,
    files: Mutex<Files>,
    live_limit: u64,
    live: AtomicU64,
}

#[derive(Debug, Default)]
struct Shelf {
    logs: HashMap<StateKey, Log>,
    /// Least recently used first.
    order: BTreeMap<u64, StateKey>,
    next: u64,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Log {
    used: u64,
    /// Newest first.
    states: Vec<Saved>,
}

impl CodecStates {
    /// `limit` bytes of codecs of open sessions and of saved states in memory, together; `live_limit` bytes
    /// of codecs of open sessions: from three quarters of it on new sessions are offered only codecs that remember
    /// nothing, and beyond it those that grow are ended, until it holds again. With
    /// a directory, states outlive the process and are not in memory: at most `disk_limit` bytes of them.
    #[must_use]
    pub fn new(limit: usize, live_limit: u64, directory: Option<PathBuf>, disk_limit: u64) -> Self {
        let (files, gone) = Files::look(directory.as_deref(), disk_limit);
        if let Some(directory) = &directory {
            remove_all(directory, gone);
        }
        Self {
            limit,
            directory,
            saved: Mutex::default(),
            files: Mutex::new(files),
            live_limit,
            live: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first of the site's anchors that is here, counted from 1, and its state. Blocks when it has to
    /// look on disk.
    pub(super) fn agree(&self, key: &StateKey, anchors: &[Anchor]) -> Option<(u8, Saved)> {
        if anchors.is_empty() {
            return None;
        }
        let mut states = self.lock().touch(key);
        let is_on_disk = states.is_empty();
        if is_on_disk {
            states = self.load(key);
        }
        (1..).zip(anchors).find_map(|(place, anchor)| {
            let saved = states.iter().find(|saved| saved.anchor == *anchor)?;
            let mut saved = saved.clone();
            if is_on_disk {
                // without the rest of its file
                saved.state = Bytes::copy_from_slice(&saved.state);
            }
            Some((place, saved))
        })
    }

    /// Keeps a state. Blocks when there is a directory.
    pub(super) fn keep(&self, key: &StateKey, saved: Saved) {
        if let Some((directory, name)) = self.place(key) {
            let path = directory.join(&name);
            let states = encode(&newest(self.load(key), saved.clone()));
            match std::fs::write(&path, &states) {
                Ok(()) => {
                    let gone = self.files().saved(&name, states.len() as u64);
                    remove_all(directory, gone);
                    return self.lock().remove(key);
                }
                Err(error) => debug!(%error, path = %path.display(), "Codec state not written"),
            }
        }
        let live = usize::try_from(self.live_bytes()).unwrap_or(usize::MAX);
        self.lock().put(key, saved, self.limit.saturating_sub(live));
    }

    fn load(&self, key: &StateKey) -> Vec<Saved> {
        let read = self
            .place(key)
            .and_then(|(directory, name)| std::fs::read(directory.join(name)).ok());
        read.map_or_else(Vec::new, |bytes| decode(&Bytes::from(bytes)))
    }

    /// Names of sites and topics are letters, digits and `._-`, so no two files have one name.
    fn place(&self, key: &StateKey) -> Option<(&Path, String)> {
        let directory: &Path = self.directory.as_deref()?;
        let TopicPartition {
            topic,
            partition,
            track,
        } = &key.log;
        let track = match track {
            Track::First => "",
            Track::Second => "@2",
        };
        let name = format!("{}@{}@{partition}{track}{SUFFIX}", key.site, topic.as_str());
        // a file system takes 255 bytes: what does not fit is kept in memory only
        (name.len() <= 255).then_some((directory, name))
    }

    /// Bytes that saved states take in memory.
    #[must_use]
    pub fn saved_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Bytes of saved states on disk.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.files().bytes()
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that the codecs of open sessions take.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// Whether a session that begins may use codecs that remember: what is left is for those that have begun.
    pub(super) fn has_room(&self) -> bool {
        self.live_bytes() < self.live_limit / 4 * 3
    }

    /// Whether a session whose codecs have just grown must end: who comes back finds no room.
    pub(super) fn is_over(&self) -> bool {
        self.live_bytes() > self.live_limit
    }

    /// A session's codecs take so many bytes instead of so many before.
    pub(super) fn account(&self, before: usize, after: usize) {
        let (before, after) = (before as u64, after as u64);
        if after >= before {
            self.live.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.live.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

fn remove_all(directory: &Path, names: Vec<String>) {
    for name in names {
        let path = directory.join(name);
        if let Err(error) = std::fs::remove_file(&path) {
            debug!(%error, path = %path.display(), "Codec state not removed");
        }
    }
}

impl Shelf {
    /// The states of a log, which is the most recently used from here on.
    fn touch(&mut self, key: &StateKey) -> Vec<Saved> {
        let Some(log) = self.logs.get_mut(key) else {
            return Vec::new();
        };
        self.order.remove(&log.used);
        log.used = self.next;
        self.order.insert(self.next, key.clone());
        self.next += 1;
        log.states.clone()
    }

    fn remove(&mut self, key: &StateKey) {
        if let Some(log) = self.logs.remove(key) {
            self.order.remove(&log.used);
            self.bytes -= bytes_of(&log.states);
        }
    }

    fn put(&mut self, key: &StateKey, saved: Saved, limit: usize) {
        self.touch(key);
        let log = self.logs.entry(key.clone()).or_insert_with(|| {
            let used = self.next;
            self.order.insert(used, key.clone());
            self.next += 1;
            Log {
                used,
                states: Vec::new(),
            }
        });
        let before = bytes_of(&log.states);
        log.states = newest(std::mem::take(&mut log.states), saved);
        self.bytes = self.bytes + bytes_of(&log.states) - before;
        while self.bytes > limit
            && let Some((_, oldest)) = self.order.pop_first()
        {
            if let Some(log) = self.logs.remove(&oldest) {
                self.bytes -= bytes_of(&log.states);
            }
        }
    }
}

fn bytes_of(states: &[Saved]) -> usize {
    let held = |saved: &Saved| saved.state.len() + STATE_OVERHEAD;
    states.iter().map(held).sum()
}

/// With this one in front.
fn newest(mut states: Vec<Saved>, saved: Saved) -> Vec<Saved> {
    states.retain(|other| other.anchor != saved.anchor);
    states.insert(0, saved);
    states.truncate(PER_LOG);
    states
}

fn encode(states: &[Saved]) -> Vec<u8> {
    let mut out = Vec::new();
    for saved in states {
        out.extend_from_slice(&MAGIC);
        out.push(saved.anchor.codec);
        out.extend_from_slice(&saved.anchor.position.to_be_bytes());
        out.extend_from_slice(&(saved.state.len() as u64).to_be_bytes());
        out.extend_from_slice(&saved.state);
    }
    out
}

/// As many whole states as there are.
fn decode(bytes: &Bytes) -> Vec<Saved> {
    let mut states = Vec::new();
    let mut rest = bytes.clone();
    while rest.len() > HEAD_LEN + 8 && rest.starts_with(&MAGIC) && states.len() < PER_LOG {
        let codec = rest[MAGIC.len()];
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&rest[at..at + 8]);
            u64::from_be_bytes(word)
        };
        let position = word(MAGIC.len() + 1);
        let Ok(len) = usize::try_from(word(HEAD_LEN)) else {
            break;
        };
        let from = HEAD_LEN + 8;
        let Some(to) = from.checked_add(len).filter(|to| *to <= rest.len()) else {
            break;
        };
        states.push(Saved {
            anchor: Anchor { codec, position },
            state: rest.slice(from..to),
        });
        rest = rest.slice(to..);
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::TopicName;

    fn key(site: &str) -> StateKey {
        StateKey {
            site: SiteId::new(site).unwrap(),
            log: TopicPartition {
                topic: TopicName::new("t").unwrap(),
                partition: 3,
                track: Track::First,
            },
        }
    }

    fn saved(position: u64, len: usize) -> Saved {
        Saved {
            anchor: Anchor { codec: 4, position },
            state: vec![7; len].into(),
        }
    }

    /// What so many states of so many bytes together take.
    fn held(count: usize, bytes: usize) -> usize {
        count * STATE_OVERHEAD + bytes
    }

    fn agreed(states: &CodecStates, site: &str, positions: &[u64]) -> Option<(u8, u64)> {
        let anchors: Vec<Anchor> = positions
            .iter()
            .map(|position| saved(*position, 0).anchor)
            .collect();
        let (place, saved) = states.agree(&key(site), &anchors)?;
        Some((place, saved.anchor.position))
    }

    #[test]
    fn who_comes_late_finds_no_room_before_those_who_are_here_must_go() {
        let states = CodecStates::new(0, 1_000, None, 1 << 20);
        states.account(0, 749);
        assert!(states.has_room() && !states.is_over());
        states.account(749, 1_000);
        assert!(!states.has_room() && !states.is_over());
        states.account(0, 1);
        assert!(states.is_over());
        states.account(1_001, 0);
        assert!(states.has_room() && !states.is_over());
    }

    #[test]
    fn the_two_newest_states_of_a_log_are_known_to_its_site_only() {
        let states = CodecStates::new(held(3, 1_000), 0, None, 1 << 20);
        for position in [1, 2, 3] {
            states.keep(&key("a"), saved(position, 100));
        }
        assert_eq!(agreed(&states, "a", &[9, 2, 3]), Some((2, 2)));
        assert_eq!(agreed(&states, "a", &[1]), None, "the third");
        assert_eq!(agreed(&states, "b", &[3]), None, "another site's");
        assert_eq!(states.saved_bytes(), held(2, 200));
    }

    #[test]
    fn at_the_limit_the_least_recently_used_goes() {
        let states = CodecStates::new(held(2, 250), 0, None, 1 << 20);
        states.keep(&key("a"), saved(1, 100));
        states.keep(&key("b"), saved(2, 100));
        assert!(agreed(&states, "a", &[1]).is_some());
        states.keep(&key("c"), saved(3, 100));
        assert_eq!(agreed(&states, "b", &[2]), None);
        assert!(agreed(&states, "a", &[1]).is_some());
        assert_eq!(states.saved_bytes(), held(2, 200));
    }

    #[test]
    fn with_a_directory_states_outlive_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let open = || CodecStates::new(1_000, 0, Some(directory.path().to_owned()), 1 << 20);
        let before = open();
        before.keep(&key("a"), saved(1, 100));
        before.keep(&key("a"), saved(2, 50));
        drop(before);
        let after = open();
        assert_eq!(agreed(&after, "a", &[2, 1]), Some((1, 2)));
        assert_eq!(agreed(&after, "a", &[1]), Some((1, 1)));
        assert_eq!(agreed(&after, "b", &[1]), None);
        after.keep(&key("a"), saved(3, 70));
        assert_eq!(agreed(&after, "a", &[1, 3]), Some((2, 3)), "the third");
        assert_eq!(after.saved_bytes(), 0);
    }

    #[test]
    fn saved_states_take_what_codecs_in_use_leave() {
        let states = CodecStates::new(held(2, 1_000), 1_000, None, 1 << 20);
        states.keep(&key("a"), saved(1, 300));
        states.keep(&key("b"), saved(2, 300));
        states.account(0, 500);
        states.keep(&key("c"), saved(3, 100));
        assert_eq!(agreed(&states, "a", &[1]), None);
        assert!(agreed(&states, "b", &[2]).is_some());
        assert_eq!(states.saved_bytes(), held(2, 400));
        assert!(states.has_room());
    }

    #[test]
    fn a_directory_that_takes_nothing_leaves_them_in_memory() {
        let states = CodecStates::new(
            held(1, 1_000),
            0,
            Some(PathBuf::from("/proc/nowhere")),
            1 << 20,
        );
        states.keep(&key("a"), saved(1, 100));
        assert!(agreed(&states, "a", &[1]).is_some());
        assert_eq!(states.saved_bytes(), held(1, 100));
    }

    #[test]
    fn the_directory_has_a_bound() {
        let directory = tempfile::tempdir().unwrap();
        let open = |limit| CodecStates::new(1_000, 0, Some(directory.path().to_owned()), limit);
        let states = open(300);
        states.keep(&key("a"), saved(1, 100));
        states.keep(&key("b"), saved(2, 100));
        assert!(agreed(&states, "a", &[1]).is_some());
        states.keep(&key("c"), saved(3, 100));
        assert_eq!(agreed(&states, "a", &[1]), None);
        assert!(agreed(&states, "b", &[2]).is_some() && agreed(&states, "c", &[3]).is_some());
        assert!((200..=300).contains(&states.disk_bytes()));
        assert!(open(150).disk_bytes() <= 150);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_no_state() {
        let whole = encode(&[saved(1, 100), saved(2, 50)]);
        for len in 0..whole.len() {
            let found = decode(&Bytes::copy_from_slice(&whole[..len]));
            assert!(found.len() < 2, "{len}");
        }
        assert_eq!(decode(&whole.into()).len(), 2);
    }
}
