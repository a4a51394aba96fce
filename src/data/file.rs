//! Reads files of rows; the format is detected from the first bytes, not from the name.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use rayon::prelude::*;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::data::json::{self, Strict};
use crate::data::parquet;
use crate::data::rows::{Row, json_kind};
use crate::error::{Error, Result};

/// Number of first bytes used to detect the format.
const HEAD: usize = 1 << 16;
/// First bytes of a parquet file.
const PARQUET: &[u8] = b"PAR1";
/// Bytes of text parsed at once, on all cores; a longer row is parsed alone.
const BATCH_BYTES: usize = 1 << 24;
/// Most file names listed for a folder.
const MAX_NAMES: usize = 5;

/// Reads the rows of one file.
pub(crate) struct RowReader {
    path: PathBuf,
    line: usize,
    source: Source,
}

/// Rows from formats that are not line-based.
pub(crate) type Objects = Box<dyn Iterator<Item = Result<Row>>>;

enum Source {
    Lines(Box<dyn BufRead>),
    Objects(Objects),
    Ended,
}

/// Opens a file of rows: JSONL, one JSON array of objects, or parquet; gzip is unpacked.
///
/// # Errors
/// `Error::Io` if it cannot be read, `Error::Format` that names the format found if it is another one.
pub(crate) fn open(path: &Path) -> Result<RowReader> {
    let mut text = text(path)?;
    let head = head(&mut text, path)?;
    if head.starts_with(PARQUET) {
        return open_parquet(path);
    }
    let is_parquet = |name: &OsStr| name.eq_ignore_ascii_case("parquet");
    if path.extension().is_some_and(is_parquet) {
        let message = "expected a parquet file: it does not begin with PAR1";
        return Err(Error::format(path, message));
    }
    if let Some(error) = not_json(path, head) {
        return Err(error);
    }
    if is_array(head) {
        return Ok(RowReader::of(path, array(path, text)?));
    }
    Ok(RowReader {
        path: path.to_path_buf(),
        line: 0,
        source: Source::Lines(text),
    })
}

/// Opens a text file, unpacking gzip, or a parquet file as bytes.
///
/// # Errors
/// `Error::Io`; `Error::Format` for a folder, and for other formats, naming the one found.
pub(crate) fn text(path: &Path) -> Result<Box<dyn BufRead>> {
    if path.is_dir() {
        return Err(Error::format(path, folder_message(path)));
    }
    let file = File::open(path).map_err(Error::io("read", path))?;
    let mut text: Box<dyn BufRead> = Box::new(BufReader::with_capacity(HEAD, file));
    if head(&mut text, path)?.starts_with(b"\x1f\x8b") {
        text = Box::new(BufReader::with_capacity(HEAD, MultiGzDecoder::new(text)));
    }
    match not_text(path, head(&mut text, path)?) {
        Some(error) => Err(error),
        None => Ok(text),
    }
}

/// The error for a git-lfs pointer file, given its first bytes.
pub fn lfs_pointer(path: &Path, head: &[u8]) -> Option<Error> {
    let is_pointer = head.starts_with(b"version https://git-lfs.github.com/spec/");
    is_pointer.then(|| {
        let message = "is a git-lfs pointer, not the file itself: fetch that with `git lfs pull`";
        Error::format(path, message)
    })
}

fn open_parquet(path: &Path) -> Result<RowReader> {
    let owned = path.to_path_buf();
    let rows = parquet::objects(path)?.enumerate();
    let rows = rows.map(move |(i, object)| {
        Ok(Row {
            columns: object?,
            path: owned.clone(),
            line: i + 1,
        })
    });
    Ok(RowReader::of(path, Box::new(rows)))
}

/// The first bytes of `text`, without consuming them.
fn head<'a>(text: &'a mut Box<dyn BufRead>, path: &Path) -> Result<&'a [u8]> {
    text.fill_buf().map_err(|e| {
        let message = format!("cannot be unpacked: {e}");
        match e.kind() {
            std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
                Error::format(path, message)
            }
            _ => Error::io("read", path)(e),
        }
    })
}

/// The expected contents, for messages.
const EXPECTED: &str = "expected JSON objects, one a line";

