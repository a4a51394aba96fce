//! The stage specification of Dpo.

use super::DpoConfig;
use crate::error::Result;
use crate::loss::DpoObjective;
use crate::ops::ModelBackend;
use crate::suggest::quoted;
use crate::train::checks::Checks;
use crate::train::config::DpoLoss;
use crate::train::preference::{
    self, Objective, PreferenceKeys, PreferenceMethod, ReferencePasses, Settings, preference_stage,
};
use crate::train::{MetricNames, Outcome, Session};

preference_stage!(DpoConfig);

impl DpoConfig {
    fn objective(&self) -> Objective {
        Objective::Dpo(DpoObjective {
            losses: self.losses(),
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            discopop_tau: self.discopop_tau.unwrap_or(0.05),
        })
    }
}

impl PreferenceMethod for DpoConfig {
    const TITLE: &'static str = "DPO";

    fn keys(&self) -> PreferenceKeys<'_> {
        self.preference_keys()
    }

    fn reference(&self) -> ReferencePasses {
        ReferencePasses::of(self.precompute_ref_log_probs)
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn metrics(&self) -> MetricNames {
        self.objective().metric_names()
    }

    fn check_own(&self, checks: &mut Checks, path: &str) {
        check_losses(checks, path, self);
    }

    fn train<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        let settings = Settings {
            keys: self.preference_keys(),
            objective: self.objective(),
            precompute_ref_log_probs: self.precompute_ref_log_probs,
        };
        preference::train(session, &settings)
    }
}

/// Checks the losses, their weights and what belongs to some of them.
fn check_losses(checks: &mut Checks, path: &str, config: &DpoConfig) {
    let loss_type = format!("{path}.loss_type");
    let losses = config.loss_type.weighted();
    if losses.is_empty() {
        checks.problem(&loss_type, "lists no loss");
        checks.help("e.g. `loss_type: sigmoid` or `loss_type: [(sigmoid, 0.8), (sft, 0.2)]`");
    }
    if let Some(weights) = &config.loss_weights {
        let key = format!("{path}.loss_weights");
        if weights.len() != losses.len() {
            let (given, wanted) = (weights.len(), losses.len());
            let message = format!("expected one weight for each loss, found {given} for {wanted}");
            checks.problem(&key, message);
            checks.depends_on(&loss_type);
        }
        if losses.iter().any(|(_, weight)| *weight != 1.0) {
            checks.problem(&key, "`loss_type` has weights already");
            checks.depends_on(&loss_type);
        }
    }
    for (loss, weight) in config.losses().weighted() {
        let holds = weight.is_finite() && *weight > 0.0;
        let expected = format!("above 0 and finite: the weight of `{loss}`");
        checks.must(&loss_type, holds, &expected, weight);
    }
    let label_smoothing = format!("{path}.label_smoothing");
    checks.must(
        &label_smoothing,
        (0.0..0.5).contains(&config.label_smoothing),
        "at least 0 and below 0.5: with half of the labels wrong there is nothing to learn",
        config.label_smoothing,
    );
    let known: Vec<&str> = (DpoLoss::ALL.into_iter())
        .filter(|loss| loss.knows_wrong_labels())
        .map(DpoLoss::name)
        .collect();
    if config.label_smoothing > 0.0 && !losses.iter().any(|(loss, _)| loss.knows_wrong_labels()) {
        let message = format!("only the losses {} know wrong labels", quoted(known));
        checks.problem(&label_smoothing, message);
        checks.depends_on(&loss_type);
    }
    if config.label_smoothing == 0.0 && config.loss_type.has(DpoLoss::ExoPair) {
        checks.problem(
            &label_smoothing,
            "must be above 0 for `exo_pair`, which takes its logarithm",
        );
        checks.help("the paper recommends `label_smoothing: 1e-3`");
        checks.depends_on(&loss_type);
    }
    if let Some(tau) = config.discopop_tau {
        checks.above_zero(path, "discopop_tau", tau);
        if !config.loss_type.has(DpoLoss::Discopop) {
            checks.problem(
                format!("{path}.discopop_tau"),
                "only the loss `discopop` reads it",
            );
            checks.depends_on(&loss_type);
        }
    }
}
