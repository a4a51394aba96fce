//! The header of a GGUF file: metadata and tensor offsets.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::model::weights::dtype::Dtype;
use crate::model::weights::ggml::GgmlType;
use crate::model::weights::storage::Blob;

/// Most values of the metadata, those in arrays included: a vocabulary of 256,000 tokens with scores, kinds and merges is 1.3 million.
const MAX_VALUES: u64 = 1 << 22;

/// Most bytes of text in the metadata; keys and names of tensors count.
const MAX_TEXT: u64 = 64 << 20;

/// Most tensors of a file.
const MAX_TENSORS: u64 = 1 << 18;

/// A value of a GGUF file's metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Any float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// A list of values of one type.
    Array(Vec<MetadataValue>),
}

impl MetadataValue {
    /// The value as a count or an id.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(*n),
            Self::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    pub(super) fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Unsigned(n) => i64::try_from(*n).ok(),
            Self::Signed(n) => Some(*n),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value as a list.
    pub fn as_array(&self) -> Option<&[MetadataValue]> {
        match self {
            Self::Array(values) => Some(values),
            _ => None,
        }
    }

    pub(super) fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            other => other.as_u64().map(|n| n as f64),
        }
    }
}

pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, MetadataValue>,
    pub(super) tensors: Vec<TensorInfo>,
}

pub(super) struct TensorInfo {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    /// Slowest dimension first.
    pub(super) shape: Vec<usize>,
    pub(super) len: usize,
    /// From the start of the file.
    pub(super) offset: u64,
}

impl Header {
    pub(super) fn read(blob: &Blob) -> Result<Self> {
        let mut cursor = Cursor::new(blob);
        if cursor.array::<4>()? != *b"GGUF" {
            return Err(cursor.corrupt("not a GGUF file: it does not start with \"GGUF\""));
        }
        let version = u32::from_le_bytes(cursor.array()?);
        if !(2..=3).contains(&version) {
            return Err(cursor.corrupt(format!(
                "GGUF version {version} is not supported; supported are 2 and 3 (little endian)"
            )));
        }
        let num_tensors = cursor.u64()?;
        if num_tensors > MAX_TENSORS {
            return Err(cursor.corrupt(format!(
                "the header counts {num_tensors} tensors; at most {MAX_TENSORS} are read"
            )));
        }
        let num_keys = cursor.u64()?;
        let mut metadata = BTreeMap::new();
        for _ in 0..num_keys {
            let key = cursor.string()?;
            let kind = cursor.u32()?;
            let value = cursor.value(&key, kind, 0)?;
            if let Some(number) = not_finite(&key, &value) {
                return Err(cursor.corrupt(format!(
                    "the metadata's {key} must be a finite number, found {number}"
                )));
            }
            if metadata.contains_key(&key) {
                return Err(cursor.corrupt(format!("the metadata has {key} twice")));
            }
            metadata.insert(key, value);
        }
        let mut tensors = Vec::new();
        for _ in 0..num_tensors {
            tensors.push(cursor.tensor_info()?);
        }
        let alignment = metadata
            .get("general.alignment")
            .map_or(Some(32), MetadataValue::as_u64)
            .filter(|a| a.is_power_of_two())
            .ok_or_else(|| cursor.corrupt("general.alignment must be a power of two"))?;
        let start = cursor
            .position
            .checked_next_multiple_of(alignment)
            .ok_or_else(|| cursor.corrupt("general.alignment is too large"))?;
        let mut expected = start;
        // A tensor of a type that is not read has at least one byte.
        let mut ranges = Vec::with_capacity(tensors.len());
        for (index, info) in tensors.iter_mut().enumerate() {
            info.offset = info
                .offset
                .checked_add(start)
                .filter(|o| o % alignment == 0)
                .ok_or_else(|| cursor.corrupt(format!("{} is not aligned", info.name)))?;
            let Some(bytes) = info.dtype.num_bytes(info.len) else {
                if info.dtype.block().is_some() {
                    return Err(cursor.corrupt(format!(
                        "{}: shape {:?} is not made of whole {} blocks",
                        info.name, info.shape, info.dtype
                    )));
                }
                ranges.push((info.offset, 1, index));
                continue;
            };
            expected = expected.max(info.offset.saturating_add(bytes));
            ranges.push((info.offset, bytes, index));
        }
        if blob.len() < expected {
            return Err(cursor.corrupt(format!(
                "truncated: expected {expected} bytes, found {}",
                blob.len()
            )));
        }
        if let Some([first, second]) = overlap(&mut ranges) {
            let [first, second] = [first, second].map(|index| tensors[index].name.as_str());
            return Err(cursor.corrupt(format!(
                "tensors {first} and {second} overlap: each must have bytes of its own"
            )));
        }
        Ok(Self { metadata, tensors })
    }
}

/// Two of the ranges `(start, len, index)` that share a byte.
fn overlap(ranges: &mut [(u64, u64, usize)]) -> Option<[usize; 2]> {
    ranges.sort_unstable();
    let shared = ranges.windows(2).find(|pair| {
        let (start, len, _) = pair[0];
        start.saturating_add(len) > pair[1].0
    })?;
    Some([shared[0].2, shared[1].2])
}

