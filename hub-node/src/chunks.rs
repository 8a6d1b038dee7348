//! The chunks that sites refer to instead of sending them again: one store for each site.
//!
//! ```text
//!  codec_dir/chunks/
//!    0f65…30/            a site: the BLAKE3 hash of its name, so that no name is a path
//!      00000007.chunks   a segment, see `disk`
//!      00000008.chunks
//! ```
//! Nothing here is ever needed: what is missing the site sends again, so nothing is synced, and whatever
//! a disk says is compared with the id before it is believed. Without a directory the stores are in memory and
//! end with the process.
//!
//! A store is opened when its site first sends a large value, and no session of another site ever sees it: a
//! site that names a chunk of another gets a miss, as for any chunk that is nowhere. When the stores that are open
//! could outgrow the bound of all, each gets an equal part of it.

mod disk;
mod end;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use shared::dedup::{ChunkId, ChunkStore, MemoryChunks};
use shared::ids::SiteId;
use tracing::{info, warn};

use disk::DiskChunks;
pub(crate) use end::SiteStore;

/// Bounds and place of the stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunksConfig {
    /// `None`: in memory only.
    pub directory: Option<PathBuf>,
    /// Bytes of chunks of one site; 0: none are kept.
    pub max_site_bytes: u64,
    /// Bytes of chunks of all sites.
    pub max_bytes: u64,
}

/// A site's store while the site has a session. A session that ends late shares it with the next one for a
/// moment; nobody else waits for it.
pub(crate) type SharedChunks = Arc<Mutex<Box<dyn ChunkStore>>>;

/// The stores of all sites.
#[derive(Debug)]
pub struct SiteChunks {
    config: ChunksConfig,
    open: Mutex<Stores>,
}

#[derive(Debug)]
struct Stores {
    of: HashMap<SiteId, Open>,
    /// What each may take.
    limit: u64,
}

