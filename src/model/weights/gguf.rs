//! GGUF files (versions 2 and 3) as Hugging Face weights.
//!
//! # Source
//! The format's description `docs/gguf.md` in the ggml repository. Names and layouts are those that llama.cpp's
//! converter gives: dimensions fastest first, rows of q and k reordered for llama, GPT-2's `Conv1D` transposed.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::WeightSource;
use super::storage::{Blob, Dtype};
use crate::error::{Error, Problem, Result};
use crate::model::config::ModelConfig;

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

    fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            other => other.as_u64().map(|n| n as f64),
        }
    }
}

/// An open GGUF file of a llama, Qwen3 or GPT-2 model.
#[derive(Debug)]
pub struct GgufFile {
    blob: Blob,
    metadata: BTreeMap<String, MetadataValue>,
    architecture: Architecture,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Architecture {
    Llama,
    Qwen3,
    Gpt2,
}

#[derive(Debug)]
struct Entry {
    dtype: Dtype,
    /// Hugging Face's shape.
    shape: Vec<usize>,
    len: usize,
    offset: u64,
    layout: Layout,
}

/// What turns the stored order into Hugging Face's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Same,
    /// Rows of each head were interleaved for ggml's rotation of neighbouring pairs.
    Rotary {
        heads: usize,
    },
    /// Stored `[out, in]`, wanted `[in, out]`.
    Transposed,
}

