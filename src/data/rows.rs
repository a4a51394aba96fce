//! Reads rows: JSON objects from files, the Hugging Face hub, the embedded posts, and earlier stages.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::data::repository::{cached_split, fetch_split};
use crate::data::slice::SplitSlice;
use crate::data::stream::{RowStream, no_rows};
use crate::data::{DataConfig, DataSource};
use crate::error::{Error, Result};
use crate::hub::{Hub, HubSettings, Repo};

/// One row of a data set with its position.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The JSON object, keys in the file's order.
    pub columns: Map<String, Value>,
    /// The file, or `posts` for the embedded ones.
    pub path: PathBuf,
    /// 1-based line (for parquet, JSON arrays and posts: row).
    pub line: usize,
}

impl Row {
    /// An [`Error::Data`] for this row.
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::Data {
            path: self.path.clone(),
            line: self.line,
            message: message.into(),
        }
    }
}

/// Where data sources are resolved.
#[derive(Debug, Clone, Default)]
pub struct DataContext {
    /// The run's folder: rows of a stage are read from `<run_dir>/<stage>/train.jsonl` or `valid.jsonl`.
    pub run_dir: PathBuf,
    /// Cache for files of the hub; the usual one (`HF_HOME`) if absent.
    pub cache_dir: Option<PathBuf>,
    /// Whether [`check_source`](crate::data::check_source) downloads files of the hub that are not in the cache; otherwise it skips
    /// them.
    pub fetch: bool,
    /// Whether files of the hub come from the cache alone.
    pub cached_only: bool,
}

impl DataContext {
    /// The hub of the environment, with the cache of this context.
    fn hub(&self) -> Hub {
        let mut settings = HubSettings::from_env();
        if let Some(cache) = &self.cache_dir {
            settings.cache.clone_from(cache);
        }
        Hub::new(settings)
    }
}

/// Reads the rows of a data set, after `skip` and up to `limit`, with the columns that their layout gives them. Blank lines are
/// ignored.
///
/// A file of the hub is downloaded from `HF_ENDPOINT` (huggingface.co if unset) unless the cache has it.
///
/// # Errors
/// At the first row that cannot be parsed, with its line; if the file cannot be read or fetched; and if
/// no rows are left.
pub fn read_rows(config: &DataConfig, context: &DataContext) -> Result<Vec<Row>> {
    let mut stream = RowStream::open(config, context)?;
    let mut rows = Vec::new();
    loop {
        let batch = stream.batch();
        if batch.is_empty() {
            break;
        }
        rows.reserve(batch.len());
        for row in batch {
            rows.push(row?);
        }
    }
    match rows.is_empty() {
        true => Err(no_rows(config, stream.name())),
        false => Ok(rows),
    }
}

/// The files of a source on this machine, and which of their rows it means.
pub(crate) struct LocalFiles {
    /// What is read, for messages: the file, folder, pattern or repository.
    pub(crate) name: PathBuf,
    /// The files, in order.
    pub(crate) files: Vec<PathBuf>,
    /// Which of their rows are meant, if not all.
    pub(crate) slice: Option<SplitSlice>,
}

/// The files of a source; those of the hub are downloaded unless the cache has them.
///
/// # Errors
/// If there are none, and if a download fails.
pub(crate) fn local_files(source: &DataSource, context: &DataContext) -> Result<LocalFiles> {
    let DataSource::Hub {
        repo,
        file,
        config,
        split,
        revision,
    } = source
    else {
        let names = source.local_files(&context.run_dir);
        let Some(name) = names.first().cloned() else {
            return Err(Error::Usage("the source is no file".into()));
        };
        let mut files = Vec::new();
        for name in &names {
            files.extend(source.files(name)?);
        }
        return Ok(LocalFiles {
            files,
            name,
            slice: None,
        });
    };
    let slice = SplitSlice::parse(split.as_deref().unwrap_or("train")).map_err(Error::Usage)?;
    let (hub, id) = (context.hub(), Repo::dataset(repo, revision));
    let found = match (file, context.cached_only) {
        (Some(file), true) => hub.cached(&id, file).map(|path| vec![path]),
        (Some(file), false) => Some(vec![hub.file(&id, file)?]),
        (None, true) => cached_split(&hub, &id, config.as_deref(), &slice.name),
        (None, false) => Some(fetch_split(&hub, &id, config.as_deref(), &slice.name)?),
    };
    Ok(LocalFiles {
        name: PathBuf::from(id.to_string()),
        files: found.ok_or_else(|| Error::Usage(format!("{id} is not in the hub's cache")))?,
        slice: Some(slice),
    })
}

