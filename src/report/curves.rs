//! What more samples per prompt give: best of n, and pass@k.

use serde::{Deserialize, Serialize};

use super::comparison::{Estimate, PolicyResponses};
use super::table::Table;
use crate::stats::{best_of_n, best_of_n_kl, pass_at_k};

/// The curves of one policy with several responses to each prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleCurves {
    /// Numbers of samples: powers of two, and all.
    pub counts: Vec<usize>,
    /// Bound of the KL of best-of-n from the policy, in nats per response, by count.
    pub kl: Vec<f64>,
    /// By the source that chooses the best, by count: the mean score of the chosen response by every source.
    pub best_of_n: Vec<Vec<Vec<Estimate>>>,
    /// By source whose scores are all 0 or 1, by count: the probability that one of the samples is right.
    pub pass_at_k: Vec<Option<Vec<Estimate>>>,
}

impl SampleCurves {
    /// The curves of `policy`; `None` with one response to each prompt.
    pub(super) fn of(policy: &PolicyResponses, sources: &[String]) -> Option<Self> {
        let samples = policy.num_responses;
        if samples < 2 || policy.scores.is_empty() {
            return None;
        }
        let mut counts: Vec<usize> = std::iter::successors(Some(1), |n| Some(2 * n))
            .take_while(|&n| n < samples)
            .collect();
        counts.push(samples);
        let scores: Vec<Vec<f64>> = (sources.iter())
            .map(|source| policy.scores_of(source))
            .collect();
        let chosen = |proxy: &[f64], gold: &[f64], n: usize| {
            let by_prompt: Vec<f64> = (proxy.chunks(samples).zip(gold.chunks(samples)))
                .map(|(proxy, gold)| best_of_n(proxy, gold, n))
                .collect();
            Estimate::of(&by_prompt)
        };
        let best_of_n = (scores.iter())
            .map(|proxy| {
                let at = |&n: &usize| scores.iter().map(|gold| chosen(proxy, gold, n)).collect();
                counts.iter().map(at).collect()
            })
            .collect();
        let passed = |scores: &Vec<f64>| {
            let verdicts = scores.iter().all(|&score| score == 0.0 || score == 1.0);
            verdicts.then(|| {
                let at = |&k: &usize| {
                    let of_prompt = |scores: &[f64]| {
                        let right = scores.iter().filter(|&&score| score == 1.0).count();
                        pass_at_k(samples, right, k)
                    };
                    Estimate::of(&scores.chunks(samples).map(of_prompt).collect::<Vec<_>>())
                };
                counts.iter().map(at).collect()
            })
        };
        Some(Self {
            kl: counts.iter().map(|&n| best_of_n_kl(n)).collect(),
            best_of_n,
            pass_at_k: scores.iter().map(passed).collect(),
            counts,
        })
    }

    /// A row for each count.
    pub(super) fn table(&self, sources: &[String]) -> Table {
        let mut header = vec!["n".to_owned(), "KL".into()];
        for proxy in sources {
            let other = |source: &String| match source == proxy {
                true => source.clone(),
                false => format!("{source} by {proxy}"),
            };
            header.extend(sources.iter().map(other));
        }
        let with_pass: Vec<(&String, &Vec<Estimate>)> = (sources.iter().zip(&self.pass_at_k))
            .filter_map(|(source, passed)| Some((source, passed.as_ref()?)))
            .collect();
        header.extend(
            with_pass
                .iter()
                .map(|(source, _)| format!("pass@n, {source}")),
        );
        let row = |(place, n): (usize, &usize)| {
            let mut row = vec![n.to_string(), format!("{:.2}", self.kl[place])];
            let cell =
                |estimate: &Estimate| format!("{:.3} ± {:.3}", estimate.mean, estimate.error);
            row.extend(
                (self.best_of_n.iter()).flat_map(|by_count| by_count[place].iter().map(cell)),
            );
            row.extend(with_pass.iter().map(|(_, passed)| cell(&passed[place])));
            row
        };
        let rows: Vec<Vec<String>> = self.counts.iter().enumerate().map(row).collect();
        Table::new(&header, &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Two prompts with three responses each: verdicts 1, 0, 0 and 0, 0, 0; lengths are the other source.
    #[test]
    fn curves_have_powers_of_two_and_all_samples() {
        let response = |verdict: f64, other: f64| {
            BTreeMap::from([("right".to_owned(), verdict), ("words".to_owned(), other)])
        };
        let policy = PolicyResponses {
            name: "sft".into(),
            num_responses: 3,
            scores: vec![
                response(1.0, 1.5),
                response(0.0, 2.0),
                response(0.0, 3.0),
                response(0.0, 4.0),
                response(0.0, 5.0),
                response(0.0, 6.0),
            ],
            ..PolicyResponses::default()
        };
        let sources = ["right".to_owned(), "words".to_owned()];
        let curves = SampleCurves::of(&policy, &sources).unwrap();
        assert_eq!(curves.counts, [1, 2, 3]);
        // pass@2 of one right in three is 2/3, and 0 for the other prompt.
        let passed = curves.pass_at_k[0].as_ref().unwrap();
        let means: Vec<f64> = passed.iter().map(|estimate| estimate.mean).collect();
        assert!((means[0] - 1.0 / 6.0).abs() < 1e-12 && (means[1] - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!((means[2], &curves.pass_at_k[1]), (0.5, &None));
        // The best of three by words: 3 and 6, of which none is right.
        assert_eq!(curves.best_of_n[1][2][1].mean, 4.5);
        assert_eq!(curves.best_of_n[1][2][0].mean, 0.0);
        let text = curves.table(&sources).to_string();
        assert!(
            text.contains("words by right") && text.contains("pass@n, right"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 5);
        let single = PolicyResponses {
            num_responses: 1,
            ..policy
        };
        assert_eq!(SampleCurves::of(&single, &sources), None);
    }
}
