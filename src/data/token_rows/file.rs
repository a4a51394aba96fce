//! A file of encoded rows, read by offset.
//!
//! ```text
//! magic
//! the rows' bytes, one after the other
//! the index: for each row the offset of its end (u64) and its tokens (u32)
//! the counts, as JSON
//! offset of the index (u64), offset of the counts (u64), CRC-32 of everything before (u32)
//! ```
//! Numbers are little-endian.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;

use super::{RowCounts, TokenRow};
use crate::atomic::{Temporary, temporary_name, write_atomic_with};
use crate::error::{Error, Result};
use crate::read_at::read_exact_at;

/// First bytes; the number is that of this layout and of the rows' bytes.
const MAGIC: &[u8; 16] = b"tempering rows 1";
/// Bytes of an entry of the index.
const ENTRY: u64 = 12;
/// Bytes after the counts.
const TAIL: u64 = 20;
/// Bytes read at once.
const BUFFER: usize = 1 << 20;

/// An open file of encoded rows.
#[derive(Debug)]
pub(super) struct RowsFile {
    file: File,
    path: PathBuf,
    index: u64,
    len: usize,
    bytes: u64,
}

impl RowsFile {
    /// Opens a file and checks it whole; `None` if there is none.
    ///
    /// # Errors
    /// What is wrong with it: it was cut, changed or written by another version.
    pub(super) fn open(path: &Path) -> Result<Option<(Self, RowCounts)>, String> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|error| format!("cannot be read: {error}"))?,
        };
        let cut = || "is damaged or not whole".to_owned();
        let unreadable = |error: io::Error| format!("cannot be read: {error}");
        let bytes = file.metadata().map_err(unreadable)?.len();
        let summed = bytes.checked_sub(4).ok_or_else(cut)?;
        if checksum(&file, summed).map_err(unreadable)?
            != number(&file, summed).map_err(unreadable)?
        {
            return Err(cut());
        }
        // What has its checksum was written whole.
        let mut magic = [0; MAGIC.len()];
        read_exact_at(&file, 0, &mut magic).map_err(unreadable)?;
        if magic != *MAGIC {
            return Err("was written by another version".to_owned());
        }
        let tail = bytes.checked_sub(TAIL).ok_or_else(cut)?;
        let offset = |at: u64| -> Result<u64, String> {
            let mut bytes = [0; 8];
            read_exact_at(&file, at, &mut bytes).map_err(unreadable)?;
            Ok(u64::from_le_bytes(bytes))
        };
        let (index, counts) = (offset(tail)?, offset(tail + 8)?);
        if index > counts || counts > tail {
            return Err(cut());
        }
        let mut json = vec![0; (tail - counts) as usize];
        read_exact_at(&file, counts, &mut json).map_err(unreadable)?;
        let len = (counts - index) / ENTRY;
        let counts = serde_json::from_slice(&json).map_err(|_| cut())?;
        let file = Self {
            file,
            path: path.to_path_buf(),
            index,
            len: len as usize,
            bytes,
        };
        Ok(Some((file, counts)))
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Its size, for people.
    pub(super) fn size(&self) -> String {
        crate::hub::decimal(self.bytes)
    }

    /// A row.
    ///
    /// # Panics
    /// If there is no row `index`.
    pub(super) fn row<T: TokenRow>(&self, index: usize) -> Result<T> {
        assert!(index < self.len, "row {index} of {}", self.len);
        let io = Error::io("read", &self.path);
        let read = || -> io::Result<T> {
            let (start, end) = match index {
                0 => (MAGIC.len() as u64, self.entry(0)?.0),
                _ => (self.entry(index - 1)?.0, self.entry(index)?.0),
            };
            let damaged = || io::Error::from(io::ErrorKind::InvalidData);
            let mut bytes = vec![0; end.checked_sub(start).ok_or_else(damaged)? as usize];
            read_exact_at(&self.file, start, &mut bytes)?;
            T::read(&mut bytes.as_slice()).ok_or_else(damaged)
        };
        read().map_err(io)
    }

    /// Offset of the end of a row, and its tokens.
    fn entry(&self, index: usize) -> io::Result<(u64, usize)> {
        let mut entry = [0; ENTRY as usize];
        read_exact_at(&self.file, self.index + index as u64 * ENTRY, &mut entry)?;
        Ok(parsed(&entry))
    }

    /// Tokens of each row.
    pub(super) fn lens(&self) -> Result<Vec<usize>> {
        let entries = self.index..self.index + self.len as u64 * ENTRY;
        let mut lens = Vec::with_capacity(self.len);
        let step = BUFFER - BUFFER % ENTRY as usize;
        let mut buffer = vec![0; step];
        for start in entries.clone().step_by(step) {
            let part = &mut buffer[..step.min((entries.end - start) as usize)];
            read_exact_at(&self.file, start, part).map_err(Error::io("read", &self.path))?;
            let (part, _) = part.as_chunks();
            lens.extend(part.iter().map(|entry| parsed(entry).1));
        }
        Ok(lens)
    }
}

