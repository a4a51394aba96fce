//! Reads of a file by offset, from any thread.

use std::fs::File;
use std::io;

/// Fills `out` from the bytes of `file` at `offset`, wherever the file's own position is.
///
/// # Errors
/// Those of the system, and if the file is shorter.
#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

/// Fills `out` from the bytes of `file` at `offset`.
///
/// # Errors
/// Those of the system, and if the file is shorter.
#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                offset += n as u64;
                out = &mut out[n..];
            }
        }
    }
    Ok(())
}
