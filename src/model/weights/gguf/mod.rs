//! GGUF files: versions 2 and 3 read as Hugging Face weights, version 3 written.
//!
//! # Source
//! The format's description `docs/gguf.md` in the ggml repository. Names and layouts are those that llama.cpp's
//! converter gives: dimensions fastest first, rows of q and k reordered for llama, GPT-2's `Conv1D` transposed, one added to Gemma's
//! norms, BLOOM's queries, keys and values apart.

mod adapter;
mod config;
mod file;
mod gemma;
mod header;
mod layout;
mod phi3;
mod rope;
mod sentencepiece;
mod split;
mod splitting;
mod tensor_type;
mod tokenizer;
mod vocabulary;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use adapter::{GgufAdapter, LowRankLayer};
pub use header::MetadataValue;
pub(crate) use split::{is_gguf, parts_of, paths_of};
pub use tensor_type::TensorType;
pub use write::GgufModel;

use super::WeightSource;
use super::dtype::Dtype;
use super::storage::Blob;
use crate::data::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::model::config::ModelConfig;
use crate::ops::Blocks;
use config::Description;
use layout::{
    Architecture, Layout, architecture, hugging_face_name, layout, swap_groups, transpose,
    unpermute,
};

/// An open GGUF file, or all files of a split one.
#[derive(Debug)]
pub struct GgufFile {
    /// The first has the metadata.
    parts: Vec<Blob>,
    metadata: BTreeMap<String, MetadataValue>,
    architecture: Architecture,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    dtype: Dtype,
    /// Hugging Face's shape.
    shape: Vec<usize>,
    len: usize,
    /// The file among the parts.
    part: usize,
    offset: u64,
    layout: Layout,
}

