//! Names the contents of files that are not read.

use std::path::Path;

use super::parquet::MAGIC;
use crate::error::Error;

/// First bytes of files of other programs.
const MAGICS: [(&[u8], &str); 9] = [
    (b"PK\x03\x04", "a zip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"GGUF", "a GGUF file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0", "an Office file"),
];

/// The error for a git-lfs pointer file, given its first bytes.
pub fn lfs_pointer(path: &Path, head: &[u8]) -> Option<Error> {
    let is_pointer = head.starts_with(b"version https://git-lfs.github.com/spec/");
    is_pointer.then(|| {
        let message = "is a git-lfs pointer, not the file itself: fetch that with `git lfs pull`";
        Error::format(path, message)
    })
}

/// The error for a file with these first bytes, if it is neither text nor parquet; `expected` is what could be read.
pub(super) fn not_text(path: &Path, head: &[u8], expected: &str) -> Option<Error> {
    if head.starts_with(MAGIC) {
        return None;
    }
    if head.is_empty() {
        return Some(Error::format(path, "no rows: the file is empty"));
    }
    if let Some(error) = lfs_pointer(path, head) {
        return Some(error);
    }
    // UTF-16 and UTF-32 texts begin with a byte-order mark, or have zero bytes beside ASCII characters.
    let marked = head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff");
    let zeros = head.iter().take(64).filter(|&&byte| byte == 0).count();
    let wide =
        marked || head.iter().take(2).any(|&byte| byte == 0) && zeros >= head.len().min(64) / 2;
    if wide {
        let message = "expected UTF-8, found UTF-16 or UTF-32: save the file as UTF-8";
        return Some(Error::format(path, message));
    }
    let magic = MAGICS.iter().find(|(magic, _)| head.starts_with(magic));
    if let Some((_, what)) = magic {
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        let message = match ending.to_ascii_lowercase().as_str() {
            "xlsx" | "xls" | "ods" => {
                format!("{expected}, found a spreadsheet: save its sheet as CSV")
            }
            _ => format!("{expected}, found {what}; unpack or convert it"),
        };
        return Some(Error::format(path, message));
    }
    let is_binary = head.contains(&0);
    is_binary.then(|| Error::format(path, format!("{expected}, found binary data")))
}
