//! Parquet files for the data sets of the hub.

use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// A parquet file of text columns as pyarrow writes it: one row group, values that may be null, snappy.
pub(crate) fn parquet_file(columns: &[&str], rows: &[Vec<String>]) -> Vec<u8> {
    let fields: String = columns
        .iter()
        .map(|name| format!("optional binary {name} (STRING); "))
        .collect();
    let schema = parse_message_type(&format!("message schema {{ {fields}}}")).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let mut file = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut file, Arc::new(schema), Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for index in 0..columns.len() {
        let values: Vec<ByteArray> = rows
            .iter()
            .map(|row| ByteArray::from(row[index].as_str()))
            .collect();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(&vec![1; values.len()]), None)
            .unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    file
}
