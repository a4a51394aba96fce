//! Parquet files as rows: the usual format of datasets on the hub.

use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use serde_json::Value;

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
    let seen = file.try_clone().map_err(Error::io("read", path))?;
    // The library panics on some damaged files.
    let opened = contain(|| {
        pages::check_columns(&seen)?;
        let reader = SerializedFileReader::new(file).map_err(|e| e.to_string())?;
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
        let row = contain(|| Some(rows.next()?.map(|row| row.to_json_value())));
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
        match row.map_err(error)? {
            Value::Object(columns) => Ok(Row {
                columns,
                path: owned.clone(),
                line: i + 1,
            }),
            _ => Err(error("expected a row of named columns".into())),
        }
    });
    let num_rows = usize::try_from(num_rows).unwrap_or(0);
    Ok(RowReader::of(path, Box::new(rows)).with_num_rows(num_rows))
}

fn fails(failure: &Failure) -> String {
    format!("the file is damaged: {failure}")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use serde_json::json;

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
