//! safetensors files: single files, and shards with an index.
//!
//! # Source
//! The format's description in the safetensors repository: 8 bytes header length (little endian), a JSON header,
//! then the data without holes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::WeightSource;
use super::dtype::Dtype;
use super::storage::Blob;
use crate::error::{Error, Problem, Result, some_of};
use crate::outside;

/// Largest header in bytes, as in the format's own library.
const MAX_HEADER: u64 = 100_000_000;

/// The tensors of one safetensors file or of all shards of an index.
#[derive(Debug)]
pub struct SafetensorsFiles {
    path: PathBuf,
    blobs: Vec<Blob>,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    blob: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    len: usize,
    offset: u64,
    num_bytes: u64,
}

impl SafetensorsFiles {
    /// Opens one file.
    ///
    /// # Errors
    /// `Error::Io`, and `Error::Format` for a truncated or corrupt file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let mut files = Self::empty(path.as_ref());
        files.add(path.as_ref())?;
        Ok(files)
    }

    /// Opens the shards that a `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// As [`SafetensorsFiles::open`]; lists all missing shards, or all tensors on which index and shards disagree.
    pub fn open_index(index: impl AsRef<Path>) -> Result<Self> {
        let index = index.as_ref();
        let weight_map = read_index(index)?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        let missing: Vec<&str> = shards
            .iter()
            .filter(|s| !index.with_file_name(s).exists())
            .map(|s| s.as_str())
            .collect();
        if !missing.is_empty() {
            return Err(Error::format(
                index,
                format!(
                    "{} of {} shards are missing: {}",
                    missing.len(),
                    shards.len(),
                    some_of(&missing)
                ),
            ));
        }
        let mut files = Self::empty(index.parent().unwrap_or(index));
        for shard in &shards {
            files.add(&index.with_file_name(shard))?;
        }
        let mut problems = Vec::new();
        for (name, shard) in &weight_map {
            match files.tensors.get(name) {
                Some(entry) if files.blobs[entry.blob].path().ends_with(shard) => {}
                _ => problems.push(Problem::new(
                    name,
                    format!("the index places it in {shard}, which does not hold it"),
                )),
            }
        }
        if problems.is_empty() {
            Ok(files)
        } else {
            Err(Error::Weights {
                path: index.to_path_buf(),
                problems,
            })
        }
    }

    /// The file's own string metadata (`{"format": "pt"}` for transformers).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The bytes of a tensor whose type has one byte a number.
    ///
    /// # Errors
    /// `Error::Weights` for an unknown name or another type; `Error::Io`.
    pub(crate) fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let problem = |message: String| Error::Weights {
            path: self.path.clone(),
            problems: vec![Problem::new(name, message)],
        };
        let entry = (self.tensors.get(name)).ok_or_else(|| problem("missing".into()))?;
        if entry.dtype.to_string() != "U8" || entry.num_bytes != entry.len as u64 {
            return Err(problem(format!(
                "expected {} bytes (U8), found {} of type {}",
                entry.len, entry.num_bytes, entry.dtype
            )));
        }
        let mut bytes = vec![0u8; entry.len];
        self.blobs[entry.blob].read_at(entry.offset, &mut bytes)?;
        Ok(bytes)
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            blobs: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
        }
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let blob = Blob::open(path)?;
        let corrupt = |message: String| Error::format(path, message);
        if blob.len() < 8 {
            return Err(corrupt(format!(
                "truncated: expected at least 8 bytes, found {}",
                blob.len()
            )));
        }
        let mut prefix = [0u8; 8];
        blob.read_at(0, &mut prefix)?;
        let header_len = u64::from_le_bytes(prefix);
        if header_len > MAX_HEADER {
            return Err(corrupt(format!(
                "not a safetensors file: its header would have {header_len} bytes"
            )));
        }
        let start = 8 + header_len;
        if start > blob.len() {
            return Err(corrupt(format!(
                "truncated: expected at least {start} bytes, found {}",
                blob.len()
            )));
        }
        let mut header = vec![0u8; header_len as usize];
        blob.read_at(8, &mut header)?;
        let header: Header = serde_json::from_slice(&header)
            .map_err(|e| corrupt(format!("the safetensors header is corrupt: {e}")))?;
        self.metadata.extend(header.metadata);

        let mut end_of_last = 0u64;
        let mut ordered: Vec<&(String, RawEntry)> = header.tensors.iter().collect();
        ordered.sort_by_key(|(_, raw)| raw.data_offsets);
        for (name, raw) in ordered {
            let [begin, end] = raw.data_offsets;
            if begin != end_of_last || end < begin {
                return Err(corrupt(format!(
                    "the safetensors header is corrupt: {name} lies at bytes {begin}..{end}, expected it to start at {end_of_last}"
                )));
            }
            end_of_last = end;
        }
        let expected = start.saturating_add(end_of_last);
        if expected != blob.len() {
            let kind = if blob.len() < expected {
                "truncated"
            } else {
                "corrupt"
            };
            return Err(corrupt(format!(
                "{kind}: expected {expected} bytes, found {}",
                blob.len()
            )));
        }
        for (name, raw) in header.tensors {
            let dtype = match raw.dtype.as_str() {
                "F32" => Dtype::F32,
                "F16" => Dtype::F16,
                "BF16" => Dtype::Bf16,
                _ => Dtype::Other(raw.dtype),
            };
            let [begin, end] = raw.data_offsets;
            let len = raw
                .shape
                .iter()
                .try_fold(1usize, |n, &d| n.checked_mul(d))
                .ok_or_else(|| corrupt(format!("{name}: shape {:?} overflows", raw.shape)))?;
            if dtype.block().is_some() && dtype.num_bytes(len) != Some(end - begin) {
                return Err(corrupt(format!(
                    "{name}: {dtype} of shape {:?} does not fill the {} bytes it is given",
                    raw.shape,
                    end - begin
                )));
            }
            let entry = Entry {
                blob: self.blobs.len(),
                dtype,
                shape: raw.shape,
                len,
                offset: start + begin,
                num_bytes: end - begin,
            };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(corrupt(format!("{name} is stored twice")));
            }
        }
        self.blobs.push(blob);
        Ok(())
    }
}

