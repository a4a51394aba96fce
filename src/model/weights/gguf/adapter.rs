//! A LoRA adapter as a GGUF file that llama.cpp loads beside its base.

use std::path::Path;

use super::file::{self, Tensor, Value};
use super::layout::{Architecture, architecture_of, llama_cpp_name};
use super::tensor_type::TensorType;
use super::write::with_rows_in_order;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;

/// The low-rank change of one layer's weight, `scale * b a`.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRankLayer {
    /// Hugging Face's path of the layer.
    pub path: String,
    /// Inner dimension.
    pub rank: usize,
    /// Factor on the product.
    pub scale: f64,
    /// `[rank, inputs]`
    pub a: Vec<f32>,
    /// `[outputs, rank]`
    pub b: Vec<f32>,
}

impl LowRankLayer {
    /// The factor as PEFT's alpha without rsLoRA.
    fn alpha(&self) -> f64 {
        self.scale * self.rank as f64
    }
}

/// A LoRA adapter to write.
#[derive(Clone, Copy)]
pub struct GgufAdapter<'a> {
    /// What the file says it is.
    pub name: &'a str,
    /// The configuration of the base.
    pub config: &'a ModelConfig,
    /// The layers that have an adapter.
    pub layers: &'a [LowRankLayer],
}

impl GgufAdapter<'_> {
    /// Writes the file, its matrices stored as `kind`.
    ///
    /// llama.cpp has one alpha for all layers, and scales a product by alpha / rank: layers that want another factor have it in `b`.
    ///
    /// # Errors
    /// `Error::Usage` for a base or a layer that llama.cpp has no name for, and for a number that f16 cannot hold; `Error::Io`.
    pub fn write(&self, path: &Path, kind: TensorType) -> Result<()> {
        let refuse = |message: String| Error::Usage(format!("--to a .gguf file: {message}"));
        let family = self.config.family();
        let architecture = architecture_of(family).ok_or_else(|| {
            refuse(format!(
                "llama.cpp's form of family {family} is not known here"
            ))
        })?;
        // llama.cpp takes an alpha of 0 as none.
        let mut alphas = self.layers.iter().map(LowRankLayer::alpha);
        let alpha = alphas.find(|&alpha| alpha != 0.0).unwrap_or(1.0);
        let mut tensors = Vec::new();
        for layer in self.layers {
            let weight = format!("{}.weight", layer.path);
            let name = llama_cpp_name(architecture, &weight)
                .ok_or_else(|| refuse(format!("llama.cpp has no name for {weight}")))?;
            let (inputs, outputs) = (layer.a.len() / layer.rank, layer.b.len() / layer.rank);
            for (side, shape) in [("a", [layer.rank, inputs]), ("b", [outputs, layer.rank])] {
                tensors.push(Tensor {
                    name: format!("{name}.lora_{side}"),
                    shape: shape.to_vec(),
                    kind: kind.of_rows(shape[1]),
                });
            }
        }
        file::write(
            path,
            &self.metadata(architecture, alpha, kind),
            &tensors,
            |at| {
                let layer = &self.layers[at / 2];
                let values = match at % 2 {
                    0 => layer.a.clone(),
                    _ => self.up(architecture, layer, alpha),
                };
                tensors[at].kind.check_range(&tensors[at].name, &values)?;
                Ok(values)
            },
        )
    }

    fn metadata(
        &self,
        architecture: Architecture,
        alpha: f64,
        kind: TensorType,
    ) -> Vec<(String, Value)> {
        let text = |text: &str| Value::Text(text.to_owned());
        let keys = [
            ("general.architecture", text(architecture.name())),
            ("general.type", text("adapter")),
            ("general.name", text(self.name)),
            ("general.file_type", Value::U32(kind.file_type())),
            ("general.quantization_version", Value::U32(2)),
            ("adapter.type", text("lora")),
            ("adapter.lora.alpha", Value::F32(alpha as f32)),
        ];
        keys.map(|(key, value)| (key.to_owned(), value)).to_vec()
    }

    /// The up projection, with the order of rows of the base's weight.
    fn up(&self, architecture: Architecture, layer: &LowRankLayer, alpha: f64) -> Vec<f32> {
        let own = layer.alpha();
        let values: Vec<f32> = match own == alpha {
            true => layer.b.clone(),
            false => (layer.b.iter())
                .map(|x| (f64::from(*x) * own / alpha) as f32)
                .collect(),
        };
        with_rows_in_order(architecture, self.config, &layer.path, values, layer.rank)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::weights::gguf::header::{Header, MetadataValue};
    use crate::model::weights::storage::Blob;

    #[test]
    fn rows_of_queries_are_in_llama_cpps_order_and_scales_are_in_b() {
        let config = json!({
            "model_type": "llama", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 3,
            "max_position_embeddings": 8, "vocab_size": 5,
        });
        let config = ModelConfig::from_value(config).unwrap();
        let layer = |path: &str, rank: usize, scale: f64, outputs: usize| LowRankLayer {
            path: format!("model.layers.0.{path}"),
            rank,
            scale,
            a: (0..rank * 4).map(|i| i as f32).collect(),
            b: (0..outputs * rank).map(|i| i as f32).collect(),
        };
        let layers = [
            layer("self_attn.q_proj", 1, 2.0, 4),
            layer("mlp.up_proj", 2, 3.0, 3),
        ];
        let adapter = GgufAdapter {
            name: "m",
            config: &config,
            layers: &layers,
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        adapter.write(&path, TensorType::F32).unwrap();
        let blob = Blob::open(&path).unwrap();
        let header = Header::read(&blob).unwrap();
        let alpha = &header.metadata["adapter.lora.alpha"];
        assert_eq!(alpha, &MetadataValue::Float(2.0));
        // An alpha of 0 would be none.
        let silent = [
            layer("self_attn.q_proj", 1, 0.0, 4),
            layer("mlp.up_proj", 2, 3.0, 3),
        ];
        let silent = GgufAdapter {
            layers: &silent,
            ..adapter
        };
        let other = folder.path().join("b.gguf");
        silent.write(&other, TensorType::F32).unwrap();
        let other = Blob::open(&other).unwrap();
        let of_other = Header::read(&other).unwrap();
        assert_eq!(
            of_other.metadata["adapter.lora.alpha"],
            MetadataValue::Float(6.0)
        );
        let up = &of_other.tensors[1];
        assert_eq!(
            other.read_tensor(&up.dtype, up.offset, up.len).unwrap(),
            [0.0; 4]
        );
        let found: Vec<(String, Vec<usize>, Vec<f32>)> = (header.tensors.iter())
            .map(|info| {
                let values = blob
                    .read_tensor(&info.dtype, info.offset, info.len)
                    .unwrap();
                (info.name.clone(), info.shape.clone(), values)
            })
            .collect();
        let of = |name: &str, shape: [usize; 2], values: &[f32]| {
            (format!("blk.0.{name}"), shape.to_vec(), values.to_vec())
        };
        let counted: Vec<f32> = (0..8).map(|i| i as f32).collect();
        assert_eq!(
            found,
            [
                of("attn_q.weight.lora_a", [1, 4], &counted[..4]),
                // Halves of the head in turn.
                of("attn_q.weight.lora_b", [4, 1], &[0.0, 2.0, 1.0, 3.0]),
                of("ffn_up.weight.lora_a", [2, 4], &counted),
                // llama.cpp scales by 2 / 2, and the layer by 3.
                of(
                    "ffn_up.weight.lora_b",
                    [3, 2],
                    &[0.0, 3.0, 6.0, 9.0, 12.0, 15.0]
                ),
            ]
        );
        let unknown = [layer("self_attn.rotary", 1, 1.0, 4)];
        let adapter = GgufAdapter {
            layers: &unknown,
            ..adapter
        };
        let error = adapter
            .write(&path, TensorType::F32)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no name for model.layers.0.self_attn.rotary"),
            "{error}"
        );
    }
}
