//! Power cuts: a site that restarts with only what it had synced. See `tests/setup/lostwrites.c`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::site::Site;
use crate::{paths, process};

/// How long copying a data directory may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Keeps, next to a site's data directory, what a power cut could not take.
#[derive(Debug)]
pub struct Power {
    dir: TempDir,
    data: PathBuf,
}

impl Power {
    /// Preloads the shim into the site from its next start on. With `are_syncs_ignored` the site believes
    /// that it syncs and doesn't: a check that deserves the name must then fail.
    ///
    /// # Errors
    /// When the set-up has not run.
    pub fn of(site: &mut Site, are_syncs_ignored: bool) -> Result<Self> {
        let power = Self {
            dir: paths::scratch("power")?,
            data: site.data_dir().to_owned(),
        };
        fs::create_dir_all(&power.data)?;
        power.copy_to_shadow()?;
        site.set_environment(
            "LD_PRELOAD",
            paths::lost_writes_shim()?.display().to_string(),
        );
        site.set_environment("LOSTWRITES_ROOT", power.data.display().to_string());
        site.set_environment("LOSTWRITES_SHADOW", power.shadow().display().to_string());
        site.set_environment("LOSTWRITES_EIO", power.eio().display().to_string());
        if are_syncs_ignored {
            site.set_environment("LOSTWRITES_IGNORE_SYNC", "1");
        }
        Ok(power)
    }

    /// The power goes: the process is gone, and so is every byte that was not synced.
    ///
    /// # Errors
    /// When the directories cannot be exchanged.
    pub fn cut(&self, site: &mut Site) -> Result<()> {
        site.kill();
        fs::remove_dir_all(&self.data).context("forget what was not synced")?;
        copy(&self.shadow(), &self.data)
    }

    /// From here on syncs fail, and what they should have written is dropped.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn break_syncs(&self) -> Result<()> {
        fs::write(self.eio(), "").context("break syncs")
    }

    /// Syncs work again.
    pub fn mend_syncs(&self) {
        let _was_not_broken = fs::remove_file(self.eio());
    }

    fn copy_to_shadow(&self) -> Result<()> {
        copy(&self.data, &self.shadow())
    }

    fn shadow(&self) -> PathBuf {
        self.dir.path().join("shadow")
    }

    fn eio(&self) -> PathBuf {
        self.dir.path().join("eio")
    }
}

/// Copies a directory tree to a place where nothing is yet.
///
/// # Errors
/// When `cp` fails.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut cp = Command::new("cp");
    cp.args(["-a", "--sparse=auto"]).arg(from).arg(to);
    process::run("cp", cp, LIMIT).map(drop)
}
