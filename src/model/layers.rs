//! The layers of a model by name: shapes, numbers of parameters, and what a recipe's `peft` would train of them.

use super::config::{ModelConfig, TensorSpec};
use super::encoder::EncoderConfig;
use super::trained::{TrainedTensor, module};
use crate::error::count;
use crate::params::ParamKind;
use std::collections::HashMap;

/// Stands for the path of a layer that methods like prompt tuning add.
const VIRTUAL_TOKENS: &str = "virtual tokens";

/// A module that holds parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelLayer {
    /// Hugging Face path, e.g. `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Its tensors, in the order of the file: name below the path, and shape.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// The module that it shares its values with; such a layer has no parameters of its own.
    pub tied_to: Option<String>,
    /// Parameters of its own that are trained.
    pub trained_params: usize,
    /// Parameters of an adapter on it; all of them are trained.
    pub adapter_params: usize,
    /// Of a table trained for single tokens: their number. Their rows are [`ModelLayer::adapter_params`].
    pub token_rows: usize,
}

impl ModelLayer {
    /// Parameters of the model; those of an adapter are not counted.
    pub fn num_params(&self) -> usize {
        match self.tied_to {
            Some(_) => 0,
            None if self.path == VIRTUAL_TOKENS => 0,
            None => self
                .tensors
                .iter()
                .map(|(_, shape)| shape.iter().product::<usize>())
                .sum(),
        }
    }
}

/// The layers of the causal model, or of the classifier on its backbone, in the order of the model, with what is `trained` of them
/// and on them.
pub fn layers(
    config: &ModelConfig,
    classifier: bool,
    trained: &[TrainedTensor],
) -> Vec<ModelLayer> {
    match classifier {
        true => of_tensors(&config.classifier_tensors(), trained),
        false => of_tensors(&config.tensors(), trained),
    }
}

/// The layers of an encoder with its head.
pub fn encoder_layers(config: &EncoderConfig) -> Vec<ModelLayer> {
    of_tensors(&config.tensors(), &[])
}

/// The modules of `tensors`.
fn of_tensors(tensors: &[TensorSpec], trained: &[TrainedTensor]) -> Vec<ModelLayer> {
    let layer = |path: &str, tied_to: Option<&str>| ModelLayer {
        path: path.to_owned(),
        tensors: Vec::new(),
        tied_to: tied_to.map(|name| module(name).to_owned()),
        trained_params: 0,
        adapter_params: 0,
        token_rows: 0,
    };
    let mut layers: Vec<ModelLayer> = Vec::new();
    for tensor in trained.iter().filter(|tensor| tensor.module.is_none()) {
        let tokens = tensor.shape[0];
        layers.push(ModelLayer {
            tensors: vec![("before every row".into(), vec![tokens])],
            ..layer(VIRTUAL_TOKENS, None)
        });
    }
    // The biases of a block may stand behind all of its weights.
    let mut places = HashMap::new();
    for tensor in tensors {
        let path = module(&tensor.name);
        let place = *places.entry(path).or_insert_with(|| {
            layers.push(layer(path, tensor.tied_to.as_deref()));
            layers.len() - 1
        });
        let leaf = tensor.name.rsplit('.').next().unwrap_or_default();
        (layers[place].tensors).push((leaf.to_owned(), tensor.shape.clone()));
    }
    for tensor in trained {
        let path = tensor.module.as_deref().unwrap_or(VIRTUAL_TOKENS);
        if let Some(layer) = layers.iter_mut().find(|layer| layer.path == path) {
            match tensor.kind {
                ParamKind::Adapter => {
                    layer.adapter_params += tensor.num_entries();
                    layer.token_rows += tensor.num_token_rows();
                }
                _ => layer.trained_params += tensor.num_entries(),
            }
        }
    }
    layers
}

/// What is trained of `layers` on a line: blocks with the same parts together, e.g. `model.layers.0-29.(self_attn.q_proj, self_attn.v_proj)`,
/// `model.layers.29, model.norm`.
pub fn trained_summary(layers: &[ModelLayer]) -> String {
    // Parts in the order of the model: before the block's number, after it, and the blocks in which it is trained.
    let mut parts: Vec<(&str, &str, Vec<usize>)> = Vec::new();
    // A tied head is trained by adapters alone.
    let shown = |layer: &&ModelLayer| layer.tied_to.is_none() || layer.adapter_params > 0;
    for layer in layers.iter().filter(shown) {
        let (stem, block, rest) = in_block(&layer.path);
        let at =
            (parts.iter()).position(|(of_stem, of_rest, _)| *of_stem == stem && *of_rest == rest);
        let at = at.unwrap_or_else(|| {
            parts.push((stem, rest, Vec::new()));
            parts.len() - 1
        });
        if layer.trained_params + layer.adapter_params > 0 {
            parts[at].2.push(block.unwrap_or(usize::MAX));
        }
    }
    let mut shown = Vec::new();
    let mut seen: Vec<(&str, &[usize])> = Vec::new();
    for (stem, rest, blocks) in parts.iter().filter(|(_, _, blocks)| !blocks.is_empty()) {
        if rest.is_empty() {
            let table = layers.iter().find(|layer| layer.path == *stem);
            shown.push(match table.map_or(0, |table| table.token_rows) {
                0 => (*stem).to_owned(),
                rows => format!("{} of {stem}", count(rows, "row")),
            });
            continue;
        }
        if seen.contains(&(stem, blocks)) {
            continue;
        }
        seen.push((stem, blocks));
        let of_block = || {
            parts
                .iter()
                .filter(|(of_stem, of_rest, _)| of_stem == stem && !of_rest.is_empty())
        };
        let same: Vec<&str> = of_block()
            .filter(|(_, _, other)| other == blocks)
            .map(|(_, rest, _)| *rest)
            .collect();
        let place = format!("{stem}.{}", ranges(blocks));
        shown.push(match same.as_slice() {
            all if all.len() == of_block().count() => place,
            [one] => format!("{place}.{one}"),
            some => format!("{place}.({})", some.join(", ")),
        });
    }
    shown.join(", ")
}

