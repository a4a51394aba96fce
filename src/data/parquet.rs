//! Parquet files as rows: the usual format of datasets on the hub.

use std::fs::File;
use std::path::Path;

use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Rows as JSON objects, one at a time.
pub(crate) type Objects = Box<dyn Iterator<Item = Result<Map<String, Value>>>>;

/// The file's rows as JSON objects, one at a time.
///
/// # Errors
/// If the file is not parquet, and where a row cannot be read.
pub(crate) fn objects(path: &Path) -> Result<Objects> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let reader = SerializedFileReader::new(file)
        .map_err(|e| Error::format(path, format!("expected a parquet file: {e}")))?;
    let path = path.to_path_buf();
    let rows = RowIter::from_file_into(Box::new(reader)).enumerate();
    Ok(Box::new(rows.map(move |(i, row)| {
        let error = |message: String| Error::Data {
            path: path.clone(),
            line: i + 1,
            message,
        };
        match row.map_err(|e| error(e.to_string()))?.to_json_value() {
            Value::Object(columns) => Ok(columns),
            _ => Err(error("expected a row of named columns".into())),
        }
    })))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use crate::data::{DataConfig, DataContext, DataSource, RowFormat, read_rows};

    #[test]
    fn rows_are_objects_and_skip_counts_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        let schema = "message rows { required binary prompt (UTF8); required int64 label; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let file = std::fs::File::create(&path).unwrap();
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts: Vec<ByteArray> = ["a", "b", "\u{e9}"].map(ByteArray::from).to_vec();
        column
            .typed::<ByteArrayType>()
            .write_batch(&texts, None, None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<Int64Type>()
            .write_batch(&[1, 2, 3], None, None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();

        let config = DataConfig {
            source: DataSource::Jsonl(path.clone()),
            format: RowFormat::default(),
            skip: 1,
            limit: None,
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
