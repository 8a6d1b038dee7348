//! Where the set-up put what the tests need, and where the nodes' binaries are.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// The cache that `make setup` fills.
#[must_use]
pub fn cache() -> PathBuf {
    env::var_os("KEDGE_CACHE").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache/kedge"),
        PathBuf::from,
    )
}

/// The Kafka jars, as a Java class path.
///
/// # Errors
/// When the set-up has not run.
pub fn kafka_class_path() -> Result<String> {
    let libs = cache().join("kafka-libs");
    if !libs.join(".complete").exists() {
        bail!("no Kafka jars in {}: run `make setup-test`", libs.display());
    }
    Ok(format!("{}/*", libs.display()))
}

/// The Python of the virtual environment with the Kafka clients.
///
/// # Errors
/// When the set-up has not run.
pub fn python() -> Result<PathBuf> {
    let python = cache().join("venv/bin/python");
    if !python.exists() {
        bail!("no {}: run `make setup-test`", python.display());
    }
    Ok(python)
}

/// The lost-writes shim.
///
/// # Errors
/// When the set-up has not run.
pub fn lost_writes_shim() -> Result<PathBuf> {
    let shim = cache().join("lostwrites.so");
    if !shim.exists() {
        bail!("no {}: run `make setup-test`", shim.display());
    }
    Ok(shim)
}

/// libfaketime, if the machine has it.
#[must_use]
pub fn faketime() -> Option<PathBuf> {
    let name = "faketime/libfaketime.so.1";
    let found = fs::read_dir("/usr/lib")
        .ok()?
        .flatten()
        .map(|dir| dir.path().join(name));
    found.into_iter().find(|path| path.exists())
}

/// A node's binary, built in the same profile as the running executable and next to it.
///
/// # Errors
/// When it has not been built.
pub fn node(name: &str) -> Result<PathBuf> {
    let this = env::current_exe().context("find this executable")?;
    let found = this
        .ancestors()
        .map(|dir| dir.join(name))
        .find(|path| is_program(path));
    found.with_context(|| {
        format!(
            "no {name} near {}: run `cargo build -p {name}`",
            this.display()
        )
    })
}

/// A directory of this run under the cache. It goes when it is dropped; with `KEDGE_KEEP` set it stays.
///
/// # Errors
/// When it cannot be made.
pub fn scratch(name: &str) -> Result<TempDir> {
    let keep = env::var_os("KEDGE_KEEP").is_some();
    let mut builder = tempfile::Builder::new();
    let prefix = format!("{name}-");
    let dir = builder
        .prefix(&prefix)
        .disable_cleanup(keep)
        .tempdir_in(this_run()?);
    dir.context("make a scratch directory")
}

/// A new log file. The logs of the last run stay until the next one.
///
/// # Errors
/// When its directory cannot be made.
pub fn log_file(name: &str) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = this_run()?.join("logs");
    fs::create_dir_all(&dir).context("make the logs' directory")?;
    Ok(dir.join(format!("{count:03}-{name}.log")))
}

/// The directory of this process; those of processes that are gone are removed.
fn this_run() -> Result<PathBuf> {
    static CLEANED: Once = Once::new();
    let runs = cache().join("run");
    CLEANED.call_once(|| {
        for entry in fs::read_dir(&runs).into_iter().flatten().flatten() {
            let is_running = Path::new("/proc").join(entry.file_name()).exists();
            if !is_running && env::var_os("KEDGE_KEEP").is_none() {
                let _in_use = fs::remove_dir_all(entry.path());
            }
        }
    });
    let dir = runs.join(std::process::id().to_string());
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    Ok(dir)
}

fn is_program(path: &Path) -> bool {
    path.is_file()
}
