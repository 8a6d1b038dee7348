//! Free space of the file system, and a reserve of it that deletion can always use.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const CHUNK: usize = 64 * 1024;

/// Bytes that an unprivileged process may still write to the file system of `path`.
#[expect(unsafe_code, reason = "statvfs has no safe form in std or libc")]
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero bytes are a valid statvfs, which is made of integers.
    let mut stats: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a zero byte and `stats` is valid for writes while the call lasts.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut stats) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

/// Bytes of all files below a directory.
pub(super) fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size_of(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Bytes of the files in a directory whose names end so.
pub(super) fn size_of_ending(dir: &Path, extension: &str) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().extension() == Some(OsStr::new(extension)))
        .filter_map(|entry| entry.metadata().ok())
        .map(|found| found.len())
        .sum()
}

/// A file of zeros that is deleted when deletion itself finds no space.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    pub(super) fn new(path: PathBuf, bytes: u64) -> Self {
        Self { path, bytes }
    }

    /// Sets the space aside when it is not and `free` bytes leave room for it.
    pub(super) fn fill(&self, free: u64, min_free: u64) {
        let is_there = fs::metadata(&self.path).is_ok_and(|found| found.len() == self.bytes);
        if is_there || self.bytes == 0 || free < min_free.saturating_add(self.bytes) {
            return;
        }
        if let Err(error) = self.write() {
            tracing::warn!(%error, "Disk reserve could not be set aside");
            fs::remove_file(&self.path).ok();
        }
    }

    /// Gives the space back. False when it was given before.
    pub(super) fn open(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }

    fn write(&self) -> io::Result<()> {
        let mut file = File::create(&self.path)?;
        let mut left = self.bytes;
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            file.write_all(&[0; CHUNK][..len])?;
            left -= u64::try_from(len).unwrap_or(left);
        }
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_there_once_and_given_back_once() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(dir.path().join("reserve"), 100_000);
        reserve.fill(free_bytes(dir.path()).unwrap(), 0);
        assert_eq!(size_of(dir.path()), 100_000);
        assert!(reserve.open());
        assert!(!reserve.open());
        reserve.fill(99_999, 0);
        assert_eq!(size_of(dir.path()), 0, "no room for it");
    }
}
