//! The judge's part of a comparison.

use super::CompareConfig;
use super::responses::Responses;
use crate::collective;
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::report::{Judged, RolloutReport};
use crate::reward::judge::{JudgedPair, Pairwise};
use crate::train::Session;

/// What the judge says of each policy's responses against those of the reference, by policy; nothing without a judge. `None` if the user
/// wants to stop.
///
/// # Errors
/// Those of the judge.
pub(super) fn judged<B: ModelBackend>(
    session: &mut Session<'_, B>,
    config: &CompareConfig,
    policies: &[Responses],
) -> Result<Option<Vec<Option<Judged>>>> {
    let mut all = vec![None; policies.len()];
    let (Some(by), Some(anchor)) = (&config.judge, config.anchor()) else {
        return Ok(Some(all));
    };
    let pairwise = Pairwise::new(by)?;
    let mut judge = session.judge(&by.judge)?;
    let interrupt = session.interrupt.clone();
    for (policy, responses) in policies.iter().enumerate().filter(|(i, _)| *i != anchor) {
        let others = policies[anchor].completions.iter();
        let pairs: Vec<JudgedPair<'_>> = (responses.completions.iter().zip(others))
            .map(|(own, other)| JudgedPair {
                prompt: &own.prompt,
                own: &own.response,
                other: &other.response,
            })
            .collect();
        let reporter = &mut *session.reporter;
        let judged = pairwise.preferences(judge.as_mut(), &pairs, &mut |done, total| {
            reporter.rollout(&RolloutReport {
                what: "answers",
                done,
                total,
                tokens: 0,
            });
            !collective::any(interrupt.requested())
        })?;
        match judged {
            Some(judged) => all[policy] = Some(judged),
            None => return Ok(None),
        }
    }
    if let Some(report) = judge.report() {
        session.reporter.message(&report);
    }
    Ok(Some(all))
}
