//! The state shared by the stages of one run: device, folders, seed, frozen bases, reporter.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::RunClock;
use super::lineage::Lineage;
use crate::checkpoint::RunDir;
use crate::collective;
use crate::data::{
    DataConfig, DataContext, EncodeReport, Row, RowEncoding, RowsCache, TokenRow, TokenRows,
    Tokenizer, read_rows, source_files, token_rows,
};
use crate::error::Result;
use crate::model::{LanguageModel, ModelConfig, WithTokens};
use crate::ops::{ModelBackend, Numerics};
use crate::report::{Interrupt, ReportTo, Reporter, StageRecord};
use crate::reward::CustomRewards;
use crate::rng::Seed;

/// The result of a stage, for people to read.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What came of the stage.
    pub record: StageRecord,
    /// A table for the user, if the stage makes one.
    pub table: String,
}

/// One run on one backend.
pub struct Session<'a, B: ModelBackend> {
    /// The device of all tensors.
    pub device: B::Device,
    /// The run's folder.
    pub run: &'a RunDir,
    /// The recipe's name.
    pub recipe: String,
    /// Root of the run's randomness.
    pub seed: Seed,
    /// The recipe's `model`.
    pub model: Option<String>,
    /// The recipe's `eos_token`.
    pub eos_token: Option<String>,
    /// The recipe's `add_tokens`.
    pub add_tokens: Vec<String>,
    /// The recipe's `base_precision` and `matmul_precision`.
    pub numerics: Numerics,
    /// Whether unfinished stages continue from their last checkpoint.
    pub resume: bool,
    /// The command that continues this run.
    pub resume_command: String,
    /// The request to stop.
    pub interrupt: Interrupt,
    /// Reward sources of the program.
    pub rewards: CustomRewards,
    /// Where metrics go besides the run folder's logs.
    pub report_to: Vec<ReportTo>,
    /// The place of the stage in the run, and the time left.
    pub clock: RunClock,
    /// Receives progress and messages.
    pub reporter: &'a mut dyn Reporter,
    /// SHA-256 of data files that were hashed when their stage began.
    pub hashes: HashMap<PathBuf, String>,
    /// Frozen bases, keyed by the files of the model and of adapters merged into it, by rows of the embedding, and by whether that is
    /// the output head. Policies, references, rewards and values with the same base share one copy.
    pub(super) bases: HashMap<(Vec<PathBuf>, usize, bool), LanguageModel<B>>,
    /// The models and data of the stage that runs.
    pub(super) lineage: Lineage,
    /// Warnings reported so far.
    pub(super) warned: BTreeSet<String>,
}

impl<'a, B: ModelBackend> Session<'a, B> {
    /// A session without loaded models.
    pub fn new(device: B::Device, run: &'a RunDir, reporter: &'a mut dyn Reporter) -> Self {
        Self {
            device,
            run,
            recipe: String::new(),
            seed: Seed::new(1),
            model: None,
            eos_token: None,
            add_tokens: Vec::new(),
            numerics: Numerics::default(),
            resume: false,
            resume_command: String::new(),
            interrupt: Interrupt::default(),
            rewards: CustomRewards::default(),
            report_to: Vec::new(),
            clock: RunClock::default(),
            reporter,
            hashes: HashMap::new(),
            bases: HashMap::new(),
            lineage: Lineage::default(),
            warned: BTreeSet::new(),
        }
    }

    /// The folder of a stage.
    ///
    /// # Errors
    /// `Error::Io` if it cannot be made.
    pub fn stage_dir(&self, stage: &str) -> Result<PathBuf> {
        self.run.stage_dir(stage)
    }

    /// The first `count` rows of a data set.
    ///
    /// # Errors
    /// See [`read_rows`].
    pub(super) fn first_rows(&self, data: &DataConfig, count: usize) -> Result<Vec<Row>> {
        let limit = data.limit.map_or(count, |limit| limit.min(count));
        let first = DataConfig {
            limit: Some(limit),
            ..data.clone()
        };
        read_rows(&first, &self.data_context())
    }

    /// The encoded rows of a data set. Reports under the name `what` which were dropped or truncated, if any, and whether they come
    /// from the cache of large sets.
    ///
    /// # Errors
    /// See [`token_rows`].
    pub(super) fn token_rows<E: RowEncoding<Item: TokenRow>>(
        &mut self,
        what: &str,
        data: &DataConfig,
        tokenizer: &Tokenizer,
        encoding: &E,
    ) -> Result<TokenRows<E::Item>> {
        let (context, cache) = (self.data_context(), RowsCache::from_env());
        let reporter = &mut *self.reporter;
        let mut say = |text: &str| reporter.message(&format!("{what}: {text}"));
        // Rank 0 fills the cache of large sets, in which the others find them.
        let rows = collective::in_turn(|| {
            token_rows(data, &context, tokenizer, encoding, &cache, &mut say)
        })?;
        self.report_rows(what, rows.report());
        Ok(rows)
    }

    pub(super) fn data_context(&self) -> DataContext {
        DataContext {
            run_dir: self.run.path().to_path_buf(),
            ..DataContext::default()
        }
    }

    /// Randomness of one stage.
    pub fn stage_seed(&self, stage: &str) -> Seed {
        self.seed.fork("stage").fork(stage)
    }

    /// A policy's tokenizer with the recipe's new tokens and its EOS, and the configuration with rows for them.
    ///
    /// # Errors
    /// As [`ModelConfig::add_tokens`] and [`Tokenizer::with_eos_token`].
    pub(super) fn with_tokens(
        &self,
        tokenizer: &Tokenizer,
        config: &ModelConfig,
    ) -> Result<(Arc<Tokenizer>, ModelConfig)> {
        let WithTokens {
            tokenizer, config, ..
        } = config.add_tokens(tokenizer, &self.add_tokens)?;
        let tokenizer = match &self.eos_token {
            Some(text) => tokenizer.with_eos_token(text)?,
            None => tokenizer,
        };
        Ok((Arc::new(tokenizer), config))
    }

    /// Reports dropped and truncated rows of a data set, if any.
    fn report_rows(&mut self, what: &str, report: &EncodeReport) {
        let text = report.to_string();
        if !text.is_empty() {
            self.reporter.message(&format!("{what}: {text}"));
        }
        for warning in report.warnings() {
            self.reporter
                .message(&format!("warning: {what}: {warning}"));
        }
    }

    /// Frees the shared bases. In full fine-tuning a base would be a second copy of the model without a use.
    pub fn free_bases(&mut self) {
        self.bases.clear();
    }
}

/// The tokenizer to save with a model trained on these rows: generation also stops where their turns end.
///
/// # Errors
/// As [`Tokenizer::stopping_at`].
pub(super) fn stopping(tokenizer: &Arc<Tokenizer>, rows: &EncodeReport) -> Result<Arc<Tokenizer>> {
    match &rows.turn_end {
        Some(end) => Ok(Arc::new(tokenizer.stopping_at(end.id)?)),
        None => Ok(tokenizer.clone()),
    }
}

/// The files on this machine that a data set reads; none for generated rows.
pub(super) fn data_files(data: &DataConfig, run: &Path) -> Vec<PathBuf> {
    source_files(&data.source, run)
}
