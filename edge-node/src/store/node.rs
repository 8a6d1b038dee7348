//! The store on disk: opened, mended where it must be, and run by one writer.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rand::Rng;
use rocksdb::DB;
use shared::ids::{Incarnation, Offset, TopicName, Track};
use tokio::sync::{oneshot, watch};

use super::disk::{Disk, DiskError, Op, Stored};
use super::draft::Limits;
use super::ends::{Ends, EndsFile};
use super::engine::{Engine, Loaded};
use super::lock;
use super::recovery::{self, DamagedRange, Depth, Scanner};
use super::repair::{self, Salvage};
use super::rocks::{self, RocksDisk};
use super::space::Reserve;
use super::tuning;
use super::value::StoreRecord;
use super::writer::Writer;
use super::{
    Append, AppendError, Appended, DeleteError, FetchLimit, Fetched, Item, Ledger, Log, LogRange,
    Moment, PartitionId, Space, StateChange, StateSpace, Store, StoreConfig, StoreError, Topic,
    TopicRules,
};

pub(super) const DB_DIR: &str = "db";
const ENDS: &str = "ends";
const RESERVE: &str = "reserve";

/// The log on disk. Handle to it is an `Arc`; [`RocksStore::close`] ends it in order, and nothing but
/// the speed of the next start depends on that.
pub struct RocksStore {
    writer: Writer,
    engine: Arc<Engine<RocksDisk>>,
    rng: Mutex<Box<dyn Rng + Send>>,
}

impl std::fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksStore")
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

/// What opening a store found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartReport {
    /// True when there was no store before.
    pub is_new: bool,
    /// True when the process before closed it in order.
    pub was_closed: bool,
    /// Ranges found missing on this start. They stand as gaps in their logs.
    pub damaged: Vec<DamagedRange>,
    /// Present when the database was damaged and a new one was made of what could be read.
    pub salvage: Option<Salvage>,
}

impl RocksStore {
    /// Opens the store in `dir`, or creates it. `rng` makes incarnation ids.
    ///
    /// Damage does not keep it from opening: what cannot be read is set aside and declared.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk fails or another process has the store open.
    pub fn open(
        dir: &Path,
        config: &StoreConfig,
        mut rng: Box<dyn Rng + Send>,
    ) -> Result<(Arc<Self>, StartReport), StoreError> {
        create_dir(dir).map_err(|error| StoreError::Io(error.to_string()))?;
        let reserve = Reserve::new(dir.join(RESERVE), config.reserve_bytes);
        let fresh = mint(rng.as_mut());
        let opened = match Opened::new(dir, config, fresh) {
            // opening needs space of its own: a new write-ahead log and manifest
            Err(DiskError::Full(_)) if reserve.open() => Opened::new(dir, config, fresh)?,
            other => other?,
        };
        let Opened {
            db,
            loaded,
            ends,
            report,
        } = opened;
        let disk = RocksDisk::new(db, dir, ends, reserve, config.min_free_bytes);
        let partitions = loaded.partitions.iter();
        disk.maintain(partitions.map(|(_, p)| p.stored_bytes()).sum());
        let limits = Limits {
            quota_bytes: config.quota_bytes,
            index_bytes: config.index_bytes,
        };
        let rules = Arc::new(config.default_rules.clone());
        let engine = Arc::new(Engine::new(
            disk,
            loaded,
            limits,
            config.max_producers,
            &rules,
        ));
        let writer = Writer::start(
            Arc::clone(&engine),
            config.append_queue_len,
            config.append_queue_bytes,
        )
        .map_err(|error| StoreError::Io(error.to_string()))?;
        let rng = Mutex::new(rng);
        Ok((
            Arc::new(Self {
                writer,
                engine,
                rng,
            }),
            report,
        ))
    }

    /// Whether another process has the store in `dir` open. This process's own lock is not seen.
    #[must_use]
    pub fn is_in_use(dir: &Path) -> bool {
        lock::is_held_elsewhere(&dir.join(DB_DIR))
    }

    /// Answers what waits, syncs, and refuses appends from then on. Blocks for as long as the disk
    /// takes.
    pub fn close(&self) {
        self.writer.stop();
        if self.engine.failure().borrow().is_none() {
            self.engine.disk.close();
        }
    }

    /// A partition's items, unseen by any reader.
    #[cfg(test)]
    pub(super) fn peek(&self, partition: PartitionId) -> Vec<Item> {
        self.engine.peek(partition)
    }

    #[cfg(test)]
    pub(super) fn db(&self) -> &DB {
        self.engine.disk.db()
    }
}

impl Store for RocksStore {
    fn append(&self, append: Append) -> oneshot::Receiver<Result<Appended, AppendError>> {
        self.writer.append(append)
    }

    fn put_state(&self, changes: Vec<StateChange>) -> oneshot::Receiver<Result<(), AppendError>> {
        self.writer.put_state(changes)
    }

    fn renew_incarnation(&self) -> Result<Incarnation, StoreError> {
        let minted = {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            mint(rng.as_mut())
        };
        self.engine.renew_incarnation(minted)
    }

