//! Ratings of policies and of responses from comparisons: Bradley-Terry by maximum likelihood, and Elo game by game.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use super::contest::Rating;
use super::table::Table;
use crate::error::{Error, Result};
use crate::rng::Seed;
use crate::stats::{
    Game, Interval, ROUNDS, bootstrap, bradley_terry, bradley_terry_with, elo, groups, online_elo,
    win_matrix,
};
use crate::suggest::quoted;

/// Ratings of policies by one source of judgements.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyRatings {
    /// Who judged: the reward source of a Compare stage, or `preference`.
    pub source: String,
    /// The policies, the best first.
    pub policies: Vec<RatedPolicy>,
    /// Number of comparisons.
    pub comparisons: usize,
    /// How many of them were ties.
    pub ties: usize,
    /// Number of prompts.
    pub prompts: usize,
    /// The policy that has 1000.
    pub anchor: String,
    /// What the intervals are drawn over: `comparisons` or `prompts`.
    pub unit: String,
    /// How often the policy of the row beat that of the column, in the order of `policies`; a tie is half a win.
    pub wins: Vec<Vec<f64>>,
    /// What limits the ratings, in words.
    pub warnings: Vec<String>,
}

/// The ratings of one policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RatedPolicy {
    /// Its name.
    pub name: String,
    /// Bradley-Terry, on the scale of Elo.
    pub rating: Rating,
    /// Elo, game by game in the order of the rows.
    pub elo: Rating,
    /// Comparisons that it took part in.
    pub comparisons: f64,
    /// Share of them that it won, a tie being half a win.
    pub win_rate: f64,
}

/// How policies are rated.
#[derive(Debug, Clone)]
pub struct RatingRules {
    /// The policy that has 1000; the first of the rows if `None`.
    pub anchor: Option<String>,
    /// Points that a win against an equal moves twice.
    pub k: f64,
    /// Whether the bootstrap draws prompts instead of comparisons.
    pub by_prompt: bool,
    /// Randomness of the bootstrap.
    pub seed: Seed,
}

/// A comparison with the prompt that it is of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PromptGame {
    /// The comparison.
    pub game: Game,
    /// The prompt, by index.
    pub prompt: usize,
}

