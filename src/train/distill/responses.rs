//! The responses that a step trains on: of the data, of the teacher, or of the student.

use crate::data::{Example, Prompt, Prompts, RowKind, TextsOrCompletions, TokenRows, Tokenizer};
use crate::error::Result;
use crate::generate::{GenerateOptions, SamplingConfig, generate};
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::report::RolloutReport;
use crate::rng::Seed;
use crate::train::Session;
use crate::train::config::{DataConfig, DistillConfig};
use crate::train::generation::Generation;

/// A prompt with a response.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sequence {
    /// Token ids of both.
    pub(super) ids: Vec<u32>,
    /// Indices of the tokens whose distributions are compared, never 0.
    pub(super) targets: Vec<usize>,
}

/// The encoded rows of a data set.
#[derive(Debug)]
pub(super) enum Rows {
    /// With completions to train on.
    Completions(TokenRows<Example>),
    /// Prompts alone.
    Prompts(TokenRows<Prompt>),
}

impl DistillConfig {
    /// The kind of rows that it reads: completions are needed only if some step trains on them.
    pub(super) fn row_kind(&self) -> RowKind {
        match self.seq_kd || self.lmbda == 1.0 {
            true => RowKind::Prompt,
            false => RowKind::Completion,
        }
    }

    /// Whether any response is generated in training.
    pub(super) fn generates(&self) -> bool {
        self.seq_kd || self.lmbda > 0.0
    }

    /// How completions are encoded.
    pub(super) fn encoding(&self) -> TextsOrCompletions {
        TextsOrCompletions {
            max_length: self.max_length,
            completion_only: true,
            texts: false,
        }
    }

    /// How responses are generated.
    pub(super) fn generation(&self) -> Generation<'_> {
        Generation {
            response_length: self.response_length,
            sampling: SamplingConfig {
                temperature: self.temperature,
                ..SamplingConfig::default()
            },
            truncate: self.truncate.as_ref(),
            batch_size: self.generation_batch_size,
        }
    }
}

impl Rows {
    /// Reads and encodes a data set; reports dropped rows under the name `what`.
    pub(super) fn read<B: ModelBackend>(
        session: &mut Session<'_, B>,
        what: &str,
        data: &DataConfig,
        config: &DistillConfig,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        if config.row_kind() == RowKind::Completion {
            let rows = session.token_rows(what, data, tokenizer, &config.encoding())?;
            return Ok(Self::Completions(rows));
        }
        let encoding = Prompts {
            max_length: config.max_length,
        };
        let rows = session.token_rows(what, data, tokenizer, &encoding)?;
        Ok(Self::Prompts(rows))
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Completions(rows) => rows.len(),
            Self::Prompts(rows) => rows.len(),
        }
    }

    /// Rows that were read, those left out among them.
    pub(super) fn num_read(&self) -> usize {
        match self {
            Self::Completions(rows) => rows.num_read(),
            Self::Prompts(rows) => rows.num_read(),
        }
    }

    /// The prompts of the rows with these indices, each with at least one token: nothing predicts a row's first one.
    pub(super) fn prompts(&self, indices: &[usize]) -> Result<Vec<Vec<u32>>> {
        let indices = indices.iter().copied();
        Ok(match self {
            Self::Completions(rows) => (rows.get(indices)?.iter())
                .map(|row| row.ids[..row.prompt_len.clamp(1, row.ids.len())].to_vec())
                .collect(),
            Self::Prompts(rows) => (rows.get(indices)?.iter())
                .map(|row| row.ids.clone())
                .collect(),
        })
    }

    /// The rows with these indices with the completions of the data; `None` if they have none.
    pub(super) fn completions(&self, indices: &[usize]) -> Result<Option<Vec<Sequence>>> {
        let Self::Completions(rows) = self else {
            return Ok(None);
        };
        let rows = rows.get(indices.iter().copied())?;
        let of = |row: &Example| Sequence {
            targets: (0..row.ids.len()).filter(|&i| row.trained[i]).collect(),
            ids: row.ids.clone(),
        };
        Ok(Some(rows.iter().map(|row| of(row)).collect()))
    }
}

/// Generates a response to each prompt.
pub(super) fn respond<B: ModelBackend>(
    session: &mut Session<'_, B>,
    model: &LanguageModel<B>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    seed: Seed,
) -> Vec<Sequence> {
    let device = session.device.clone();
    let ids: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let (reporter, total) = (&mut *session.reporter, ids.len());
    let on_progress = &mut |done, tokens| {
        reporter.rollout(&RolloutReport {
            what: "responses",
            done,
            total,
            tokens,
        });
    };
    let responses = generate(model, &ids, options, seed, &device, on_progress);
    (prompts.iter().zip(responses))
        .map(|(prompt, response)| Sequence {
            targets: (prompt.len()..prompt.len() + response.ids.len()).collect(),
            ids: [prompt.as_slice(), &response.ids].concat(),
        })
        .collect()
}