impl WeightSource for SafetensorsFiles {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|t| t.shape.clone())
    }

    fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|t| t.dtype.clone())
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let entry = self.tensors.get(name).ok_or_else(|| Error::Weights {
            path: self.path.clone(),
            problems: vec![Problem::new(name, "missing")],
        })?;
        self.blobs[entry.blob].read_tensor(&entry.dtype, entry.offset, entry.len)
    }

    fn same_values(&self, left: &str, right: &str) -> Result<bool> {
        match (self.tensors.get(left), self.tensors.get(right)) {
            (Some(a), Some(b)) if a.dtype == b.dtype && a.len == b.len => {
                let Some(bytes) = a.dtype.num_bytes(a.len) else {
                    return Ok(false);
                };
                let (left, right) = (&self.blobs[a.blob], &self.blobs[b.blob]);
                left.same_bytes(a.offset, right, b.offset, bytes)
            }
            _ => {
                let (left, right) = (self.read(left)?, self.read(right)?);
                Ok(left == right)
            }
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn files(&self) -> Vec<PathBuf> {
        let files = self.blobs.iter().map(|blob| blob.path().to_path_buf());
        files.collect()
    }
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The JSON header in file order, with duplicates, which are reported.
#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawEntry)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Header, A::Error> {
                let mut header = Header::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        header.metadata = map.next_value()?;
                    } else {
                        header.tensors.push((key, map.next_value()?));
                    }
                }
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// The files that a `model.safetensors.index.json` names.
///
/// # Errors
/// `Error::Io`; `Error::Format` for a file that is no index, or that names files in other folders.
pub(crate) fn shards(index: &Path) -> Result<BTreeSet<String>> {
    Ok(read_index(index)?.into_values().collect())
}

