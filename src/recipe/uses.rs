//! What a stage reads: its data sets, with what it needs of their rows, and its reward sources.

use super::Stage;
use crate::data::{DataConfig, RowKind};
use crate::reward::RewardConfig;
use crate::train::config::SftConfig;

/// The data sets and reward sources of a stage, by key.
pub(super) struct Uses<'a> {
    pub(super) data: Vec<(&'static str, &'a DataConfig, RowKind)>,
    pub(super) rewards: Vec<(String, &'a RewardConfig)>,
}

/// What fine-tuning needs of a row.
pub(super) fn sft_rows(config: &SftConfig) -> RowKind {
    match config.completion_only_loss {
        true => RowKind::Completion,
        false => RowKind::TextOrCompletion,
    }
}

pub(super) fn uses(stage: &Stage) -> Uses<'_> {
    let mut rewards: Vec<(String, &RewardConfig)> = Vec::new();
    let (data, eval_data, kind) = match stage {
        Stage::Pretrain(c) => (&c.data, c.eval_data.as_ref(), RowKind::Text),
        Stage::Sft(c) => (&c.data, c.eval_data.as_ref(), sft_rows(c)),
        Stage::Rank(c) => {
            rewards.push(("reward".into(), &c.reward));
            (&c.data, None, RowKind::Prompt)
        }
        Stage::RewardModel(c) => (&c.data, c.eval_data.as_ref(), RowKind::Preference),
        Stage::Dpo(c) => (&c.data, c.eval_data.as_ref(), RowKind::Preference),
        Stage::Ppo(c) => {
            rewards.push(("reward".into(), &c.reward));
            rewards.extend(c.gold.iter().map(|gold| ("gold".into(), gold)));
            (&c.data, c.eval_data.as_ref(), RowKind::Prompt)
        }
        Stage::Compare(c) => {
            let titled = c.rewards.iter();
            rewards.extend(titled.map(|(title, reward)| (format!("rewards.{title}"), reward)));
            (&c.data, None, RowKind::Prompt)
        }
    };
    let mut data = vec![("data", data, kind)];
    data.extend(eval_data.map(|eval| ("eval_data", eval, kind)));
    if let Stage::RewardModel(c) = stage
        && let Some(center) = &c.center_on
    {
        data.push(("center_on", center, RowKind::Completion));
    }
    if let Stage::Ppo(c) = stage
        && let Some(ptx) = &c.ptx
    {
        data.push(("ptx.data", &ptx.data, RowKind::Text));
    }
    Uses { data, rewards }
}