impl PolicyRatings {
    /// Rates the policies `names` by `games` in the order of the rows.
    ///
    /// # Errors
    /// `Error::Usage` without comparisons of two policies, for an anchor that is not among them, and for policies that no comparison
    /// connects.
    pub fn of(
        source: &str,
        names: &[String],
        games: &[PromptGame],
        rules: &RatingRules,
    ) -> Result<Self> {
        let count = names.len();
        if games.is_empty() || count < 2 {
            return Err(Error::Usage(format!(
                "{source}: expected comparisons of at least two policies, found {} of {count}",
                games.len()
            )));
        }
        let anchor = match &rules.anchor {
            None => 0,
            Some(anchor) => (names.iter().position(|name| name == anchor)).ok_or_else(|| {
                let known = quoted(names.iter().map(String::as_str));
                Error::Usage(format!("--anchor {anchor}: expected one of {known}"))
            })?,
        };
        let wins = win_matrix(count, games.iter().map(|of| &of.game));
        let named = |group: &Vec<usize>| quoted(group.iter().map(|&i| names[i].as_str()));
        let parts = groups(&wins, false);
        if let [first, second, ..] = parts.as_slice() {
            return Err(Error::Usage(format!(
                "{source}: no comparison connects {} with {}: their ratings would say nothing of each other. Compare some policy of \
                 the one group with one of the other, or rate each group alone",
                named(first),
                named(second)
            )));
        }
        let mut warnings = Vec::new();
        let both_ways = groups(&wins, true);
        if both_ways.len() > 1 {
            let parts: Vec<String> = both_ways.iter().map(named).collect();
            warnings.push(format!(
                "between {} one side won every comparison: the likelihood has its maximum at infinity, and a weak prior alone keeps the \
                 ratings finite. More comparisons settle them",
                parts.join(" and ")
            ));
        }
        let units = units(games, rules.by_prompt);
        let unconnected = AtomicUsize::new(0);
        let intervals = bootstrap(
            units.len(),
            rules.seed.fork("ratings").fork(source),
            |sample| {
                let drawn: Vec<&Game> = (sample.iter())
                    .flat_map(|&unit| units[unit].iter().map(|&i| &games[i].game))
                    .collect();
                let wins = win_matrix(count, drawn.iter().copied());
                if groups(&wins, false).len() > 1 {
                    unconnected.fetch_add(1, Ordering::Relaxed);
                }
                let mut points = elo(&bradley_terry(&wins), anchor);
                points.extend(online_elo(count, drawn, rules.k));
                points
            },
        );
        let unconnected = unconnected.into_inner();
        if unconnected > 0 {
            warnings.push(format!(
                "in {unconnected} of {ROUNDS} bootstrap samples some policy met no other: there are too few comparisons for the intervals \
                 to be taken at their word"
            ));
        }
        let points = elo(&bradley_terry(&wins), anchor);
        let by_game = online_elo(count, games.iter().map(|of| &of.game), rules.k);
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|&a, &b| points[b].total_cmp(&points[a]));
        let rated = |&i: &usize| {
            let rating = |points: f64, interval: Interval| Rating { points, interval };
            let won: f64 = wins[i].iter().sum();
            let lost: f64 = wins.iter().map(|row| row[i]).sum();
            RatedPolicy {
                name: names[i].clone(),
                rating: rating(points[i], intervals[i]),
                elo: rating(by_game[i], intervals[count + i]),
                comparisons: won + lost,
                win_rate: won / (won + lost),
            }
        };
        Ok(Self {
            source: source.to_owned(),
            policies: order.iter().map(rated).collect(),
            comparisons: games.len(),
            ties: games.iter().filter(|of| of.game.outcome == 0.5).count(),
            prompts: num_prompts(games),
            anchor: names[anchor].clone(),
            unit: unit(rules.by_prompt).into(),
            wins: (order.iter())
                .map(|&i| order.iter().map(|&j| wins[i][j]).collect())
                .collect(),
            warnings,
        })
    }

    /// What was rated, in one line.
    pub fn heading(&self) -> String {
        format!(
            "{}: {} policies, {} comparisons ({} ties) on {} prompts; 95 % intervals by the bootstrap over {}; {} has 1000",
            self.source,
            self.policies.len(),
            self.comparisons,
            self.ties,
            self.prompts,
            self.unit,
            self.anchor
        )
    }

    /// The ratings, the best first.
    pub fn table(&self) -> Table {
        let header = [
            "policy",
            "Bradley-Terry",
            "95 %",
            "Elo",
            "95 %",
            "comparisons",
            "won",
        ];
        let between = |of: &Interval| format!("{:.0} to {:.0}", of.low, of.high);
        let rows: Vec<Vec<String>> = (self.policies.iter())
            .map(|policy| {
                vec![
                    policy.name.clone(),
                    format!("{:.0}", policy.rating.points),
                    between(&policy.rating.interval),
                    format!("{:.0}", policy.elo.points),
                    between(&policy.elo.interval),
                    count(policy.comparisons),
                    format!("{:.1} %", 100.0 * policy.win_rate),
                ]
            })
            .collect();
        Table::new(&header, &rows)
    }

    /// Shares of wins of the row against the column, with the number of comparisons.
    pub fn win_table(&self) -> Table {
        let mut header = vec!["won against".to_owned()];
        header.extend(self.policies.iter().map(|policy| policy.name.clone()));
        let cell = |i: usize, j: usize| match self.wins[i][j] + self.wins[j][i] {
            0.0 => "-".to_owned(),
            played => format!(
                "{:.0} % of {}",
                100.0 * self.wins[i][j] / played,
                count(played)
            ),
        };
        let rows: Vec<Vec<String>> = (self.policies.iter().enumerate())
            .map(|(i, policy)| {
                let cells = (0..self.policies.len()).map(|j| cell(i, j));
                std::iter::once(policy.name.clone()).chain(cells).collect()
            })
            .collect();
        Table::new(&header, &rows)
    }

    /// Both tables for a terminal.
    pub fn text(&self) -> String {
        format!(
            "{}\n\n{}\n{}",
            self.heading(),
            self.table(),
            self.win_table()
        )
    }
}

/// The games of each unit of the bootstrap.
fn units(games: &[PromptGame], by_prompt: bool) -> Vec<Vec<usize>> {
    if !by_prompt {
        return (0..games.len()).map(|i| vec![i]).collect();
    }
    let mut units = vec![Vec::new(); games.iter().map(|of| of.prompt + 1).max().unwrap_or(0)];
    for (i, of) in games.iter().enumerate() {
        units[of.prompt].push(i);
    }
    units.retain(|unit| !unit.is_empty());
    units
}

fn unit(by_prompt: bool) -> &'static str {
    match by_prompt {
        true => "prompts",
        false => "comparisons",
    }
}

fn num_prompts(games: &[PromptGame]) -> usize {
    units(games, true).len()
}

/// A number of comparisons; weights may make it no whole number.
fn count(number: f64) -> String {
    match number.fract() == 0.0 {
        true => format!("{number:.0}"),
        false => format!("{number:.1}"),
    }
}

