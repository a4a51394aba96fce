//! Virtual tokens on a model: attached, read and written in PEFT's layout.

use std::path::PathBuf;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::adapter::LoadedAdapter;
use super::config::ModelConfig;
use super::source::ModelSource;
use super::stored_adapter::SCORE_WEIGHT;
use super::stored_tables::StoredTables;
use super::weights::WeightSource;
use crate::error::{Error, Problem, Result};
use crate::ops::ModelBackend;
use crate::params::Parameters;
use crate::peft::keys::{StoredKey, parse_key};
use crate::peft::{
    Adaptable, AdapterConfig, AdapterSpec, DecoderShape, Encode, PROMPT_EMBEDDINGS, PromptStart,
    TaskType,
};
use crate::rng::Seed;

impl ModelConfig {
    /// The sizes that virtual tokens have to fit.
    pub fn decoder_shape(&self) -> DecoderShape {
        DecoderShape {
            embedding: self.output_size(),
            hidden: self.hidden_size(),
            num_layers: self.num_layers(),
            layout: self.head_layout(),
            vocab: self.vocab_size(),
            max_positions: self.max_positions(),
            key_order: self.architecture().key_order().map(std::sync::Arc::new),
        }
    }

    /// Refuses virtual tokens that leave no position to a row.
    ///
    /// # Errors
    /// `Error::Usage`.
    pub fn check_virtual_tokens(&self, spec: &AdapterSpec) -> Result<()> {
        let (count, most) = (spec.num_virtual_tokens(), self.max_positions());
        if count + 2 <= most {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "num_virtual_tokens: {count} of the model's {most} positions leave no room for a row; at most {} can be",
            most.saturating_sub(2)
        )))
    }
}

/// Gives a model fresh virtual tokens.
///
/// # Errors
/// As [`ModelConfig::check_virtual_tokens`], and those of encoding a text.
pub(super) fn attach<B: ModelBackend, M: Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    spec: &AdapterSpec,
    seed: Seed,
    encode: Encode<'_>,
) -> Result<()> {
    config.check_virtual_tokens(spec)?;
    let mut device = B::Device::default();
    model.for_each_projection(&mut |projection| device = projection.weight.val().device());
    let shape = config.decoder_shape();
    let start = PromptStart {
        shape: &shape,
        encode,
        embed: &|ids| model.embeddings(ids, &device),
        device: &device,
    };
    let tokens = spec.fresh_tokens(&start, seed.fork("virtual tokens"))?;
    *model.virtual_tokens() = tokens;
    Ok(())
}

/// The tensors of a file with virtual tokens, checked against a model.
#[derive(Debug)]
pub(super) struct StoredPrompt {
    score: Option<String>,
    shape: [usize; 2],
    tables: StoredTables,
}

impl StoredPrompt {
    /// Names and shapes only.
    ///
    /// # Errors
    /// `Error::Weights` listing every tensor that is missing, surplus or mis-shaped; as [`ModelConfig::check_virtual_tokens`].
    pub(super) fn check(
        adapter: &AdapterConfig,
        source: &dyn WeightSource,
        config: &ModelConfig,
    ) -> Result<Self> {
        config.check_virtual_tokens(&adapter.spec)?;
        let shape = (adapter.spec.stored_shape(&config.decoder_shape()))
            .unwrap_or_else(|| unreachable!("a method with virtual tokens"));
        let expected = |shape: &[usize], found: Option<Vec<usize>>| match found {
            None => Some(format!("missing; expected shape {shape:?}")),
            Some(found) if found != shape => {
                Some(format!("expected shape {shape:?}, found {found:?}"))
            }
            Some(_) => None,
        };
        let mut score = None;
        let tables = StoredTables::find(source, config);
        let mut problems = tables.problems(source, config);
        for name in source.names() {
            match parse_key(&name, &[]) {
                _ if name == PROMPT_EMBEDDINGS || tables.holds(&name) => {}
                StoredKey::Whole(parameter) if parameter == SCORE_WEIGHT => {
                    let found = source.shape(&name);
                    let wrong = expected(&[1, config.output_size()], found);
                    problems.extend(wrong.map(|wrong| Problem::new(&name, wrong)));
                    score = Some(name);
                }
                StoredKey::Original => {}
                _ => problems.push(Problem::new(
                    &name,
                    format!(
                        "surplus; expected {PROMPT_EMBEDDINGS}, and a classifier's score.weight"
                    ),
                )),
            }
        }
        let wrong = expected(&shape, source.shape(PROMPT_EMBEDDINGS));
        problems.extend(wrong.map(|wrong| Problem::new(PROMPT_EMBEDDINGS, wrong)));
        if adapter.task_type == TaskType::SeqCls && score.is_none() {
            problems.push(Problem::new(SCORE_WEIGHT, "missing"));
        }
        match problems.is_empty() {
            true => Ok(Self {
                score,
                shape,
                tables,
            }),
            false => Err(Error::Weights {
                path: source.path().to_path_buf(),
                problems,
            }),
        }
    }
}

/// Puts the virtual tokens of a file before the rows of a model without any.
///
/// # Errors
/// As [`StoredPrompt::check`]; `Error::Io`.
pub(super) fn load<B: Backend, M: Parameters<B> + Adaptable<B>>(
    model: &mut M,
    config: &ModelConfig,
    adapter: AdapterConfig,
    warnings: Vec<String>,
    source: &dyn WeightSource,
    device: &B::Device,
) -> Result<LoadedAdapter> {
    let stored = StoredPrompt::check(&adapter, source, config)?;
    let values = source.read(PROMPT_EMBEDDINGS)?;
    let tensor = Tensor::from_data(TensorData::new(values, stored.shape), device);
    let spec = &adapter.spec;
    *model.virtual_tokens() = spec.stored_tokens(&config.decoder_shape(), tensor);
    (stored.tables).load(model, config, source, device)?;
    let score = stored.score.map(|name| source.read(&name)).transpose()?;
    Ok(LoadedAdapter {
        config: adapter,
        score,
        warnings,
    })
}

impl ModelSource {
    /// Settings of the outermost adapter.
    ///
    /// # Errors
    /// As [`AdapterConfig::load`].
    pub fn adapter(&self) -> Result<Option<AdapterSpec>> {
        let outermost = self.adapters.last();
        let load = |folder: &PathBuf| Ok(AdapterConfig::load(folder)?.0.spec);
        outermost.map(load).transpose()
    }

    /// Longest row in tokens that the model takes: virtual tokens have the first positions.
    ///
    /// # Errors
    /// As [`ModelSource::adapter`].
    pub fn max_row_tokens(&self) -> Result<usize> {
        let virtual_tokens = (self.adapter()?).map_or(0, |spec| spec.num_virtual_tokens());
        Ok((self.config.max_positions()).saturating_sub(virtual_tokens))
    }
}

/// Refuses adapters that others stand on and that cannot be merged into what they themselves stand on.
///
/// # Errors
/// `Error::Format`; as [`AdapterConfig::load`].
pub(super) fn check_stack(adapters: &[PathBuf]) -> Result<()> {
    let inner = adapters.split_last().map_or(&[][..], |(_, inner)| inner);
    inner.iter().try_for_each(|folder| {
        let (below, _) = AdapterConfig::load(folder)?;
        (below.spec.check_mergeable()).map_err(|error| {
            Error::format(
                folder,
                format!("another adapter stands on this one; {error}"),
            )
        })
    })
}
