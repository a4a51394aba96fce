//! A Hugging Face hub on this machine, for programs that are given its address as `HF_ENDPOINT`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use sha2::{Digest, Sha256};

/// The hub: files by path, such as `Qwen/Qwen3-0.6B-Base/resolve/main/config.json` or `datasets/trl-lib/tldr/resolve/main/data/x.parquet`.
pub(crate) struct Hub {
    /// Its address.
    pub(crate) endpoint: String,
    downloads: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// Serves `files` until the process ends.
    pub(crate) fn serve(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let downloads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&downloads);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &files, &seen);
            }
        });
        Self {
            endpoint,
            downloads,
        }
    }

    /// The downloaded paths, in order.
    pub(crate) fn downloads(&self) -> Vec<String> {
        self.downloads.lock().unwrap().clone()
    }
}

/// Answers one request as the hub does: the first byte of a file with its length, hash and commit, then the file.
fn answer(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>, seen: &Mutex<Vec<String>>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().trim_start_matches('/');
    let Some(body) = files.get(path) else {
        let absent = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(absent).unwrap();
        return;
    };
    let part = match head.to_lowercase().contains("range: bytes=0-0\r\n") {
        true => &body[..1],
        false => {
            seen.lock().unwrap().push(path.to_owned());
            &body[..]
        }
    };
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes 0-{}/{}\r\nETag: \"{:x}\"\r\nX-Repo-Commit: abc\r\nConnection: close\r\n\r\n",
        part.len(),
        part.len() - 1,
        body.len(),
        Sha256::digest(body)
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(part).unwrap();
}

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
