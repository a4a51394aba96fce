//! The stage specification of Cpo.

use super::CpoConfig;
use crate::error::Result;
use crate::loss::{CpoLoss, CpoObjective};
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::preference::{
    self, Objective, PreferenceKeys, PreferenceMethod, ReferencePasses, Settings, preference_stage,
};
use crate::train::{MetricNames, Outcome, Session};

preference_stage!(CpoConfig);

impl CpoConfig {
    fn objective(&self) -> Objective {
        Objective::Cpo(CpoObjective {
            loss_type: self.loss_type,
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            cpo_alpha: self.cpo_alpha,
            simpo_gamma: self.simpo_gamma.unwrap_or(0.5),
            alpha: self.alpha,
        })
    }
}

impl PreferenceMethod for CpoConfig {
    const TITLE: &'static str = "CPO";

    fn keys(&self) -> PreferenceKeys<'_> {
        self.preference_keys()
    }

    fn reference(&self) -> ReferencePasses {
        ReferencePasses::None
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn metrics(&self) -> MetricNames {
        self.objective().metric_names()
    }

    fn check_own(&self, checks: &mut Checks, path: &str) {
        checks.not_negative(path, "cpo_alpha", self.cpo_alpha);
        checks.must(
            format!("{path}.alpha"),
            self.alpha.is_finite(),
            "finite",
            self.alpha,
        );
        let label_smoothing = format!("{path}.label_smoothing");
        checks.must(
            &label_smoothing,
            (0.0..0.5).contains(&self.label_smoothing),
            "at least 0 and below 0.5: with half of the labels wrong there is nothing to learn",
            self.label_smoothing,
        );
        if self.label_smoothing > 0.0 && !self.loss_type.knows_wrong_labels() {
            checks.problem(
                &label_smoothing,
                "only the losses `sigmoid` and `simpo` know wrong labels",
            );
            checks.depends_on(format!("{path}.loss_type"));
        }
        if let Some(gamma) = self.simpo_gamma {
            checks.not_negative(path, "simpo_gamma", gamma);
            if self.loss_type != CpoLoss::Simpo {
                checks.problem(
                    format!("{path}.simpo_gamma"),
                    "only the loss `simpo` reads it",
                );
                checks.depends_on(format!("{path}.loss_type"));
            }
        }
    }

    fn train<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        let settings = Settings {
            keys: self.preference_keys(),
            objective: self.objective(),
            precompute_ref_log_probs: false,
        };
        preference::train(session, &settings)
    }
}
