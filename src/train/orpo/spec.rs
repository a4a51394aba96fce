//! The stage specification of Orpo.

use super::OrpoConfig;
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::train::checks::Checks;
use crate::train::preference::{
    self, Objective, PreferenceKeys, PreferenceMethod, ReferencePasses, Settings, preference_stage,
};
use crate::train::{MetricNames, Outcome, Session};

preference_stage!(OrpoConfig);

impl OrpoConfig {
    fn objective(&self) -> Objective {
        Objective::Orpo { beta: self.beta }
    }
}

impl PreferenceMethod for OrpoConfig {
    const TITLE: &'static str = "ORPO";
    // Its cross-entropy is of whole rows.
    const READS_PROMPTS: bool = true;

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

    fn check_own(&self, _: &mut Checks, _: &str) {}

    fn train<B: ModelBackend>(&self, session: &mut Session<'_, B>) -> Result<Outcome> {
        let settings = Settings {
            keys: self.preference_keys(),
            objective: self.objective(),
            precompute_ref_log_probs: false,
        };
        preference::train(session, &settings)
    }
}