/// The first number of a setting that is NaN or infinite. Scores of a tokenizer's pieces may be.
fn not_finite(key: &str, value: &MetadataValue) -> Option<f64> {
    match value {
        MetadataValue::Float(x) => (!x.is_finite()).then_some(*x),
        MetadataValue::Array(values) if !key.starts_with("tokenizer.") => {
            values.iter().find_map(|value| not_finite(key, value))
        }
        _ => None,
    }
}

/// Reads a header value by value; checks every stored size against the file's length.
struct Cursor<'a> {
    blob: &'a Blob,
    position: u64,
    buffer: Vec<u8>,
    buffer_start: u64,
    /// Values and bytes of text read so far.
    values: u64,
    text: u64,
}

impl<'a> Cursor<'a> {
    fn new(blob: &'a Blob) -> Self {
        Self {
            blob,
            position: 0,
            buffer: Vec::new(),
            buffer_start: 0,
            values: 0,
            text: 0,
        }
    }

    fn corrupt(&self, message: impl Into<String>) -> Error {
        Error::format(self.blob.path(), message)
    }

    fn take(&mut self, len: u64) -> Result<&[u8]> {
        const AHEAD: u64 = 1 << 20;
        let end = self.position.saturating_add(len);
        if end > self.blob.len() {
            return Err(self.corrupt(format!(
                "truncated: expected at least {end} bytes, found {}",
                self.blob.len()
            )));
        }
        if self.position < self.buffer_start || end > self.buffer_start + self.buffer.len() as u64 {
            let ahead = len.max(AHEAD).min(self.blob.len() - self.position);
            self.buffer.resize(ahead as usize, 0);
            self.buffer_start = self.position;
            self.blob.read_at(self.position, &mut self.buffer)?;
        }
        let from = (self.position - self.buffer_start) as usize;
        self.position = end;
        Ok(&self.buffer[from..from + len as usize])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<String> {
        let len = self.u64()?;
        self.text = self.text.saturating_add(len);
        if self.text > MAX_TEXT {
            return Err(self.corrupt(format!(
                "the header has over {} MiB of text; that is no model's",
                MAX_TEXT >> 20
            )));
        }
        let bytes = self.take(len)?;
        // Tokens of byte-level vocabularies need not be valid UTF-8.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// Counts `more` values of `key` before there is room made for them.
    fn count(&mut self, key: &str, more: u64) -> Result<()> {
        self.values = self.values.saturating_add(more);
        if self.values <= MAX_VALUES {
            return Ok(());
        }
        Err(self.corrupt(format!(
            "the metadata has over {MAX_VALUES} values, {more} of them in {key}; that is no model's"
        )))
    }

    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<MetadataValue> {
        use MetadataValue as V;
        if depth == 0 {
            self.count(key, 1)?;
        }
        Ok(match kind {
            0 => V::Unsigned(self.array().map(u8::from_le_bytes)?.into()),
            1 => V::Signed(self.array().map(i8::from_le_bytes)?.into()),
            2 => V::Unsigned(self.array().map(u16::from_le_bytes)?.into()),
            3 => V::Signed(self.array().map(i16::from_le_bytes)?.into()),
            4 => V::Unsigned(self.u32()?.into()),
            5 => V::Signed(self.array().map(i32::from_le_bytes)?.into()),
            6 => V::Float(shortest(self.array().map(f32::from_le_bytes)?)),
            7 => V::Bool(self.array::<1>()? != [0]),
            8 => V::String(self.string()?),
            9 => {
                if depth > 3 {
                    return Err(self.corrupt("GGUF metadata is nested too deeply"));
                }
                let kind = self.u32()?;
                let len = self.u64()?;
                self.count(key, len)?;
                let mut values = Vec::new();
                for _ in 0..len {
                    values.push(self.value(key, kind, depth + 1)?);
                }
                V::Array(values)
            }
            10 => V::Unsigned(self.u64()?),
            11 => V::Signed(self.array().map(i64::from_le_bytes)?),
            12 => V::Float(self.array().map(f64::from_le_bytes)?),
            other => {
                return Err(self.corrupt(format!("GGUF metadata has the unknown type {other}")));
            }
        })
    }

    fn tensor_info(&mut self) -> Result<TensorInfo> {
        let name = self.string()?;
        let rank = self.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(self.corrupt(format!("{name} has {rank} dimensions; 1 to 4 are possible")));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let dim = self.u64()?;
            shape.push(usize::try_from(dim).unwrap_or(usize::MAX));
        }
        shape.reverse();
        if shape.contains(&0) {
            return Err(self.corrupt(format!("{name}: shape {shape:?} has no entries")));
        }
        let len = shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .ok_or_else(|| self.corrupt(format!("{name}: shape {shape:?} overflows")))?;
        let dtype = dtype(self.u32()?);
        let offset = self.u64()?;
        Ok(TensorInfo {
            name,
            dtype,
            shape,
            len,
            offset,
        })
    }
}

/// The f64 with the shortest decimal form of the f32: 1e-5, not 9.999999747378752e-6.
pub(super) fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

/// The type with ggml's number.
fn dtype(id: u32) -> Dtype {
    if let Some(kind) = GgmlType::of_id(id) {
        return Dtype::Ggml(kind);
    }
    let name = match id {
        0 => return Dtype::F32,
        1 => return Dtype::F16,
        30 => return Dtype::Bf16,
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        40 => "NVFP4",
        _ => return Dtype::Other(format!("ggml type {id}")),
    };
    Dtype::Other(name.into())
}
