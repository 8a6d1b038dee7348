//! The chunks that sites refer to instead of sending them again: one store for each site.
//!
//! ```text
//!  state_dir/chunks/
//!    0f65…30/          a site: the BLAKE3 hash of its name, so that no name is a path
//!      00000007.chunks   a segment, see `disk`
//!      00000008.chunks
//! ```
//! Nothing here is ever needed: what is missing the site sends again, so nothing is synced, and whatever
//! a disk says is compared with the id before it is believed. Without a `state_dir` the stores are in memory
//! and end with the process.
//!
//! A site's store is opened with its session and is never looked into by another site's. The bound of all
//! stores together is kept by dropping those of the sites that were away for longest.

mod disk;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use shared::dedup::{ChunkId, ChunkStore, MemoryChunks};
use shared::ids::SiteId;
use tracing::{info, warn};

use disk::DiskChunks;

/// Bounds and place of the stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunksConfig {
    /// `None`: in memory only.
    pub state_dir: Option<PathBuf>,
    /// Bytes of chunks of one site.
    pub max_site_bytes: u64,
    /// Bytes of chunks of all sites.
    pub max_bytes: u64,
}

/// A site's store while the site has a session. One session of a site is open at a time; one that ends late
/// shares it for a moment.
pub type SharedChunks = Arc<Mutex<Box<dyn ChunkStore>>>;

/// The stores of all sites.
#[derive(Debug)]
pub struct SiteChunks {
    config: ChunksConfig,
    open: Mutex<HashMap<SiteId, Open>>,
}

#[derive(Debug)]
struct Open {
    store: SharedChunks,
    used: SystemTime,
}

impl SiteChunks {
    /// No store is open yet.
    #[must_use]
    pub fn new(config: ChunksConfig) -> Self {
        Self {
            config,
            open: Mutex::default(),
        }
    }

    /// The store of this site. Blocks on the disk for as long as it takes to read the heads of the chunks.
    #[must_use]
    pub fn of(&self, site: &SiteId, now: SystemTime) -> SharedChunks {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = open.get_mut(site) {
            found.used = now;
            return Arc::clone(&found.store);
        }
        if self.config.state_dir.is_some() {
            // its chunks are on the disk, and it can be opened again
            open.retain(|_, open| Arc::strong_count(&open.store) > 1);
        }
        let store = Arc::new(Mutex::new(self.open_store(site)));
        let opened = Open {
            store: Arc::clone(&store),
            used: now,
        };
        open.insert(site.clone(), opened);
        self.make_room(&mut open, site);
        store
    }

    fn open_store(&self, site: &SiteId) -> Box<dyn ChunkStore> {
        let limit = self.config.max_site_bytes.min(self.config.max_bytes);
        if let Some(dir) = self.dir_of(site) {
            match DiskChunks::open(&dir, limit) {
                Ok(store) => return Box::new(store),
                Err(error) => {
                    warn!(%site, dir = %dir.display(), %error, "Chunks are kept in memory only");
                }
            }
        }
        Box::new(MemoryChunks::new(limit))
    }

    fn dir_of(&self, site: &SiteId) -> Option<PathBuf> {
        let name = format!("{:?}", ChunkId::of(site.as_str().as_bytes()));
        Some(self.root()?.join(name))
    }

    fn root(&self) -> Option<PathBuf> {
        Some(self.config.state_dir.as_ref()?.join("chunks"))
    }

    /// As many stores as their bounds allow. Those that nobody holds go first, the oldest of them.
    fn make_room(&self, open: &mut HashMap<SiteId, Open>, newest: &SiteId) {
        let of_site = self
            .config
            .max_site_bytes
            .clamp(1, self.config.max_bytes.max(1));
        let most = usize::try_from(self.config.max_bytes / of_site).unwrap_or(usize::MAX);
        while open.len() > most.max(1) {
            let oldest = open
                .iter()
                .filter(|(site, _)| *site != newest)
                .min_by_key(|(_, open)| (Arc::strong_count(&open.store) > 1, open.used))
                .map(|(site, _)| site.clone());
            let Some(site) = oldest else { break };
            open.remove(&site);
            info!(%site, "Chunks forgotten to make room");
        }
        let in_use: Vec<PathBuf> = open.keys().filter_map(|site| self.dir_of(site)).collect();
        let mut closed = self.closed_dirs(&in_use);
        let excess = (in_use.len() + closed.len()).saturating_sub(most.max(1));
        closed.sort_unstable();
        for (_, dir) in closed.into_iter().take(excess) {
            if let Err(error) = std::fs::remove_dir_all(&dir) {
                warn!(dir = %dir.display(), %error, "Chunks cannot be removed");
            }
        }
    }

    /// Stores on the disk that are not open, with the time of their last segment.
    fn closed_dirs(&self, in_use: &[PathBuf]) -> Vec<(SystemTime, PathBuf)> {
        let entries = self.root().and_then(|root| std::fs::read_dir(root).ok());
        let closed = |entry: std::fs::DirEntry| {
            let dir = entry.path();
            let changed = entry.metadata().ok()?.modified().ok()?;
            (!in_use.contains(&dir)).then_some((changed, dir))
        };
        entries
            .into_iter()
            .flatten()
            .filter_map(|entry| closed(entry.ok()?))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn config(state_dir: Option<PathBuf>) -> ChunksConfig {
        ChunksConfig {
            state_dir,
            max_site_bytes: 1 << 20,
            max_bytes: 3 << 20,
        }
    }

    fn has(store: &SharedChunks, id: &ChunkId) -> bool {
        store.lock().unwrap().chunk(id).is_some()
    }

    #[test]
    fn a_site_never_sees_the_chunks_of_another() {
        let dir = tempfile::tempdir().unwrap();
        for state_dir in [None, Some(dir.path().to_owned())] {
            let stores = SiteChunks::new(config(state_dir));
            let ours = stores.of(&SiteId::new("ours").unwrap(), SystemTime::UNIX_EPOCH);
            let id = ChunkId::of(b"secret");
            ours.lock().unwrap().insert(id, b"secret");
            assert!(has(&ours, &id));
            let theirs = stores.of(&SiteId::new("theirs").unwrap(), SystemTime::UNIX_EPOCH);
            assert!(!has(&theirs, &id));
        }
    }

    #[test]
    fn all_stores_together_stay_within_their_bound() {
        let dir = tempfile::tempdir().unwrap();
        let id = ChunkId::of(b"chunk");
        for _ in 0..2 {
            let stores = SiteChunks::new(config(Some(dir.path().to_owned())));
            for n in 0..6 {
                let now = SystemTime::UNIX_EPOCH + Duration::from_secs(n);
                let site = SiteId::new(&format!("site-{n}")).unwrap();
                stores.of(&site, now).lock().unwrap().insert(id, b"chunk");
                let dirs = std::fs::read_dir(dir.path().join("chunks")).unwrap();
                assert!(dirs.count() <= 3);
            }
        }
        let stores = SiteChunks::new(config(None));
        for n in 0..6 {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(n);
            let site = SiteId::new(&format!("site-{n}")).unwrap();
            stores.of(&site, now).lock().unwrap().insert(id, b"chunk");
        }
        assert_eq!(stores.open.lock().unwrap().len(), 3);
    }
}