#[derive(Debug)]
struct Open {
    store: SharedChunks,
    used: SystemTime,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SiteChunks {
    /// No store is open yet.
    #[must_use]
    pub fn new(config: ChunksConfig) -> Self {
        let limit = config.max_site_bytes.min(config.max_bytes);
        Self {
            config,
            open: Mutex::new(Stores {
                of: HashMap::new(),
                limit,
            }),
        }
    }

    /// Whether sites may refer to chunks at all.
    #[must_use]
    pub fn are_kept(&self) -> bool {
        self.config.max_site_bytes > 0
    }

    /// The store of this site. Blocks on the disk for as long as it takes to read the heads of the chunks.
    pub(crate) fn of(&self, site: &SiteId, now: SystemTime) -> SharedChunks {
        let mut stores = lock(&self.open);
        if let Some(found) = stores.of.get_mut(site) {
            found.used = now;
            return Arc::clone(&found.store);
        }
        self.make_room(&mut stores);
        let store = Arc::new(Mutex::new(self.open_store(site, stores.limit)));
        let opened = Open {
            store: Arc::clone(&store),
            used: now,
        };
        stores.of.insert(site.clone(), opened);
        store
    }

    fn open_store(&self, site: &SiteId, limit: u64) -> Box<dyn ChunkStore> {
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

    fn root(&self) -> Option<PathBuf> {
        Some(self.config.directory.as_ref()?.join("chunks"))
    }

    fn dir_of(&self, site: &SiteId) -> Option<PathBuf> {
        let name = format!("{:?}", ChunkId::of(site.as_str().as_bytes()));
        Some(self.root()?.join(name))
    }

    /// For one store more.
    fn make_room(&self, stores: &mut Stores) {
        let is_idle = |open: &Open| Arc::strong_count(&open.store) == 1;
        if self.config.directory.is_some() {
            // its chunks are on the disk, and it can be opened again
            stores.of.retain(|_, open| !is_idle(open));
        }
        let most = |open: usize, limit: u64| (open as u64 + 1).saturating_mul(limit);
        let site_limit = self.config.max_site_bytes.min(self.config.max_bytes);
        while most(stores.of.len(), site_limit) > self.config.max_bytes {
            let idle = stores.of.iter().filter(|(_, open)| is_idle(open));
            let oldest = idle.min_by_key(|(_, open)| open.used);
            let Some(site) = oldest.map(|(site, _)| site.clone()) else {
                break;
            };
            stores.of.remove(&site);
            info!(%site, "Chunks forgotten to make room");
        }
        self.set_limit(stores, site_limit);
        self.remove_closed(stores, most(stores.of.len(), stores.limit));
    }

    /// Powers of two, so that it seldom changes however many sites come and go.
    fn set_limit(&self, stores: &mut Stores, site_limit: u64) {
        let part = self.config.max_bytes / (stores.of.len() as u64 + 1);
        let limit = if part >= site_limit {
            site_limit
        } else {
            1 << part.max(1).ilog2()
        };
        if limit != stores.limit {
            stores.limit = limit;
            for open in stores.of.values() {
                lock(&open.store).set_limit(limit);
            }
        }
    }

    /// Stores on the disk that are not open go when there is no room for them beside those that are, the oldest
    /// first.
    fn remove_closed(&self, stores: &Stores, reserved: u64) {
        let in_use: Vec<PathBuf> = stores
            .of
            .keys()
            .filter_map(|site| self.dir_of(site))
            .collect();
        let mut closed = self.closed_dirs(&in_use);
        closed.sort_unstable();
        let mut total = closed
            .iter()
            .fold(reserved, |sum, (_, bytes, _)| sum.saturating_add(*bytes));
        for (_, bytes, dir) in closed {
            if total <= self.config.max_bytes {
                return;
            }
            total = total.saturating_sub(bytes);
            if let Err(error) = std::fs::remove_dir_all(&dir) {
                warn!(dir = %dir.display(), %error, "Chunks cannot be removed");
            }
        }
    }

    /// Stores on the disk that are not open: when their last segment began, and their bytes.
    fn closed_dirs(&self, in_use: &[PathBuf]) -> Vec<(SystemTime, u64, PathBuf)> {
        let closed = |entry: std::fs::DirEntry| {
            let dir = entry.path();
            let changed = entry.metadata().ok()?.modified().ok()?;
            let files = std::fs::read_dir(&dir).ok()?;
            let len = |file: std::fs::DirEntry| file.metadata().map_or(0, |file| file.len());
            let bytes = files.flatten().map(len).sum();
            (!in_use.contains(&dir)).then_some((changed, bytes, dir))
        };
        let entries = self.root().and_then(|root| std::fs::read_dir(root).ok());
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

    fn config(directory: Option<PathBuf>) -> ChunksConfig {
        ChunksConfig {
            directory,
            max_site_bytes: 1 << 20,
            max_bytes: 3 << 20,
        }
    }

    fn site(n: u64) -> SiteId {
        SiteId::new(&format!("site-{n}")).unwrap()
    }

    fn at(n: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(n)
    }

    fn fill(store: &SharedChunks) {
        for n in 0..120_u8 {
            let chunk: Vec<u8> = (0..10_000_u32).map(|i| i.to_le_bytes()[0] ^ n).collect();
            lock(store).insert(ChunkId::of(&chunk), &chunk);
        }
    }

    fn has(store: &SharedChunks, id: &ChunkId) -> bool {
        lock(store).chunk(id).is_some()
    }

    fn bytes_under(dir: &std::path::Path) -> u64 {
        let sizes = std::fs::read_dir(dir.join("chunks")).unwrap().map(|dir| {
            let files = std::fs::read_dir(dir.unwrap().path()).unwrap();
            files
                .map(|file| file.unwrap().metadata().unwrap().len())
                .sum::<u64>()
        });
        sizes.sum()
    }

    #[test]
    fn a_site_never_sees_the_chunks_of_another() {
        let dir = tempfile::tempdir().unwrap();
        for directory in [None, Some(dir.path().to_owned())] {
            let stores = SiteChunks::new(config(directory));
            let ours = stores.of(&site(1), at(0));
            let id = ChunkId::of(b"secret");
            lock(&ours).insert(id, b"secret");
            assert!(has(&ours, &id));
            assert!(!has(&stores.of(&site(2), at(0)), &id));
        }
    }

    #[test]
    fn on_a_disk_chunks_outlive_the_session_and_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let id = ChunkId::of(b"chunk");
        for is_known in [false, true, true] {
            let stores = SiteChunks::new(config(Some(dir.path().to_owned())));
            let store = stores.of(&site(1), at(0));
            assert_eq!(has(&store, &id), is_known);
            lock(&store).insert(id, b"chunk");
        }
    }

    #[test]
    fn in_memory_chunks_outlive_the_session_until_there_is_no_room() {
        let stores = SiteChunks::new(config(None));
        let id = ChunkId::of(b"chunk");
        lock(&stores.of(&site(1), at(1))).insert(id, b"chunk");
        assert!(has(&stores.of(&site(1), at(2)), &id));
        for n in 2..4 {
            drop(stores.of(&site(n), at(n)));
        }
        assert!(has(&stores.of(&site(1), at(9)), &id));
        drop(stores.of(&site(5), at(10)));
        assert!(has(&stores.of(&site(1), at(11)), &id), "2 was the oldest");
        assert_eq!(lock(&stores.open).of.len(), 3);
    }

    #[test]
    fn all_stores_together_stay_within_their_bound() {
        let dir = tempfile::tempdir().unwrap();
        let stores = SiteChunks::new(config(Some(dir.path().to_owned())));
        for n in 0..8 {
            // the sessions end
            fill(&stores.of(&site(n), at(n)));
            assert!(bytes_under(dir.path()) <= 3 << 20, "{n}");
        }
        let mut held = Vec::new();
        for n in 0..6 {
            let store = stores.of(&site(n), at(n));
            fill(&store);
            held.push(store);
            assert!(bytes_under(dir.path()) <= 3 << 20, "{n} held");
        }
    }
}