/// The files on this machine that a source reads; none for generated rows.
pub(crate) fn source_files(source: &DataSource, run_dir: &Path) -> Vec<PathBuf> {
    let context = DataContext {
        run_dir: run_dir.to_path_buf(),
        cached_only: true,
        ..DataContext::default()
    };
    match source {
        DataSource::Mix(parts) => (parts.iter())
            .flat_map(|(_, part)| source_files(&part.source, run_dir))
            .collect(),
        source => local_files(source, &context).map_or(Vec::new(), |local| local.files),
    }
}

/// Whether the files of a source are on this machine, or may be fetched now.
pub(crate) fn is_present(source: &DataSource, context: &DataContext) -> bool {
    match source {
        DataSource::Hub { .. } => !context.cached_only || local_files(source, context).is_ok(),
        DataSource::Mix(parts) => (parts.iter()).all(|(_, part)| is_present(&part.source, context)),
        // Rows of a stage that has not run yet are not there.
        source => (source.stages().iter())
            .all(|rows| (context.run_dir.join(rows.stage).join(rows.file())).exists()),
    }
}

/// The type of a JSON value, for messages.
pub(crate) fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn config(source: DataSource) -> DataConfig {
        DataConfig::of(source)
    }

    fn read(bytes: &[u8]) -> Result<Vec<Row>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        fs::write(&path, bytes).unwrap();
        read_rows(&config(DataSource::Jsonl(path)), &DataContext::default())
    }

    /// The message without the folder's name.
    fn complaint(bytes: &[u8]) -> String {
        let text = read(bytes).unwrap_err().to_string();
        text[text.find("rows.jsonl").unwrap()..].to_owned()
    }

    #[test]
    fn blank_lines_count_as_lines_but_not_as_rows() {
        let rows = read(b"\xef\xbb\xbf{\"a\": 1}\r\n\n  \n{\"b\": \"\xc3\xa9\"}").unwrap();
        assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(rows[1].columns["b"], "\u{e9}");
    }

    #[test]
    fn errors_name_the_line_and_what_was_found() {
        let mut rows = b"{\"a\": 1}\n".repeat(56);
        rows.extend(b"{\"a\": 1\n");
        assert_eq!(
            complaint(&rows),
            "rows.jsonl:57: expected one JSON object on the line, found bad JSON: EOF while parsing an object at column 7; each row must be on one line"
        );
        assert_eq!(
            complaint(b"{}\n{\"a\" 1}\n"),
            "rows.jsonl:2: expected one JSON object on the line, found bad JSON: expected `:` at column 6"
        );
        assert_eq!(
            complaint(b"{}\n{\"a\": \"\xff\"}\n"),
            "rows.jsonl:2: expected UTF-8, found byte 0xff at byte 8"
        );
        assert_eq!(
            complaint(b"\n[1]\n"),
            "rows.jsonl:2: expected a JSON object, found an array"
        );
        assert_eq!(complaint(b"\n \n"), "rows.jsonl: no rows");
    }

    #[test]
    fn skip_and_limit_count_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl.gz");
        // Two gzip members one after the other, as `cat a.gz b.gz` makes them.
        let mut bytes = Vec::new();
        for part in ["{\"i\":0}\n\n{\"i\":1}\n", "{\"i\":2}\n{\"i\":3}\n"] {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(part.as_bytes()).unwrap();
            bytes.extend(encoder.finish().unwrap());
        }
        fs::write(&path, &bytes).unwrap();
        let mut config = config(DataSource::Jsonl(path.clone()));
        (config.skip, config.limit) = (1, Some(2));
        let rows = read_rows(&config, &DataContext::default()).unwrap();
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.columns["i"].as_u64().unwrap(), row.line))
            .collect();
        assert_eq!(seen, [(1, 3), (2, 4)]);
        config.skip = 4;
        let error = read_rows(&config, &DataContext::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.ends_with("no rows after the first 4, which `skip` leaves out"),
            "{error}"
        );
        // A download that was cut off.
        fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        (config.skip, config.limit) = (0, None);
        let error = read_rows(&config, &DataContext::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot read further"), "{error}");
    }

    #[test]
    fn ranked_rows_come_from_the_run() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rank")).unwrap();
        fs::write(dir.path().join("rank/valid.jsonl"), "{\"v\": 1}").unwrap();
        let context = DataContext {
            run_dir: dir.path().into(),
            ..DataContext::default()
        };
        let source = |valid| DataSource::Ranked {
            stage: "rank".into(),
            valid,
        };
        assert_eq!(
            read_rows(&config(source(true)), &context).unwrap()[0].columns["v"],
            1
        );
        let error = read_rows(&config(source(false)), &context)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("cannot read ") && error.contains("train.jsonl"),
            "{error}"
        );
    }
}