impl GgufFile {
    /// Opens a file and checks that every tensor lies inside it.
    ///
    /// # Errors
    /// `Error::Io`, and `Error::Format` for a file that is truncated, corrupt, or of another architecture.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let blob = Blob::open(path.as_ref())?;
        let header = Header::read(&blob)?;
        let architecture =
            architecture(&header.metadata).map_err(|m| Error::format(blob.path(), m))?;
        let mut tensors = BTreeMap::new();
        for info in header.tensors {
            let name = hugging_face_name(architecture, &info.name).unwrap_or(info.name);
            let layout = layout(architecture, &name, &info.shape, &header.metadata)
                .map_err(|m| Error::format(blob.path(), m))?;
            let mut shape = info.shape;
            if layout == Layout::Transposed {
                shape.reverse();
            }
            let entry = Entry {
                dtype: info.dtype,
                shape,
                len: info.len,
                offset: info.offset,
                layout,
            };
            if tensors.insert(name.clone(), entry).is_some() {
                return Err(Error::format(
                    blob.path(),
                    format!("{name} is stored twice"),
                ));
            }
        }
        Ok(Self {
            blob,
            metadata: header.metadata,
            architecture,
            tensors,
        })
    }

    /// The file's key-value metadata, among them the tokenizer.
    pub fn metadata(&self) -> &BTreeMap<String, MetadataValue> {
        &self.metadata
    }

    /// The model's configuration as the metadata gives it, for a file without `config.json`.
    ///
    /// # Errors
    /// `Error::Format` for missing or unsupported keys.
    pub fn config(&self) -> Result<ModelConfig> {
        let path = self.blob.path();
        let value = self.config_json().map_err(|message| {
            Error::format(
                path,
                format!("{message}; put the model's config.json beside the file"),
            )
        })?;
        ModelConfig::parse(path, value)
    }

    fn config_json(&self) -> Result<Value, String> {
        let family = self.architecture.name();
        let key = |key: &str| self.metadata.get(&format!("{family}.{key}"));
        let count = |name: &str| {
            key(name)
                .and_then(MetadataValue::as_u64)
                .ok_or_else(|| format!("the GGUF metadata has no usable {family}.{name}"))
        };
        let scaling = key("rope.scaling.type").and_then(MetadataValue::as_str);
        if self.tensors.contains_key("rope_freqs.weight")
            || scaling.is_some_and(|kind| kind != "none")
        {
            return Err("RoPE scaling cannot be told from GGUF metadata".into());
        }
        let embedding = match self.architecture {
            Architecture::Gpt2 => "transformer.wte.weight",
            _ => "model.embed_tokens.weight",
        };
        let vocab_size = self
            .tensors
            .get(embedding)
            .map(|t| t.shape[0])
            .ok_or_else(|| format!("{embedding} is missing"))?;
        let mut config = Map::new();
        let mut put = |key: &str, value: Value| config.insert(key.into(), value);
        put("model_type", json!(family));
        put("vocab_size", json!(vocab_size));
        put(
            "tie_word_embeddings",
            json!(!self.tensors.contains_key("lm_head.weight")),
        );
        put("torch_dtype", json!("float32"));
        if self.architecture == Architecture::Gpt2 {
            put("architectures", json!(["GPT2LMHeadModel"]));
            put("activation_function", json!("gelu_new"));
            put("n_embd", json!(count("embedding_length")?));
            put("n_layer", json!(count("block_count")?));
            put("n_head", json!(count("attention.head_count")?));
            put("n_positions", json!(count("context_length")?));
            put("n_inner", json!(count("feed_forward_length")?));
            let eps = key("attention.layer_norm_epsilon").and_then(MetadataValue::as_f64);
            put("layer_norm_epsilon", json!(eps.unwrap_or(1e-5)));
        } else {
            let (hidden, heads) = (count("embedding_length")?, count("attention.head_count")?);
            let kv_heads = key("attention.head_count_kv")
                .map_or(Ok(heads), |_| count("attention.head_count_kv"))?;
            let head_dim = match key("attention.key_length").or_else(|| key("rope.dimension_count"))
            {
                Some(n) => n
                    .as_u64()
                    .ok_or("the GGUF metadata has no usable head size")?,
                None => hidden / heads.max(1),
            };
            let eps = key("attention.layer_norm_rms_epsilon").and_then(MetadataValue::as_f64);
            let theta = key("rope.freq_base").and_then(MetadataValue::as_f64);
            let class = match self.architecture {
                Architecture::Qwen3 => "Qwen3ForCausalLM",
                _ => "LlamaForCausalLM",
            };
            put("architectures", json!([class]));
            put("hidden_act", json!("silu"));
            put("hidden_size", json!(hidden));
            put("intermediate_size", json!(count("feed_forward_length")?));
            put("num_hidden_layers", json!(count("block_count")?));
            put("num_attention_heads", json!(heads));
            put("num_key_value_heads", json!(kv_heads));
            put("head_dim", json!(head_dim));
            put("max_position_embeddings", json!(count("context_length")?));
            put(
                "rms_norm_eps",
                json!(eps.ok_or("the GGUF metadata has no rms epsilon")?),
            );
            put("rope_theta", json!(theta.unwrap_or(10_000.0)));
        }
        for (to, from) in [
            ("bos_token_id", "bos_token_id"),
            ("eos_token_id", "eos_token_id"),
            ("pad_token_id", "padding_token_id"),
        ] {
            let id = self.metadata.get(&format!("tokenizer.ggml.{from}"));
            if let Some(id) = id.and_then(MetadataValue::as_u64) {
                put(to, json!(id));
            }
        }
        Ok(Value::Object(config))
    }
}

impl WeightSource for GgufFile {
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
            path: self.blob.path().to_path_buf(),
            problems: vec![Problem::new(name, "missing")],
        })?;
        let stored = self
            .blob
            .read_tensor(&entry.dtype, entry.offset, entry.len)?;
        let width = entry.shape.last().copied().unwrap_or(1);
        Ok(match entry.layout {
            Layout::Same => stored,
            Layout::Rotary { heads } => unpermute(&stored, heads, width),
            Layout::Transposed => transpose(&stored, width),
        })
    }

    fn path(&self) -> &Path {
        self.blob.path()
    }
}

impl Architecture {
    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen3 => "qwen3",
            Self::Gpt2 => "gpt2",
        }
    }
}

fn architecture(metadata: &BTreeMap<String, MetadataValue>) -> Result<Architecture, String> {
    let name = metadata
        .get("general.architecture")
        .and_then(MetadataValue::as_str)
        .ok_or("the GGUF metadata has no general.architecture")?;
    [Architecture::Llama, Architecture::Qwen3, Architecture::Gpt2]
        .into_iter()
        .find(|a| a.name() == name)
        .ok_or_else(|| {
            format!(
                "GGUF architecture \"{name}\" is not supported; supported are llama, qwen3, gpt2"
            )
        })
}

