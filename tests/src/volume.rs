//! A small file system of its own, to be filled to the last byte.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use crate::{paths, process, seed};

/// How long mounting may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A mounted tmpfs; unmounted when dropped.
#[derive(Debug)]
pub struct Volume {
    dir: TempDir,
}

impl Volume {
    /// Mounts one, as root or through `sudo -n`. `None`, with a word why, where neither is allowed.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn mount(mebibytes: u32) -> Result<Option<Self>> {
        let dir = paths::scratch("volume")?;
        let mut mount = as_root("mount");
        mount.args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size={mebibytes}m,mode=0777"),
            "tmpfs",
        ]);
        mount.arg(dir.path());
        if let Err(error) = process::run("mount", mount, LIMIT) {
            seed::say(&format!(
                "skipped: no small file system without root: {error:#}"
            ));
            return Ok(None);
        }
        Ok(Some(Self { dir }))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes all the space that is left.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = File::create(self.ballast())?;
        let mut block = vec![0; 1 << 16];
        while !block.is_empty() {
            if ballast.write_all(&block).is_err() {
                block.truncate(block.len() / 2);
            }
        }
        Ok(())
    }

    /// Gives it back.
    pub fn relieve(&self) {
        let _was_not_full = std::fs::remove_file(self.ballast());
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let mut unmount = as_root("umount");
        unmount.arg("-l").arg(self.dir.path());
        let _stays = process::run("umount", unmount, LIMIT);
    }
}

fn as_root(program: &str) -> Command {
    let is_root = std::fs::metadata("/proc/self")
        .is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    if is_root {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", program]);
    sudo
}
