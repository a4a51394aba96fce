//! The one door for files from outside: recipes, rows, configurations, tokenizers, weights, adapters, checkpoints, metrics.
//!
//! Only regular files are opened: opening a named pipe waits for ever, and a device such as `/dev/zero` has no end. A file that is read
//! whole has a largest size by its kind, checked before room is made for it. What the user's own shell hands over (`/dev/stdin`,
//! `<(command)`) may be a pipe; its end counts like that of a file.

use std::fs::{File, FileType, Metadata};
use std::io::{self, BufRead, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// Largest recipes, resolved ones with all rounds included.
pub(crate) const RECIPE: u64 = 8 << 20;

/// Largest files of settings: `config.json`, `adapter_config.json`, templates, markers.
pub(crate) const SETTINGS: u64 = 16 << 20;

/// Largest files of a tokenizer, and lists of a model's tensors: a vocabulary of 256,000 tokens takes 33 MB.
pub(crate) const TABLES: u64 = 128 << 20;

/// Largest logs and states of a run, which this program wrote.
pub(crate) const LOGS: u64 = 4 << 30;

/// Largest line of a file of rows.
pub(crate) const LINE: usize = 64 << 20;

/// Opens a file to be read in parts.
///
/// # Errors
/// `Error::Io`; `Error::Format` for what is no regular file.
pub(crate) fn open(path: &Path) -> Result<File> {
    // Asked first, as opening a pipe blocks; and again of what was opened.
    let found = std::fs::metadata(path).map_err(Error::io("read", path))?;
    check(path, &found)?;
    let file = File::open(path).map_err(Error::io("read", path))?;
    let opened = file.metadata().map_err(Error::io("read", path))?;
    check(path, &opened)?;
    Ok(file)
}

/// The content of a file of at most `largest` bytes.
///
/// # Errors
/// As [`open`], and `Error::Format` for a larger file.
pub(crate) fn read(path: &Path, largest: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let len = file.metadata().map_err(Error::io("read", path))?.len();
    let too_large = |size: String| {
        let message = format!(
            "is too large for a file of its kind: {size}, expected at most {} MiB",
            largest >> 20
        );
        Error::format(path, message)
    };
    if len > largest {
        return Err(too_large(format!("{} MiB", len >> 20)));
    }
    let mut bytes = Vec::new();
    let read = file.take(largest + 1).read_to_end(&mut bytes);
    read.map_err(Error::io("read", path))?;
    match bytes.len() as u64 > largest {
        true => Err(too_large("it does not end".into())),
        false => Ok(bytes),
    }
}

/// As [`read`], as text.
///
/// # Errors
/// As [`read`], and `Error::Format` for what is not UTF-8.
pub(crate) fn read_text(path: &Path, largest: u64) -> Result<String> {
    String::from_utf8(read(path, largest)?).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        Error::format(
            path,
            format!("expected UTF-8, found another byte at {}", valid + 1),
        )
    })
}

/// Appends the bytes up to and including the next line break, as [`BufRead::read_until`]; `None` for a line of more than [`LINE`]
/// bytes, of which no more than that is read.
///
/// # Errors
/// Those of reading.
pub(crate) fn read_line(text: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let read = text.take(LINE as u64 + 1).read_until(b'\n', line)?;
    Ok((read <= LINE).then_some(read))
}

fn check(path: &Path, found: &Metadata) -> Result<()> {
    let kind = found.file_type();
    if kind.is_file() || is_handed_over(path) && !kind.is_dir() {
        return Ok(());
    }
    let what = kind_of(kind);
    Err(Error::format(
        path,
        format!("is {what}, expected a regular file"),
    ))
}

/// Whether a path stands for an open file of this process, which the user's shell handed over.
fn is_handed_over(path: &Path) -> bool {
    path == Path::new("/dev/stdin")
        || path.starts_with("/dev/fd")
        || path.starts_with("/proc/self/fd")
}

#[cfg(unix)]
fn kind_of(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe (FIFO)",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () if kind.is_block_device() => "a block device",
        () => "no regular file",
    }
}

#[cfg(not(unix))]
fn kind_of(kind: FileType) -> &'static str {
    match kind.is_dir() {
        true => "a folder",
        false => "no regular file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_files_are_read_up_to_their_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, "{\"a\": 1}").unwrap();
        assert_eq!(read_text(&path, 8).unwrap(), "{\"a\": 1}");
        let message = read(&path, 7).unwrap_err().to_string();
        assert!(
            message.contains("config.json: is too large for a file of its kind"),
            "{message}"
        );
        std::fs::write(&path, b"ab\xff").unwrap();
        let message = read_text(&path, 8).unwrap_err().to_string();
        assert!(
            message.ends_with("expected UTF-8, found another byte at 3"),
            "{message}"
        );
        assert!(matches!(
            open(&folder.path().join("absent")),
            Err(Error::Io { .. })
        ));
        // Sparse: a terabyte that is claimed and not there.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let message = read(&path, SETTINGS).unwrap_err().to_string();
        assert!(
            message.ends_with("1048576 MiB, expected at most 16 MiB"),
            "{message}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let made = std::process::Command::new("mkfifo")
            .arg(at("pipe"))
            .status()
            .unwrap();
        assert!(made.success());
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("link")).unwrap();
        for (path, what) in [
            (at("pipe"), "a named pipe (FIFO)"),
            (at("socket"), "a socket"),
            (at("link"), "a character device"),
            ("/dev/zero".into(), "a character device"),
            (folder.path().to_path_buf(), "a folder"),
        ] {
            let message = read(&path, SETTINGS).unwrap_err().to_string();
            assert!(
                message.ends_with(&format!("is {what}, expected a regular file")),
                "{message}"
            );
        }
    }

    #[test]
    fn lines_end() {
        let mut text: &[u8] = b"a\nbc";
        let mut line = Vec::new();
        assert_eq!(read_line(&mut text, &mut line).unwrap(), Some(2));
        assert_eq!(read_line(&mut text, &mut line).unwrap(), Some(2));
        assert_eq!(read_line(&mut text, &mut line).unwrap(), Some(0));
        assert_eq!(line, b"a\nbc");
        let mut endless = io::BufReader::new(io::repeat(b'x'));
        line.clear();
        assert_eq!(read_line(&mut endless, &mut line).unwrap(), None);
        assert!(line.len() == LINE + 1);
    }
}