/// The two numbers of an entry of the index.
fn parsed(entry: &[u8; ENTRY as usize]) -> (u64, usize) {
    let [a, b, c, d, e, f, g, h, tokens @ ..] = *entry;
    let end = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    (end, u32::from_le_bytes(tokens) as usize)
}

fn number(file: &File, at: u64) -> io::Result<u32> {
    let mut bytes = [0; 4];
    read_exact_at(file, at, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// CRC-32 of the first `len` bytes.
fn checksum(file: &File, len: u64) -> io::Result<u32> {
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; BUFFER]);
    for start in (0..len).step_by(BUFFER) {
        let part = &mut buffer[..BUFFER.min((len - start) as usize)];
        read_exact_at(file, start, part)?;
        hasher.update(part);
    }
    Ok(hasher.finalize())
}

/// Writes a file of encoded rows.
pub(super) struct RowsWriter<'a> {
    path: &'a Path,
    out: Summed<'a>,
    /// The index, in a file of its own until all rows are written.
    index: BufWriter<File>,
    buffer: Vec<u8>,
}

/// A writer, the number of bytes written, and their checksum.
struct Summed<'a> {
    out: &'a mut dyn Write,
    len: u64,
    hasher: Hasher,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl RowsWriter<'_> {
    /// Writes the rows that `fill` pushes under a temporary name, then renames the file: other processes see it whole or not at all.
    ///
    /// # Errors
    /// Those of `fill`, and `Error::Io`.
    pub(super) fn write(
        path: &Path,
        fill: impl FnOnce(&mut RowsWriter<'_>) -> Result<RowCounts>,
    ) -> Result<()> {
        let index = Temporary(Some(temporary_name(path)?));
        write_atomic_with(path, |out| {
            let file = File::create(index.path()).map_err(Error::io("create", index.path()))?;
            let mut writer = RowsWriter {
                path,
                out: Summed {
                    out,
                    len: 0,
                    hasher: Hasher::new(),
                },
                index: BufWriter::with_capacity(BUFFER, file),
                buffer: Vec::new(),
            };
            let io = |error| Error::io("write", path)(error);
            writer.out.write_all(MAGIC).map_err(io)?;
            let counts = fill(&mut writer)?;
            writer.finish(&counts, index.path()).map_err(io)
        })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(super) fn push(&mut self, row: &impl TokenRow) -> Result<()> {
        self.buffer.clear();
        row.write(&mut self.buffer);
        let mut write = || -> io::Result<()> {
            self.out.write_all(&self.buffer)?;
            self.index.write_all(&self.out.len.to_le_bytes())?;
            let tokens = row.num_tokens() as u32;
            self.index.write_all(&tokens.to_le_bytes())
        };
        write().map_err(Error::io("write", self.path))
    }

    /// Adds what follows the rows; `index` is the index's own file.
    fn finish(mut self, counts: &RowCounts, index: &Path) -> io::Result<()> {
        self.index.flush()?;
        let offset = self.out.len;
        let mut index = BufReader::with_capacity(BUFFER, File::open(index)?);
        io::copy(&mut index, &mut self.out)?;
        let counts_at = self.out.len;
        serde_json::to_writer(&mut self.out, counts)?;
        self.out.write_all(&offset.to_le_bytes())?;
        self.out.write_all(&counts_at.to_le_bytes())?;
        let sum = self.out.hasher.clone().finalize();
        self.out.write_all(&sum.to_le_bytes())
    }
}
