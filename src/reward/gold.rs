//! The known scorer of the embedded posts as a reward.

use super::{Completion, RewardSource};
use crate::data::posts::gold_score;
use crate::error::{Error, Result};

/// [`gold_score`] of each response.
pub(super) struct Gold;

impl RewardSource for Gold {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        completions
            .iter()
            .map(|completion| {
                let score = gold_score(&completion.row, &completion.response);
                if score.is_finite() {
                    return Ok(score);
                }
                Err(Error::Reward {
                    name: "gold".into(),
                    message: format!(
                        "scores the embedded posts only (data: Posts(..)), whose rows have \"facts\"; this row has {}",
                        super::columns(&completion.row)
                    ),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::posts::posts;

    #[test]
    fn scores_posts_and_refuses_other_rows() {
        let row = posts(1, 1).remove(0);
        let mut completion = Completion {
            response: format!(" {}", row["ideal"].as_str().unwrap()),
            row,
            ..Completion::default()
        };
        assert_eq!(Gold.score(&[completion.clone()]).unwrap(), [1.0]);
        completion.row.remove("facts");
        let message = Gold.score(&[completion]).unwrap_err().to_string();
        assert!(
            message.contains("this row has \"text\", \"prompt\""),
            "{message}"
        );
    }
}
