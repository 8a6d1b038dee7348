//! How much the saved states on disk take, and which go when it is too much: those saved longest ago.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::SystemTime;

/// What ends the name of a file of states.
pub(super) const SUFFIX: &str = ".state";

/// The files of a directory, by name. Pure but for [`Files::look`].
#[derive(Debug, Default)]
pub(super) struct Files {
    limit: u64,
    bytes: u64,
    known: HashMap<String, (u64, u64)>,
    /// Oldest first.
    order: BTreeMap<u64, String>,
    turns: u64,
}

impl Files {
    /// What a directory holds, and the names of what is beyond `limit` bytes.
    pub(super) fn look(directory: Option<&Path>, limit: u64) -> (Self, Vec<String>) {
        let mut files = Self {
            limit,
            ..Self::default()
        };
        let mut found = Vec::new();
        let entries = directory.and_then(|directory| std::fs::read_dir(directory).ok());
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            if let Ok(metadata) = entry.metadata()
                && name.ends_with(SUFFIX)
            {
                let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push((changed, name, metadata.len()));
            }
        }
        found.sort_unstable();
        let mut gone = Vec::new();
        for (_, name, bytes) in found {
            gone.extend(files.saved(&name, bytes));
        }
        (files, gone)
    }

    /// Bytes of all.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A file has so many bytes from here on. Those that go for it; it may be among them.
    pub(super) fn saved(&mut self, name: &str, bytes: u64) -> Vec<String> {
        self.forget(name);
        self.turns += 1;
        self.bytes += bytes;
        self.known.insert(name.to_owned(), (bytes, self.turns));
        self.order.insert(self.turns, name.to_owned());
        let mut gone = Vec::new();
        while self.bytes > self.limit
            && let Some((_, oldest)) = self.order.first_key_value()
        {
            let oldest = oldest.clone();
            self.forget(&oldest);
            gone.push(oldest);
        }
        gone
    }

    fn forget(&mut self, name: &str) {
        if let Some((bytes, turn)) = self.known.remove(name) {
            self.order.remove(&turn);
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_a_file_counts_once() {
        let (mut files, _) = Files::look(None, 100);
        assert!(files.saved("a", 40).is_empty());
        assert!(files.saved("b", 40).is_empty());
        assert!(files.saved("a", 50).is_empty());
        assert_eq!(files.bytes(), 90);
        assert_eq!(files.saved("c", 40), ["b"]);
        assert_eq!(files.saved("d", 101), ["a", "c", "d"]);
        assert_eq!(files.bytes(), 0);
    }

    #[test]
    fn what_a_directory_holds_counts() {
        let directory = tempfile::tempdir().unwrap();
        for (name, len) in [("a.state", 60), ("b.state", 60), ("c.other", 500)] {
            std::fs::write(directory.path().join(name), vec![0; len]).unwrap();
        }
        let (files, gone) = Files::look(Some(directory.path()), 100);
        assert_eq!((files.bytes(), gone.len()), (60, 1));
    }
}
