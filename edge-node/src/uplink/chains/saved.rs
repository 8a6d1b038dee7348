//! States of codecs on disk, a file for each log: bounded, and the bytes stay there until they are wanted.
//!
//! ```text
//!  0        4       5          13
//!  ├ "KDGA" ├ codec ├ position ├ state, which carries its own checksum
//!  │        │ u8    │ u64      │
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use shared::crashsafe::{self, Access};
use shared::wire::{Anchor, Handle};
use tracing::{debug, warn};

const MAGIC: [u8; 4] = *b"KDGA";
const HEAD_LEN: usize = MAGIC.len() + 1 + 8;

/// A saved state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Saved {
    pub(super) anchor: Anchor,
    pub(super) state: Bytes,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    anchor: Anchor,
    bytes: u64,
    /// Its place in `order`.
    turn: u64,
}

/// The directory. What was saved longest ago goes when it is full.
#[derive(Debug)]
pub(super) struct SavedStates {
    directory: PathBuf,
    limit: u64,
    bytes: u64,
    files: HashMap<Handle, Entry>,
    order: BTreeMap<u64, Handle>,
    turns: u64,
}

impl SavedStates {
    /// Looks what is there. Files beyond `limit` bytes, and those that are none of ours by what they begin with,
    /// are removed.
    pub(super) fn open(directory: PathBuf, limit: u64) -> Self {
        if let Err(error) = std::fs::create_dir_all(&directory) {
            warn!(%error, "No directory for codec states: they do not outlive a session");
        }
        let mut states = Self {
            directory,
            limit,
            bytes: 0,
            files: HashMap::new(),
            order: BTreeMap::new(),
            turns: 0,
        };
        for (handle, anchor, bytes) in states.found() {
            match anchor {
                Some(anchor) => {
                    states.note(handle, anchor, bytes);
                    states.shrink(None);
                }
                None => states.delete(handle),
            }
        }
        states
    }

    /// Oldest first.
    fn found(&self) -> Vec<(Handle, Option<Anchor>, u64)> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".anchor"));
            let Some(handle) = number.and_then(|number| number.parse().ok()) else {
                continue;
            };
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let anchor = head(&entry.path());
            found.push((changed, Handle(handle), anchor, metadata.len()));
        }
        found.sort_unstable_by_key(|(changed, handle, ..)| (*changed, handle.0));
        let rest = found.into_iter();
        rest.map(|(_, handle, anchor, bytes)| (handle, anchor, bytes))
            .collect()
    }

    /// Every log's saved place.
    pub(super) fn anchors(&self) -> impl Iterator<Item = (Handle, Anchor)> {
        self.files
            .iter()
            .map(|(handle, entry)| (*handle, entry.anchor))
    }

    /// A log's saved place.
    pub(super) fn anchor(&self, handle: Handle) -> Option<Anchor> {
        self.files.get(&handle).map(|entry| entry.anchor)
    }

    /// Bytes of all files.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The state of a place, if it is the one that is saved.
    pub(super) fn load(&self, handle: Handle, anchor: Anchor) -> Option<Bytes> {
        self.anchor(handle).filter(|saved| *saved == anchor)?;
        let file = std::fs::read(self.path(handle)).ok()?;
        let saved = decode(&Bytes::from(file))?;
        (saved.anchor == anchor).then_some(saved.state)
    }

    /// Saves a state in place of the log's last one. Those that had to go for it are returned; it may be among
    /// them.
    pub(super) fn save(&mut self, handle: Handle, saved: &Saved) -> Vec<Handle> {
        let file = encode(saved);
        let bytes = file.len() as u64;
        if bytes > self.limit {
            self.remove(handle);
            return vec![handle];
        }
        self.forget(handle);
        self.note(handle, saved.anchor, bytes);
        let gone = self.shrink(Some(handle));
        let path = self.path(handle);
        if let Err(error) = crashsafe::replace(&path, &file, Access::Private) {
            debug!(%error, path = %path.display(), "Codec state not written");
            self.remove(handle);
            return vec![handle];
        }
        gone
    }

    /// Removes a log's state.
    pub(super) fn remove(&mut self, handle: Handle) {
        if self.forget(handle) {
            self.delete(handle);
        }
    }

    fn note(&mut self, handle: Handle, anchor: Anchor, bytes: u64) {
        self.turns += 1;
        self.bytes += bytes;
        self.order.insert(self.turns, handle);
        let entry = Entry {
            anchor,
            bytes,
            turn: self.turns,
        };
        self.files.insert(handle, entry);
    }

    fn forget(&mut self, handle: Handle) -> bool {
        let Some(entry) = self.files.remove(&handle) else {
            return false;
        };
        self.order.remove(&entry.turn);
        self.bytes -= entry.bytes;
        true
    }

    fn shrink(&mut self, but: Option<Handle>) -> Vec<Handle> {
        let mut gone = Vec::new();
        while self.bytes > self.limit {
            let oldest = self.order.values().find(|id| Some(**id) != but).copied();
            let Some(oldest) = oldest else { break };
            self.remove(oldest);
            gone.push(oldest);
        }
        gone
    }

    fn delete(&self, handle: Handle) {
        let path = self.path(handle);
        if let Err(error) = std::fs::remove_file(&path) {
            debug!(%error, path = %path.display(), "Codec state not removed");
        }
    }

    fn path(&self, handle: Handle) -> PathBuf {
        self.directory.join(format!("{}.anchor", handle.0))
    }
}

