//! The configuration of a RewardModel stage.

use crate::train::config::{DataConfig, RewardLoss};
use crate::train::preference::preference_config;

preference_config! {
    /// Reward model trained on comparisons.
    pub struct RewardModelConfig {
        /// The loss.
        #[serde(default)]
        pub loss_type: RewardLoss,
        /// Subtract the row's `margin` inside the loss (Llama 2, arXiv:2307.09288, eq. 2).
        #[serde(default)]
        pub use_margin: bool,
        /// Grades of the rows' margins: from each first number on, the loss subtracts the second one; below the first of them nothing
        /// (Llama 2, table 27). Without grades the margin itself.
        #[serde(default)]
        pub margin_grades: Vec<(f64, f64)>,
        /// Train on the rows' `chosen_probability` by cross-entropy, as AI labels and shares of votes give it; otherwise the chosen response
        /// is taken as the better one for certain.
        #[serde(default)]
        pub soft_labels: bool,
        /// Weight of the mean of `(score_chosen + score_rejected)^2`, which keeps scores around zero (TRL's).
        #[serde(default)]
        pub center_rewards_coefficient: Option<f64>,
        /// Weight of the binary cross-entropy of the labels `chosen_safe` and `rejected_safe`, with the score as the logit of being safe (Llama 2,
        /// A.3.4).
        #[serde(default)]
        pub safety_coef: Option<f64>,
        /// After training, shift scores so that their mean over these reference responses (prompts with completions) is zero.
        #[serde(default)]
        pub center_on: Option<DataConfig>,
        /// Divide scores by their standard deviation over the responses of `center_on`, before and after training
        /// (lm-human-preferences).
        #[serde(default)]
        pub standardize: bool,
        /// Columns of the held-out comparisons: accuracy is also reported by their values, e.g. the annotators' confidence. A dot
        /// addresses a key of a nested object.
        #[serde(default)]
        pub accuracy_by: Vec<String>,
    }
}

impl RewardModelConfig {
    /// What the loss subtracts from the difference of the scores of a pair with this `margin` in the data.
    pub(super) fn margin_in_loss(&self, margin: f32) -> f32 {
        if !self.use_margin {
            return 0.0;
        }
        let reached = |(from, _): &&(f64, f64)| f64::from(margin) >= *from;
        match self.margin_grades.as_slice() {
            [] => margin,
            grades => (grades.iter().rev().find(reached)).map_or(0.0, |(_, grade)| *grade as f32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grades_of_margins_are_steps() {
        let mut config: RewardModelConfig = serde_json::from_str(
            r#"{"name": "rm", "init": "Base", "data": {"source": {"Stage": "rank"}}, "batch_size": 8, "use_margin": true}"#,
        )
        .unwrap();
        assert_eq!(config.margin_in_loss(0.7), 0.7);
        config.margin_grades = vec![(0.1, 1.0), (0.5, 2.0), (1.0, 3.0)];
        let margins = [0.0, 0.1, 0.49, 0.5, 1.0, 7.0].map(|margin| config.margin_in_loss(margin));
        // 0.1 as f32 is a little more than 0.1.
        assert_eq!(margins, [0.0, 1.0, 1.0, 2.0, 3.0, 3.0]);
        config.use_margin = false;
        assert_eq!(config.margin_in_loss(7.0), 0.0);
    }
}