/// Undoes the converter's order of q and k rows: `[heads, head_dim / 2, 2, width]` becomes `[heads, 2, head_dim / 2, width]`.
fn unpermute(stored: &[f32], heads: usize, width: usize) -> Vec<f32> {
    let head_dim = stored.len() / (heads * width);
    let mut out = Vec::with_capacity(stored.len());
    for head in stored.chunks_exact(head_dim * width) {
        for part in 0..2 {
            for pair in head.chunks_exact(2 * width) {
                out.extend_from_slice(&pair[part * width..(part + 1) * width]);
            }
        }
    }
    out
}

/// The transpose, with rows of `width` values.
fn transpose(stored: &[f32], width: usize) -> Vec<f32> {
    let height = stored.len() / width.max(1);
    let mut out = Vec::with_capacity(stored.len());
    for column in 0..height {
        out.extend((0..width).map(|row| stored[row * height + column]));
    }
    out
}

fn layout(
    architecture: Architecture,
    name: &str,
    shape: &[usize],
    metadata: &BTreeMap<String, MetadataValue>,
) -> Result<Layout, String> {
    if architecture == Architecture::Gpt2 {
        let conv = name.starts_with("transformer.h.") && shape.len() == 2;
        return Ok(if conv {
            Layout::Transposed
        } else {
            Layout::Same
        });
    }
    if architecture != Architecture::Llama {
        return Ok(Layout::Same);
    }
    let heads = |keys: &[&str]| {
        let value = keys.iter().find_map(|key| metadata.get(*key));
        let heads = value.and_then(MetadataValue::as_u64).unwrap_or(0) as usize;
        match shape.first() {
            Some(rows) if heads > 0 && rows.is_multiple_of(2 * heads) => {
                Ok(Layout::Rotary { heads })
            }
            _ => Err(format!(
                "{name} of shape {shape:?} cannot have {heads} heads"
            )),
        }
    };
    if name.ends_with("self_attn.q_proj.weight") {
        heads(&["llama.attention.head_count"])
    } else if name.ends_with("self_attn.k_proj.weight") {
        heads(&[
            "llama.attention.head_count_kv",
            "llama.attention.head_count",
        ])
    } else {
        Ok(Layout::Same)
    }
}

fn hugging_face_name(architecture: Architecture, name: &str) -> Option<String> {
    let gpt2 = architecture == Architecture::Gpt2;
    let (stem, kind) = name.rsplit_once('.')?;
    let Some(block) = stem.strip_prefix("blk.") else {
        let stem = match (stem, gpt2) {
            ("output", _) => "lm_head",
            ("token_embd", false) => "model.embed_tokens",
            ("output_norm", false) => "model.norm",
            ("token_embd", true) => "transformer.wte",
            ("position_embd", true) => "transformer.wpe",
            ("output_norm", true) => "transformer.ln_f",
            _ => return None,
        };
        return Some(format!("{stem}.{kind}"));
    };
    let (layer, module) = block.split_once('.')?;
    layer.parse::<usize>().ok()?;
    let (prefix, module) = if gpt2 {
        let module = match module {
            "attn_norm" => "ln_1",
            "attn_qkv" => "attn.c_attn",
            "attn_output" => "attn.c_proj",
            "ffn_norm" => "ln_2",
            "ffn_up" => "mlp.c_fc",
            "ffn_down" => "mlp.c_proj",
            _ => return None,
        };
        ("transformer.h", module)
    } else {
        let module = match module {
            "attn_norm" => "input_layernorm",
            "attn_q" => "self_attn.q_proj",
            "attn_k" => "self_attn.k_proj",
            "attn_v" => "self_attn.v_proj",
            "attn_output" => "self_attn.o_proj",
            "attn_q_norm" => "self_attn.q_norm",
            "attn_k_norm" => "self_attn.k_norm",
            "ffn_norm" => "post_attention_layernorm",
            "ffn_gate" => "mlp.gate_proj",
            "ffn_up" => "mlp.up_proj",
            "ffn_down" => "mlp.down_proj",
            _ => return None,
        };
        ("model.layers", module)
    };
    Some(format!("{prefix}.{layer}.{module}.{kind}"))
}

