//! Files of rows, in any of [`FORMATS`].

mod array;
mod csv;
mod json;
mod jsonl;
mod pages;
mod parquet;
mod paths;
mod reader;
mod refuse;
mod text;
mod unpack;

use std::io::{BufRead, BufReader};
use std::path::Path;

pub(crate) use paths::{Split, data_files, files, suggest_file};
pub(crate) use reader::{RowReader, text_bytes};
pub use refuse::lfs_pointer;
use unpack::Unpacked;

use crate::data::RowFormat;
use crate::error::{Error, Result};
use crate::outside;

/// Number of first bytes used to detect the format.
const HEAD: usize = 1 << 16;
/// The byte-order mark of UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";
/// What `Jsonl(..)` reads, for messages.
const JSON_EXPECTED: &str = "expected JSON objects, one a line";

/// A format of files of rows.
struct FileFormat {
    /// Its name, for messages.
    name: &'static str,
    /// Endings of its files, in lower case, without a dot and without `.gz`.
    endings: &'static [&'static str],
    /// Whether a file that begins with these bytes, unpacked, has this format, whatever its name.
    begins: fn(&[u8]) -> bool,
    /// Opens a file that has this format by its first bytes or its name.
    open: fn(OpenedFile<'_>, &RowFormat) -> Result<RowReader>,
}

/// Every format. A file has the first one that its first bytes show, or else that its name ends in.
const FORMATS: &[FileFormat] = &[
    parquet::FORMAT,
    array::FORMAT,
    jsonl::FORMAT,
    csv::FORMAT,
    text::FORMAT,
];

/// A file with its text, unpacked if it is gzipped; parquet files as bytes.
struct OpenedFile<'a> {
    path: &'a Path,
    text: Box<dyn BufRead>,
}

/// Opens a file of rows of any format; gzip is unpacked.
///
/// # Errors
/// `Error::Io` if it cannot be read; `Error::Format` for a folder, for what is none of the formats, and where the format cannot be told.
pub(crate) fn open(path: &Path, format: &RowFormat) -> Result<RowReader> {
    let mut file = OpenedFile::open(path, &expected())?;
    let head = file.head()?;
    let by_content = FORMATS.iter().find(|of| (of.begins)(head));
    match by_content.or_else(|| by_name(path)) {
        Some(found) => (found.open)(file, format),
        None => Err(unknown(path, head)),
    }
}

/// Opens JSONL, one JSON array of objects, or parquet, as `Jsonl(..)` names them.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_json(path: &Path) -> Result<RowReader> {
    let mut file = OpenedFile::open(path, JSON_EXPECTED)?;
    let head = file.head()?;
    let found = if (parquet::FORMAT.begins)(head) || ending(path) == "parquet" {
        parquet::FORMAT
    } else if (array::FORMAT.begins)(head) {
        array::FORMAT
    } else {
        jsonl::FORMAT
    };
    (found.open)(file, &RowFormat::default())
}

/// Opens a CSV file, as `Csv(..)` names it.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_csv(path: &Path) -> Result<RowReader> {
    let file = OpenedFile::open(path, "expected CSV")?;
    (csv::FORMAT.open)(file, &RowFormat::default())
}

impl<'a> OpenedFile<'a> {
    /// Opens a file; `expected` is what could be read, for messages.
    ///
    /// # Errors
    /// `Error::Io`; `Error::Format` for a folder, and for other formats, naming the one found.
    fn open(path: &'a Path, expected: &str) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::format(path, paths::folder_message(path)));
        }
        let file = outside::open(path)?;
        let text: Box<dyn BufRead> = Box::new(BufReader::with_capacity(HEAD, file));
        let mut file = Self { path, text };
        if file.head()?.starts_with(b"\x1f\x8b") {
            file.text = Box::new(BufReader::with_capacity(HEAD, Unpacked::new(file.text)));
        }
        match refuse::not_text(path, file.head()?, expected) {
            Some(error) => Err(error),
            None => Ok(file),
        }
    }

    /// The first bytes, without consuming them.
    fn head(&mut self) -> Result<&[u8]> {
        self.text.fill_buf().map_err(|e| {
            let message = format!("cannot be unpacked: {e}");
            match e.kind() {
                std::io::ErrorKind::InvalidInput
                | std::io::ErrorKind::InvalidData
                | std::io::ErrorKind::UnexpectedEof => Error::format(self.path, message),
                _ => Error::io("read", self.path)(e),
            }
        })
    }
}

/// The ending of a file's name in lower case, before a `.gz`.
fn ending(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let (_, ending) = name.rsplit_once('.').unwrap_or_default();
    ending.to_owned()
}

/// Why a file cannot hold rows, judged by its name.
pub(crate) fn name_problem(name: &str) -> Option<String> {
    let unknown = by_name(Path::new(name)).is_none();
    unknown.then(|| format!("{name}: {}", expected()))
}

/// The format that a file's name ends in.
fn by_name(path: &Path) -> Option<&'static FileFormat> {
    let ending = ending(path);
    (FORMATS.iter()).find(|format| format.endings.contains(&ending.as_str()))
}

/// What can be read, for messages.
fn expected() -> String {
    let names: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
    let (last, first) = names.split_last().unwrap_or((&"", &[]));
    format!("expected {} or {last}", first.join(", "))
}

