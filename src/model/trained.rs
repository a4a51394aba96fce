//! What a recipe's `peft` trains of a model, tensor by tensor, before any weight is loaded.

use super::beside::trained_beside;
use super::config::{ModelConfig, TensorSpec};
use super::token_rows::token_rows;
use crate::error::{Error, Result};
use crate::params::ParamKind;
use crate::peft::only::TensorName;
use crate::peft::{AdapterSpec, LayerKind, PROMPT_EMBEDDINGS, Peft, TOKEN_ROWS, tensor_key};

/// A tensor that is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedTensor {
    /// Its name in files.
    pub name: String,
    /// Path of the module that it is in, or that its adapter is on; `None` for virtual tokens, which stand before every row.
    pub module: Option<String>,
    /// What it is for.
    pub kind: ParamKind,
    /// Stored shape.
    pub shape: Vec<usize>,
}

impl TrainedTensor {
    fn of_model(tensor: &TensorSpec) -> Self {
        Self {
            name: tensor.name.clone(),
            module: Some(module(&tensor.name).to_owned()),
            kind: tensor.kind,
            shape: tensor.shape.clone(),
        }
    }

    fn of_adapter(name: String, module: Option<&str>, shape: Vec<usize>) -> Self {
        Self {
            name,
            module: module.map(str::to_owned),
            kind: ParamKind::Adapter,
            shape,
        }
    }

    /// Rows of a table that it stands for, if it is these and no more.
    pub fn num_token_rows(&self) -> usize {
        match self.name.ends_with(TOKEN_ROWS) {
            true => self.shape[0],
            false => 0,
        }
    }

    /// Number of entries.
    pub fn num_entries(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The tensors of the causal model, or of the classifier on its backbone, that `peft` trains: the model's own in the order of the
/// file, or those of its adapters and what is trained beside them.
///
/// # Errors
/// `Error::Usage` for an entry that names no layer or tensor, and for virtual tokens that the model has no room for.
pub fn trained_tensors(
    config: &ModelConfig,
    classifier: bool,
    peft: &Peft,
) -> Result<Vec<TrainedTensor>> {
    let tensors = match classifier {
        true => config.classifier_tensors(),
        false => config.tensors(),
    };
    let Some(adapter) = peft.adapter() else {
        let own = own_trained_tensors(peft, &tensors)?.into_iter();
        return Ok(own.map(TrainedTensor::of_model).collect());
    };
    let mut trained = adapter_tensors(config, &tensors, &adapter, classifier)?;
    let score = |tensor: &&TensorSpec| classifier && tensor.kind == ParamKind::Score;
    trained.extend(tensors.iter().filter(score).map(TrainedTensor::of_model));
    Ok(trained)
}

fn adapter_tensors(
    config: &ModelConfig,
    tensors: &[TensorSpec],
    adapter: &AdapterSpec,
    classifier: bool,
) -> Result<Vec<TrainedTensor>> {
    config.check_virtual_tokens(adapter)?;
    let linear = config.adaptable_modules(adapter);
    let (mut trained, mut adapted) = (Vec::new(), Vec::new());
    if !adapter.on_layers() {
        // Their tensors are few and small: counted as one.
        let shape = vec![1, adapter.num_prompt_params(&config.decoder_shape())];
        let name = PROMPT_EMBEDDINGS.to_owned();
        trained.push(TrainedTensor::of_adapter(name, None, shape));
    }
    for index in adapter.targets(&linear)? {
        let layer = &linear[index];
        if classifier && layer.kind == LayerKind::Head {
            return Err(no_head("target_modules", &layer.name));
        }
        // Files of some families have another name for the head than its path.
        let path = match layer.kind {
            LayerKind::Head => module(config.tables()[1]),
            LayerKind::Linear | LayerKind::Embedding => &layer.name,
        };
        for (name, shape) in adapter.tensors(layer) {
            let name = tensor_key(&layer.name, name);
            trained.push(TrainedTensor::of_adapter(name, Some(path), shape));
        }
        adapted.push(layer.name.clone());
    }
    for table in token_rows(adapter, config, classifier, &adapted)? {
        let path = match table.kind {
            LayerKind::Head => module(config.tables()[1]),
            LayerKind::Linear | LayerKind::Embedding => &table.path,
        };
        let shape = table.shape();
        trained.push(TrainedTensor::of_adapter(table.key, Some(path), shape));
    }
    let beside = trained_beside(adapter, tensors, &adapted)?;
    trained.extend(beside.iter().map(TrainedTensor::of_model));
    Ok(trained)
}

/// Why the layer at `path`, the output head, is not trained in a reward or value model; `key` is that of the setting that names it.
pub(super) fn no_head(key: &str, path: &str) -> Error {
    Error::Usage(format!(
        "{key}: {path}: a reward or value model has no output head; give it a `peft` (or `value_peft`) of its own without"
    ))
}

/// Of a model's own `tensors` those that `peft` trains; none if it trains adapters.
///
/// # Errors
/// `Error::Usage` for an entry that names no tensor, or a head that is tied to the embedding.
pub(super) fn own_trained_tensors<'a>(
    peft: &Peft,
    tensors: &'a [TensorSpec],
) -> Result<Vec<&'a TensorSpec>> {
    let name = |tensor: &'a TensorSpec| TensorName {
        name: &tensor.name,
        tied_to: tensor.tied_to.as_deref(),
    };
    let names: Vec<TensorName<'_>> = tensors.iter().map(name).collect();
    let trained = peft.trained(&names)?;
    Ok((tensors.iter())
        .filter(|tensor| tensor.tied_to.is_none() && trained.contains(&tensor.name))
        .collect())
}

/// The module of a tensor.
pub(super) fn module(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or("", |(path, _)| path)
}
