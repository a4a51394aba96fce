//! What a parquet file claims to hold, checked before the library makes room for it.
//!
//! The library follows nested columns without end. A page's header says how many bytes it unpacks to, and a dictionary's how many
//! values it has: the library allocates both as said, and unpacks gzip without end.
//!
//! # Source
//! The format's description: `parquet.thrift` (`FileMetaData`, `SchemaElement`, `PageHeader`), and Thrift's compact protocol.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use flate2::read::MultiGzDecoder;
use parquet::basic::Compression;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};

/// Bytes that a group's pages may take beyond [`RATIO`]; all columns have a page in memory at once.
const FREE: u64 = 256 << 20;
/// Most bytes for one byte of a page beyond [`FREE`].
const RATIO: u64 = 100;
/// Bytes of a value of a dictionary in memory.
const VALUE: u64 = 32;
/// Most that gzip can shrink.
const GZIP: u64 = 1032;
/// Rows that any file may have, and more for each of its bytes: runs of equal values take no bytes.
const ROWS: u64 = 1 << 22;
const ROWS_PER_BYTE: u64 = 8;
/// Largest header of a page: it may hold the page's smallest and largest value.
const HEADER: u64 = 16 << 20;
/// Deepest nesting of a header.
const DEEPEST: usize = 16;
/// Deepest nesting of columns; JSON has as many levels.
const DEEPEST_COLUMN: usize = 128;

/// Checks the nesting of the columns, which the file's end describes. A damaged description is left to the library.
///
/// # Errors
/// What is wrong.
pub(super) fn check_columns(mut file: &File) -> Result<(), String> {
    let mut tail = [0; 8];
    let read = file
        .seek(SeekFrom::End(-8))
        .and_then(|_| file.read_exact(&mut tail));
    let [a, b, c, d, _, _, _, _] = tail;
    let len = i64::from(u32::from_le_bytes([a, b, c, d]));
    if read.is_err() || file.seek(SeekFrom::End(-8 - len)).is_err() {
        return Ok(());
    }
    let mut footer = BufReader::new(file.take(len as u64));
    match depth(&mut footer).is_some_and(|depth| depth > DEEPEST_COLUMN) {
        true => Err(format!(
            "its columns are nested in over {DEEPEST_COLUMN} levels"
        )),
        false => Ok(()),
    }
}

/// Nesting of the columns in a description: up to [`DEEPEST_COLUMN`] + 1.
fn depth(footer: &mut dyn Read) -> Option<usize> {
    let mut reader = Compact {
        input: footer,
        read: 0,
    };
    let mut deepest = 0;
    // Children to come of the groups around an element.
    let mut open: Vec<i64> = Vec::new();
    let outcome = reader.fields(|reader, field, kind| {
        if field != 2 || kind != LIST {
            return reader.skip(kind, DEEPEST);
        }
        for _ in 0..reader.list()?.1 {
            let mut children = 0;
            reader.fields(|reader, field, kind| {
                match field {
                    5 => children = reader.integer(kind)?,
                    _ => reader.skip(kind, DEEPEST)?,
                }
                Some(())
            })?;
            while open.last() == Some(&0) {
                open.pop();
            }
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            if children > 0 {
                open.push(children);
            }
            deepest = deepest.max(open.len());
            if deepest > DEEPEST_COLUMN {
                return None;
            }
        }
        Some(())
    });
    (outcome.is_some() || deepest > DEEPEST_COLUMN).then_some(deepest)
}

/// Checks all pages and the number of rows.
///
/// # Errors
/// What is wrong.
pub(super) fn check(file: &File, metadata: &ParquetMetaData) -> Result<(), String> {
    let bytes = file.metadata().map_err(|e| e.to_string())?.len();
    let mut rows = 0u64;
    for group in metadata.row_groups() {
        rows = rows.saturating_add(u64::try_from(group.num_rows()).unwrap_or(u64::MAX));
        let most = ROWS.saturating_add(bytes.saturating_mul(ROWS_PER_BYTE));
        if rows > most {
            return Err(format!(
                "{rows} rows in a file of {bytes} bytes; at most {most} are possible"
            ));
        }
        let mut beyond = 0u64;
        for column in group.columns() {
            let more = largest(file, bytes, column)
                .map_err(|message| format!("column {}: {message}", column.column_path()))?;
            beyond = beyond.saturating_add(more);
            if beyond > FREE {
                return Err(format!(
                    "column {}: its pages would take over {} MiB beyond {RATIO} bytes for each of their own; no rows of text do",
                    column.column_path(),
                    FREE >> 20
                ));
            }
        }
    }
    Ok(())
}