/// The error for a text whose format cannot be told.
fn unknown(path: &Path, head: &[u8]) -> Error {
    let text = String::from_utf8_lossy(head);
    let first = (text.trim_start_matches('\u{feff}').lines())
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    let shown: String = first.chars().take(60).collect();
    let endings: Vec<String> = (FORMATS.iter())
        .flat_map(|format| format.endings)
        .map(|ending| format!(".{ending}"))
        .collect();
    let message = format!(
        "{}; the file's name has none of their endings ({}), and its first line `{}` does not tell. Rename it, or name its format: `Csv(..)`, `Jsonl(..)`",
        expected(),
        endings.join(", "),
        shown.escape_debug()
    );
    Error::format(path, message)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data::rows::Row;

    fn shown_row(row: Row) -> String {
        let columns = serde_json::Value::Object(row.columns);
        format!("{}: {columns}", row.line)
    }

    fn all(mut reader: RowReader) -> Result<Vec<String>> {
        let mut found = Vec::new();
        loop {
            let batch = reader.batch(2);
            if batch.is_empty() {
                return Ok(found);
            }
            for row in batch {
                found.push(shown_row(row?));
            }
        }
    }

    fn written<T>(name: &str, bytes: &[u8], read: impl FnOnce(&Path) -> T) -> T {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        read(&path)
    }

    /// The rows of a file of that name, as `line: columns`.
    pub(super) fn shown(name: &str, bytes: &[u8], format: &RowFormat) -> Result<Vec<String>> {
        written(name, bytes, |path| all(open(path, format)?))
    }

    fn any(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
        shown(name, bytes, &RowFormat::default())
    }

    fn rows(bytes: &[u8]) -> Result<Vec<String>> {
        written("rows.jsonl", bytes, |path| all(open_json(path)?))
    }

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_format_is_told_by_content_and_then_by_name() {
        let objects = b"{\"a\": \"1\"}\n\n{\"a\": \"2\"}\n";
        let two = [r#"1: {"a":"1"}"#, r#"3: {"a":"2"}"#];
        for name in ["d.jsonl", "d.json", "d.txt", "d", "d.CSV"] {
            assert_eq!(any(name, objects).unwrap(), two, "{name}");
        }
        assert_eq!(any("d.jsonl.gz", &gzipped(objects)).unwrap(), two);
        let array = b"[{\"a\": \"1\"}, {\"a\": \"2\"}]";
        let two = [r#"1: {"a":"1"}"#, r#"2: {"a":"2"}"#];
        for name in ["d.json", "d"] {
            assert_eq!(any(name, array).unwrap(), two, "{name}");
        }
        // Separators are found in the first line.
        let two = [r#"2: {"a":"1","b":"x"}"#, r#"3: {"a":"2","b":"y"}"#];
        for (name, text) in [
            ("d.csv", "a,b\n1,x\n2,y\n"),
            ("d.csv", "a;b\r\n1;x\r\n2;y\r\n"),
            ("d.tsv", "a\tb\n1\tx\n2\ty\n"),
            ("d.csv", "\"a\"|\"b\"\n1|x\n2|y\n"),
        ] {
            assert_eq!(any(name, text.as_bytes()).unwrap(), two, "{text}");
        }
        let packed = gzipped(b"a,b\n1,x\n2,y\n");
        assert_eq!(any("d.csv.gz", &packed).unwrap(), two);
        assert_eq!(
            any("d.md", b"[x] {y}\n").unwrap(),
            [r#"1: {"text":"[x] {y}"}"#]
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (name, bytes, parts) in [
            (
                "d.dat",
                &b"a,b\n1,2\n"[..],
                &[
                    "expected parquet, a JSON array, JSONL, CSV or plain text",
                    "its first line `a,b` does not tell",
                ][..],
            ),
            (
                "d.xlsx",
                b"PK\x03\x04....",
                &["found a spreadsheet: save its sheet as CSV"],
            ),
            (
                "d.zip",
                b"PK\x03\x04....",
                &["found a zip archive; unpack or convert it"],
            ),
            (
                "d.csv",
                b"\xff\xfea\0,\0b\0\n\0",
                &["found UTF-16 or UTF-32"],
            ),
            ("d.csv", b"", &["no rows: the file is empty"]),
            (
                "d.parquet",
                b"a,b\n",
                &["expected a parquet file: it does not begin with PAR1"],
            ),
            ("d.jsonl", b"a,b\n", &["found what looks like CSV"]),
        ] {
            let found = any(name, bytes).unwrap_err().to_string();
            for part in parts {
                assert!(found.contains(part), "{part:?} is not in {found}");
            }
        }
    }

    #[test]
    fn an_array_of_objects_is_rows() {
        let expected = [r#"1: {"a":1}"#, r#"2: {"a":2}"#, r#"3: {"a":[3]}"#];
        for text in [
            "[{\"a\":1},{\"a\":2},{\"a\":[3]}]",
            "\u{feff}[\r\n  {\"a\": 1},\r\n  {\"a\": 2},\n\n  {\n\"a\": [3]}\n]\n",
        ] {
            assert_eq!(rows(text.as_bytes()).unwrap(), expected, "{text}");
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
        let bytes = gzipped(b"[{\"a\":1}]");
        assert_eq!(rows(&bytes).unwrap(), ["1: {\"a\":1}"]);
        let message = rows(&bytes[..4]).unwrap_err().to_string();
        assert!(message.contains("rows.jsonl"), "{message}");
    }

    #[test]
    fn a_folder_names_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let message = |folder: &Path| open_json(folder).map(drop).unwrap_err().to_string();
        assert!(message(dir.path()).ends_with("is a folder, expected a file of rows"));
        for name in ["b.jsonl", "a.parquet", "notes.txt"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let found = message(dir.path());
        assert!(found.ends_with("it holds a.parquet, b.jsonl"), "{found}");
    }
}
