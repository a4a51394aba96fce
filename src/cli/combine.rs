//! `temper export --adapters`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::args::{ComputeArgs, ExportArgs, at_most};
use super::export::write_folder;
use super::export_gguf;
use crate::backend::{Task, dispatch};
use crate::data::Tokenizer;
use crate::error::{Error, Result};
use crate::model::combine_adapters;
use crate::model::weights::gguf::is_gguf;
use crate::ops::ModelBackend;
use crate::peft::files::ADAPTER_CONFIG;
use crate::peft::{Combination, CombineSettings, MajoritySign};
use crate::rng::Seed;
use crate::sizes::fits_f32;

/// Several LoRA adapters as one.
#[derive(Debug, Clone, Args)]
pub struct CombineArgs {
    /// Combine these LoRA adapters (folders) into one, in place of --run; one alone for a GGUF file of it
    #[arg(
        long,
        visible_alias = "adapter",
        value_name = "DIR,DIR",
        value_delimiter = ',',
        conflicts_with = "run"
    )]
    pub adapters: Vec<PathBuf>,
    /// A weight for each of them [default: 1 for each]
    #[arg(
        long,
        value_name = "W,W",
        value_delimiter = ',',
        allow_hyphen_values = true,
        requires = "adapters"
    )]
    pub weights: Vec<f64>,
    /// PEFT's combination_type: linear, cat, svd, ties, dare_linear, dare_ties, magnitude_prune; the last four also as ties_svd etc.
    #[arg(long, default_value = "cat", value_name = "TYPE", value_parser = combination)]
    pub combination: Combination,
    /// Share of the numbers that ties, dare and magnitude_prune keep
    #[arg(long, value_name = "SHARE", requires = "adapters", value_parser = share)]
    pub density: Option<f64>,
    /// Whose sign counts for ties: that of the sum (total), or of most adapters (frequency)
    #[arg(long, default_value = "total", value_name = "HOW", value_parser = majority)]
    pub majority_sign_method: MajoritySign,
    /// Rank of the result of svd [default: the largest of the adapters']
    #[arg(long, value_name = "N", requires = "adapters", value_parser = at_most::<16_384>)]
    pub svd_rank: Option<usize>,
    /// Seed of what dare leaves out
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub combine_seed: u64,
}

fn combination(name: &str) -> Result<Combination, String> {
    Combination::parse(name).ok_or_else(|| {
        let known = Combination::ALL.map(|(name, _)| name);
        format!("expected one of {}", known.join(", "))
    })
}

fn majority(name: &str) -> Result<MajoritySign, String> {
    match name {
        "total" => Ok(MajoritySign::Total),
        "frequency" => Ok(MajoritySign::Frequency),
        _ => Err("expected total or frequency".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

/// Writes one adapter that stands for several.
///
/// # Errors
/// `Error::Usage` for settings and adapters that do not go together; those of reading and writing.
pub(super) fn run(args: &ExportArgs, to: &Path, compute: &ComputeArgs) -> Result<()> {
    let asked = &args.combine;
    let count = asked.adapters.len();
    let weights = match asked.weights.len() {
        0 => vec![1.0; count],
        given if given == count => asked.weights.clone(),
        given => {
            return Err(Error::Usage(format!(
                "--weights: {given} for {count} adapters; give one for each"
            )));
        }
    };
    if let Some(weight) = weights.iter().find(|weight| !fits_f32(**weight)) {
        return Err(Error::Usage(format!(
            "--weights: {weight:e} does not fit a 32-bit float"
        )));
    }
    if asked.combination.needs_density() && asked.density.is_none() {
        return Err(Error::Usage(
            "--density: this combination keeps a share of the numbers; give it, e.g. --density 0.5"
                .into(),
        ));
    }
    let folders: Vec<PathBuf> = asked.adapters.iter().map(|folder| inside(folder)).collect();
    let combine = Combine {
        folders: &folders,
        settings: CombineSettings {
            combination: asked.combination,
            weights,
            density: asked.density,
            majority_sign: asked.majority_sign_method,
            svd_rank: asked.svd_rank,
            seed: Seed::new(asked.combine_seed),
        },
        to: Path::new(""),
    };
    let write = |to: &Path| {
        let notes = dispatch(compute.backend, compute.device, Combine { to, ..combine })?;
        if let Ok(tokenizer) = Tokenizer::load(&folders[0]) {
            tokenizer.save(to)?;
        }
        Ok(format!("{count} adapters as one{notes}"))
    };
    match is_gguf(to) {
        true => export_gguf::combined(to, write),
        false => write_folder(to, write),
    }
}

/// A stage's folder stands for the adapter in it.
fn inside(folder: &Path) -> PathBuf {
    let adapter = folder.join("adapter");
    match folder.join(ADAPTER_CONFIG).is_file() || !adapter.join(ADAPTER_CONFIG).is_file() {
        true => folder.to_path_buf(),
        false => adapter,
    }
}

/// Reads adapters and writes what becomes of them.
struct Combine<'a> {
    folders: &'a [PathBuf],
    settings: CombineSettings,
    to: &'a Path,
}

impl Task for Combine<'_> {
    type Output = String;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<String> {
        combine_adapters::<B>(self.folders, &self.settings, self.to, &device)
    }
}