/// Memory of a column's dictionary and its largest page, without [`RATIO`] bytes for each byte of them.
fn largest(file: &File, bytes: u64, column: &ColumnChunkMetaData) -> Result<u64, String> {
    let start = column.dictionary_page_offset();
    let start = u64::try_from(start.unwrap_or(column.data_page_offset()));
    let range = start.ok().zip(u64::try_from(column.compressed_size()).ok());
    let range = range.and_then(|(start, len)| Some((start, start.checked_add(len)?)));
    let (mut at, end) = range
        .filter(|(_, end)| *end <= bytes)
        .ok_or("its bytes are not those of the file")?;
    let is_gzip = matches!(column.compression(), Compression::GZIP(_));
    let (mut dictionary, mut page) = (0, 0);
    while at < end {
        let header = PageHeader::read(file, at)?;
        at += header.len;
        let size = u64::try_from(header.compressed).ok();
        let size = size.filter(|size| *size <= end - at.min(end));
        let sizes = size.zip(u64::try_from(header.unpacked).ok());
        let (size, unpacked) = sizes.ok_or("the header of a page is damaged")?;
        if is_gzip && size.saturating_mul(GZIP) > FREE {
            let levels = u64::try_from(header.levels).unwrap_or(0).min(size);
            unpacks_to(file, at + levels, size - levels, unpacked)?;
        }
        let values = u64::try_from(header.dictionary_values.unwrap_or(0)).unwrap_or(u64::MAX);
        let memory = unpacked.saturating_add(values.saturating_mul(VALUE));
        let beyond = memory.saturating_sub(size.saturating_mul(RATIO));
        match header.dictionary_values {
            Some(_) => dictionary = beyond.max(dictionary),
            None => page = beyond.max(page),
        }
        at += size;
    }
    Ok(dictionary.saturating_add(page))
}

/// Refuses gzipped bytes that unpack to more than they should.
fn unpacks_to(mut file: &File, at: u64, size: u64, unpacked: u64) -> Result<(), String> {
    let failed = |e: std::io::Error| e.to_string();
    file.seek(SeekFrom::Start(at)).map_err(failed)?;
    let text = MultiGzDecoder::new(BufReader::new(file.take(size)));
    let found = std::io::copy(
        &mut text.take(unpacked.saturating_add(1)),
        &mut std::io::sink(),
    );
    match found.map_err(failed)? > unpacked {
        true => Err(format!("a page unpacks to more than its {unpacked} bytes")),
        false => Ok(()),
    }
}

/// What is needed of a page's header.
#[derive(Debug, Default, PartialEq)]
struct PageHeader {
    /// Its own bytes.
    len: u64,
    unpacked: i64,
    compressed: i64,
    /// Values of a dictionary; `None` for other pages.
    dictionary_values: Option<i64>,
    /// Bytes before the compressed ones.
    levels: i64,
}

impl PageHeader {
    fn read(mut file: &File, at: u64) -> Result<Self, String> {
        file.seek(SeekFrom::Start(at)).map_err(|e| e.to_string())?;
        Self::parse(&mut BufReader::with_capacity(512, file.take(HEADER)))
            .ok_or_else(|| "the header of a page is damaged".to_owned())
    }

    fn parse(input: &mut dyn Read) -> Option<Self> {
        let mut reader = Compact { input, read: 0 };
        let mut header = Self::default();
        reader.fields(|reader, field, kind| {
            match field {
                2 => header.unpacked = reader.integer(kind)?,
                3 => header.compressed = reader.integer(kind)?,
                7 if kind == STRUCT => {
                    header.dictionary_values = Some(0);
                    reader.fields(|reader, field, kind| {
                        match field {
                            1 => header.dictionary_values = Some(reader.integer(kind)?),
                            _ => reader.skip(kind, DEEPEST)?,
                        }
                        Some(())
                    })?;
                }
                8 if kind == STRUCT => reader.fields(|reader, field, kind| {
                    match field {
                        5 | 6 => {
                            header.levels = header.levels.checked_add(reader.integer(kind)?)?
                        }
                        _ => reader.skip(kind, DEEPEST)?,
                    }
                    Some(())
                })?,
                _ => reader.skip(kind, DEEPEST)?,
            }
            Some(())
        })?;
        header.len = reader.read;
        Some(header)
    }
}

/// Thrift's numbers of types.
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// A reader of Thrift's compact protocol; `None` for what it does not allow.
struct Compact<'a> {
    input: &'a mut dyn Read,
    read: u64,
}

