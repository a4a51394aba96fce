//! Bradley-Terry reward model: all pairs of a prompt in one batch element.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;

use super::Session;
use super::config::RewardModelConfig;
use super::forward::{host, indices};
use super::journal::Journal;
use super::policy::{prepare, save_reward_model};
use super::session::{Outcome, data_file};
use super::state::{restore_weights, trained_weights};
use crate::checkpoint::TensorMap;
use crate::data::{Batches, Comparisons, encode_comparisons, encode_completions, micro_batches};
use crate::error::{Error, Result};
use crate::loss::{self, bradley_terry};
use crate::model::ScalarModel;
use crate::ops::ModelBackend;
use crate::optim::{AdamW, GradientSum, lr_at};
use crate::params::{ParamKind, Parameters};
use crate::reward::{Learned, RewardConfig, RewardSource};
use crate::tokens::TokenBatch;

impl<B: ModelBackend> Session<'_, B> {
    /// The reward source that a recipe names. A learned one reads tokens, so it must have the policy's vocabulary.
    ///
    /// # Errors
    /// Those of the source.
    pub(super) fn reward_source(
        &mut self,
        config: &RewardConfig,
        vocab: usize,
    ) -> Result<Box<dyn RewardSource>>
    where
        B: 'static,
    {
        crate::reward::build(config, &mut |stage| {
            let reward = self.reward_model(stage)?;
            if reward.vocab_size != vocab {
                return Err(Error::Reward {
                    name: stage.to_owned(),
                    message: format!(
                        "it has a vocabulary of {} tokens and the policy one of {vocab}; train it from the same model",
                        reward.vocab_size
                    ),
                });
            }
            Ok(Box::new(Learned::new(
                reward.model,
                SCORE_TOKENS,
                self.device.clone(),
            )))
        })
    }
}

/// Tokens that a learned reward passes through its model at once.
const SCORE_TOKENS: usize = 4096;

/// The rows of one micro-batch by prompt, and the pairs among them, counted over all rows.
struct Micro<'a> {
    groups: Vec<Vec<&'a [u32]>>,
    pairs: loss::Comparisons,
}

impl<'a> Micro<'a> {
    fn new(items: impl Iterator<Item = &'a Comparisons>, use_margin: bool) -> Self {
        let mut micro = Self {
            groups: Vec::new(),
            pairs: loss::Comparisons::new(),
        };
        let mut first = 0;
        for item in items {
            micro
                .groups
                .push(item.responses.iter().map(Vec::as_slice).collect());
            micro
                .pairs
                .push_prompt(item.pairs.iter().map(|&(chosen, rejected, margin)| {
                    (
                        first + chosen,
                        first + rejected,
                        if use_margin { margin } else { 0.0 },
                    )
                }));
            first += item.responses.len();
        }
        micro
    }
}