/// The error for a file with these first bytes, if it is neither text nor parquet.
fn not_text(path: &Path, head: &[u8]) -> Option<Error> {
    if head.starts_with(PARQUET) {
        return None;
    }
    if head.is_empty() {
        return Some(Error::format(path, "no rows: the file is empty"));
    }
    if let Some(error) = lfs_pointer(path, head) {
        return Some(error);
    }
    // UTF-16 and UTF-32 texts begin with a byte-order mark, or have zero bytes beside ASCII characters.
    let wide = head.starts_with(b"\xff\xfe")
        || head.starts_with(b"\xfe\xff")
        || head.iter().take(2).any(|&byte| byte == 0);
    if wide
        && head
            .iter()
            .take(64)
            .any(|&byte| byte == b'{' || byte == b'[')
    {
        let message = "expected UTF-8, found UTF-16 or UTF-32: save the file as UTF-8";
        return Some(Error::format(path, message));
    }
    let archives: [(&[u8], &str); 7] = [
        (b"PK\x03\x04", "a zip archive"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"BZh", "a bzip2 file"),
        (b"\xfd7zXZ", "an xz file"),
        (b"ARROW1", "an Arrow file"),
        (b"\xff\xff\xff\xff", "an Arrow stream"),
        (b"GGUF", "a GGUF file"),
    ];
    let archive = archives.iter().find(|(magic, _)| head.starts_with(magic));
    if let Some((_, what)) = archive {
        let message = format!("{EXPECTED}, found {what}; unpack or convert it");
        return Some(Error::format(path, message));
    }
    let is_binary = head.contains(&0);
    is_binary.then(|| Error::format(path, format!("{EXPECTED}, found binary data")))
}

/// The error for a text that begins like this, if it is not JSON.
fn not_json(path: &Path, head: &[u8]) -> Option<Error> {
    let text = String::from_utf8_lossy(head);
    let first = (text.trim_start_matches('\u{feff}').lines())
        .map(str::trim)
        .find(|line| !line.is_empty())?;
    if first.starts_with('{') && spans_lines(text.trim_start_matches('\u{feff}')) {
        let message =
            format!("{EXPECTED}, found one over several lines (`jq -c` writes each on one)");
        return Some(Error::format(path, message));
    }
    if first.starts_with(['{', '[']) {
        return None;
    }
    let what = if first.starts_with('<') {
        "a web page or XML"
    } else if serde_json::from_str::<Value>(first).is_ok() {
        return None; // Some other JSON value: the row's own error says which.
    } else if [',', '\t', ';'].iter().any(|&comma| first.contains(comma)) {
        "what looks like CSV: its first line is"
    } else {
        "text that is not JSON: its first line is"
    };
    let shown: String = first.chars().take(60).collect();
    let advice = match what.contains("CSV") {
        true => "; read it with `source: Csv(..)`",
        false => "",
    };
    let shown = shown.escape_debug();
    let message = format!("{EXPECTED}, found {what} `{shown}`{advice}");
    Some(Error::format(path, message))
}

/// Whether the first JSON object of a text spans several lines.
fn spans_lines(text: &str) -> bool {
    let text = text.trim_start();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => text[..values.byte_offset()].contains('\n'),
        // It may end after the bytes in `head`.
        _ => text.lines().next().is_some_and(|line| line.trim() == "{"),
    }
}

/// Whether a file is one JSON array of objects, and not JSONL with an array.
fn is_array(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let mut marks = head.iter().filter(|byte| !byte.is_ascii_whitespace());
    marks.next() == Some(&b'[') && matches!(marks.next(), None | Some(b'{' | b']'))
}

/// The rows of one JSON array; a row's line is its number.
fn array(path: &Path, mut text: Box<dyn BufRead>) -> Result<Objects> {
    let mut bytes = Vec::new();
    (text.read_to_end(&mut bytes)).map_err(Error::io("read", path))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let values: Vec<Strict> = serde_json::from_slice(bytes).map_err(|e| {
        let message = format!(
            "begins as a JSON array of rows but cannot be parsed as one: {e}. Write one object a line"
        );
        Error::format(path, message)
    })?;
    let path = path.to_path_buf();
    let rows = values.into_iter().enumerate();
    Ok(Box::new(rows.map(move |(i, Strict(value))| match value {
        Value::Object(columns) => Ok(Row {
            columns,
            path: path.clone(),
            line: i + 1,
        }),
        other => Err(Error::Data {
            path: path.clone(),
            line: i + 1,
            message: format!("expected a JSON object, found {}", json_kind(&other)),
        }),
    })))
}

