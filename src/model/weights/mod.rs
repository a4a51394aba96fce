//! Weights on disk: safetensors (one file or shards) and GGUF, read one tensor at a time as f32 in Hugging Face's layout.
//!
//! Files are read in chunks of a few hundred KiB instead of being memory-mapped: mapping needs `unsafe`, and truncation of a mapped
//! file kills the process instead of giving an error. Peak memory is the tensor being read.

pub mod bitsandbytes;
pub mod dtype;
pub mod ggml;
pub mod gguf;
pub mod heads;
pub mod random;
pub mod safetensors;
pub mod storage;
pub mod write;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::data::Tokenizer;
use crate::error::{Error, Problem, Result};
use crate::model::config::TensorSpec;
use crate::ops::Blocks;

pub use bitsandbytes::BitsAndBytesFiles;
pub use dtype::Dtype;
pub use ggml::GgmlType;
pub use gguf::{GgufFile, GgufModel, TensorType};
pub use random::RandomSource;
pub use safetensors::SafetensorsFiles;
pub use write::{StoreAs, write_safetensors, write_safetensors_with, write_snapshot};

/// A source of tensors with Hugging Face's names and layout.
pub trait WeightSource: Send + Sync {
    /// All names, sorted.
    fn names(&self) -> Vec<String>;
    /// The shape of a tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
    /// The stored number format of a tensor.
    fn dtype(&self, name: &str) -> Option<Dtype>;
    /// The values of a tensor in row-major order, as f32.
    ///
    /// # Errors
    /// `Error::Weights` for an unknown name or type, `Error::Io` if the file cannot be read.
    fn read(&self, name: &str) -> Result<Vec<f32>>;
    /// A matrix that is stored in blocks, as it is stored; `None` for a tensor that is not.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    fn read_blocks(&self, _name: &str) -> Result<Option<Blocks>> {
        Ok(None)
    }
    /// The tokenizer inside the file; `None` for formats that have none.
    ///
    /// # Errors
    /// `Error::Format` for a file of another format that lacks one, or has one of a kind that is not read.
    fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        Ok(None)
    }
    /// The file or folder, for messages.
    fn path(&self) -> &Path;
    /// The files of the tensors; empty for generated weights.
    fn files(&self) -> Vec<PathBuf>;
    /// Whether two stored tensors hold the same values.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    fn same_values(&self, left: &str, right: &str) -> Result<bool> {
        Ok(self.read(left)? == self.read(right)?)
    }
}

/// Opens the weights of a model: a `.safetensors` or `.gguf` file (any part of a split one), or a folder with `model.safetensors`,
/// `model.safetensors.index.json` and its shards, or exactly one `*.gguf`, or the parts of one.
///
/// Checks headers and sizes; reads no tensor.
///
/// # Errors
/// `Error::Io` for what cannot be read, `Error::Format` for a truncated or corrupt file, a missing shard, or no weights.
pub fn open(path: impl AsRef<Path>) -> Result<Box<dyn WeightSource>> {
    let path = path.as_ref();
    let has_extension = |e: &str| path.extension().is_some_and(|x| x.eq_ignore_ascii_case(e));
    if !path.exists() {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(Error::io("read", path)(missing));
    }
    if !path.is_dir() {
        return match () {
            () if has_extension("safetensors") => with_matrices(SafetensorsFiles::open(path)?),
            () if gguf::is_gguf(path) => Ok(Box::new(GgufFile::open(path)?)),
            () if has_extension("bin") || has_extension("pt") || has_extension("pth") => {
                Err(pickled(path))
            }
            () => Err(Error::format(
                path,
                "expected a .safetensors or .gguf file, or a folder that holds one",
            )),
        };
    }
    let single = path.join("model.safetensors");
    if single.exists() {
        return with_matrices(SafetensorsFiles::open(&single)?);
    }
    let index = path.join("model.safetensors.index.json");
    if index.exists() {
        return with_matrices(SafetensorsFiles::open_index(&index)?);
    }
    if let Some(gguf) = only_gguf(path)? {
        return Ok(Box::new(GgufFile::open(&gguf)?));
    }
    for name in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        if path.join(name).exists() {
            return Err(pickled(&path.join(name)));
        }
    }
    Err(Error::format(
        path,
        "no weights: expected model.safetensors, model.safetensors.index.json with its shards, or one *.gguf",
    ))
}

/// safetensors, with bitsandbytes' matrices as matrices.
fn with_matrices(files: SafetensorsFiles) -> Result<Box<dyn WeightSource>> {
    Ok(match BitsAndBytesFiles::are(&files) {
        true => Box::new(BitsAndBytesFiles::open(files)?),
        false => Box::new(files),
    })
}