impl GgufFile {
    /// Opens a file, with its other parts if its name is one of a split model's, and checks that every tensor lies inside.
    ///
    /// # Errors
    /// `Error::Io`, and `Error::Format` for a file that is truncated, corrupt, or of another architecture, and for missing parts.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let (parts, headers): (Vec<Blob>, Vec<_>) = split::open(path.as_ref())?.into_iter().unzip();
        let metadata = headers[0].metadata.clone();
        let path = parts[0].path();
        let wrong = |message: String| Error::format(path, message);
        let architecture = architecture(&metadata).map_err(wrong)?;
        let mut tensors = BTreeMap::new();
        for (part, header) in headers.into_iter().enumerate() {
            for info in header.tensors {
                let name = hugging_face_name(architecture, &info.name).unwrap_or(info.name);
                let layout = layout(architecture, &name, &info.shape, &metadata).map_err(wrong)?;
                let mut shape = info.shape;
                if layout == Layout::Transposed {
                    shape.reverse();
                }
                let entry = Entry {
                    dtype: info.dtype,
                    shape,
                    len: info.len,
                    part,
                    offset: info.offset,
                    layout,
                };
                if tensors.insert(name.clone(), entry).is_some() {
                    return Err(wrong(format!("{name} is stored twice")));
                }
            }
        }
        Ok(Self {
            parts,
            metadata,
            architecture,
            tensors,
        })
    }

    /// The file's key-value metadata, among them the tokenizer.
    pub fn metadata(&self) -> &BTreeMap<String, MetadataValue> {
        &self.metadata
    }

    /// The model's configuration from the metadata, for a file without `config.json`.
    ///
    /// # Errors
    /// `Error::Format` for missing or unsupported keys.
    pub fn config(&self) -> Result<ModelConfig> {
        let path = self.path();
        let description = Description {
            architecture: self.architecture,
            metadata: &self.metadata,
            num_tensors: self.tensors.len(),
            shape: &|name| self.shape(name),
            read: &|name| self.read(name).map_err(|error| error.to_string()),
        };
        let value = description.config().map_err(|message| {
            Error::format(
                path,
                format!("{message}; put the model's config.json beside the file"),
            )
        })?;
        ModelConfig::parse(path, value)
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
            path: self.path().to_path_buf(),
            problems: vec![Problem::new(name, "missing")],
        })?;
        let blob = &self.parts[entry.part];
        let stored = blob.read_tensor(&entry.dtype, entry.offset, entry.len)?;
        let width = match entry.shape.as_slice() {
            [_, width] => *width,
            _ => 1, // a bias: each row of the weight has one entry
        };
        Ok(match entry.layout {
            Layout::Same => stored,
            Layout::Rotary { heads } => unpermute(&stored, heads, width),
            Layout::Transposed => transpose(&stored, width),
            Layout::ByKind { heads } => swap_groups(&stored, [3, heads]),
            Layout::PlusOne => stored.into_iter().map(|x| x - 1.0).collect(),
        })
    }

    fn read_blocks(&self, name: &str) -> Result<Option<Blocks>> {
        let Some(entry) = self.tensors.get(name) else {
            return Ok(None);
        };
        let (Some(format), [first, second]) = (entry.dtype.blocks(), entry.shape.as_slice()) else {
            return Ok(None);
        };
        // The file has a row for each output, whatever Hugging Face has.
        let shape = match entry.layout {
            Layout::Transposed => [*second, *first],
            Layout::Same | Layout::Rotary { .. } | Layout::ByKind { .. } | Layout::PlusOne => {
                [*first, *second]
            }
        };
        let Some(len) = entry.dtype.num_bytes(entry.len) else {
            return Ok(None);
        };
        let mut bytes = vec![0u8; len as usize];
        self.parts[entry.part].read_at(entry.offset, &mut bytes)?;
        match entry.layout {
            Layout::Rotary { heads } => {
                bytes = unpermute(&bytes, heads, bytes.len() / shape[0].max(1));
            }
            Layout::ByKind { heads } => bytes = swap_groups(&bytes, [3, heads]),
            Layout::Same | Layout::Transposed | Layout::PlusOne => {}
        }
        Ok(Some(Blocks::from_gguf_bytes(format, &bytes, shape)))
    }

    fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let files = tokenizer::files(&self.metadata).map_err(|message| {
            Error::format(
                self.path(),
                format!("{message}; put the model's tokenizer.json beside the file"),
            )
        })?;
        Tokenizer::from_files(files, self.path()).map(Some)
    }

    fn path(&self) -> &Path {
        self.parts[0].path()
    }

    fn files(&self) -> Vec<PathBuf> {
        let parts = self.parts.iter();
        parts.map(|part| part.path().to_path_buf()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{check, open};
    use super::*;
    use crate::model::Architecture;
    use crate::ops::BlockFormat;

    enum Meta<'a> {
        U16(u16),
        U32(u32),
        F32(f32),
        Text(&'a str),
        Texts(&'a [&'a str]),
        /// A type's number and the value's bytes.
        Raw(u32, Vec<u8>),
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
                Meta::U16(x) => {
                    out.extend(2u32.to_le_bytes());
                    out.extend(x.to_le_bytes());
                }
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
                Meta::Raw(kind, bytes) => {
                    out.extend(kind.to_le_bytes());
                    out.extend(bytes);
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
        // Row r of q is r repeated 4 times.
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
        let Architecture::Gated(c) = config.architecture() else {
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

    /// A llama's header with more metadata and these tensors, and what is said of it.
    fn complaint(meta: Vec<(&str, Meta<'_>)>, tensors: &[(&str, &[u64], u32, Vec<u8>)]) -> String {
        let mut all = vec![("general.architecture", Meta::Text("llama"))];
        all.extend(meta);
        let (_folder, file) = opened(&file(&all, tensors));
        file.unwrap_err().to_string()
    }

    #[test]
    fn what_a_header_claims_is_bounded() {
        let array = |kind: u32, len: u64, bytes: usize| {
            let mut value = kind.to_le_bytes().to_vec();
            value.extend(len.to_le_bytes());
            value.resize(value.len() + bytes, 0);
            Meta::Raw(9, value)
        };
        let two = || Meta::U32(2);
        for (meta, said) in [
            // Counts with and without bytes behind them.
            (vec![("a", array(0, u64::MAX, 8))], "over 4194304 values"),
            (
                vec![("a", array(0, 5_000_000, 5_000_000))],
                "5000000 of them in a",
            ),
            (vec![("a", array(0, 1000, 3))], "truncated"),
            (vec![("a", array(9, 1 << 40, 0))], "over 4194304 values"),
            (
                vec![("a", Meta::Raw(8, (65u64 << 20).to_le_bytes().to_vec()))],
                "over 64 MiB of text",
            ),
            (
                vec![("a", Meta::Raw(8, u64::MAX.to_le_bytes().to_vec()))],
                "over 64 MiB of text",
            ),
            (vec![("a", two()), ("a", two())], "has a twice"),
            // Numbers.
            (
                vec![("llama.rope.freq_base", Meta::F32(f32::INFINITY))],
                "llama.rope.freq_base must be a finite number, found inf",
            ),
            (vec![("llama.x", Meta::F32(f32::NAN))], "found NaN"),
            (
                vec![(
                    "llama.x",
                    Meta::Raw(12, f64::NEG_INFINITY.to_le_bytes().to_vec()),
                )],
                "found -inf",
            ),
            (
                vec![(
                    "llama.x",
                    Meta::Raw(
                        9,
                        [
                            6u32.to_le_bytes(),
                            1u32.to_le_bytes(),
                            [0; 4],
                            f32::NAN.to_le_bytes(),
                        ]
                        .concat(),
                    ),
                )],
                "found NaN",
            ),
        ] {
            let found = complaint(meta, &[]);
            assert!(found.contains(said), "{said}: {found}");
        }
        for (tensor, said) in [
            (
                ("t", &[][..], 0, vec![0; 4]),
                "t has 0 dimensions; 1 to 4 are possible",
            ),
            (("t", &[1; 5], 0, vec![0; 4]), "t has 5 dimensions"),
            (("t", &[4, 0], 0, vec![]), "t: shape [0, 4] has no entries"),
            (("t", &[u64::MAX, 2], 0, vec![]), "overflows"),
            (("t", &[1 << 40], 0, vec![0; 4]), "truncated"),
            (("t", &[u64::MAX / 2], 0, vec![0; 4]), "t: shape"),
        ] {
            let found = complaint(vec![], &[tensor]);
            assert!(found.contains(said), "{said}: {found}");
        }
        let mut counts = decoder("llama");
        counts[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        let found = opened(&counts).1.unwrap_err().to_string();
        assert!(
            found.contains("counts 18446744073709551615 tensors"),
            "{found}"
        );
    }

    #[test]
    fn tensors_have_bytes_of_their_own() {
        let mut bytes = decoder("llama");
        let name = b"blk.0.attn_k.weight";
        let at = bytes
            .windows(name.len())
            .position(|found| found == name)
            .unwrap();
        // Behind the name: the rank, two dimensions and the type.
        let offset = at + name.len() + 4 + 16 + 4;
        bytes[offset..offset + 8].fill(0);
        let found = opened(&bytes).1.unwrap_err().to_string();
        assert!(
            found.contains("blk.0.attn_k.weight overlap")
                || found.contains("token_embd.weight overlap"),
            "{found}"
        );
    }

    #[test]
    fn layers_are_counted_against_tensors() {
        for layers in [1_000_000_000u32, u32::MAX, 12] {
            let mut bytes = decoder("llama");
            let name = b"llama.block_count";
            let at = bytes
                .windows(name.len())
                .position(|found| found == name)
                .unwrap()
                + name.len()
                + 4;
            bytes[at..at + 4].copy_from_slice(&layers.to_le_bytes());
            let found = opened(&bytes).1.unwrap().config().unwrap_err().to_string();
            assert!(
                found.contains(&format!(
                    "llama.block_count {layers}, and the file 11 tensors"
                )),
                "{found}"
            );
        }
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
    fn norms_of_gemma_have_one_added_and_rows_of_bloom_are_by_kind() {
        let norm = "blk.0.post_ffw_norm.weight";
        let bytes = file(
            &[("general.architecture", Meta::Text("gemma2"))],
            &[
                (norm, &[2], 0, f32s([1.5, 3.0])),
                ("blk.0.ffn_up.weight", &[2, 1], 0, f32s([1.5, 3.0])),
            ],
        );
        let (_folder, file) = opened(&bytes);
        let read = |file: &GgufFile, name: &str| file.read(&format!("{name}.weight")).unwrap();
        let file = file.unwrap();
        let norm = "model.layers.0.post_feedforward_layernorm";
        assert_eq!(read(&file, norm), [0.5, 2.0]);
        assert_eq!(read(&file, "model.layers.0.mlp.up_proj"), [1.5, 3.0]);
        // Queries of two heads, their keys, their values.
        let rows = [10.0, 11.0, 20.0, 21.0, 30.0, 31.0];
        let bytes = self::file(
            &[
                ("general.architecture", Meta::Text("bloom")),
                ("bloom.attention.head_count", Meta::U32(2)),
            ],
            &[("blk.0.attn_qkv.weight", &[1, 6], 0, f32s(rows))],
        );
        let (_folder, file) = opened(&bytes);
        let joint = "transformer.h.0.self_attention.query_key_value";
        assert_eq!(
            read(&file.unwrap(), joint),
            [10.0, 20.0, 30.0, 11.0, 21.0, 31.0]
        );
    }

    #[test]
    fn blocks_hold_the_numbers_that_are_read() {
        // A scale of 0.5 or 1.25 (and a minimum of -0.25) before each block's codes.
        let blocks = |count: usize, header: usize, codes: usize| -> Vec<u8> {
            let block = |i: usize| {
                let scale = [[0x00, 0x38], [0x00, 0x3d]][i % 2];
                let mut bytes = [scale, [0x00, 0xb4]].concat();
                bytes.truncate(header);
                bytes.extend((0..codes).map(|k| (i * 37 + k * 11) as u8));
                bytes
            };
            (0..count).flat_map(block).collect()
        };
        for (kind, header, codes, format) in [
            (2, 2, 16, BlockFormat::Q4_0),
            (3, 4, 16, BlockFormat::Q4_1),
            (8, 2, 32, BlockFormat::Q8_0),
        ] {
            let bytes = file(
                &[
                    ("general.architecture", Meta::Text("llama")),
                    ("llama.attention.head_count", Meta::U32(2)),
                ],
                &[
                    (
                        "blk.0.attn_q.weight",
                        &[64, 12],
                        kind,
                        blocks(24, header, codes),
                    ),
                    (
                        "blk.0.ffn_up.weight",
                        &[32, 5],
                        kind,
                        blocks(5, header, codes),
                    ),
                ],
            );
            let (_folder, file) = opened(&bytes);
            let file = file.unwrap();
            for name in ["self_attn.q_proj", "mlp.up_proj"] {
                let name = format!("model.layers.0.{name}.weight");
                let blocks = file.read_blocks(&name).unwrap().unwrap();
                assert_eq!(blocks.format(), format);
                assert_eq!(
                    blocks.values(),
                    file.read(&name).unwrap(),
                    "{format:?} {name}"
                );
            }
            // GPT-2's are transposed on the way to Hugging Face's layout, and not in blocks.
            let bytes = self::file(
                &[("general.architecture", Meta::Text("gpt2"))],
                &[(
                    "blk.0.ffn_up.weight",
                    &[32, 5],
                    kind,
                    blocks(5, header, codes),
                )],
            );
            let (_folder, file) = opened(&bytes);
            let (file, name) = (file.unwrap(), "transformer.h.0.mlp.c_fc.weight");
            let blocks = file.read_blocks(name).unwrap().unwrap();
            assert_eq!([blocks.outputs(), blocks.inputs()], [5, 32]);
            assert_eq!(transpose(&blocks.values(), 5), file.read(name).unwrap());
        }
    }

    /// Writes `parts` of a split model: the tensors, and what the metadata say of number, count and tensors.
    fn split(folder: &Path, parts: &[(&str, &str, [u16; 2], u32)]) {
        for (name, tensor, [number, count], tensors) in parts {
            let meta = [
                ("general.architecture", Meta::Text("gpt2")),
                ("split.no", Meta::U16(*number)),
                ("split.count", Meta::U16(*count)),
                ("split.tensors.count", Meta::U32(*tensors)),
            ];
            let values = f32s([f32::from(*number), 1.0]);
            let bytes = file(&meta, &[(tensor, &[2], 0, values)]);
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }

    #[test]
    fn parts_are_one_model() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf");
        let norm = "output_norm.weight";
        split(
            folder.path(),
            &[
                (first, norm, [0, 2], 2),
                (second, "output_norm.bias", [1, 2], 2),
            ],
        );
        for path in [
            folder.path().join(first),
            folder.path().join(second),
            folder.path().into(),
        ] {
            let file = open(path).unwrap();
            assert_eq!(file.read("transformer.ln_f.bias").unwrap(), [1.0, 1.0]);
            assert_eq!(file.read("transformer.ln_f.weight").unwrap(), [0.0, 1.0]);
            assert_eq!(
                file.files(),
                [first, second].map(|name| folder.path().join(name))
            );
        }
        let message = |path: &Path| open(path).err().unwrap().to_string();
        split(folder.path(), &[(second, "output_norm.bias", [1, 2], 3)]);
        assert!(open(folder.path()).is_ok(), "the first part counts");
        split(folder.path(), &[(first, norm, [0, 2], 3)]);
        let found = message(folder.path());
        assert!(
            found.contains("hold 2 tensors, and split.tensors.count says 3"),
            "{found}"
        );
        split(folder.path(), &[(second, norm, [0, 2], 2)]);
        let found = message(folder.path());
        assert!(
            found.contains("it is part 1 of 2, and its name that it is part 2 of 2"),
            "{found}"
        );
        std::fs::remove_file(folder.path().join(second)).unwrap();
        let found = message(folder.path());
        assert!(
            found.contains(&format!(
                "in 2 files, and beside this one there is no {second}"
            )),
            "{found}"
        );
        split(folder.path(), &[("renamed.gguf", norm, [1, 3], 2)]);
        let found = message(&folder.path().join("renamed.gguf"));
        assert!(
            found.ends_with("by names as NAME-00002-of-00003.gguf"),
            "{found}"
        );
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
                .contains("\"mamba\" is not supported; supported are llama, qwen2, qwen3, phi3, olmo2, smollm3, gemma")
        );
    }
}
