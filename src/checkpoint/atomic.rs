//! Folders that appear whole or not at all.

use std::fs::{self, File};
use std::path::Path;

use crate::atomic::{Temporary, sync_parent, temporary_name};
use crate::error::{Error, Result};

pub use crate::atomic::{write_atomic, write_atomic_with};

/// The file whose presence says that a folder was written to its end.
pub const COMPLETE: &str = "COMPLETE";

/// Replaces the folder at `path` by one that `fill` writes: built under a temporary name, synced, marked complete, renamed.
///
/// An older folder of that name is moved aside first and removed last; a crash between the two renames leaves both
/// under temporary names, which [`prune`](super::prune) removes. Checkpoints have new names and are never in that case.
///
/// # Errors
/// `Error::Io`, or the error of `fill`; the folder at `path` is then what it was, and nothing else is left behind.
pub fn write_dir_atomic(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let temporary = Temporary(Some(temporary_name(path)?));
    let building = temporary.path();
    fs::create_dir(building).map_err(Error::io("create", path))?;
    fill(building)?;
    sync_tree(building)?;
    // The marker comes after everything else is on disk.
    write_atomic(building.join(COMPLETE), b"")?;
    let old = Temporary(if path.exists() {
        let aside = temporary_name(path)?;
        fs::rename(path, &aside).map_err(Error::io("rename", path))?;
        Some(aside)
    } else {
        None
    });
    if let Err(source) = fs::rename(building, path) {
        if old.0.is_some() {
            // Should this fail too, the old folder stays under its temporary name rather than being removed.
            let _ = fs::rename(old.path(), path);
            old.keep();
        }
        return Err(Error::io("rename a temporary folder to", path)(source));
    }
    temporary.keep();
    sync_parent(path)
}

/// Whether the folder was written to its end.
pub fn is_complete(folder: impl AsRef<Path>) -> bool {
    folder.as_ref().join(COMPLETE).is_file()
}

fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(Error::io("sync", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_replaced_whole_and_marked() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("checkpoints").join("step-000001");
        for text in ["old", "new"] {
            write_dir_atomic(&path, |dir| {
                write_atomic(dir.join("state.json"), text.as_bytes())
            })
            .unwrap();
            assert_eq!(fs::read(path.join("state.json")).unwrap(), text.as_bytes());
        }
        assert!(is_complete(&path));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_fill_leaves_the_old_folder_and_no_debris() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("model");
        write_dir_atomic(&path, |dir| write_atomic(dir.join("a"), b"old")).unwrap();
        let outcome = write_dir_atomic(&path, |dir| {
            write_atomic(dir.join("a"), b"new")?;
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            Err(Error::io("write", dir.join("b"))(full))
        });
        assert!(matches!(outcome, Err(Error::Io { .. })));
        assert_eq!(fs::read(path.join("a")).unwrap(), b"old");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_device_is_an_io_error() {
        use std::io::Write;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state.json");
        let outcome = write_atomic_with(&path, |_| {
            let mut full = fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .map_err(Error::io("open", "/dev/full"))?;
            full.write_all(b"x").map_err(Error::io("write", &path))
        });
        let Err(Error::Io { source, .. }) = outcome else {
            panic!("expected Error::Io");
        };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