/// The `.gguf` file of a folder, the first of a split model, if there is exactly one.
///
/// # Errors
/// `Error::Format` if there are several.
pub(crate) fn only_gguf(folder: &Path) -> Result<Option<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let file = entry.map_err(Error::io("read", folder))?.path();
        if gguf::is_gguf(&file) {
            found.extend(gguf::paths_of(&file).into_iter().next());
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop_first()),
        n => {
            let names: Vec<_> = found
                .iter()
                .filter_map(|f| f.file_name()?.to_str())
                .collect();
            Err(Error::format(
                folder,
                format!("{n} GGUF files ({}); name the one to use", names.join(", ")),
            ))
        }
    }
}

fn pickled(path: &Path) -> Error {
    Error::format(
        path,
        "pickled PyTorch weights can run code and are not read; convert them to model.safetensors \
         (transformers: AutoModelForCausalLM.from_pretrained(..).save_pretrained(folder))",
    )
}

/// The stored name of the tensor called `name` in Hugging Face's full model.
///
/// Base-model checkpoints lack the prefix `model.`, `transformer.` or `gpt_neox.`; both spellings are found, and so are
/// GPT-NeoX's output head under transformers' internal name, the norms of BERT's first files, `LayerNorm.gamma` and `.beta`, and the
/// text model in one for text and images.
pub fn resolve(source: &dyn WeightSource, name: &str) -> Option<String> {
    candidates(name)
        .into_iter()
        .find(|candidate| source.shape(candidate).is_some())
}

/// Reads a tensor, in either spelling; a tied tensor that is not stored is read from its partner.
///
/// # Errors
/// As [`WeightSource::read`].
pub fn read_tensor(source: &dyn WeightSource, spec: &TensorSpec) -> Result<Vec<f32>> {
    let name = resolve(source, &spec.name)
        .or_else(|| resolve(source, spec.tied_to.as_deref()?))
        .unwrap_or_else(|| spec.name.clone());
    source.read(&name)
}

fn candidates(name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    if name == "embed_out.weight" {
        names.push("lm_head.weight".into());
    }
    for (end, old) in [
        ("LayerNorm.weight", "LayerNorm.gamma"),
        ("LayerNorm.bias", "LayerNorm.beta"),
    ] {
        names.extend(name.strip_suffix(end).map(|path| format!("{path}{old}")));
    }
    for prefix in ["model.", "transformer.", "gpt_neox."] {
        if let Some(bare) = name.strip_prefix(prefix) {
            names.push(bare.to_owned());
        }
    }
    // The text model in one for text and images, as files have it and as transformers 5 has it in memory.
    names.push(format!("language_model.{name}"));
    if let Some(bare) = name.strip_prefix("model.") {
        names.push(format!("model.language_model.{bare}"));
    }
    names
}

/// Checks that a source holds exactly the tensors of a model, with their shapes and in supported types.
///
/// Ignored: known buffers (rotary frequencies, causal masks of GPT-2 and GPT-NeoX), what reads images in Gemma 3, and the heads `lm_head.weight`,
/// `embed_out.weight` and `score.weight`, because a backbone may come from either kind of model. A tied tensor may be absent.
///
/// # Errors
/// One `Error::Weights` that lists every missing, surplus and mis-shaped tensor.
pub fn check(source: &dyn WeightSource, specs: &[TensorSpec]) -> Result<()> {
    let leaves_out = |name: &str| is_buffer(name) || is_head(name) || is_of_images(name);
    check_but(source, specs, &leaves_out)
}

/// As [`check`], leaving out the stored tensors that `leaves_out` names.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_but(
    source: &dyn WeightSource,
    specs: &[TensorSpec],
    leaves_out: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let mut problems = Vec::new();
    let mut known = BTreeSet::new();
    for spec in specs {
        let Some(stored) = resolve(source, &spec.name) else {
            if spec.tied_to.is_none() {
                problems.push(Problem::new(
                    &spec.name,
                    format!("missing; expected shape {:?}", spec.shape),
                ));
            }
            continue;
        };
        if let Some(shape) = source.shape(&stored)
            && shape != spec.shape
        {
            problems.push(Problem::new(
                &stored,
                format!("expected shape {:?}, found {shape:?}", spec.shape),
            ));
        }
        if let Some(dtype @ Dtype::Other(_)) = source.dtype(&stored) {
            problems.push(Problem::new(&stored, dtype.unsupported()));
        }
        known.insert(stored);
    }
    for name in source.names() {
        if !known.contains(&name) && !leaves_out(&name) {
            problems.push(Problem::new(
                &name,
                format!(
                    "surplus; the model has no such tensor (shape {:?})",
                    source.shape(&name).unwrap_or_default()
                ),
            ));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::Weights {
        path: source.path().to_path_buf(),
        problems,
    })
}

fn is_buffer(name: &str) -> bool {
    [
        "rotary_emb.inv_freq",
        "rope_freqs.weight",
        "rope_factors_short.weight",
        "rope_factors_long.weight",
        ".attn.bias",
        ".attn.masked_bias",
        ".attention.bias",
        ".attention.masked_bias",
    ]
    .iter()
    .any(|suffix| name.ends_with(suffix))
}

