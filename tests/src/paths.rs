//! Where the set-up put what the tests need, and where the nodes' binaries are.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail};

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

fn is_program(path: &Path) -> bool {
    path.is_file()
}
