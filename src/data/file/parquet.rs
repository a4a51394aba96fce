//! Parquet files as rows: the usual format of datasets on the hub.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek};

use parquet::basic::Compression;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as Record};
use serde_json::{Map, Value, json};

use super::{FileFormat, OpenedFile, RowReader, pages};
use crate::data::RowFormat;
use crate::data::rows::Row;
use crate::error::{Error, Result};
use crate::guard::{Failure, contain};
use crate::outside;

/// First bytes of a parquet file.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// Parquet, nested columns included; a row's line is its number.
pub(super) const FORMAT: FileFormat = FileFormat {
    name: "parquet",
    endings: &["parquet"],
    begins: |head| head.starts_with(MAGIC),
    open,
};

fn open(mut file: OpenedFile<'_>, _: &RowFormat) -> Result<RowReader> {
    let path = file.path;
    if !file.head()?.starts_with(MAGIC) {
        let message = "expected a parquet file: it does not begin with PAR1";
        return Err(Error::format(path, message));
    }
    // The footer is read first: the file is opened again, to seek in it.
    let file = outside::open(path)?;
    let wrong = |e: String| Error::format(path, format!("expected a parquet file: {e}"));
    let mut seen = file.try_clone().map_err(Error::io("read", path))?;
    if is_packed(&mut seen).map_err(Error::io("read", path))? {
        let message = "a parquet file packed with gzip, which cannot be read in pieces: unpack it first; parquet compresses its own columns";
        return Err(Error::format(path, message));
    }
    // The library panics on some damaged files.
    let opened = contain(|| {
        pages::check_columns(&seen)?;
        let reader = SerializedFileReader::new(file).map_err(|e| e.to_string())?;
        check_readable(reader.metadata())?;
        pages::check(&seen, reader.metadata())?;
        let num_rows = reader.metadata().file_metadata().num_rows();
        Ok((num_rows, RowIter::from_file_into(Box::new(reader))))
    });
    let opened = opened.unwrap_or_else(|failure| Err(fails(&failure)));
    let (num_rows, mut rows) = opened.map_err(wrong)?;
    let owned = path.to_path_buf();
    let mut ended = false;
    let rows = std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let row = contain(|| Some(rows.next()?.map(|row| columns(&row))));
        let row = match row {
            Ok(row) => row?.map_err(|e| e.to_string()),
            Err(failure) => Err(fails(&failure)),
        };
        // What follows a damaged row is not read.
        ended = row.is_err();
        Some(row)
    });
    let rows = rows.enumerate().map(move |(i, row)| {
        let error = |message: String| Error::Data {
            path: owned.clone(),
            line: i + 1,
            message,
        };
        Ok(Row {
            columns: row.map_err(error)?,
            path: owned.clone(),
            line: i + 1,
        })
    });
    let num_rows = usize::try_from(num_rows).unwrap_or(0);
    Ok(RowReader::of(path, Box::new(rows)).with_num_rows(num_rows))
}

/// Whether the file itself, and not what was unpacked of it, begins as another format.
fn is_packed(file: &mut File) -> std::io::Result<bool> {
    let mut head = [0; MAGIC.len()];
    file.rewind()?;
    file.read_exact(&mut head)?;
    Ok(head != MAGIC)
}

/// Refuses compressions that the library is built without, and columns of the same name, of which a row could hold one.
fn check_readable(metadata: &ParquetMetaData) -> Result<(), String> {
    let schema = metadata.file_metadata().schema_descr().root_schema();
    let mut names = BTreeSet::new();
    for column in schema.get_fields() {
        if !names.insert(column.name()) {
            return Err(format!("it has the column `{}` twice", column.name()));
        }
    }
    for column in metadata
        .row_groups()
        .iter()
        .flat_map(|group| group.columns())
    {
        match column.compression() {
            Compression::UNCOMPRESSED
            | Compression::SNAPPY
            | Compression::GZIP(_)
            | Compression::ZSTD(_) => {}
            other => {
                return Err(format!(
                    "column {} is compressed as {other}, which is not read: write the file with snappy, zstd or gzip",
                    column.column_path()
                ));
            }
        }
    }
    Ok(())
}

/// A row's columns by name.
fn columns(row: &Record) -> Map<String, Value> {
    (row.get_column_iter())
        .map(|(name, field)| (name.clone(), value(field)))
        .collect()
}

/// The library's JSON, but for bytes, which it writes in base64: most are texts of writers that did not mark them as such. Others become
/// `{"bytes": 1234}`, their number, which no text is mistaken for.
fn value(field: &Field) -> Value {
    match field {
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => json!({"bytes": bytes.len()}),
        },
        Field::Group(row) => Value::Object(columns(row)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => (map.entries().iter())
            .map(|(key, of)| match value(key) {
                Value::String(key) => (key, value(of)),
                key => (key.to_string(), value(of)),
            })
            .collect(),
        other => other.to_json_value(),
    }
}