/// `model.layers.29.mlp` as `model.layers`, 29 and `mlp`; a path without a number is all stem.
fn in_block(path: &str) -> (&str, Option<usize>, &str) {
    let mut start = 0;
    for component in path.split('.') {
        let end = start + component.len();
        if let (Ok(block), true) = (component.parse(), start > 0) {
            let rest = path.get(end + 1..).unwrap_or_default();
            return (&path[..start - 1], Some(block), rest);
        }
        start = end + 1;
    }
    (path, None, "")
}

/// `0-3,7`.
fn ranges(blocks: &[usize]) -> String {
    let runs = blocks.chunk_by(|a, b| a + 1 == *b);
    let run = |run: &[usize]| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    };
    runs.map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::trained_tensors;
    use crate::peft::{LoraConfig, Peft};

    fn tiny() -> ModelConfig {
        ModelConfig::load("models/tiny/config.json").unwrap()
    }

    fn layers_with(peft: &Peft) -> Vec<ModelLayer> {
        let trained = trained_tensors(&tiny(), false, peft).unwrap();
        layers(&tiny(), false, &trained)
    }

    #[test]
    fn own_parameters_add_up_to_the_model() {
        let config = tiny();
        let layers = layers(&config, false, &[]);
        let total: usize = layers.iter().map(ModelLayer::num_params).sum();
        assert_eq!(total, config.num_params());
        let head = layers.last().unwrap();
        assert_eq!(head.tied_to.as_deref(), Some("model.embed_tokens"));
        assert_eq!(head.num_params(), 0);
        assert!(
            layers
                .iter()
                .all(|layer| layer.trained_params + layer.adapter_params == 0)
        );
    }

    /// Qwen2's biases stand behind the weights of their block.
    #[test]
    fn a_module_is_one_layer() {
        let config = ModelConfig::load("tests/reference/qwen2/config.json").unwrap();
        let layers = layers(&config, false, &[]);
        let query: Vec<_> = (layers.iter())
            .filter(|layer| layer.path == "model.layers.0.self_attn.q_proj")
            .collect();
        assert_eq!(query.len(), 1);
        let names: Vec<_> = query[0]
            .tensors
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["weight", "bias"]);
    }

    #[test]
    fn a_line_says_what_is_trained() {
        let line = |entries: &[&str]| {
            let only = Peft::Only(entries.iter().map(ToString::to_string).collect());
            trained_summary(&layers_with(&only))
        };
        assert_eq!(line(&["layers.-1", "norm"]), "model.layers.3, model.norm");
        assert_eq!(
            line(&[
                "q_proj",
                "layers.0.mlp.up_proj",
                "layers.2.mlp.up_proj",
                "embed_tokens"
            ]),
            "model.embed_tokens, model.layers.0-3.self_attn.q_proj, model.layers.0,2.mlp.up_proj"
        );
        assert_eq!(
            line(&["layers.1.mlp"]),
            "model.layers.1.(mlp.gate_proj, mlp.up_proj, mlp.down_proj)"
        );
    }

    #[test]
    fn what_is_trained_is_where_it_is() {
        let last = Peft::Only(vec!["layers.-1".into()]);
        for layer in layers_with(&last) {
            let of_last = layer.path.starts_with("model.layers.3.");
            let expected = if of_last { layer.num_params() } else { 0 };
            assert_eq!(layer.trained_params, expected, "{}", layer.path);
        }
        let lora = Peft::Lora(LoraConfig {
            rank: 4,
            target_modules: vec!["down_proj".into()],
            ..LoraConfig::default()
        });
        for layer in layers_with(&lora) {
            let sizes: usize = layer.tensors[0].1.iter().sum();
            let expected = if layer.path.ends_with("down_proj") {
                4 * sizes
            } else {
                0
            };
            assert_eq!(layer.adapter_params, expected, "{}", layer.path);
        }
    }
}