impl Compact<'_> {
    fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte).ok()?;
        self.read += 1;
        Some(byte[0])
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn integer(&mut self, kind: u8) -> Option<i64> {
        matches!(kind, 4..=6).then(|| self.zigzag())?
    }

    /// Calls `f` with number and type of every field of a struct, which it reads.
    fn fields(&mut self, mut f: impl FnMut(&mut Self, i64, u8) -> Option<()>) -> Option<()> {
        let mut field = 0;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(());
            }
            field = match head >> 4 {
                0 => self.zigzag()?,
                more => field + i64::from(more),
            };
            f(self, field, head & 15)?;
        }
    }

    /// Type and number of a list's values.
    fn list(&mut self) -> Option<(u8, u64)> {
        let head = self.byte()?;
        let len = match head >> 4 {
            15 => self.varint()?,
            len => u64::from(len),
        };
        Some((head & 15, len))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        let below = depth.checked_sub(1)?;
        match kind {
            1 | 2 => Some(()),
            3 => self.byte().map(drop),
            4..=6 => self.varint().map(drop),
            7 => self.skip_bytes(8),
            8 => {
                let len = self.varint()?;
                self.skip_bytes(len)
            }
            LIST | 10 => {
                let (kind, len) = self.list()?;
                for _ in 0..len {
                    // Truth values of a list are bytes.
                    match kind {
                        1 | 2 => self.byte().map(drop)?,
                        kind => self.skip(kind, below)?,
                    }
                }
                Some(())
            }
            STRUCT => self.fields(|reader, _, kind| reader.skip(kind, below)),
            _ => None,
        }
    }

    fn skip_bytes(&mut self, len: u64) -> Option<()> {
        let mut input = (&mut self.input).take(len);
        let skipped = std::io::copy(&mut input, &mut std::io::sink()).ok()?;
        self.read += skipped;
        (skipped == len).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_thrift_writes_them() {
        // Type 2, 100 bytes unpacked, 40 compressed, a checksum; a dictionary of 7 values in encoding 2 that is sorted.
        let bytes = [
            0x15, 4, 0x15, 200, 1, 0x15, 80, 0x15, 9, 0x3c, 0x15, 14, 0x15, 4, 0x11, 0, 0, 99,
        ];
        let header = PageHeader {
            len: 17,
            unpacked: 100,
            compressed: 40,
            dictionary_values: Some(7),
            levels: 0,
        };
        assert_eq!(PageHeader::parse(&mut &bytes[..]), Some(header));
        // A page of version 2: 3 values, no nulls, 3 rows, encoding 0, 5 and 6 bytes of levels, compressed, statistics with texts.
        let bytes = [
            0x15, 6, 0x15, 20, 0x15, 20, 0x5c, 0x15, 6, 0x15, 0, 0x15, 6, 0x15, 0, 0x15, 10, 0x15,
            12, 0x11, 0x1c, 0x18, 2, b'a', b'b', 0x18, 0, 0, 0, 0,
        ];
        let header = PageHeader {
            len: bytes.len() as u64,
            unpacked: 10,
            compressed: 10,
            dictionary_values: None,
            levels: 11,
        };
        assert_eq!(PageHeader::parse(&mut &bytes[..]), Some(header));
        // Cut short; nested without end; a text without its bytes.
        assert_eq!(PageHeader::parse(&mut &bytes[..20]), None);
        assert_eq!(PageHeader::parse(&mut &[0x1c; 100_000][..]), None);
        let text = [0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(PageHeader::parse(&mut &text[..]), None);
    }

    #[test]
    fn columns_are_counted_by_their_nesting() {
        // Version 1; groups of one child each, as `4: name "g", 5: children`, around a column.
        let footer = |groups: usize| {
            let mut bytes = vec![0x15, 2, 0x19, 0xfc];
            let mut len = groups as u64 + 1;
            while len > 127 {
                bytes.push(len as u8 | 0x80);
                len >>= 7;
            }
            bytes.push(len as u8);
            bytes.extend([0x48, 1, b'g', 0x15, 2, 0].repeat(groups));
            bytes.extend([0x48, 1, b'c', 0, 0]);
            depth(&mut &bytes[..])
        };
        assert_eq!([footer(1), footer(2), footer(128)], [1, 2, 128].map(Some));
        assert_eq!([footer(129), footer(1_000_000)], [Some(129); 2]);
        // Two columns side by side.
        let flat = [
            0x29, 0x3c, 0x48, 1, b'g', 0x15, 4, 0, 0x48, 1, b'a', 0, 0x48, 1, b'b', 0, 0,
        ];
        assert_eq!(depth(&mut &flat[..]), Some(1));
        assert_eq!(depth(&mut &flat[..9]), None);
    }
}
