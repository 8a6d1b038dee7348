//! Small files that are either the old or the new, whenever the power goes.
//!
//! Write a temporary file beside it, sync it, rename it over the old one, sync the directory. A crash
//! before the rename leaves the old file and a `.tmp` that the next write replaces. Calls block.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Who may read the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Its owner only (0600): keys.
    Private,
    /// Everybody (0644).
    Public,
}

/// Replaces a file's content; after `Ok` it survives a power cut.
///
/// # Errors
/// What the file system says; the old file is then unchanged.
pub fn replace(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    let temporary = temporary_name(path)?;
    let written = write_synced(&temporary, content, access, false)
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // Best effort: the next write replaces it anyway.
        drop(std::fs::remove_file(&temporary));
    }
    written.and_then(|()| sync_directory_of(path))
}

/// Writes a file that must not exist yet; after `Ok` it survives a power cut.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], or what the file system says. A crash may leave a part of it.
pub fn create(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    write_synced(path, content, access, true).and_then(|()| sync_directory_of(path))
}

/// Makes a rename, a creation or a removal in a file's directory survive a power cut.
///
/// # Errors
/// What the file system says.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

fn write_synced(path: &Path, content: &[u8], access: Access, is_new: bool) -> io::Result<()> {
    let mode = match access {
        Access::Private => 0o600,
        Access::Public => 0o644,
    };
    let mut options = OpenOptions::new();
    options.write(true).mode(mode);
    if is_new {
        options.create_new(true);
    } else {
        options.create(true).truncate(true);
    }
    let mut file = options.open(path)?;
    // A temporary file left by a crash keeps the mode that it had.
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = name.to_owned();
    temporary.push(".tmp");
    Ok(path.with_file_name(temporary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        replace(&path, b"a long first version", Access::Public).unwrap();
        replace(&path, b"second", Access::Private).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_leavings_of_a_crash_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        std::fs::write(dir.path().join("state.tmp"), b"torn").unwrap();
        replace(&path, b"whole", Access::Private).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn create_refuses_to_overwrite() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, b"first", Access::Private).unwrap();
        let error = create(&path, b"second", Access::Private).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn a_failed_replace_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        std::fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"content", Access::Public).is_err());
        assert!(path.is_dir());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
