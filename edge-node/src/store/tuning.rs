//! RocksDB's options: three column families, tuned for a small box and a queue's life.
//!
//! Memory has a limit that does not grow with what is stored: 8 MiB of write buffers, 6 MiB of cache
//! for index blocks, 64 open files. Values are batches that producers or the door have compressed where
//! it pays: they are not compressed again.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    Options, WriteBufferManager,
};

use super::rocks::family;

pub(super) const LOG: &str = "log";
pub(super) const META: &str = "meta";
pub(super) const IDX: &str = "idx";

const MIB: usize = 1 << 20;

/// Opens a database that is there.
pub(super) fn open_db(path: &Path) -> Result<DB, rocksdb::Error> {
    let (options, families) = tuned(false);
    DB::open_cf_descriptors(&options, path, families)
}

/// Makes a new database.
///
/// Each column family gets a table file at once, with a key that no log has and that stays for good:
/// should the manifest be lost, RocksDB learns the names of column families from their files only.
pub(super) fn create_db(path: &Path) -> Result<DB, rocksdb::Error> {
    let (options, families) = tuned(true);
    let db = DB::open_cf_descriptors(&options, path, families)?;
    for name in [LOG, META, IDX] {
        let family = family(&db, name);
        db.put_cf(family, [0xff; 13], name)?;
        db.flush_cf(family)?;
    }
    Ok(db)
}

/// The options of the whole database and of its column families.
pub(super) fn tuned(may_create: bool) -> (Options, Vec<ColumnFamilyDescriptor>) {
    let cache = Cache::new_lru_cache(6 * MIB);
    // never stalls: a writer that waits there for a flush is not woken when the flush fails for want of
    // space. The write buffers of each column family bound memory too, and their stall ends then
    let memory =
        WriteBufferManager::new_write_buffer_manager_with_cache(8 * MIB, false, cache.clone());
    let mut options = Options::default();
    options.create_if_missing(may_create);
    options.create_missing_column_families(may_create);
    options.set_write_buffer_manager(&memory);
    options.set_max_open_files(64);
    // a log is read in order: the kernel may read ahead, which RocksDB would forbid it. Single blocks
    // elsewhere in a file are still read alone
    options.set_advise_random_on_open(false);
    options.set_skip_stats_update_on_db_open(true);
    options.set_max_background_jobs(2);
    options.set_max_subcompactions(1);
    options.set_max_total_wal_size(8 << 20);
    options.set_bytes_per_sync(512 << 10);
    options.set_max_manifest_file_size(MIB);
    options.set_max_log_file_size(MIB);
    options.set_keep_log_file_num(2);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_writable_file_max_buffer_size(256 << 10);
    options.set_compaction_readahead_size(256 << 10);
    // a damaged record in the write-ahead log must not take the sound ones behind it along: what is
    // missing is found and declared by `recovery`
    options.set_wal_recovery_mode(DBRecoveryMode::SkipAnyCorruptedRecord);
    let families = [("default", MIB), (META, MIB), (IDX, MIB), (LOG, 4 * MIB)]
        .map(|(name, buffer)| {
            let options = family_options(&cache, buffer);
            ColumnFamilyDescriptor::new(name, options)
        })
        .into();
    (options, families)
}

fn family_options(cache: &Cache, write_buffer: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(16 << 10);
    table.set_cache_index_and_filter_blocks(true);
    table.set_format_version(5);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(write_buffer);
    options.set_max_write_buffer_number(2);
    options.set_compression_type(DBCompressionType::None);
    // each compaction of new files rewrites much of the first level, for new files lie across all
    // partitions: so many at a time halve what is written. More would cost a reader memory, a block of
    // each file
    options.set_level_zero_file_num_compaction_trigger(8);
    // what waits here has a bound in `rocks`, for appends alone
    options.set_level_zero_slowdown_writes_trigger(i32::MAX);
    options.set_level_zero_stop_writes_trigger(i32::MAX);
    options.set_soft_pending_compaction_bytes_limit(0);
    options.set_hard_pending_compaction_bytes_limit(0);
    options.set_target_file_size_base(8 << 20);
    options.set_max_bytes_for_level_base(32 << 20);
    options
}
