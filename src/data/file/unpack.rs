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

    /// What reading all rows of a file with this content comes to.
    fn outcome(name: &str, bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
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

    fn packed(name: &str, pieces: impl Iterator<Item = Vec<u8>>) -> String {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        for piece in pieces {
            encoder.write_all(&piece).unwrap();
        }
        outcome(name, &encoder.finish().unwrap())
    }

    /// The beginnings of rows without an end.
    const ENDLESS: [(&str, &str); 4] = [
        ("d.jsonl", "{\"text\":\""),
        ("d.json", "[{\"text\":\""),
        ("d.csv", "text\n\""),
        ("d.txt", ""),
    ];

    #[test]
    fn bombs_end_with_an_error() {
        for (name, begin) in ENDLESS {
            let text = std::iter::repeat_n(vec![b'a'; 1 << 20], 128);
            let begin = std::iter::once(begin.as_bytes().to_vec());
            let said = packed(&format!("{name}.gz"), begin.chain(text));
            assert!(said.contains("more than 100 for each"), "{said}");
        }
        // Rows without end.
        let row = || b"{\"text\":\"a\"}\n".repeat(1 << 16);
        let said = packed("d.jsonl.gz", std::iter::repeat_n(row(), 200));
        assert!(said.contains("more than 100 for each"), "{said}");
        // What is not a bomb.
        let said = packed("d.jsonl.gz", std::iter::repeat_n(row(), 2));
        assert_eq!(said, "131072 rows");
    }

    #[test]
    fn rows_end_and_the_error_names_the_line() {
        for (name, begin) in ENDLESS {
            let text = [begin.as_bytes(), &vec![b'a'; 65 << 20]].concat();
            let said = outcome(name, &text);
            assert!(said.contains("longer than 64 MiB"), "{said}");
            assert!(name == "d.csv" || said.contains(":1: "), "{said}");
        }
        let many = format!("{{\"input_ids\":[{}0]}}\n", "0,".repeat(5_000_000));
        let said = outcome("d.jsonl", many.as_bytes());
        assert!(
            said.contains("d.jsonl:1: has over 4194304 values"),
            "{said}"
        );
    }
}
