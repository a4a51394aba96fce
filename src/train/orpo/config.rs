//! The configuration of an Orpo stage.

use crate::train::config::tenth;
use crate::train::preference::preference_config;

preference_config! {
    /// Odds ratio preference optimisation: supervised fine-tuning on chosen responses and a penalty on rejected ones, without a reference.
    pub struct OrpoConfig {
        /// Weight of the odds ratio; the paper's lambda.
        #[serde(default = "tenth")]
        pub beta: f64,
    }
}