/// Trains, measures accuracy on held-out comparisons, and centres the scores.
///
/// # Errors
/// Those of data and models; `Error::NonFinite`; `Error::Interrupted`.
pub fn reward_model<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &RewardModelConfig,
) -> Result<Outcome> {
    let device = session.device.clone();
    let seed = session.stage_seed(&config.name);
    let policy = session.policy(&config.init)?;
    let rows = session.rows(&config.data)?;
    let train = encode_comparisons(
        &rows,
        &policy.tokenizer,
        &config.data.format,
        config.max_length,
    )?;
    session.tell("comparisons", &train.report);
    let train = train.items;
    let valid = match &config.eval_data {
        Some(data) => {
            let encoded = encode_comparisons(
                &session.rows(data)?,
                &policy.tokenizer,
                &data.format,
                config.max_length,
            )?;
            session.tell("held-out comparisons", &encoded.report);
            encoded.items
        }
        None => Vec::new(),
    };
    let data = (data_file(&config.data, session.run.path()), rows.len());
    session.record(
        &config.name,
        &format!("{:?}", config.init),
        &policy.files,
        &[data],
    )?;

    let mut backbone = policy.model.clone().into_backbone();
    let (lora, merged) = prepare(
        &mut backbone,
        &policy.config,
        policy.lora.as_ref(),
        &config.peft,
        seed,
    )?;
    if merged {
        return Err(Error::Stage {
            stage: config.name.clone(),
            message: "its adapters differ in rank, scale or layers from those of `init`; give both the same `peft`".into(),
        });
    }
    let hidden = policy.config.output_size();
    let mut model = ScalarModel::with_random_head(backbone, hidden, seed.fork("head"), &device);
    if let Some(head) = &policy.score {
        model.set_score(head.clone(), &device);
    }
    let mut model = ScalarModel::<Autodiff<B>>::from_inner(model);
    let full = lora.is_none();
    model.train_only(&|kind| full || matches!(kind, ParamKind::Adapter | ParamKind::Score));

    let batches = Batches::new(
        train.len(),
        config.batch_size,
        config.epochs,
        config.shuffle.then(|| seed.fork("order")),
    );
    let steps = batches.num_steps();
    let pairs: usize = train.iter().map(|c| c.pairs.len()).sum();
    let summary = format!("{pairs} comparisons of {} prompts", train.len());
    let (mut journal, restored) =
        Journal::open(session, &config.name, &summary, steps, &config.cadence)?;
    let mut optim = AdamW::<B>::new(config.optim.clone());
    if let Some((folder, checkpoint)) = restored {
        restore_weights(&checkpoint.weights, "", &mut model, &device, &folder)?;
        optim.restore(checkpoint.optim, journal.position.updates[0], &device);
    }
    let mut accuracy = None;
    if journal.position.step == 0 {
        evaluate(
            session,
            &mut journal,
            config,
            &model.valid(),
            &valid,
            &device,
        )?;
    }
    while journal.position.step < steps {
        let done = journal.position.step;
        let items: Vec<&Comparisons> = batches.batch(done).into_iter().map(|i| &train[i]).collect();
        let lens: Vec<usize> = items.iter().map(|c| c.packed_len()).collect();
        let tokens: usize = items.iter().flat_map(|c| &c.responses).map(Vec::len).sum();
        let (mut sum, mut loss, mut correct, mut pairs) = (GradientSum::<B>::default(), 0.0, 0, 0);
        for part in micro_batches(&lens, config.micro_batch_tokens) {
            let micro = Micro::new(part.into_iter().map(|i| items[i]), config.use_margin);
            let (batch, spans) = TokenBatch::<Autodiff<B>>::from_groups(&micro.groups, &device);
            let last: Vec<usize> = spans
                .iter()
                .map(|span| span.token(span.len() - 1))
                .collect();
            let last = indices(&last, &device);
            let dropout = seed.fork("dropout").fork_index(done as u64);
            let scores = model.scores(&batch, Some(last), Some(dropout));
            correct += micro.pairs.num_correct(&host(scores.clone().inner()));
            pairs += micro.pairs.num_pairs();
            let part_loss = bradley_terry(scores, &micro.pairs);
            let value = f64::from(host(part_loss.clone().inner())[0]);
            if !value.is_finite() {
                return Err(journal.non_finite("loss", &micro.groups.concat()));
            }
            loss += value;
            sum.add::<Autodiff<B>>(&mut model, &mut part_loss.backward());
        }
        let lr = lr_at(&config.optim.schedule, config.optim.lr, done, steps);
        let norm = optim.update(&mut model, sum, items.len() as f64, lr);
        if !norm.is_finite() {
            let rows: Vec<&[u32]> = items
                .iter()
                .flat_map(|c| c.responses.iter().map(Vec::as_slice))
                .collect();
            return Err(journal.non_finite("gradient norm", &rows));
        }
        journal.position.updates = vec![optim.num_updates()];
        let metrics = [
            ("loss", loss / items.len() as f64),
            ("accuracy", correct as f64 / pairs as f64),
            ("grad_norm", norm),
            ("lr", lr),
        ];
        journal.step(session, tokens as u64, &metrics)?;
        if journal.evaluates() {
            accuracy = evaluate(
                session,
                &mut journal,
                config,
                &model.valid(),
                &valid,
                &device,
            )?;
        }
        if journal.must_save() {
            let mut weights = TensorMap::new();
            trained_weights(&mut weights, "", &mut model);
            journal.save(session, &weights, &optim.state())?;
        }
    }
    let mut model = model.valid();
    let mut centre = String::new();
    if let Some(data) = &config.center_on {
        let rows = session.rows(data)?;
        let examples = encode_completions(
            &rows,
            &policy.tokenizer,
            &data.format,
            config.max_length,
            true,
        )?
        .items;
        let rows: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
        model.offset = crate::rl::mean(&model.row_scores(
            &rows,
            config.micro_batch_tokens,
            &device,
            &mut |_, _| {},
        ));
        centre = format!(
            "; scores shifted by {:.4} so that {} reference responses average 0",
            -model.offset,
            rows.len()
        );
    }
    save_reward_model(
        journal.dir(),
        &mut model,
        lora.as_ref(),
        &policy.config,
        &policy.tokenizer,
        &policy.base,
    )?;
    let summary = match accuracy {
        Some(accuracy) => format!("held-out accuracy {:.1} %{centre}", 100.0 * accuracy),
        None => format!("{steps} steps{centre}"),
    };
    journal.finish(session, &summary, "")?;
    Ok(Outcome {
        summary,
        table: String::new(),
    })
}

/// Loss and accuracy on the held-out comparisons, if there are any.
fn evaluate<B: ModelBackend>(
    session: &mut Session<'_, B>,
    journal: &mut Journal,
    config: &RewardModelConfig,
    model: &ScalarModel<B>,
    valid: &[Comparisons],
    device: &B::Device,
) -> Result<Option<f64>> {
    if valid.is_empty() {
        return Ok(None);
    }
    let micro = Micro::new(valid.iter(), config.use_margin);
    let tokens = config.micro_batch_tokens;
    let scores = model.group_scores(&micro.groups, tokens, device, &mut |_, _| {});
    let scores = scores.concat();
    let accuracy = micro.pairs.num_correct(&scores) as f64 / micro.pairs.num_pairs() as f64;
    let loss = bradley_terry(super::forward::floats::<B>(&scores, device), &micro.pairs);
    let loss = f64::from(host(loss)[0]) / valid.len() as f64;
    let spread = crate::rl::variance(&scores).sqrt();
    journal.eval(
        session,
        &[
            ("eval/loss", loss),
            ("eval/accuracy", accuracy),
            ("eval/score_std", spread),
        ],
    )?;
    Ok(Some(accuracy))
}
