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
    /// The results by a judge of pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<JudgeContest>,
}

/// The results by a judge that compares each policy's responses with the reference's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JudgeContest {
    /// The judge's name.
    pub by: String,
    /// Against the reference, by policy; `None` for the reference itself.
    pub win_rates: Vec<Option<WinRate>>,
    /// Pairs of responses.
    pub pairs: usize,
    /// Pairs without an answer, which are ties.
    pub unanswered: usize,
    /// Mean probability of the response that was shown first, by policy; 1/2 if its place does not count. `None` where nothing was asked.
    pub first_shown: Vec<Option<f64>>,
}

/// What a judge said of a policy's responses against those of the reference.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Judged {
    /// The judge's name.
    pub by: String,
    /// Preferences that differ from one half by this or less are a tie.
    pub tie_margin: f64,
    /// Probability that the policy's response is the better one, mean of both orders, by response: 1/2 for equal texts, `None` without an
    /// answer in both orders.
    pub preferences: Vec<Option<f64>>,
    /// Mean probability of the response that is shown first; `None` if nothing was asked.
    pub first_shown: Option<f64>,
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
            judge: JudgeContest::of(anchor, policies, rules),
        })
    }

    /// Its tables with their headings; `sources` and `policies` are the names.
    pub(super) fn tables(&self, sources: &[String], policies: &[&str]) -> Vec<(String, Table)> {
        let mut tables = Vec::new();
        let mut header = vec!["policy".to_owned()];
        for source in sources {
            header.extend([source.clone(), "ties".into(), "at equal length".into()]);
        }
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
        if !sources.is_empty() {
            tables.push((heading, Table::new(&header, &rows)));
        }
        if let Some(judge) = &self.judge {
            tables.push(judge.table(&self.reference, self.prompts, policies));
        }
        if (self.sources.iter()).all(|source| source.ratings.is_empty()) {
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

impl JudgeContest {
    /// `None` if no policy was judged.
    fn of(anchor: usize, policies: &[PolicyResponses], rules: ContestRules) -> Option<Self> {
        let judged: Vec<Option<&Judged>> = (policies.iter())
            .map(|policy| policy.judged.as_ref())
            .collect();
        let known = || judged.iter().flatten().flat_map(|of| &of.preferences);
        let win_rate = |(policy, judged): (&PolicyResponses, &Option<&Judged>)| {
            let judged = (*judged)?;
            let own = judged.preferences.iter();
            let all: Vec<f64> = own
                .map(|own| outcome(own.unwrap_or(0.5), 0.5, judged.tie_margin))
                .collect();
            let seed = rules.seed.fork("win rate").fork("judge").fork(&policy.name);
            Some(win_rate_of(policy, &policies[anchor], &all, seed))
        };
        Some(Self {
            by: judged.iter().flatten().next()?.by.clone(),
            win_rates: policies.iter().zip(&judged).map(win_rate).collect(),
            pairs: known().count(),
            unanswered: known().filter(|own| own.is_none()).count(),
            first_shown: (judged.iter())
                .map(|of| of.and_then(|of| of.first_shown))
                .collect(),
        })
    }

    fn table(&self, reference: &str, prompts: usize, policies: &[&str]) -> (String, Table) {
        let header = ["policy", "wins", "ties", "at equal length", "first shown"];
        let mut rows = Vec::new();
        for (i, policy) in policies.iter().enumerate() {
            let Some(Some(won)) = self.win_rates.get(i) else {
                continue;
            };
            let first_shown = self.first_shown.get(i).copied().flatten();
            rows.push(vec![
                (*policy).to_owned(),
                within(won.rate, &won.interval),
                percent(won.ties),
                within(won.length_controlled, &won.length_controlled_interval),
                first_shown.map_or("-".to_owned(), percent),
            ]);
        }
        let unanswered = match self.unanswered {
            0 => String::new(),
            count => format!("; {count} of {} pairs unanswered, as ties", self.pairs),
        };
        let heading = format!(
            "win rate against {reference} by the judge {}, both orders averaged, a tie being half a win; 95 % intervals by the bootstrap \
             over {prompts} prompts; 50 % for what is shown first is no bias{unanswered}",
            self.by
        );
        (heading, Table::new(&header, &rows))
    }
}

fn percent(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}

fn within(x: f64, of: &Interval) -> String {
    let Interval { low, high } = of;
    format!(
        "{:.1} % [{:.1}, {:.1}]",
        100.0 * x,
        100.0 * low,
        100.0 * high
    )
}

/// The outcome of each response of `own` against that of `other` to the same prompt.
fn outcomes(
    own: &PolicyResponses,
    other: &PolicyResponses,
    source: &str,
    tie_margin: f64,
) -> Vec<f64> {
    (own.scores_of(source).iter().zip(&other.scores_of(source)))
        .map(|(&own, &other)| outcome(own, other, tie_margin))
        .collect()
}

/// The win rate of `own` against `other` with these outcomes of their pairs of responses.
fn win_rate_of(
    own: &PolicyResponses,
    other: &PolicyResponses,
    outcomes: &[f64],
    seed: Seed,
) -> WinRate {
    let ties: Vec<f64> = (outcomes.iter())
        .map(|&x| f64::from(u8::from(x == 0.5)))
        .collect();
    let longer: Vec<f64> = (own.by_prompt(&own.lengths).iter())
        .zip(other.by_prompt(&other.lengths))
        .map(|(own, other)| own - other)
        .collect();
    WinRate::of(
        &own.by_prompt(outcomes),
        &own.by_prompt(&ties),
        &longer,
        seed,
    )
}

fn win_rate(
    own: &PolicyResponses,
    other: &PolicyResponses,
    source: &str,
    rules: ContestRules,
) -> WinRate {
    let seed = rules.seed.fork("win rate").fork(source).fork(&own.name);
    let outcomes = outcomes(own, other, source, rules.tie_margin);
    win_rate_of(own, other, &outcomes, seed)
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
            let won = outcomes(&policies[i], &policies[j], source, rules.tie_margin);
            pairs.push((i, j, policies[i].by_prompt(&won)));
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
    fn a_judge_has_a_table_of_its_own() {
        let mut all = [responses("sft", &[0.0; 4]), responses("ppo", &[0.0; 4])];
        all[1].judged = Some(Judged {
            by: "base".into(),
            tie_margin: 0.05,
            // A win, a tie within the margin, a loss, and no answer.
            preferences: vec![Some(0.9), Some(0.54), Some(0.2), None],
            first_shown: Some(0.625),
        });
        let contest = Contest::of("sft", &["gold".into()], &all, rules()).unwrap();
        let judge = contest.judge.as_ref().unwrap();
        let won = judge.win_rates[1].unwrap();
        assert_eq!((won.rate, won.ties), (0.5, 0.5));
        assert_eq!(
            (judge.win_rates[0], judge.pairs, judge.unanswered),
            (None, 4, 1)
        );
        let tables = contest.tables(&["gold".into()], &["sft", "ppo"]);
        assert!(
            tables[1]
                .0
                .contains("by the judge base, both orders averaged"),
            "{}",
            tables[1].0
        );
        assert!(
            tables[1].0.ends_with("; 1 of 4 pairs unanswered, as ties"),
            "{}",
            tables[1].0
        );
        let text = tables[1].1.to_string();
        assert!(
            text.contains("| ppo    | 50.0 % [") && text.contains("62.5 %"),
            "{text}"
        );
        // By the judge alone.
        let contest = Contest::of("sft", &[], &all, rules()).unwrap();
        assert_eq!(contest.tables(&[], &["sft", "ppo"]).len(), 1);
        let text = serde_json::to_string(&contest).unwrap();
        assert_eq!(serde_json::from_str::<Contest>(&text).unwrap(), contest);
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
