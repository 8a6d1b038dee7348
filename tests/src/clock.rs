//! A wall clock that jumps, for one process, through libfaketime.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::paths;
use crate::site::Site;

/// A site's wall clock. Monotonic clocks go on as they are.
#[derive(Debug)]
pub struct Clock {
    dir: TempDir,
}

impl Clock {
    /// Takes a site's wall clock in hand from its next start on.
    ///
    /// # Errors
    /// Without libfaketime, or when the control file cannot be written.
    pub fn of(site: &mut Site) -> Result<Self> {
        let library = paths::faketime().context("no libfaketime: make setup-test installs it")?;
        let clock = Self {
            dir: paths::scratch("clock")?,
        };
        clock.jump(0)?;
        site.set_environment("LD_PRELOAD", library.display().to_string());
        site.set_environment(
            "FAKETIME_TIMESTAMP_FILE",
            clock.file().display().to_string(),
        );
        site.set_environment("FAKETIME_NO_CACHE", "1");
        site.set_environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Ok(clock)
    }

    /// Sets the clock to the true time plus `seconds`.
    ///
    /// # Errors
    /// When the control file cannot be written.
    pub fn jump(&self, seconds: i64) -> Result<()> {
        let fresh = self.dir.path().join("fresh");
        fs::write(&fresh, format!("{seconds:+}\n")).context("write the clock's file")?;
        fs::rename(&fresh, self.file()).context("set the clock")
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("offset")
    }
}
