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
