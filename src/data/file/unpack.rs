//! Gzip, bounded: a file of a few megabytes can unpack to any size.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// Bytes that any file may unpack to.
const FREE: u64 = 8 << 20;

/// Most bytes of text for one byte of the file beyond [`FREE`]: rows of text shrink to a third or a tenth, the most that the format can do
/// is 1,032.
const RATIO: u64 = 100;

/// The unpacked text of a gzipped file, which may have several members.
pub(super) struct Unpacked<R> {
    decoder: MultiGzDecoder<Counted<R>>,
    bytes: u64,
}

impl<R: BufRead> Unpacked<R> {
    pub(super) fn new(packed: R) -> Self {
        let packed = Counted {
            inner: packed,
            bytes: 0,
        };
        Self {
            decoder: MultiGzDecoder::new(packed),
            bytes: 0,
        }
    }
}

impl<R: BufRead> Read for Unpacked<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(out)?;
        self.bytes += read as u64;
        let packed = self.decoder.get_ref().bytes;
        if self.bytes > FREE.saturating_add(packed.saturating_mul(RATIO)) {
            let message = format!(
                "its first {packed} bytes unpack to over {} MiB, more than {RATIO} for each: no rows of text do",
                self.bytes >> 20
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(read)
    }
}

/// Counts the bytes that are taken.
struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, len: usize) {
        self.bytes += len as u64;
        self.inner.consume(len);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use crate::data::RowFormat;
    use crate::data::file::open;

    fn packed(name: &str, pieces: impl Iterator<Item = Vec<u8>>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        for piece in pieces {
            encoder.write_all(&piece).unwrap();
        }
        std::fs::write(&path, encoder.finish().unwrap()).unwrap();
        let mut reader = match open(&path, &RowFormat::default()) {
            Ok(reader) => reader,
            Err(error) => return error.to_string(),
        };
        let mut rows = 0;
        loop {
            let batch = reader.batch(1000);
            if batch.is_empty() {
                return format!("{rows} rows");
            }
            rows += batch.len();
            if let Some(error) = batch.into_iter().find_map(Result::err) {
                return error.to_string();
            }
        }
    }

    #[test]
    fn bombs_end_with_an_error_that_names_the_line() {
        let zeros = || std::iter::repeat_n(vec![b'a'; 1 << 20], 128);
        // One row without end, and rows without end.
        let one = std::iter::once(b"{\"text\":\"".to_vec()).chain(zeros());
        let said = packed("d.jsonl.gz", one);
        assert!(said.contains("d.jsonl.gz:1: longer than 64 MiB"), "{said}");
        let row = || b"{\"text\":\"a\"}\n".repeat(1 << 16);
        let said = packed("d.jsonl.gz", std::iter::repeat_n(row(), 200));
        assert!(
            said.contains("more than 100 for each") && said.contains("cannot read further"),
            "{said}"
        );
        let table = std::iter::once(b"text\n\"".to_vec()).chain(zeros());
        let said = packed("d.csv.gz", table);
        assert!(said.contains("longer than 64 MiB"), "{said}");
        let array = std::iter::once(b"[{\"text\":\"".to_vec()).chain(zeros());
        let said = packed("d.json.gz", array);
        assert!(said.contains("longer than 64 MiB"), "{said}");
        // What is not a bomb.
        assert_eq!(
            packed("d.jsonl.gz", std::iter::repeat_n(row(), 2)),
            "131072 rows"
        );
    }
}
