//! Embedding and output head that an adapter's file holds whole, in place of the base's.
//!
//! # Source
//! PEFT 0.21, `get_peft_model_state_dict(save_embedding_layers="auto")`: both are saved beside an adapter if the vocabulary has another
//! size than the base's.

use burn::module::{Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::config::ModelConfig;
use super::host_tensors;
use super::resize::with_rows;
use super::weights::WeightSource;
use crate::error::{Error, Problem, Result};
use crate::params::{HostTensor, ParamKind, ParamSlot, Parameters};
use crate::peft::Adaptable;
use crate::peft::keys::{StoredKey, parse_key};

/// Components that PEFT adds to the path of a table with an adapter on it.
const LAYERS_AROUND: [&str; 2] = ["base_layer", "token_adapter"];

/// The output head of every family in memory of transformers, whatever a checkpoint calls it: PEFT's files name that.
pub(super) const HEAD_IN_MEMORY: &str = "lm_head.weight";

/// Tables of a file, the embedding first: the parameter's name, and the file's.
#[derive(Debug, Default)]
pub(super) struct StoredTables(Vec<(&'static str, String)>);

impl StoredTables {
    /// Those among the names of a file.
    pub(super) fn find(source: &dyn WeightSource, config: &ModelConfig) -> Self {
        let tables = config.tables();
        let of_table = |name: String| {
            let StoredKey::Whole(parameter) = parse_key(&name, &[]) else {
                return None;
            };
            let parts = parameter.split('.');
            let parts: Vec<&str> = parts.filter(|part| !LAYERS_AROUND.contains(part)).collect();
            let parameter = match parts.join(".") {
                head if head == HEAD_IN_MEMORY => config.tables()[1].to_owned(),
                parameter => parameter,
            };
            let end = format!(".{parameter}");
            let mut tables = tables.into_iter();
            let table = tables.find(|table| *table == parameter || table.ends_with(&end))?;
            Some((table, name))
        };
        let mut stored: Vec<_> = source.names().into_iter().filter_map(of_table).collect();
        stored.sort_by_key(|(table, _)| *table != config.embedding_name());
        Self(stored)
    }

    /// Those but for tensors of the file that are read as something else.
    pub(super) fn without(mut self, others: impl Fn(&str) -> bool) -> Self {
        self.0.retain(|(_, stored)| !others(stored));
        self
    }

    /// Whether the file's tensor of that name is one of them.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.0.iter().any(|(_, stored)| stored == name)
    }

    /// Rows of the embedding, if the file holds one.
    pub(super) fn rows(&self, source: &dyn WeightSource, config: &ModelConfig) -> Option<usize> {
        let embedding = config.embedding_name();
        let (_, stored) = self.0.iter().find(|(table, _)| *table == embedding)?;
        source.shape(stored)?.first().copied()
    }

    /// What is wrong with the tables' shapes. A model may have more rows, for tokens that were added later.
    pub(super) fn problems(&self, source: &dyn WeightSource, config: &ModelConfig) -> Vec<Problem> {
        let specs = config.tensors();
        let of = |(parameter, stored): &(&'static str, String)| {
            let expected = &specs.iter().find(|spec| spec.name == *parameter)?.shape;
            let found = source.shape(stored).unwrap_or_default();
            let fits = match found.as_slice() {
                [rows, width] => *rows <= expected[0] && *width == expected[1],
                _ => false,
            };
            let message = format!("expected shape {expected:?}, found {found:?}");
            (!fits).then(|| Problem::new(stored, message))
        };
        self.0.iter().filter_map(of).collect()
    }

    /// Puts them into the model. A table with the base's own values stays the base's, so that models on it share it.
    ///
    /// # Errors
    /// `Error::Weights` for a tied head with other values than the embedding; those of reading.
    pub(super) fn load<B: Backend, M: Parameters<B>>(
        &self,
        model: &mut M,
        config: &ModelConfig,
        source: &dyn WeightSource,
        device: &B::Device,
    ) -> Result<()> {
        if let (true, [(_, embedding), (head, stored)]) =
            (config.tie_word_embeddings(), self.0.as_slice())
            && source.read(embedding)? != source.read(stored)?
        {
            return Err(Error::Weights {
                path: source.path().to_path_buf(),
                problems: vec![Problem::new(
                    stored,
                    format!(
                        "has other values than {embedding}; in this model {head} is tied to the embedding"
                    ),
                )],
            });
        }
        let mut outcome = Ok(());
        model.for_each_parameter(&mut |meta, mut slot| {
            let stored = self
                .0
                .iter()
                .find(|(parameter, _)| *parameter == meta.key());
            let shape = slot.shape();
            let (Ok(()), Some((_, stored)), &[rows, width]) = (&outcome, stored, &*shape) else {
                return;
            };
            match source.read(stored) {
                Ok(values) => replace(
                    &mut slot,
                    with_rows(values, rows, width),
                    [rows, width],
                    device,
                ),
                Err(error) => outcome = Err(error),
            }
        });
        outcome
    }
}

/// Gives a table of `shape` other values, if they are others, and an identity of its own.
fn replace<B: Backend>(
    slot: &mut ParamSlot<'_, B>,
    values: Vec<f32>,
    shape: [usize; 2],
    device: &B::Device,
) {
    let present = slot.values();
    match slot {
        ParamSlot::Reduced(reduced, param) => {
            let (mut fresh, mut full) = (reduced.clone(), param.clone());
            let mut other = ParamSlot::Reduced(&mut fresh, &mut full);
            other.assign(values, &shape, device);
            if other.values() != present {
                (**reduced, **param) = (fresh, full);
            }
        }
        ParamSlot::Matrix(param) if values != present => {
            let tensor = Tensor::from_data(TensorData::new(values, shape), device);
            **param = Param::initialized(ParamId::new(), tensor);
        }
        ParamSlot::Matrix(_) | ParamSlot::Vector(_) => {}
    }
}

/// The embedding and the head of a model that are not those of its base's files, as an adapter's file holds them; a tied head is not
/// stored, and none where all new rows are among an adapter's trained ones. Reads the device.
pub(super) fn own_tables<B: Backend, M: Parameters<B> + Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
) -> Vec<HostTensor> {
    let Some(first) = config.own_rows_from else {
        return Vec::new();
    };
    if has_all_rows_from(first, model, config) {
        return Vec::new();
    }
    let tables = config.tables();
    let mut tensors = host_tensors(model, &|kind| kind == ParamKind::Embedding);
    tensors.retain(|(name, ..)| tables.contains(&name.as_str()));
    for (name, ..) in &mut tensors {
        if name == tables[1] {
            *name = HEAD_IN_MEMORY.to_owned();
        }
    }
    tensors
}

/// Whether the rows from `first` on are trained ones in every table of the model: what is stored of them is then enough.
fn has_all_rows_from<B: Backend, M: Adaptable<B>>(
    first: usize,
    model: &mut M,
    config: &ModelConfig,
) -> bool {
    let new = first as u32..config.vocab_size() as u32;
    let mut all = !new.is_empty();
    model.for_each_token_rows(&mut |_, rows| {
        let tokens = rows.as_ref().map_or(&[][..], |rows| rows.tokens());
        all &= new.clone().all(|token| tokens.contains(&token));
    });
    all
}
