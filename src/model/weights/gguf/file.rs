//! Writes GGUF files, version 3.

use std::path::Path;

use super::tensor_type::TensorType;
use crate::atomic::write_atomic_with;
use crate::error::{Error, Result};

/// Tensors begin at multiples of this, llama.cpp's default.
const ALIGNMENT: usize = 32;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i32>),
    Floats(Vec<f32>),
}

/// A tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    /// llama.cpp's name.
    pub(super) name: String,
    /// Slowest dimension first.
    pub(super) shape: Vec<usize>,
    /// How it is stored.
    pub(super) kind: TensorType,
}

impl Tensor {
    fn num_bytes(&self) -> usize {
        self.kind.num_bytes(self.shape.iter().product())
    }
}

/// Writes a file, one tensor in memory at a time; `values` gives those of the tensor at an index.
///
/// # Errors
/// `Error::Io` and those of `values`; the file at `path` is unchanged then.
pub(super) fn write(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[Tensor],
    mut values: impl FnMut(usize) -> Result<Vec<f32>>,
) -> Result<()> {
    let header = header(metadata, tensors);
    write_atomic_with(path, |out| {
        let failed = || Error::io("write", path);
        out.write_all(&header).map_err(failed())?;
        let mut bytes = Vec::new();
        for (at, tensor) in tensors.iter().enumerate() {
            bytes.clear();
            tensor.kind.encode(&values(at)?, &mut bytes);
            debug_assert_eq!(bytes.len(), tensor.num_bytes());
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
            out.write_all(&bytes).map_err(failed())?;
        }
        Ok(())
    })
}

fn header(metadata: &[(String, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    put_u32(&mut out, 3);
    put_u64(&mut out, tensors.len());
    put_u64(&mut out, metadata.len());
    for (key, value) in metadata {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        put_u32(&mut out, tensor.shape.len() as u32);
        // Fastest first.
        tensor
            .shape
            .iter()
            .rev()
            .for_each(|&size| put_u64(&mut out, size));
        put_u32(&mut out, tensor.kind.id());
        put_u64(&mut out, offset);
        offset += tensor.num_bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U32(x) => {
            put_u32(out, 4);
            put_u32(out, *x);
        }
        Value::F32(x) => {
            put_u32(out, 6);
            out.extend(x.to_le_bytes());
        }
        Value::Bool(x) => {
            put_u32(out, 7);
            out.push(u8::from(*x));
        }
        Value::Text(x) => {
            put_u32(out, 8);
            put_text(out, x);
        }
        Value::Texts(list) => {
            put_u32(out, 9);
            put_u32(out, 8);
            put_u64(out, list.len());
            list.iter().for_each(|text| put_text(out, text));
        }
        Value::Integers(list) => {
            put_u32(out, 9);
            put_u32(out, 5);
            put_u64(out, list.len());
            list.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Value::Floats(list) => {
            put_u32(out, 9);
            put_u32(out, 6);
            put_u64(out, list.len());
            list.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
    }
}

fn put_u32(out: &mut Vec<u8>, x: u32) {
    out.extend(x.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, x: usize) {
    out.extend((x as u64).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u64(out, text.len());
    out.extend(text.as_bytes());
}