    delegate_to_engine!();
}

/// Makes the directory and the ones above it, so that a power cut right after does not take them away.
fn create_dir(dir: &Path) -> std::io::Result<()> {
    if !dir.is_dir() {
        if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
            create_dir(above)?;
            fs::create_dir(dir)?;
            return fs::File::open(above)?.sync_all();
        }
        fs::create_dir(dir)?;
    }
    Ok(())
}

fn mint(rng: &mut dyn Rng) -> Incarnation {
    Incarnation(u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64()))
}

/// A database that is open and holds what it says.
struct Opened {
    db: DB,
    loaded: Loaded,
    ends: EndsFile,
    report: StartReport,
}

impl Opened {
    fn new(dir: &Path, config: &StoreConfig, fresh: Incarnation) -> Result<Self, DiskError> {
        let ends = Ends::load(&dir.join(ENDS));
        let is_new = ends.is_none() && !dir.join(DB_DIR).exists() && repair::marked(dir).is_none();
        let salvage = |reason: String| {
            tracing::warn!(reason, "Store is damaged and is salvaged");
            repair::salvage(dir, reason, ends.as_ref(), fresh, config.index_bytes)
        };
        let (db, mut loaded, salvaged) = match try_open(dir, is_new, fresh) {
            Ok((db, loaded)) => (db, loaded, None),
            Err(DiskError::Corrupt(reason)) => {
                let done = salvage(reason)?;
                let (db, loaded) = try_open(dir, false, fresh)?;
                (db, loaded, Some(done))
            }
            Err(error @ (DiskError::Full(_) | DiskError::Failed(_))) => return Err(error),
        };
        let was_closed = ends.as_ref().is_some_and(|ends| ends.is_clean);
        let depth = match (&salvaged, was_closed || is_new) {
            (Some(_), _) => Depth::All,
            (None, true) => Depth::Books,
            (None, false) => Depth::Recent,
        };
        let recovered = recovery::reconcile(&db, &mut loaded, ends.as_ref(), depth);
        let recovered = match recovered {
            Err(DiskError::Corrupt(reason)) if salvaged.is_none() => {
                drop(db);
                repair::mark(dir, &reason);
                return Self::new(dir, config, fresh);
            }
            other => other?,
        };
        if !recovered.ops.is_empty() {
            rocks::write_ops(&db, &recovered.ops)?;
        }
        for (key, state) in &mut loaded.producers {
            state.is_doubtful = recovered.holed.contains(&key.partition);
        }
        let ends = EndsFile::create(&dir.join(ENDS), loaded.record, &loaded.partitions)
            .map_err(|error| DiskError::Failed(error.to_string()))?;
        let damaged = recovered.damaged;
        let report = StartReport {
            is_new,
            was_closed,
            damaged,
            salvage: salvaged,
        };
        Ok(Self {
            db,
            loaded,
            ends,
            report,
        })
    }
}

fn try_open(dir: &Path, is_new: bool, fresh: Incarnation) -> Result<(DB, Loaded), DiskError> {
    if let Some(reason) = repair::marked(dir) {
        return Err(DiskError::Corrupt(reason));
    }
    let path = dir.join(DB_DIR);
    if !is_new && !path.join("CURRENT").exists() {
        // RocksDB would take it for empty and delete what is there
        return Err(DiskError::Corrupt(
            "database has no CURRENT file".to_owned(),
        ));
    }
    let db = if is_new {
        tuning::create_db(&path)
    } else {
        tuning::open_db(&path)
    };
    let db = db.map_err(|error| opening(error.into_string()))?;
    let loaded = match rocks::load(&db)? {
        Some(loaded) => loaded,
        None if is_new => {
            let record = StoreRecord::new(fresh);
            rocks::write_ops(&db, &[Op::PutStore(record)])?;
            Loaded {
                record,
                partitions: Vec::new(),
                producers: Vec::new(),
            }
        }
        None => {
            return Err(DiskError::Corrupt(
                "the store's own record is missing".to_owned(),
            ));
        }
    };
    Ok((db, loaded))
}

/// Sorts out why a database did not open: damage, or something that passes or needs a person.
fn opening(message: String) -> DiskError {
    let is_disk = [
        "While lock file",
        "lock hold by current process",
        "Permission denied",
        "Too many open files",
        "Input/output error",
        "Read-only file system",
    ]
    .iter()
    .any(|text| message.contains(text));
    if message.contains("No space left") {
        DiskError::Full(message)
    } else if is_disk {
        DiskError::Failed(message)
    } else {
        DiskError::Corrupt(message)
    }
}

impl Scanner for DB {
    fn first_since(&self, id: PartitionId, position: u64) -> Result<Option<Offset>, DiskError> {
        rocks::first_since(self, id, position)
    }

    fn each(
        &self,
        id: PartitionId,
        from: Offset,
        visit: &mut dyn FnMut(Stored),
    ) -> Result<(), DiskError> {
        let mut scan = rocks::scan(self, id, from, Offset::MAX);
        while let Some(stored) = scan.next()? {
            visit(stored);
        }
        Ok(())
    }
}
