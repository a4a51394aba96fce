//! safetensors with matrices in bitsandbytes' 4 bits, as transformers stores a model that was loaded with `load_in_4bit`.
//!
//! # Source
//! bitsandbytes, `QuantState.as_dict(packed=True)`: beside a `weight` of packed codes stand the tensors `absmax`, `quant_map`, with
//! double quantisation `nested_absmax` and `nested_quant_map`, and `quant_state.bitsandbytes__nf4`, which is JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::{Dtype, SafetensorsFiles, WeightSource};
use crate::error::{Error, Problem, Result};
use crate::ops::{BlockFormat, Blocks, NestedAbsmax};
use crate::params::transpose;

/// What comes after the name of a weight in the name of its state, before the kind of its codes.
const STATE: &str = ".quant_state.bitsandbytes__";
/// What comes after the name of a weight in the names of the tensors that belong to it.
const PARTS: [&str; 4] = [
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
];
/// Numbers of a block, and blocks whose scales share a scale.
const SIZES: [usize; 2] = [64, 256];

/// Tensors of which some are matrices in NF4.
pub struct BitsAndBytesFiles {
    files: SafetensorsFiles,
    matrices: BTreeMap<String, Matrix>,
}

/// A matrix in NF4.
struct Matrix {
    /// `[out, in]`.
    shape: [usize; 2],
    /// Whether the layer stores `[in, out]` (GPT-2): bitsandbytes gets its transpose.
    conv1d: bool,
    /// With double quantisation what is added to every scale.
    offset: Option<f32>,
}

/// The JSON of a state.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

impl BitsAndBytesFiles {
    /// Whether the files hold matrices of bitsandbytes' 4 bits.
    pub fn are(files: &SafetensorsFiles) -> bool {
        files.names().iter().any(|name| name.contains(STATE))
    }

    /// Checks type, sizes and quantiles of each matrix; reads no codes.
    ///
    /// # Errors
    /// One `Error::Weights` with all that cannot be read; `Error::Io`.
    pub fn open(files: SafetensorsFiles) -> Result<Self> {
        let (mut matrices, mut problems) = (BTreeMap::new(), Vec::new());
        for name in files.names() {
            let Some((weight, kind)) = name.split_once(STATE) else {
                continue;
            };
            match matrix(&files, weight, kind, &name)? {
                Ok(matrix) => {
                    matrices.insert(weight.to_owned(), matrix);
                }
                Err(message) => problems.push(Problem::new(weight, message)),
            }
        }
        match problems.is_empty() {
            true => Ok(Self { files, matrices }),
            false => Err(Error::Weights {
                path: files.path().to_path_buf(),
                problems,
            }),
        }
    }

    /// The matrix that a tensor is a part of.
    fn owner<'n>(&self, name: &'n str) -> Option<&'n str> {
        let parts = PARTS.iter().find_map(|part| name.strip_suffix(part));
        let owner = parts.or_else(|| name.split_once(STATE).map(|(weight, _)| weight))?;
        self.matrices.contains_key(owner).then_some(owner)
    }

    fn blocks(&self, name: &str, matrix: &Matrix) -> Result<Blocks> {
        let part = |part: &str| format!("{name}{part}");
        let absmax = match matrix.offset {
            None => NestedAbsmax::Plain(self.files.read(&part(".absmax"))?),
            Some(offset) => {
                let map = self.files.read(&part(".nested_quant_map"))?;
                let map: [f32; 256] = map.try_into().map_err(|_| {
                    Error::format(self.path(), format!("{name}: the map of its scales is cut"))
                })?;
                NestedAbsmax::Nested {
                    codes: self.files.read_bytes(&part(".absmax"))?,
                    absmax: self.files.read(&part(".nested_absmax"))?,
                    map: Arc::new(map),
                    offset,
                }
            }
        };
        let bytes = self.files.read_bytes(name)?;
        Ok(Blocks::from_nf4_bytes(&bytes, absmax, matrix.shape))
    }
}