/// Scores of responses to one prompt, `x` of Bradley-Terry with the prior `exp(-prior / 2 |x|^2)`: the difference of two is the log-odds
/// that the one is preferred, and their mean is 0 within each group of the second value.
///
/// The prior is what keeps a response finite that won every comparison, as the best of a ranking does.
///
/// # Source
/// A scalar by response for a regression: Ouyang et al. 2022, arXiv:2203.02155, section 3.5, ranks responses and fits their differences.
pub fn response_scores(
    responses: usize,
    games: &[Game],
    prior: f64,
) -> (Vec<f64>, Vec<Vec<usize>>) {
    let wins = win_matrix(responses, games);
    (bradley_terry_with(&wins, prior), groups(&wins, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> RatingRules {
        RatingRules {
            anchor: None,
            k: 4.0,
            by_prompt: false,
            seed: Seed::new(1),
        }
    }

    fn game(first: usize, second: usize, outcome: f64, prompt: usize) -> PromptGame {
        let game = Game {
            first,
            second,
            outcome,
            weight: 1.0,
        };
        PromptGame { game, prompt }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// b wins three of four: odds of three, 190.85 points. 40 comparisons have a standard error of 1.96 x 63 points.
    #[test]
    fn the_better_policy_is_first_with_its_interval() {
        let games: Vec<PromptGame> = (0..40)
            .map(|i| game(0, 1, f64::from(u8::from(i % 4 == 0)), i / 2))
            .collect();
        let rated = PolicyRatings::of("people", &names(&["a", "b"]), &games, &rules()).unwrap();
        assert_eq!(
            (rated.policies[0].name.as_str(), rated.anchor.as_str()),
            ("b", "a")
        );
        let rating = rated.policies[0].rating;
        assert!((rating.points - 1_190.848_5).abs() < 0.05, "{rating:?}");
        assert!(
            rating.interval.low > 1040.0 && rating.interval.low < 1100.0,
            "{rating:?}"
        );
        assert!(
            rating.interval.high > 1300.0 && rating.interval.high < 1460.0,
            "{rating:?}"
        );
        assert_eq!(rated.wins, [[0.0, 30.0], [10.0, 0.0]]);
        assert_eq!(
            (rated.prompts, rated.ties, rated.warnings.len()),
            (20, 0, 0)
        );
        let text = rated.text();
        assert!(
            text.contains("| b           |") && text.contains("75 % of 40"),
            "{text}"
        );
        // Both comparisons of a prompt are drawn together: other samples.
        let by_prompt = RatingRules {
            by_prompt: true,
            ..rules()
        };
        let other = PolicyRatings::of("people", &names(&["a", "b"]), &games, &by_prompt).unwrap();
        assert_eq!(other.policies[0].rating.points, rating.points);
        assert_ne!(other.policies[0].rating.interval, rating.interval);
    }

    #[test]
    fn policies_must_be_connected_and_one_that_always_wins_is_said() {
        let four = names(&["a", "b", "c", "d"]);
        let games = [game(0, 1, 0.5, 0), game(2, 3, 1.0, 1)];
        let message = PolicyRatings::of("rm", &four, &games, &rules())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("no comparison connects `a`, `b` with `c`, `d`"),
            "{message}"
        );
        let games = [game(0, 1, 0.5, 0), game(1, 2, 1.0, 1), game(0, 2, 1.0, 1)];
        let rated = PolicyRatings::of("rm", &four[..3], &games, &rules()).unwrap();
        assert!(
            rated.warnings[0].starts_with("between `a`, `b` and `c` one side won every comparison"),
            "{:?}",
            rated.warnings
        );
        assert!(
            rated.warnings[1].contains("bootstrap samples"),
            "{:?}",
            rated.warnings
        );
        let wrong = RatingRules {
            anchor: Some("x".into()),
            ..rules()
        };
        let message = PolicyRatings::of("rm", &four[..3], &games, &wrong)
            .unwrap_err()
            .to_string();
        assert_eq!(message, "--anchor x: expected one of `a`, `b`, `c`");
        assert!(PolicyRatings::of("rm", &four[..3], &[], &rules()).is_err());
    }

    /// Two responses, one win, prior 1: x = -y and 1 / (1 + exp(2 x)) = x, x = 0.337416 (by bisection).
    #[test]
    fn a_ranking_gives_finite_scores() {
        let games = [game(0, 1, 1.0, 0).game];
        let (scores, parts) = response_scores(2, &games, 1.0);
        assert!((scores[0] - 0.337_416).abs() < 1e-5, "{scores:?}");
        assert!((scores[0] + scores[1]).abs() < 1e-9);
        assert_eq!(parts.len(), 1);
    }
}