fn fails(failure: &Failure) -> String {
    format!("the file is damaged: {failure}")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;
    use std::sync::Arc;

    use flate2::write::GzEncoder;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::data::{DataConfig, DataContext, DataSource, read_rows};

    /// Texts of a column, with definition and repetition levels where it is nested.
    struct Texts<'a>(&'a [&'a str], Option<[&'a [i16]; 2]>);

    /// A file with these columns of texts, and a last one of numbers, if any.
    fn write(path: &Path, schema: &str, columns: &[Texts<'_>], numbers: &[i64]) {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let file = File::create(path).unwrap();
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for Texts(texts, levels) in columns {
            let mut column = group.next_column().unwrap().unwrap();
            let texts: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
            let [defined, repeated] = levels.map_or([None, None], |levels| levels.map(Some));
            column
                .typed::<ByteArrayType>()
                .write_batch(&texts, defined, repeated)
                .unwrap();
            column.close().unwrap();
        }
        if let Some(mut column) = group.next_column().unwrap() {
            let column_writer = column.typed::<Int64Type>();
            column_writer.write_batch(numbers, None, None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn nested_columns_and_nulls_are_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        let schema = "message rows { optional group messages (LIST) { repeated group list { optional group element {
            optional binary role (UTF8); optional binary content (UTF8); } } } }";
        // Two messages, the second without content, in the first row; null in the second.
        let columns = [
            Texts(&["user", "assistant"], Some([&[4, 4, 0], &[0, 1, 0]])),
            Texts(&["h"], Some([&[4, 3, 0], &[0, 1, 0]])),
        ];
        write(&path, schema, &columns, &[]);
        let config = DataConfig::of(DataSource::File(path));
        let rows = read_rows(&config, &DataContext::default()).unwrap();
        let rows: Vec<_> = rows
            .into_iter()
            .map(|row| Value::Object(row.columns))
            .collect();
        let messages =
            json!([{"role": "user", "content": "h"}, {"role": "assistant", "content": null}]);
        assert_eq!(
            rows,
            [json!({"messages": messages}), json!({"messages": null})]
        );
    }

    #[test]
    fn bytes_without_a_mark_are_text_where_they_are_utf8() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        let schema = "message rows { required binary prompt; required int64 label; }";
        write(
            &path,
            schema,
            &[Texts(&["A cat.", "\u{e9}"], None)],
            &[1, 2],
        );
        let config = DataConfig::of(DataSource::File(path));
        let rows = read_rows(&config, &DataContext::default()).unwrap();
        let prompts: Vec<_> = rows.iter().map(|row| &row.columns["prompt"]).collect();
        assert_eq!(prompts, ["A cat.", "\u{e9}"]);
        let picture = Field::Bytes(ByteArray::from(vec![0xff, 0xd8, 0xff]));
        assert_eq!(value(&picture), json!({"bytes": 3}));
    }

    /// What reading a file with a column of texts and one of numbers comes to, packed into gzip or not.
    fn outcome(names: [&str; 2], packed: bool) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        let [text, number] = names;
        let schema =
            format!("message rows {{ required binary {text} (UTF8); required int64 {number}; }}");
        write(&path, &schema, &[Texts(&["x", "y"], None)], &[1, 2]);
        if packed {
            let bytes = std::fs::read(&path).unwrap();
            let file = File::create(&path).unwrap();
            let mut gzip = GzEncoder::new(file, flate2::Compression::fast());
            gzip.write_all(&bytes).unwrap();
            gzip.finish().unwrap();
        }
        let config = DataConfig::of(DataSource::File(path));
        match read_rows(&config, &DataContext::default()) {
            Ok(rows) => format!("{} rows", rows.len()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_with_what_to_do() {
        assert_eq!(outcome(["a", "b"], false), "2 rows");
        let message = outcome(["a", "a"], false);
        assert!(message.contains("it has the column `a` twice"), "{message}");
        let message = outcome(["a", "b"], true);
        let expected = "packed with gzip, which cannot be read in pieces: unpack it first";
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn rows_are_objects_and_skip_counts_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        let schema = "message rows { required binary prompt (UTF8); required int64 label; }";
        let columns = [Texts(&["a", "b", "\u{e9}"], None)];
        write(&path, schema, &columns, &[1, 2, 3]);

        let config = DataConfig {
            skip: 1,
            ..DataConfig::of(DataSource::Jsonl(path.clone()))
        };
        let rows = read_rows(&config, &DataContext::default()).unwrap();
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.line, &row.columns["prompt"], &row.columns["label"]))
            .collect();
        assert_eq!(
            seen,
            [
                (2, &"b".into(), &2.into()),
                (3, &"\u{e9}".into(), &3.into())
            ]
        );
        std::fs::write(&path, "{}").unwrap();
        let error = read_rows(&config, &DataContext::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("rows.parquet: expected a parquet file"),
            "{error}"
        );
    }
}
