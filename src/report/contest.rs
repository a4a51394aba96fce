//! Who wins: win rates against the reference, and ratings of several policies.

use serde::{Deserialize, Serialize};

use super::comparison::PolicyResponses;
use super::table::Table;
use crate::rng::Seed;
use crate::stats::{self, Interval, WinRate, bradley_terry, elo, outcome};

/// Policies against each other on the same prompts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Contest {
    /// The policy that the others play against, by name.
    pub reference: String,
    /// Number of prompts.
    pub prompts: usize,
    /// The results by source, in the order of the comparison's.
    pub sources: Vec<SourceContest>,
}

/// The results by one source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceContest {
    /// Against the reference, by policy; `None` for the reference itself.
    pub win_rates: Vec<Option<WinRate>>,
    /// By policy; empty for fewer than three.
    pub ratings: Vec<Rating>,
}

/// The strength of a policy in all pairs together, on the scale of Elo.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rating {
    /// 1000 is the reference.
    pub points: f64,
    /// The 95 % interval, by the bootstrap over prompts.
    pub interval: Interval,
}

/// How a contest is judged.
#[derive(Debug, Clone, Copy)]
pub struct ContestRules {
    /// Scores that differ by this or less are a tie.
    pub tie_margin: f64,
    /// Randomness of the bootstraps.
    pub seed: Seed,
}

impl Contest {
    /// Lets responses to the same prompts play against each other by each source. `None` without two policies, the reference among them.
    pub fn of(
        reference: &str,
        sources: &[String],
        policies: &[PolicyResponses],
        rules: ContestRules,
    ) -> Option<Self> {
        let anchor = policies
            .iter()
            .position(|policy| policy.name == reference)?;
        let prompts = policies[anchor].num_prompts();
        if policies.len() < 2 || prompts == 0 {
            return None;
        }
        let of_source = |source: &String| SourceContest {
            win_rates: (policies.iter().enumerate())
                .map(|(i, policy)| {
                    (i != anchor).then(|| win_rate(policy, &policies[anchor], source, rules))
                })
                .collect(),
            ratings: match policies.len() {
                0..3 => Vec::new(),
                _ => ratings(policies, anchor, source, rules),
            },
        };
        Some(Self {
            reference: reference.to_owned(),
            prompts,
            sources: sources.iter().map(of_source).collect(),
        })
    }

    /// Its tables with their headings; `sources` and `policies` are the names.
    pub(super) fn tables(&self, sources: &[String], policies: &[&str]) -> Vec<(String, Table)> {
        let mut tables = Vec::new();
        let mut header = vec!["policy".to_owned()];
        for source in sources {
            header.extend([source.clone(), "ties".into(), "at equal length".into()]);
        }
        let percent = |x: f64| format!("{:.1} %", 100.0 * x);
        let within = |x: f64, of: &Interval| {
            format!(
                "{:.1} % [{:.1}, {:.1}]",
                100.0 * x,
                100.0 * of.low,
                100.0 * of.high
            )
        };
        let mut rows = Vec::new();
        for (i, policy) in policies.iter().enumerate() {
            let mut row = vec![(*policy).to_owned()];
            for source in &self.sources {
                let Some(Some(won)) = source.win_rates.get(i) else {
                    continue;
                };
                row.extend([
                    within(won.rate, &won.interval),
                    percent(won.ties),
                    within(won.length_controlled, &won.length_controlled_interval),
                ]);
            }
            if row.len() == header.len() {
                rows.push(row);
            }
        }
        let heading = format!(
            "win rate against {}, a tie being half a win; 95 % intervals by the bootstrap over {} prompts",
            self.reference, self.prompts
        );
        tables.push((heading, Table::new(&header, &rows)));
        if self.sources.iter().all(|source| source.ratings.is_empty()) {
            return tables;
        }
        let header: Vec<&str> = std::iter::once("policy")
            .chain(sources.iter().map(String::as_str))
            .collect();
        let row = |(i, policy): (usize, &&str)| {
            let rating = |source: &SourceContest| {
                let rating = source.ratings.get(i).copied().unwrap_or_default();
                let Interval { low, high } = rating.interval;
                format!("{:.0} [{low:.0}, {high:.0}]", rating.points)
            };
            let mut row = vec![(*policy).to_owned()];
            row.extend(self.sources.iter().map(rating));
            row
        };
        let rows: Vec<Vec<String>> = policies.iter().enumerate().map(row).collect();
        let heading = format!(
            "ratings by all pairs (Bradley-Terry, on the scale of Elo; {} has 1000)",
            self.reference
        );
        tables.push((heading, Table::new(&header, &rows)));
        tables
    }
}

