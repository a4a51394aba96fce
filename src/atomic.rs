//! Atomic writes of files: under a temporary name in the same folder, synced, then renamed.

mod odd;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
pub(crate) use odd::{file_problem, folder_problem};

/// Prefix of unfinished files and folders, which may be deleted.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// Replaces the file at `path` by `bytes`.
///
/// # Errors
/// `Error::Io`; the file at `path` is unchanged then, and no other file is left.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    write_atomic_with(path, |out| {
        out.write_all(bytes).map_err(Error::io("write", path))
    })
}

/// Replaces the file at `path` by the output of `fill`.
///
/// # Errors
/// `Error::Io`, or the error of `fill`; the file at `path` is unchanged then, and no other file is left.
pub fn write_atomic_with(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    write_file(path.as_ref(), None, fill)
}

fn write_file(
    path: &Path,
    permissions: Option<fs::Permissions>,
    fill: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let temporary = Temporary(Some(temporary_name(path)?));
    let written = temporary.path();
    let file = File::create(written).map_err(Error::io("create", path))?;
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)
            .map_err(Error::io("set the permissions of", path))?;
    }
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

/// Most symbolic links to follow, as in Linux.
const MOST_LINKS: usize = 40;

/// Writes `bytes` to a path given by the user.
///
/// Regular and new files are written by [`write_atomic`], preserving the permissions of an existing file. Symbolic links are
/// followed and kept. Devices, FIFOs and open file descriptors (`/dev/stdout`, `/dev/fd/3`) are opened and written to: a rename
/// would remove them.
///
/// # Errors
/// `Error::Io`; a regular file is unchanged then.
pub fn write_output(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let Destination { path: end, replace } =
        destination(path).map_err(Error::io("follow the link", path))?;
    if replace {
        return replace_file(&end, bytes);
    }
    let mut file = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(Error::io("open", path))?;
    match file.write_all(bytes).and_then(|()| file.flush()) {
        // A closed pipe is not an error.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(Error::io("write", path)),
    }
}

/// The target of a path's links.
struct Destination {
    path: PathBuf,
    /// Whether it can be replaced by a rename.
    replace: bool,
}

/// Follows symbolic links, also to a name that does not exist.
fn destination(path: &Path) -> io::Result<Destination> {
    let mut end = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        // Entries of these folders look like links but are open files.
        let descriptor = end.starts_with("/proc") || end.starts_with("/dev/fd");
        let kind = match fs::symlink_metadata(&end) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Destination {
                    path: end,
                    replace: true,
                });
            }
            metadata => metadata?.file_type(),
        };
        if descriptor || !kind.is_symlink() {
            return Ok(Destination {
                replace: !descriptor && kind.is_file(),
                path: end,
            });
        }
        let target = fs::read_link(&end)?;
        // An absolute target replaces the whole path.
        end = end.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(io::Error::other("too many symbolic links"))
}

/// [`write_atomic`] with the permissions of the existing file.
fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let permissions = fs::metadata(path).map(|metadata| metadata.permissions());
    write_file(path, permissions.ok(), |out| {
        out.write_all(bytes).map_err(Error::io("write", path))
    })
}

/// A unique temporary name beside `path`, from process id and a counter.
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
    // Other systems cannot open a folder for syncing.
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

/// A temporary file or folder, removed on drop unless taken.
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
            // The first error is reported; an error of the removal would hide it.
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

    #[cfg(unix)]
    mod outputs {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
        use std::process::Command;

        use super::*;

        #[test]
        fn links_are_followed_and_stay() {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            fs::create_dir(at("inner")).unwrap();
            fs::write(at("inner/old"), "old").unwrap();
            // Relative to the link's own folder; a link to a link; a name that is still free.
            symlink("inner/old", at("relative")).unwrap();
            symlink("relative", at("twice")).unwrap();
            symlink(at("inner/new"), at("dangling")).unwrap();
            for (link, file) in [
                ("relative", "inner/old"),
                ("twice", "inner/old"),
                ("dangling", "inner/new"),
            ] {
                write_output(at(link), link.as_bytes()).unwrap();
                assert!(at(link).is_symlink(), "{link}");
                assert_eq!(fs::read_to_string(at(file)).unwrap(), link);
            }
            assert_eq!(names(&at("inner")), ["new", "old"]);
            symlink("circle", at("circle")).unwrap();
            let message = write_output(at("circle"), b"x").unwrap_err().to_string();
            assert!(message.contains("too many symbolic links"), "{message}");
        }

        #[test]
        fn a_file_keeps_its_permissions() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("secret");
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            write_output(&path, b"new").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new");
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }

        #[test]
        fn a_fifo_is_written_to() {
            let folder = tempfile::tempdir().unwrap();
            let fifo = folder.path().join("fifo");
            assert!(
                Command::new("mkfifo")
                    .arg(&fifo)
                    .status()
                    .unwrap()
                    .success()
            );
            symlink("fifo", folder.path().join("link")).unwrap();
            for name in ["fifo", "link"] {
                let from = fifo.clone();
                let reader = std::thread::spawn(move || fs::read_to_string(from).unwrap());
                write_output(folder.path().join(name), name.as_bytes()).unwrap();
                assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
                assert_eq!(reader.join().unwrap(), name);
            }
            assert_eq!(names(folder.path()), ["fifo", "link"]);
        }

        #[cfg(target_os = "linux")]
        #[test]
        fn a_device_is_written_to() {
            // Behind a link: a test that fails must not cost the machine a device.
            let folder = tempfile::tempdir().unwrap();
            let link = folder.path().join("link");
            symlink("/dev/full", &link).unwrap();
            let Err(Error::Io { source, .. }) = write_output(&link, b"x") else {
                panic!("expected Error::Io");
            };
            assert_eq!(source.kind(), ErrorKind::StorageFull);
            assert!(link.is_symlink());
            assert_eq!(names(folder.path()), ["link"]);
        }

        #[cfg(target_os = "linux")]
        #[test]
        fn what_an_open_descriptor_names_is_written_to() {
            use std::os::fd::AsRawFd;
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("open");
            let file = File::create(&path).unwrap();
            let name = format!("/proc/self/fd/{}", file.as_raw_fd());
            write_output(name, b"x").unwrap();
            // The file that is open, not another one in its place.
            assert_eq!(file.metadata().unwrap().len(), 1);
            assert_eq!(fs::read(&path).unwrap(), b"x");
        }
    }
}