/// The shard of each tensor.
fn read_index(index: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = outside::read_text(index, outside::TABLES)?;
    let Index { weight_map } = serde_json::from_str(&text)
        .map_err(|e| Error::format(index, format!("not a shard index: {e}")))?;
    match weight_map
        .values()
        .find(|shard| shard.contains(['/', '\\']))
    {
        Some(odd) => Err(Error::format(
            index,
            format!("shard \"{odd}\" must be a file name without folders"),
        )),
        None => Ok(weight_map),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn outcome(bytes: &[u8]) -> Result<SafetensorsFiles> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        SafetensorsFiles::open(&path)
    }

    #[test]
    fn a_pointer_of_git_lfs_is_named() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
        let message = outcome(pointer).unwrap_err().to_string();
        assert!(
            message.ends_with("model.safetensors: is a git-lfs pointer, not the file itself: fetch that with `git lfs pull`"),
            "{message}"
        );
    }

    #[test]
    fn three_types_become_f32() {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},
            "b":{"dtype":"BF16","shape":[1,1],"data_offsets":[4,6]},"c":{"dtype":"F32","shape":[],"data_offsets":[6,10]},
            "ids":{"dtype":"I64","shape":[1],"data_offsets":[10,18]}}"#;
        let mut data = vec![0x00, 0x3e, 0x00, 0xc0, 0xc0, 0x3f];
        data.extend(0.1f32.to_le_bytes());
        data.extend(7i64.to_le_bytes());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, file(header, &data)).unwrap();
        let source = SafetensorsFiles::open(&path).unwrap();
        assert_eq!(source.names(), ["a", "b", "c", "ids"]);
        assert_eq!(source.read("a").unwrap(), [1.5, -2.0]);
        assert_eq!(source.read("b").unwrap(), [1.5]);
        assert_eq!(source.read("c").unwrap(), [0.1]);
        assert_eq!(source.shape("b"), Some(vec![1, 1]));
        assert_eq!(source.metadata()["format"], "pt");
        let message = source.read("ids").unwrap_err().to_string();
        assert!(message.contains("type I64 is not supported"), "{message}");
        assert!(source.read("d").is_err());
    }

    #[test]
    fn corrupt_files_are_refused_before_anything_is_read() {
        let two = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let hole = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        let size = r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#;
        let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        let expected = 8 + two.len() + 8;
        let cases = [
            (
                file(two, &[0; 5]),
                format!(
                    "truncated: expected {expected} bytes, found {}",
                    expected - 3
                ),
            ),
            (
                file(two, &[0; 9]),
                format!("corrupt: expected {expected} bytes, found {}", expected + 1),
            ),
            (file(hole, &[0; 8]), "expected it to start at 0".into()),
            (file(size, &[0; 8]), "does not fill the 8 bytes".into()),
            (file(twice, &[0; 8]), "a is stored twice".into()),
            (file("{\"a\":", &[]), "header is corrupt".into()),
            (vec![1, 2, 3], "expected at least 8 bytes, found 3".into()),
            (vec![0xff; 64], "not a safetensors file".into()),
            (
                file(two, &[])[..20].to_vec(),
                "truncated: expected at least".into(),
            ),
        ];
        for (bytes, expected) in cases {
            let message = outcome(&bytes).unwrap_err().to_string();
            assert!(message.contains(&expected), "{message}");
        }
    }

    #[test]
    fn shards_are_joined_and_missing_ones_listed() {
        let folder = tempfile::tempdir().unwrap();
        let one = |name: &str, value: f32| {
            file(
                &format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#),
                &value.to_le_bytes(),
            )
        };
        let index = folder.path().join("model.safetensors.index.json");
        std::fs::write(
            &index,
            r#"{"metadata":{"total_size":8},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#,
        )
        .unwrap();
        std::fs::write(folder.path().join("1.safetensors"), one("a", 1.0)).unwrap();
        let message = SafetensorsFiles::open_index(&index)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("1 of 2 shards are missing: 2.safetensors"),
            "{message}"
        );
        std::fs::write(folder.path().join("2.safetensors"), one("c", 2.0)).unwrap();
        let message = SafetensorsFiles::open_index(&index)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("b: the index places it in 2.safetensors"),
            "{message}"
        );
        std::fs::write(folder.path().join("2.safetensors"), one("b", 2.0)).unwrap();
        let source = super::super::open(folder.path()).unwrap();
        assert_eq!(source.read("b").unwrap(), [2.0]);
        std::fs::write(folder.path().join("2.safetensors"), one("a", 2.0)).unwrap();
        let message = SafetensorsFiles::open_index(&index)
            .unwrap_err()
            .to_string();
        assert!(message.contains("a is stored twice"), "{message}");
    }
}