/// Whether a tensor is of the part for images in a model for text and images.
fn is_of_images(name: &str) -> bool {
    let name = name.strip_prefix("model.").unwrap_or(name);
    ["vision_tower.", "multi_modal_projector."]
        .iter()
        .any(|part| name.starts_with(part))
}

fn is_head(name: &str) -> bool {
    matches!(name, "lm_head.weight" | "embed_out.weight" | "score.weight")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;
    use serde_json::json;

    fn config() -> ModelConfig {
        ModelConfig::from_value(json!({
            "model_type": "gpt2", "n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 6
        }))
        .unwrap()
    }

    fn written(
        change: impl Fn(String, Vec<usize>) -> Option<(String, Vec<usize>)>,
    ) -> (tempfile::TempDir, Result<()>) {
        let folder = tempfile::tempdir().unwrap();
        let tensors: Vec<_> = config()
            .tensors()
            .into_iter()
            .filter_map(|t| change(t.name, t.shape))
            .map(|(name, shape)| {
                let values = vec![0.5; shape.iter().product()];
                (name, shape, values)
            })
            .collect();
        write_safetensors(folder.path().join("model.safetensors"), &tensors).unwrap();
        let source = open(folder.path()).unwrap();
        let outcome = check(source.as_ref(), &config().tensors());
        (folder, outcome)
    }

    #[test]
    fn a_base_checkpoint_without_prefix_head_or_clean_buffers_is_accepted() {
        let (folder, outcome) = written(|name, shape| match name.strip_prefix("transformer.") {
            // In place of a parameter of its own, to stand for the causal mask in files of GPT-2.
            Some(bare) => Some((bare.to_owned(), shape)),
            None => Some(("h.0.attn.bias".into(), vec![1, 1, 8, 8])),
        });
        outcome.unwrap();
        let source = open(folder.path()).unwrap();
        let head = config().tensors().pop().unwrap();
        assert_eq!(read_tensor(source.as_ref(), &head).unwrap(), [0.5; 24]);
        assert_eq!(
            resolve(source.as_ref(), "transformer.ln_f.bias").as_deref(),
            Some("ln_f.bias")
        );
    }

    /// Names in files of `Gemma3ForConditionalGeneration`, and in memory in transformers 5.23.
    #[test]
    fn a_text_model_is_found_beside_what_reads_images() {
        for prefix in ["language_model.model", "model.language_model"] {
            let found = candidates("model.norm.weight");
            assert!(
                found.contains(&format!("{prefix}.norm.weight")),
                "{found:?}"
            );
        }
        for of_images in [
            "vision_tower.vision_model.embeddings.patch_embedding.bias",
            "model.multi_modal_projector.mm_soft_emb_norm.weight",
        ] {
            assert!(is_of_images(of_images));
        }
        assert!(!is_of_images("model.layers.0.mlp.up_proj.weight"));
    }

    #[test]
    fn buffers_of_published_files_are_no_parameters() {
        for name in [
            "h.0.attn.bias",
            "gpt_neox.layers.0.attention.bias",
            "gpt_neox.layers.0.attention.masked_bias",
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
        ] {
            assert!(is_buffer(name), "{name}");
        }
        assert!(!is_buffer("gpt_neox.layers.0.attention.dense.bias"));
        assert!(!is_buffer("h.0.attn.c_attn.bias"));
    }

    #[test]
    fn every_problem_is_listed_at_once() {
        let (_folder, outcome) = written(|name, shape| match name.as_str() {
            "transformer.wpe.weight" => None,
            "transformer.ln_f.bias" => Some((name, vec![5])),
            "transformer.ln_f.weight" => Some(("transformer.ln_g.weight".into(), shape)),
            _ => Some((name, shape)),
        });
        let Err(Error::Weights { problems, .. }) = outcome else {
            panic!("expected problems");
        };
        let found: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "transformer.wpe.weight: missing; expected shape [8, 4]",
                "transformer.ln_f.weight: missing; expected shape [4]",
                "transformer.ln_f.bias: expected shape [4], found [5]",
                "transformer.ln_g.weight: surplus; the model has no such tensor (shape [4])",
            ]
        );
    }

    #[test]
    fn a_folder_without_weights_says_what_it_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let message = |p: &Path| open(p).err().unwrap().to_string();
        assert!(message(folder.path()).contains("no weights: expected model.safetensors"));
        std::fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
        assert!(message(folder.path()).contains("convert them to model.safetensors"));
        std::fs::write(folder.path().join("a.gguf"), b"x").unwrap();
        std::fs::write(folder.path().join("b.gguf"), b"x").unwrap();
        assert!(message(folder.path()).contains("2 GGUF files (a.gguf, b.gguf)"));
        assert!(message(&folder.path().join("absent")).contains("cannot read"));
    }
}