/// The matrix of a state, or what is wrong with it.
fn matrix(
    files: &SafetensorsFiles,
    weight: &str,
    kind: &str,
    state: &str,
) -> Result<Result<Matrix, String>> {
    if kind != "nf4" {
        return Ok(Err(format!(
            "type {kind} of bitsandbytes is not supported; supported is nf4"
        )));
    }
    let state: State = match serde_json::from_slice(&files.read_bytes(state)?) {
        Ok(state) => state,
        Err(error) => {
            return Ok(Err(format!(
                "its quant_state is not what is expected: {error}"
            )));
        }
    };
    let State {
        quant_type,
        blocksize,
        shape,
        nested_blocksize,
        nested_offset,
    } = state;
    let nested = nested_blocksize.unwrap_or(SIZES[1]);
    if quant_type != "nf4" || [blocksize, nested] != SIZES {
        return Ok(Err(format!(
            "expected nf4 in blocks of {}, scales in blocks of {}; found {quant_type}, {blocksize} and {nested}",
            SIZES[0], SIZES[1]
        )));
    }
    let &[outputs, inputs] = shape.as_slice() else {
        return Ok(Err(format!("expected a matrix, found shape {shape:?}")));
    };
    let len = outputs.saturating_mul(inputs);
    let blocks = len.div_ceil(SIZES[0]);
    let scales = match nested_offset {
        None => vec![(".absmax", "F32", blocks)],
        Some(_) => vec![
            (".absmax", "U8", blocks),
            (".nested_absmax", "F32", blocks.div_ceil(SIZES[1])),
            (".nested_quant_map", "F32", 256),
        ],
    };
    let parts = [("", "U8", len.div_ceil(2)), (".quant_map", "F32", 16)];
    for (part, dtype, expected) in parts.into_iter().chain(scales) {
        let name = format!("{weight}{part}");
        let found = files.shape(&name).map(|shape| shape.iter().product());
        let found_type = files.dtype(&name).map(|dtype| dtype.to_string());
        if (found, found_type.as_deref()) != (Some(expected), Some(dtype)) {
            return Ok(Err(format!(
                "{name}: expected {expected} numbers of type {dtype}, found {} of type {}",
                found.unwrap_or(0),
                found_type.as_deref().unwrap_or("none")
            )));
        }
    }
    if files.read(&format!("{weight}.quant_map"))? != BlockFormat::QUANTILES {
        return Ok(Err("its quant_map has other quantiles than NF4's".into()));
    }
    let layer = weight.strip_suffix(".weight").unwrap_or(weight);
    let conv1d = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"];
    Ok(Ok(Matrix {
        shape: [outputs, inputs],
        conv1d: conv1d.iter().any(|name| layer.ends_with(name)),
        offset: nested_offset,
    }))
}

impl WeightSource for BitsAndBytesFiles {
    fn names(&self) -> Vec<String> {
        let mut names = self.files.names();
        names.retain(|name| self.owner(name).is_none());
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self.matrices.get(name) {
            Some(Matrix {
                shape: [outputs, inputs],
                conv1d,
                ..
            }) => Some(match conv1d {
                true => vec![*inputs, *outputs],
                false => vec![*outputs, *inputs],
            }),
            None if self.owner(name).is_some() => None,
            None => self.files.shape(name),
        }
    }

    fn dtype(&self, name: &str) -> Option<Dtype> {
        match self.matrices.contains_key(name) {
            true => Some(Dtype::Nf4),
            false => self.files.dtype(name),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let Some(matrix) = self.matrices.get(name) else {
            return self.files.read(name);
        };
        let values = self.blocks(name, matrix)?.values();
        let [outputs, inputs] = matrix.shape;
        Ok(match matrix.conv1d {
            true => transpose(&values, outputs, inputs),
            false => values,
        })
    }

    fn read_blocks(&self, name: &str) -> Result<Option<Blocks>> {
        let matrix = self.matrices.get(name);
        matrix.map(|matrix| self.blocks(name, matrix)).transpose()
    }

    fn path(&self) -> &Path {
        self.files.path()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.files.files()
    }
}