/// The message for a folder, with its files that may hold rows.
fn folder_message(path: &Path) -> String {
    let is_data = |name: &String| {
        let name = name.to_ascii_lowercase();
        [".jsonl", ".json", ".csv", ".tsv", ".gz", ".parquet"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let mut names: Vec<String> = (fs::read_dir(path).into_iter().flatten())
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(is_data)
        .collect();
    names.sort();
    let more = match names.len().saturating_sub(MAX_NAMES) {
        0 => "",
        _ => ", ..",
    };
    names.truncate(MAX_NAMES);
    match names.is_empty() {
        true => "is a folder, expected a file of rows".to_owned(),
        false => format!(
            "is a folder, expected a file of rows; it holds {}{more}",
            names.join(", ")
        ),
    }
}

impl RowReader {
    /// A reader over parsed rows.
    pub(crate) fn of(path: &Path, rows: Objects) -> Self {
        Self {
            path: path.to_path_buf(),
            line: 0,
            source: Source::Objects(rows),
        }
    }

    /// Skips the first `count` rows without parsing them.
    pub(crate) fn skip_rows(mut self, count: usize) -> Result<Self> {
        for _ in 0..count {
            let skipped = match &mut self.source {
                Source::Objects(rows) => rows.next().map(|row| row.map(drop)),
                _ => self.next_line().map(|line| line.map(drop)),
            };
            match skipped {
                Some(outcome) => outcome?,
                None => break,
            }
        }
        Ok(self)
    }

    /// The next rows, at most `most`, parsed on all cores; empty at the end of the file.
    pub(crate) fn batch(&mut self, most: usize) -> Vec<Result<Row>> {
        if let Source::Objects(rows) = &mut self.source {
            return rows.take(most.min(1 << 14)).collect();
        }
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while lines.len() < most && bytes < BATCH_BYTES {
            let Some(line) = self.next_line() else { break };
            bytes += line.as_ref().map_or(0, Vec::len);
            lines.push((self.line, line));
        }
        let path = &self.path;
        (lines.into_par_iter())
            .map(|(number, line)| parse(path, number, &line?))
            .collect()
    }

    /// The next line that is not blank.
    fn next_line(&mut self) -> Option<Result<Vec<u8>>> {
        loop {
            let Source::Lines(reader) = &mut self.source else {
                return None;
            };
            let mut bytes = Vec::new();
            let read = reader.read_until(b'\n', &mut bytes);
            self.line += 1;
            match read {
                Ok(0) => {
                    self.source = Source::Ended;
                    return None;
                }
                Ok(_) => {
                    if self.line == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                        bytes.drain(..3); // a byte-order mark
                    }
                    if !bytes.iter().all(u8::is_ascii_whitespace) {
                        return Some(Ok(bytes));
                    }
                }
                Err(e) => {
                    self.source = Source::Ended;
                    return Some(Err(Error::Data {
                        path: self.path.clone(),
                        line: self.line,
                        message: format!("cannot read further: {e}"),
                    }));
                }
            }
        }
    }
}

/// The row of a line.
fn parse(path: &Path, line: usize, bytes: &[u8]) -> Result<Row> {
    let error = |message| Error::Data {
        path: path.to_path_buf(),
        line,
        message,
    };
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        error(format!(
            "expected UTF-8, found byte 0x{:02x} at byte {}",
            bytes[at],
            at + 1
        ))
    })?;
    let columns = json::object(text.trim_end()).map_err(error)?;
    Ok(Row {
        columns,
        path: path.to_path_buf(),
        line,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(bytes: &[u8]) -> Result<Vec<(usize, String)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        fs::write(&path, bytes).unwrap();
        let mut reader = open(&path)?;
        let mut found = Vec::new();
        loop {
            let batch = reader.batch(2);
            if batch.is_empty() {
                return Ok(found);
            }
            for row in batch {
                let row = row?;
                found.push((row.line, Value::Object(row.columns).to_string()));
            }
        }
    }

    #[test]
    fn an_array_of_objects_is_rows() {
        let expected = [(1, "{\"a\":1}"), (2, "{\"a\":2}"), (3, "{\"a\":[3]}")];
        for text in [
            "[{\"a\":1},{\"a\":2},{\"a\":[3]}]",
            "\u{feff}[\r\n  {\"a\": 1},\r\n  {\"a\": 2},\n\n  {\n\"a\": [3]}\n]\n",
        ] {
            let found = rows(text.as_bytes()).unwrap();
            let found: Vec<_> = found.iter().map(|(i, row)| (*i, &**row)).collect();
            assert_eq!(found, expected, "{text}");
        }
        assert!(rows(b"[]").unwrap().is_empty());
        let message = |text: &str| {
            let text = rows(text.as_bytes()).unwrap_err().to_string();
            text[text.find("rows.jsonl").unwrap()..].to_owned()
        };
        assert_eq!(
            message("[{\"a\":1},\n2]"),
            "rows.jsonl:2: expected a JSON object, found a number"
        );
        assert_eq!(
            message("[{\"a\":1},\n"),
            "rows.jsonl: begins as a JSON array of rows but cannot be parsed as one: EOF while parsing a value at line 2 column 0. Write one object a line"
        );
        assert_eq!(
            message("[{\"a\":1}]\n[{\"a\":2}]\n"),
            "rows.jsonl: begins as a JSON array of rows but cannot be parsed as one: trailing characters at line 2 column 1. Write one object a line"
        );
    }

    #[test]
    fn a_file_is_what_it_begins_with() {
        let utf16 = |big: bool, mark: bool| -> Vec<u8> {
            let mark = mark.then_some('\u{feff}');
            let text: String = mark.into_iter().chain("{\"a\":1}\n".chars()).collect();
            text.encode_utf16()
                .flat_map(|unit| match big {
                    true => unit.to_be_bytes(),
                    false => unit.to_le_bytes(),
                })
                .collect()
        };
        let wide = "expected UTF-8, found UTF-16 or UTF-32: save the file as UTF-8";
        let cases: [(&[u8], &str); 14] = [
            (
                b"{\n  \"a\": 1\n}\n",
                "expected JSON objects, one a line, found one over several lines (`jq -c` writes each on one)",
            ),
            (
                b"{\n  \"a\": [1,",
                "expected JSON objects, one a line, found one over several lines (`jq -c` writes each on one)",
            ),
            (b"", "no rows: the file is empty"),
            (&utf16(false, true), wide),
            (&utf16(true, true), wide),
            (&utf16(false, false), wide),
            (&utf16(true, false), wide),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
                "is a git-lfs pointer, not the file itself: fetch that with `git lfs pull`",
            ),
            (
                b"\xef\xbb\xbfprompt,completion\r\na,b\r\n",
                "expected JSON objects, one a line, found what looks like CSV: its first line is `prompt,completion`; read it with `source: Csv(..)`",
            ),
            (
                b"\"prompt\"\t\"completion\"\n",
                "expected JSON objects, one a line, found what looks like CSV: its first line is `\\\"prompt\\\"\\t\\\"completion\\\"`; read it with `source: Csv(..)`",
            ),
            (
                b"<!DOCTYPE html>\n",
                "expected JSON objects, one a line, found a web page or XML `<!DOCTYPE html>`",
            ),
            (
                b"PK\x03\x04....",
                "expected JSON objects, one a line, found a zip archive; unpack or convert it",
            ),
            (
                b"{\"a\0\":1}",
                "expected JSON objects, one a line, found binary data",
            ),
            (
                b"hello\n",
                "expected JSON objects, one a line, found text that is not JSON: its first line is `hello`",
            ),
        ];
        for (bytes, message) in cases {
            let found = rows(bytes).unwrap_err().to_string();
            assert!(found.ends_with(message), "{found}");
        }
    }

    #[test]
    fn gzip_is_detected_by_its_bytes() {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"[{\"a\":1}]").unwrap();
        let bytes = encoder.finish().unwrap();
        assert_eq!(rows(&bytes).unwrap(), [(1, "{\"a\":1}".to_owned())]);
        let message = rows(&bytes[..4]).unwrap_err().to_string();
        assert!(message.contains("rows.jsonl"), "{message}");
    }

    #[test]
    fn a_folder_names_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let message = |folder: &Path| open(folder).map(drop).unwrap_err().to_string();
        assert!(message(dir.path()).ends_with("is a folder, expected a file of rows"));
        for name in ["b.jsonl", "a.parquet", "notes.txt"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let found = message(dir.path());
        assert!(found.ends_with("it holds a.parquet, b.jsonl"), "{found}");
    }
}
