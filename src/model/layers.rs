//! The layers of a model by name: shapes, numbers of parameters, and what a recipe's `peft` would train of them.

use super::adapter::trained_tensors;
use super::biases::trained_biases;
use super::config::{ModelConfig, TensorSpec};
use crate::error::Result;
use crate::peft::Peft;

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

/// The layers of the causal model, or of the classifier on its backbone, in the order of the model. Without `peft` nothing is trained.
///
/// # Errors
/// `Error::Usage` for an entry of `peft` that names no layer.
pub fn layers(
    config: &ModelConfig,
    classifier: bool,
    peft: Option<&Peft>,
) -> Result<Vec<ModelLayer>> {
    let tensors = match classifier {
        true => config.classifier_tensors(),
        false => config.tensors(),
    };
    let trained = match peft {
        Some(peft) => trained_tensors(peft, &tensors)?,
        None => Vec::new(),
    };
    let mut layers: Vec<ModelLayer> = Vec::new();
    for tensor in &tensors {
        let (path, leaf) = split(tensor);
        if layers.last().is_none_or(|layer| layer.path != path) {
            layers.push(ModelLayer {
                path: path.to_owned(),
                tensors: Vec::new(),
                tied_to: tensor
                    .tied_to
                    .as_deref()
                    .map(|name| module(name).to_owned()),
                trained_params: 0,
                adapter_params: 0,
            });
        }
        let Some(layer) = layers.last_mut() else {
            continue;
        };
        layer.tensors.push((leaf.to_owned(), tensor.shape.clone()));
        if trained.contains(&tensor) {
            layer.trained_params += tensor.shape.iter().product::<usize>();
        }
    }
    if let Some(adapter) = peft.and_then(Peft::adapter) {
        config.check_virtual_tokens(&adapter)?;
        let virtual_tokens = adapter.num_virtual_tokens();
        if virtual_tokens > 0 {
            layers.insert(
                0,
                ModelLayer {
                    path: VIRTUAL_TOKENS.into(),
                    tensors: vec![("before every row".into(), vec![virtual_tokens])],
                    tied_to: None,
                    trained_params: 0,
                    adapter_params: adapter.num_prompt_params(&config.decoder_shape()),
                },
            );
        }
        let linear = config.linear_modules();
        let mut adapted = Vec::new();
        for index in adapter.targets(&linear)? {
            let spec = &linear[index];
            adapted.push(spec.name.clone());
            if let Some(layer) = layers.iter_mut().find(|layer| layer.path == spec.name) {
                layer.adapter_params = adapter.num_params(spec);
            }
        }
        for bias in trained_biases(&adapter, config, &adapted)? {
            if let Some(layer) = layers.iter_mut().find(|layer| layer.path == split(&bias).0) {
                layer.trained_params += bias.shape.iter().product::<usize>();
            }
        }
    }
    Ok(layers)
}

/// What is trained of `layers` on a line: blocks with the same parts together, e.g. `model.layers.0-29.(self_attn.q_proj, self_attn.v_proj)`,
/// `model.layers.29, model.norm`.
pub fn trained_summary(layers: &[ModelLayer]) -> String {
    // Parts in the order of the model: before the block's number, after it, and the blocks in which it is trained.
    let mut parts: Vec<(&str, &str, Vec<usize>)> = Vec::new();
    for layer in layers.iter().filter(|layer| layer.tied_to.is_none()) {
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
            shown.push((*stem).to_owned());
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

/// A tensor's module and its name below that.
fn split(tensor: &TensorSpec) -> (&str, &str) {
    tensor.name.rsplit_once('.').unwrap_or(("", &tensor.name))
}

/// The module of a tensor.
fn module(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(path, _)| path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::LoraConfig;

    fn tiny() -> ModelConfig {
        ModelConfig::load("models/tiny/config.json").unwrap()
    }

    #[test]
    fn own_parameters_add_up_to_the_model() {
        let config = tiny();
        let layers = layers(&config, false, None).unwrap();
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

    #[test]
    fn a_line_says_what_is_trained() {
        let config = tiny();
        let line = |entries: &[&str]| {
            let only = Peft::Only(entries.iter().map(ToString::to_string).collect());
            trained_summary(&layers(&config, false, Some(&only)).unwrap())
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
        let config = tiny();
        let last = Peft::Only(vec!["layers.-1".into()]);
        for layer in layers(&config, false, Some(&last)).unwrap() {
            let of_last = layer.path.starts_with("model.layers.3.");
            let expected = if of_last { layer.num_params() } else { 0 };
            assert_eq!(layer.trained_params, expected, "{}", layer.path);
        }
        let lora = Peft::Lora(LoraConfig {
            rank: 4,
            target_modules: vec!["down_proj".into()],
            ..LoraConfig::default()
        });
        for layer in layers(&config, false, Some(&lora)).unwrap() {
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
