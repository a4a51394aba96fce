//! Paths for results that are not what a result can be written to: found before anything is computed.

use std::fs::{self, FileType, Metadata};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::destination;

/// File systems of the kernel: nothing can be made there.
const OF_KERNEL: [&str; 2] = ["/proc", "/sys"];

/// Why no file can be written at `path`; `None` for new and regular files, for pipes, and for devices that take text.
pub(crate) fn file_problem(path: &Path) -> Option<String> {
    if path.as_os_str().is_empty() {
        return Some("is empty; expected a file name".into());
    }
    let end = match destination(path) {
        Ok(end) => end,
        Err(error) => return Some(format!("cannot be used: {error}")),
    };
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Some("is a folder; expected a file name".into()),
        Ok(found) => unfit(&found),
        // A new file, perhaps behind a link.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let folder = end.path.parent().filter(|p| !p.as_os_str().is_empty());
            let missing = folder.is_some_and(|folder| !folder.is_dir());
            missing.then(|| "its folder does not exist".into())
        }
        Err(error) => Some(format!("cannot be used: {error}")),
    }
}

/// Why no run can be in a folder `path`; `None` for a folder and for a new name below one.
pub(crate) fn folder_problem(path: &Path) -> Option<String> {
    if path.as_os_str().is_empty() {
        return Some("is empty; expected a folder, new or of an earlier run".into());
    }
    for above in path.ancestors() {
        let above = match above.as_os_str().is_empty() {
            true => Path::new("."),
            false => above,
        };
        let here = match above == path {
            true => String::new(),
            false => format!("{}: ", above.display()),
        };
        match fs::metadata(above) {
            Ok(found) if found.is_dir() => {
                let real = above
                    .canonicalize()
                    .unwrap_or_else(|_| PathBuf::from(above));
                let of_kernel = OF_KERNEL.iter().any(|root| real.starts_with(root));
                return of_kernel.then(|| {
                    format!("{here}is on a file system of the kernel; expected a folder on a disk")
                });
            }
            Ok(found) => {
                let kind = kind(found.file_type());
                return Some(format!("{here}is {kind}; expected a folder"));
            }
            Err(_) if above.is_symlink() => {
                return Some(format!(
                    "{here}is a link to what is not there; expected a folder"
                ));
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => return Some(format!("{here}cannot be used: {error}")),
        }
    }
    None
}

/// What a path is, for a message.
fn kind(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_char_device() {
            return "a character device";
        }
        if kind.is_block_device() {
            return "a block device";
        }
        if kind.is_fifo() {
            return "a named pipe (FIFO)";
        }
        if kind.is_socket() {
            return "a socket";
        }
    }
    match kind.is_dir() {
        true => "a folder",
        false => "a file",
    }
}

/// Why the contents of what is at a path must not, or cannot, be written over.
fn unfit(found: &Metadata) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind_of = found.file_type();
        if kind_of.is_socket() || kind_of.is_block_device() {
            return Some(format!("is {}; expected a file", kind(kind_of)));
        }
    }
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::fs::MetadataExt;
        use std::os::unix::fs::FileTypeExt;
        if found.file_type().is_char_device() {
            let device = found.st_rdev();
            // As glibc's `gnu_dev_major` and `gnu_dev_minor`, for numbers below 2^8 and 2^20.
            let (major, minor) = (
                (device >> 8) & 0xfff,
                (device & 0xff) | (device >> 12) & !0xff,
            );
            return match (major, minor) {
                // null and zero, terminals, consoles and pseudo-terminals.
                (1, 3 | 5) | (4 | 5 | 136..=143, _) => None,
                (1, 7) => Some("is a device that is always full; expected a file".into()),
                _ => Some("is a character device; expected a file".into()),
            };
        }
    }
    let _ = found;
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn odd_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "").unwrap();
        symlink("/dev/full", at("full")).unwrap();
        symlink("absent/file", at("dangling")).unwrap();
        symlink("circle", at("circle")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (path, problem) in [
            (at("file"), None),
            (at("new"), None),
            (PathBuf::from("new"), None),
            (PathBuf::from("/dev/null"), None),
            (PathBuf::new(), Some("is empty")),
            (at("."), Some("is a folder")),
            (at("absent/file"), Some("its folder does not exist")),
            (at("dangling"), Some("its folder does not exist")),
            (at("circle"), Some("too many symbolic links")),
            (at("file/below"), Some("cannot be used")),
            (at("full"), Some("always full")),
            (at("socket"), Some("is a socket")),
            (PathBuf::from("/dev/urandom"), Some("is a character device")),
            (at(&"x".repeat(300)), Some("cannot be used")),
        ] {
            let found = file_problem(&path);
            match problem {
                None => assert_eq!(found, None, "{}", path.display()),
                Some(part) => assert!(
                    found.as_ref().is_some_and(|found| found.contains(part)),
                    "{}: {found:?}",
                    path.display()
                ),
            }
        }
    }

    #[test]
    fn a_run_needs_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "").unwrap();
        symlink("absent", at("dangling")).unwrap();
        for (path, problem) in [
            (at("."), None),
            (at("new/below"), None),
            (PathBuf::from("runs/of/a/test"), None),
            (PathBuf::new(), Some("is empty")),
            (at("file"), Some("is a file; expected a folder")),
            (
                at("file/below/it"),
                Some("file: is a file; expected a folder"),
            ),
            (at("dangling"), Some("is a link to what is not there")),
            (PathBuf::from("/dev/null"), Some("is a character device")),
            (
                PathBuf::from("/dev/full/x"),
                Some("/dev/full: is a character device"),
            ),
            (PathBuf::from("/proc/x"), Some("file system of the kernel")),
            (at(&"x".repeat(300)), Some("cannot be used")),
            (PathBuf::from("a\0b"), Some("cannot be used")),
        ] {
            let found = folder_problem(&path);
            match problem {
                None => assert_eq!(found, None, "{}", path.display()),
                Some(part) => assert!(
                    found.as_ref().is_some_and(|found| found.contains(part)),
                    "{}: {found:?}",
                    path.display()
                ),
            }
        }
    }
}
