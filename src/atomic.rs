//! Files that appear whole or not at all: written under a temporary name in the same folder, synced, then renamed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Names that start so are unfinished and may be deleted.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// Replaces the file at `path` by `bytes`.
///
/// # Errors
/// `Error::Io`; the file at `path` is then what it was, and nothing else is left behind.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    write_atomic_with(path, |out| {
        out.write_all(bytes).map_err(Error::io("write", path))
    })
}

/// Replaces the file at `path` by what `fill` writes.
///
/// # Errors
/// `Error::Io`, or the error of `fill`; the file at `path` is then what it was, and nothing else is left behind.
pub fn write_atomic_with(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let temporary = Temporary(Some(temporary_name(path)?));
    let written = temporary.path();
    let file = File::create(written).map_err(Error::io("create", path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    fill(&mut out)?;
    let file = out
        .into_inner()
        .map_err(|e| Error::io("write", path)(e.into_error()))?;
    file.sync_all().map_err(Error::io("write", path))?;
    drop(file);
    fs::rename(written, path).map_err(Error::io("rename a temporary file to", path))?;
    temporary.keep();
    sync_parent(path)
}

/// A name beside `path` that no other writer uses: it holds the process and a counter.
///
/// # Errors
/// `Error::Format` for a path without a file name.
pub(crate) fn temporary_name(path: &Path) -> Result<PathBuf> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| Error::format(path, "expected a path that ends in a name"))?;
    let mut temporary = OsString::from(format!(
        "{TEMPORARY_PREFIX}{}-{}-",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    ));
    temporary.push(name);
    Ok(path.with_file_name(temporary))
}

/// Makes a rename inside the folder of `path` survive a power cut.
///
/// # Errors
/// `Error::Io`.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    // Elsewhere a folder cannot be opened for syncing.
    #[cfg(unix)]
    {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)
            .and_then(|folder| folder.sync_all())
            .map_err(Error::io("sync", parent))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// A file or folder that is removed again unless it is kept.
pub(crate) struct Temporary(pub(crate) Option<PathBuf>);

impl Temporary {
    pub(crate) fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // The error that led here is reported; a second one would hide it.
            let _ = if path.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        write_atomic(&path, b"old").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["state.json"]);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_no_debris() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        write_atomic(&path, b"old").unwrap();
        let outcome = write_atomic_with(&path, |out| {
            out.write_all(b"half").map_err(Error::io("write", &path))?;
            let full = io::Error::from(io::ErrorKind::StorageFull);
            Err(Error::io("write", &path)(full))
        });
        let Err(Error::Io { source, .. }) = outcome else {
            panic!("expected Error::Io");
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["state.json"]);
    }

    #[test]
    fn a_failed_rename_leaves_no_debris() {
        let folder = tempfile::tempdir().unwrap();
        // A folder that is not empty stands where the file should go, so the rename fails after the write.
        let path = folder.path().join("state.json");
        fs::create_dir_all(path.join("inner")).unwrap();
        let message = write_atomic(&path, b"x").unwrap_err().to_string();
        assert!(message.contains("rename a temporary file to"), "{message}");
        assert_eq!(names(folder.path()), ["state.json"]);
        let absent = folder.path().join("absent").join("state.json");
        assert!(matches!(write_atomic(absent, b"x"), Err(Error::Io { .. })));
    }
}