struct Header {
    metadata: BTreeMap<String, MetadataValue>,
    tensors: Vec<Info>,
}

struct Info {
    name: String,
    dtype: Dtype,
    /// Slowest first.
    shape: Vec<usize>,
    len: usize,
    /// From the start of the file.
    offset: u64,
}

impl Header {
    fn read(blob: &Blob) -> Result<Self> {
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
        let num_keys = cursor.u64()?;
        let mut metadata = BTreeMap::new();
        for _ in 0..num_keys {
            let key = cursor.string()?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind, 0)?;
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
        for info in &mut tensors {
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
                continue;
            };
            expected = expected.max(info.offset.saturating_add(bytes));
        }
        if blob.len() < expected {
            return Err(cursor.corrupt(format!(
                "truncated: expected {expected} bytes, found {}",
                blob.len()
            )));
        }
        Ok(Self { metadata, tensors })
    }
}

/// Reads a header piece by piece; knows the file's length, so no announced size is believed unchecked.
struct Cursor<'a> {
    blob: &'a Blob,
    position: u64,
    buffer: Vec<u8>,
    buffer_start: u64,
}

impl<'a> Cursor<'a> {
    fn new(blob: &'a Blob) -> Self {
        Self {
            blob,
            position: 0,
            buffer: Vec::new(),
            buffer_start: 0,
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
        let bytes = self.take(len)?;
        // Byte-level vocabularies may hold pieces that are not UTF-8 by themselves.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<MetadataValue> {
        use MetadataValue as V;
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
                let mut values = Vec::new();
                for _ in 0..len {
                    values.push(self.value(kind, depth + 1)?);
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

    fn tensor_info(&mut self) -> Result<Info> {
        let name = self.string()?;
        let rank = self.u32()?;
        if rank > 4 {
            return Err(self.corrupt(format!(
                "{name} has {rank} dimensions; at most 4 are possible"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let dim = self.u64()?;
            shape.push(usize::try_from(dim).unwrap_or(usize::MAX));
        }
        shape.reverse();
        let len = shape
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .ok_or_else(|| self.corrupt(format!("{name}: shape {shape:?} overflows")))?;
        let dtype = match self.u32()? {
            0 => Dtype::F32,
            1 => Dtype::F16,
            2 => Dtype::Q4_0,
            3 => Dtype::Q4_1,
            8 => Dtype::Q8_0,
            30 => Dtype::Bf16,
            other => Dtype::Other(other_type(other)),
        };
        let offset = self.u64()?;
        Ok(Info {
            name,
            dtype,
            shape,
            len,
            offset,
        })
    }
}

/// The f64 that prints like the f32: 1e-5, not 9.999999747378752e-6.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| f64::from(x))
}

fn other_type(id: u32) -> String {
    let name = match id {
        6 => "Q5_0",
        7 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        _ => return format!("ggml type {id}"),
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::super::{check, open};
    use super::*;

    enum Meta<'a> {
        U32(u32),
        F32(f32),
        Text(&'a str),
        Texts(&'a [&'a str]),
    }

    /// Builds version-3 files: (name, dims fastest first, type, bytes).
    fn file(meta: &[(&str, Meta<'_>)], tensors: &[(&str, &[u64], u32, Vec<u8>)]) -> Vec<u8> {
        fn text(out: &mut Vec<u8>, text: &str) {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        }
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((meta.len() as u64).to_le_bytes());
        for (key, value) in meta {
            text(&mut out, key);
            match value {
                Meta::U32(x) => {
                    out.extend(4u32.to_le_bytes());
                    out.extend(x.to_le_bytes());
                }
                Meta::F32(x) => {
                    out.extend(6u32.to_le_bytes());
                    out.extend(x.to_le_bytes());
                }
                Meta::Text(x) => {
                    out.extend(8u32.to_le_bytes());
                    text(&mut out, x);
                }
                Meta::Texts(x) => {
                    out.extend(9u32.to_le_bytes());
                    out.extend(8u32.to_le_bytes());
                    out.extend((x.len() as u64).to_le_bytes());
                    x.iter().for_each(|x| text(&mut out, x));
                }
            }
        }
        let mut data: Vec<u8> = Vec::new();
        for (name, dims, kind, bytes) in tensors {
            text(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            data.resize(data.len().next_multiple_of(32), 0);
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
        values.into_iter().flat_map(f32::to_le_bytes).collect()
    }

    fn opened(bytes: &[u8]) -> (tempfile::TempDir, Result<GgufFile>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        std::fs::write(&path, bytes).unwrap();
        let file = GgufFile::open(path);
        (folder, file)
    }

    fn decoder(family: &str) -> Vec<u8> {
        let key = |k: &str| format!("{family}.{k}");
        let keys: Vec<(String, Meta<'_>)> = vec![
            ("general.architecture".into(), Meta::Text(family)),
            (key("embedding_length"), Meta::U32(4)),
            (key("feed_forward_length"), Meta::U32(3)),
            (key("block_count"), Meta::U32(1)),
            (key("context_length"), Meta::U32(16)),
            (key("attention.head_count"), Meta::U32(2)),
            (key("attention.head_count_kv"), Meta::U32(1)),
            (key("attention.key_length"), Meta::U32(4)),
            (key("attention.layer_norm_rms_epsilon"), Meta::F32(1e-5)),
            (key("rope.freq_base"), Meta::F32(1e5)),
            ("tokenizer.ggml.tokens".into(), Meta::Texts(&["a", "b"])),
            ("tokenizer.ggml.eos_token_id".into(), Meta::U32(1)),
        ];
        let meta: Vec<(&str, Meta<'_>)> = keys.into_iter().map(|(k, v)| (&*k.leak(), v)).collect();
        // Row r of q holds 4 copies of r.
        let q = f32s((0..32).map(|i| (i / 4) as f32));
        let mut tensors: Vec<(&str, &[u64], u32, Vec<u8>)> = vec![
            (
                "token_embd.weight",
                &[4, 2],
                0,
                f32s((0..8).map(|i| i as f32)),
            ),
            ("blk.0.attn_q.weight", &[4, 8], 0, q),
            (
                "blk.0.attn_k.weight",
                &[4, 4],
                0,
                f32s((0..16).map(|i| i as f32)),
            ),
            ("blk.0.attn_v.weight", &[4, 4], 0, f32s([0.0; 16])),
            ("blk.0.attn_output.weight", &[8, 4], 0, f32s([0.0; 32])),
            ("blk.0.ffn_gate.weight", &[4, 3], 0, f32s([0.0; 12])),
            ("blk.0.ffn_up.weight", &[4, 3], 0, f32s([0.0; 12])),
            ("blk.0.ffn_down.weight", &[3, 4], 1, [0x00, 0x3e].repeat(12)),
            ("blk.0.attn_norm.weight", &[4], 0, f32s([1.0; 4])),
            ("blk.0.ffn_norm.weight", &[4], 0, f32s([1.0; 4])),
            ("output_norm.weight", &[4], 0, f32s([1.0; 4])),
        ];
        if family == "qwen3" {
            tensors.push(("blk.0.attn_q_norm.weight", &[4], 0, f32s([1.0; 4])));
            tensors.push(("blk.0.attn_k_norm.weight", &[4], 0, f32s([2.0; 4])));
        }
        file(&meta, &tensors)
    }

    #[test]
    fn llama_is_described_by_its_metadata_and_q_rows_are_reordered() {
        let (folder, file) = opened(&decoder("llama"));
        let file = file.unwrap();
        let config = ModelConfig::load(folder.path()).unwrap();
        let ModelConfig::Llama(c) = &config else {
            panic!("llama");
        };
        assert_eq!(
            (c.num_attention_heads, c.num_key_value_heads, c.head_dim),
            (2, 1, 4)
        );
        assert_eq!((c.rms_norm_eps, c.rope_theta, c.vocab_size), (1e-5, 1e5, 2));
        assert!(c.tie_word_embeddings);
        assert_eq!(config.eos_ids(), [1]);
        check(&file, &config.tensors()).unwrap();
        // Per head the stored rows are a0 b0 a1 b1 and Hugging Face's are a0 a1 b0 b1.
        let q = file.read("model.layers.0.self_attn.q_proj.weight").unwrap();
        let rows: Vec<f32> = q.iter().step_by(4).copied().collect();
        assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        let k = file.read("model.layers.0.self_attn.k_proj.weight").unwrap();
        assert_eq!(k[4..8], [8.0, 9.0, 10.0, 11.0]);
        assert_eq!(
            file.shape("model.layers.0.mlp.down_proj.weight"),
            Some(vec![4, 3])
        );
        assert_eq!(
            file.read("model.layers.0.mlp.down_proj.weight").unwrap(),
            [1.5; 12]
        );
        assert_eq!(
            file.metadata()["tokenizer.ggml.tokens"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        assert_eq!(open(folder.path()).unwrap().names().len(), 11);
    }

    #[test]
    fn qwen3_rows_stay_in_order() {
        let (folder, file) = opened(&decoder("qwen3"));
        let file = file.unwrap();
        let config = ModelConfig::load(folder.path().join("tiny.gguf")).unwrap();
        assert_eq!(config.family(), "qwen3");
        check(&file, &config.tensors()).unwrap();
        let q = file.read("model.layers.0.self_attn.q_proj.weight").unwrap();
        let rows: Vec<f32> = q.iter().step_by(4).copied().collect();
        assert_eq!(rows, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(
            file.read("model.layers.0.self_attn.k_norm.weight").unwrap(),
            [2.0; 4]
        );
    }

    #[test]
    fn gpt2_matrices_are_transposed_and_embeddings_are_not() {
        let bytes = file(
            &[("general.architecture", Meta::Text("gpt2"))],
            &[
                // Stored [out = 3, in = 2].
                (
                    "blk.0.ffn_up.weight",
                    &[2, 3],
                    0,
                    f32s([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
                ),
                ("blk.0.ffn_up.bias", &[3], 0, f32s([7.0, 8.0, 9.0])),
                ("position_embd.weight", &[2, 1], 0, f32s([1.0, 2.0])),
            ],
        );
        let (_folder, file) = opened(&bytes);
        let file = file.unwrap();
        assert_eq!(
            file.names(),
            [
                "transformer.h.0.mlp.c_fc.bias",
                "transformer.h.0.mlp.c_fc.weight",
                "transformer.wpe.weight"
            ]
        );
        assert_eq!(
            file.shape("transformer.h.0.mlp.c_fc.weight"),
            Some(vec![2, 3])
        );
        assert_eq!(
            file.read("transformer.h.0.mlp.c_fc.weight").unwrap(),
            [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]
        );
        assert_eq!(file.shape("transformer.wpe.weight"), Some(vec![1, 2]));
    }

    #[test]
    fn broken_files_are_refused_with_the_bytes_expected_and_found() {
        let whole = decoder("llama");
        let message = |bytes: &[u8]| opened(bytes).1.unwrap_err().to_string();
        let cut = &whole[..whole.len() - 1];
        assert!(
            message(cut).contains(&format!(
                "truncated: expected {} bytes, found {}",
                whole.len(),
                cut.len()
            )),
            "{}",
            message(cut)
        );
        // Every cut inside the header is an error too, never a panic or an allocation of a random size.
        for len in 0..1000.min(whole.len()) {
            assert!(message(&whole[..len]).contains("truncated"), "{len}");
        }
        assert!(message(b"GGUG12345678").contains("not a GGUF file"));
        let mut version = whole.clone();
        version[4] = 1;
        assert!(message(&version).contains("version 1 is not supported"));
        let mamba = file(&[("general.architecture", Meta::Text("mamba"))], &[]);
        assert!(
            message(&mamba)
                .contains("\"mamba\" is not supported; supported are llama, qwen3, gpt2")
        );
    }
}
