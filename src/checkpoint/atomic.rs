//! Atomic writes of folders.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::atomic::{Temporary, sync_parent, temporary_name};
use crate::error::{Error, Result};
use crate::model::manifest::sha256_file;
use crate::outside;

pub use crate::atomic::{write_atomic, write_atomic_with};

/// Marker file of completely written folders.
pub const COMPLETE: &str = "COMPLETE";

/// Replaces the folder at `path` by one that `fill` writes, with an empty marker.
///
/// # Errors
/// As [`write_dir_with_checksums`].
pub fn write_dir_atomic(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    write_dir(path.as_ref(), fill, |_| Ok(String::new()))
}

/// Replaces the folder at `path` by one that `fill` writes: written under a temporary name, synced, marked complete, renamed. The
/// marker holds the SHA-256 of every file in the format of `sha256sum`, for [`verify`].
///
/// An older folder of that name is renamed first and removed last; a crash between the two renames leaves both under temporary
/// names, which [`prune`](super::prune) removes. Checkpoints have unique names and are not affected.
///
/// # Errors
/// `Error::Io`, or the error of `fill`; the folder at `path` is unchanged then, and no other files are left.
pub fn write_dir_with_checksums(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    write_dir(path.as_ref(), fill, checksums)
}

fn write_dir(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<()>,
    marker: impl FnOnce(&Path) -> Result<String>,
) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let temporary = Temporary(Some(temporary_name(path)?));
    let building = temporary.path();
    fs::create_dir(building).map_err(Error::io("create", path))?;
    fill(building).map_err(|error| placed(error, building, path))?;
    sync_tree(building)?;
    // The marker is written after all other files are on disk.
    write_atomic(building.join(COMPLETE), marker(building)?.as_bytes())?;
    let old = Temporary(if path.exists() {
        let aside = temporary_name(path)?;
        fs::rename(path, &aside).map_err(Error::io("rename", path))?;
        Some(aside)
    } else {
        None
    });
    if let Err(source) = fs::rename(building, path) {
        if old.0.is_some() {
            // If this fails too, the old folder remains under its temporary name.
            let _ = fs::rename(old.path(), path);
            old.keep();
        }
        return Err(Error::io("rename a temporary folder to", path)(source));
    }
    temporary.keep();
    sync_parent(path)
}

/// The error of a file operation in the folder `from`, as one in the folder `to` that it will become: names of unfinished files say
/// nothing to a user.
fn placed(error: Error, from: &Path, to: &Path) -> Error {
    match error {
        Error::Io {
            action,
            path,
            source,
        } => {
            let inside = path.strip_prefix(from).map(|name| to.join(name));
            Error::io(action, inside.unwrap_or(path))(source)
        }
        other => other,
    }
}

/// Whether the folder has its marker.
pub fn is_complete(folder: impl AsRef<Path>) -> bool {
    folder.as_ref().join(COMPLETE).is_file()
}

/// One line per file of a folder: SHA-256, two spaces, name.
fn checksums(folder: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = (fs::read_dir(folder).map_err(Error::io("read", folder))?)
        .map(|entry| Ok(entry.map_err(Error::io("read", folder))?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    let lines: Vec<String> = (files.par_iter())
        .map(|file| {
            let name = file.file_name().unwrap_or_default().display();
            Ok(format!("{}  {name}\n", sha256_file(file)?))
        })
        .collect::<Result<_>>()?;
    Ok(lines.concat())
}

/// Checks the files `names` of a folder against the checksums in its marker.
///
/// # Errors
/// `Error::Format` if there is no marker, it lacks one of the files, or a file is missing or has changed; `Error::Io`.
pub fn verify(folder: &Path, names: &[&str]) -> Result<()> {
    let marker = folder.join(COMPLETE);
    if !marker.is_file() {
        return Err(Error::format(
            folder,
            "incomplete: it has no marker COMPLETE",
        ));
    }
    let bytes = outside::read(&marker, outside::SETTINGS)?;
    let text = String::from_utf8_lossy(&bytes);
    let expected: BTreeMap<&str, &str> = (text.lines())
        .filter_map(|line| line.split_once("  "))
        .map(|(sha256, name)| (name, sha256))
        .collect();
    names.par_iter().try_for_each(|name| {
        let file = folder.join(name);
        let Some(expected) = expected.get(name) else {
            let message = format!("damaged: it holds no checksum of {name}");
            return Err(Error::format(&marker, message));
        };
        if !file.is_file() {
            return Err(Error::format(&file, "missing"));
        }
        let found = sha256_file(&file)?;
        if found == *expected {
            return Ok(());
        }
        Err(Error::format(
            &file,
            format!("damaged: expected SHA-256 {expected}, found {found}"),
        ))
    })
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
        let message = outcome.unwrap_err().to_string();
        let named = format!("cannot write {}: ", path.join("b").display());
        assert!(message.starts_with(&named), "{message}");
        assert_eq!(fs::read(path.join("a")).unwrap(), b"old");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn checksums_are_those_of_sha256sum() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("step-000001");
        write_dir_with_checksums(&path, |dir| {
            write_atomic(dir.join("b"), b"")?;
            write_atomic(dir.join("a"), b"abc")
        })
        .unwrap();
        // FIPS 180-2, appendix B.1, and the digest of nothing.
        assert_eq!(
            fs::read_to_string(path.join(COMPLETE)).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a\n\
             e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b\n"
        );
        verify(&path, &["a", "b"]).unwrap();
        let problem = |names: &[&str]| verify(&path, names).unwrap_err().to_string();
        assert!(problem(&["c"]).ends_with("COMPLETE: damaged: it holds no checksum of c"));
        fs::write(path.join("a"), "abd").unwrap();
        assert!(problem(&["a", "b"]).contains("a: damaged: expected SHA-256 ba7816bf"));
        fs::remove_file(path.join("a")).unwrap();
        assert!(problem(&["a", "b"]).ends_with("a: missing"));
        fs::write(path.join(COMPLETE), "").unwrap();
        assert!(problem(&["b"]).ends_with("it holds no checksum of b"));
        fs::remove_file(path.join(COMPLETE)).unwrap();
        assert!(problem(&["b"]).ends_with("incomplete: it has no marker COMPLETE"));
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