/// By prompt: the mean outcome of `own` against `other` over pairs of responses, and the share of ties.
fn outcomes(
    own: &PolicyResponses,
    other: &PolicyResponses,
    source: &str,
    tie_margin: f64,
) -> (Vec<f64>, Vec<f64>) {
    let (own_scores, other_scores) = (own.scores_of(source), other.scores_of(source));
    let all: Vec<f64> = (own_scores.iter().zip(&other_scores))
        .map(|(&own, &other)| outcome(own, other, tie_margin))
        .collect();
    let ties: Vec<f64> = all.iter().map(|&x| f64::from(u8::from(x == 0.5))).collect();
    (own.by_prompt(&all), own.by_prompt(&ties))
}

fn win_rate(
    own: &PolicyResponses,
    other: &PolicyResponses,
    source: &str,
    rules: ContestRules,
) -> WinRate {
    let (outcomes, ties) = outcomes(own, other, source, rules.tie_margin);
    let longer: Vec<f64> = (own.by_prompt(&own.lengths).iter())
        .zip(other.by_prompt(&other.lengths))
        .map(|(own, other)| own - other)
        .collect();
    let seed = rules.seed.fork("win rate").fork(source).fork(&own.name);
    WinRate::of(&outcomes, &ties, &longer, seed)
}

fn ratings(
    policies: &[PolicyResponses],
    anchor: usize,
    source: &str,
    rules: ContestRules,
) -> Vec<Rating> {
    let count = policies.len();
    let mut pairs = Vec::new();
    for i in 0..count {
        for j in i + 1..count {
            let (won, _) = outcomes(&policies[i], &policies[j], source, rules.tie_margin);
            pairs.push((i, j, won));
        }
    }
    let of_sample = |sample: &[usize]| {
        let mut wins = vec![vec![0.0; count]; count];
        for (i, j, won) in &pairs {
            wins[*i][*j] = sample.iter().map(|&prompt| won[prompt]).sum();
            wins[*j][*i] = sample.len() as f64 - wins[*i][*j];
        }
        elo(&bradley_terry(&wins), anchor)
    };
    let prompts = policies[anchor].num_prompts();
    let all: Vec<usize> = (0..prompts).collect();
    let seed = rules.seed.fork("ratings").fork(source);
    let intervals = stats::bootstrap(prompts, seed, of_sample);
    (of_sample(&all).into_iter().zip(intervals))
        .map(|(points, interval)| Rating { points, interval })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::comparison::testing::responses;

    fn rules() -> ContestRules {
        ContestRules {
            tie_margin: 0.1,
            seed: Seed::new(1),
        }
    }

    #[test]
    fn ties_are_half_a_win_and_the_reference_plays_not_itself() {
        // Against 0, 1, 0.5, 0.25: a win, a tie, a win, a loss.
        let all = [
            responses("sft", &[0.0, 1.0, 0.5, 0.25]),
            responses("ppo", &[0.5, 1.05, 1.5, 0.0]),
        ];
        let contest = Contest::of("sft", &["gold".into()], &all, rules()).unwrap();
        let won = contest.sources[0].win_rates[1].unwrap();
        assert_eq!((won.rate, won.ties), (0.625, 0.25));
        assert_eq!(contest.sources[0].win_rates[0], None);
        assert!(contest.sources[0].ratings.is_empty());
        let tables = contest.tables(&["gold".into()], &["sft", "ppo"]);
        let text = tables[0].1.to_string();
        assert!(text.contains("| ppo    | 62.5 % ["), "{text}");
        assert!(text.contains("25.0 %") && !text.contains("sft"), "{text}");
        // Without the reference there is nothing to win against.
        assert_eq!(Contest::of("base", &["gold".into()], &all, rules()), None);
        assert_eq!(
            Contest::of("sft", &["gold".into()], &all[..1], rules()),
            None
        );
    }

    #[test]
    fn ratings_order_three_policies() {
        let scores =
            |shift: f64| -> Vec<f64> { (0..30).map(|i| f64::from(i * 7 % 5) + shift).collect() };
        let mut better = scores(0.5);
        // Lost on every third prompt.
        (0..30).step_by(3).for_each(|i| better[i] -= 2.0);
        let all = [
            responses("a", &scores(0.0)),
            responses("b", &better),
            responses("c", &scores(0.0)),
        ];
        let contest = Contest::of("a", &["gold".into()], &all, rules()).unwrap();
        let points: Vec<f64> = contest.sources[0]
            .ratings
            .iter()
            .map(|r| r.points)
            .collect();
        // Two wins in three against either, which are equal: 400 log10(2) = 120.4.
        assert!((points[0] - 1000.0).abs() < 1e-6 && (points[2] - 1000.0).abs() < 1e-6);
        assert!((points[1] - 1120.41).abs() < 0.01, "{points:?}");
        let interval = contest.sources[0].ratings[1].interval;
        assert!(
            interval.low < 1120.0 && interval.high > 1121.0,
            "{interval:?}"
        );
        let tables = contest.tables(&["gold".into()], &["a", "b", "c"]);
        assert!(
            tables[1].1.to_string().contains("| b      | 1120 ["),
            "{}",
            tables[1].1
        );
    }
}