fn head(path: &Path) -> Option<Anchor> {
    let mut head = [0; HEAD_LEN];
    File::open(path).ok()?.read_exact(&mut head).ok()?;
    Some(decode(&Bytes::copy_from_slice(&head))?.anchor)
}

fn encode(saved: &Saved) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_LEN + saved.state.len());
    out.extend_from_slice(&MAGIC);
    out.push(saved.anchor.codec);
    out.extend_from_slice(&saved.anchor.position.to_be_bytes());
    out.extend_from_slice(&saved.state);
    out
}

fn decode(file: &Bytes) -> Option<Saved> {
    let rest = file.strip_prefix(&MAGIC)?;
    let (&codec, rest) = rest.split_first()?;
    let (position, _) = rest.split_first_chunk::<8>()?;
    Some(Saved {
        anchor: Anchor {
            codec,
            position: u64::from_be_bytes(*position),
        },
        state: file.slice(HEAD_LEN..),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 100;

    fn saved(position: u64) -> Saved {
        Saved {
            anchor: Anchor { codec: 4, position },
            state: vec![7; 100 - HEAD_LEN].into(),
        }
    }

    #[test]
    fn the_directory_stays_within_its_bound_and_forgets_what_is_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let open = |limit| SavedStates::open(dir.path().to_owned(), limit);
        let mut states = open(3 * FILE);
        let ids: Vec<Handle> = (1..=4).map(Handle).collect();
        for id in &ids[..3] {
            assert!(states.save(*id, &saved(id.0.into())).is_empty());
        }
        // as new as can be from here on
        assert!(states.save(ids[0], &saved(9)).is_empty());
        assert_eq!(states.save(ids[3], &saved(4)), [ids[1]]);
        assert_eq!(states.bytes(), 3 * FILE);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        assert_eq!(states.load(ids[1], saved(2).anchor), None);
        assert_eq!(states.load(ids[0], saved(1).anchor), None, "an older place");
        let found = states.load(ids[0], saved(9).anchor);
        assert_eq!(found, Some(saved(9).state));
        // a smaller bound holds from the start
        let states = open(FILE);
        assert_eq!(states.anchors().count(), 1);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_larger_than_the_bound_or_cannot_be_written_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut states = SavedStates::open(dir.path().join("a"), FILE - 1);
        assert_eq!(states.save(Handle(1), &saved(1)), [Handle(1)]);
        let mut states = SavedStates::open(dir.path().join("b"), FILE);
        std::fs::remove_dir(dir.path().join("b")).unwrap();
        assert_eq!(states.save(Handle(1), &saved(1)), [Handle(1)]);
        assert_eq!((states.bytes(), states.anchors().count()), (0, 0));
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("5.anchor"), b"garbage").unwrap();
        std::fs::write(dir.path().join("chunks.index"), b"another's").unwrap();
        let states = SavedStates::open(dir.path().to_owned(), FILE);
        assert_eq!(states.anchors().count(), 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
