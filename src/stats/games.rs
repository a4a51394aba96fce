//! Games between players: one comparison of two responses, or of the policies that wrote them.

/// A comparison of two players.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Game {
    /// One player, by index.
    pub first: usize,
    /// The other.
    pub second: usize,
    /// How much of a win it was for `first`: 1 a win, 1/2 a tie, 0 a loss; between them for a judge that gives probabilities.
    pub outcome: f64,
    /// How many games it counts for.
    pub weight: f64,
}

/// How often each player beat each other one, `wins[i][j]`; a tie is half a win for both.
pub fn win_matrix<'a>(players: usize, games: impl IntoIterator<Item = &'a Game>) -> Vec<Vec<f64>> {
    let mut wins = vec![vec![0.0; players]; players];
    for game in games {
        wins[game.first][game.second] += game.weight * game.outcome;
        wins[game.second][game.first] += game.weight * (1.0 - game.outcome);
    }
    wins
}

/// Ratings that each game moves in turn: `R += k (outcome - E)` with the expected outcome `E = 1 / (1 + 10^((R_other - R) / 400))`, from
/// 1000 on. They depend on the order of the games; a weight is not seen.
///
/// # Source
/// Elo 1978; as Chatbot Arena computed it: Zheng et al. 2023, arXiv:2306.05685, with `k = 4`.
pub fn online_elo<'a>(
    players: usize,
    games: impl IntoIterator<Item = &'a Game>,
    k: f64,
) -> Vec<f64> {
    let mut ratings = vec![1000.0; players];
    for game in games {
        let difference: f64 = ratings[game.second] - ratings[game.first];
        let expected = 1.0 / (1.0 + 10f64.powf(difference / 400.0));
        let change = k * (game.outcome - expected);
        ratings[game.first] += change;
        ratings[game.second] -= change;
    }
    ratings
}

/// Players in groups within which strengths can be compared, each in rising order.
///
/// `both_ways` false: groups that no game connects; ratings of different ones say nothing of each other. True: groups within which
/// everyone has beaten or tied everyone else at least through others; between such groups one side has won every game, and the maximum of
/// the likelihood is at infinity.
///
/// # Source
/// Ford 1957, "Solution of a ranking problem from binary comparisons".
pub fn groups(wins: &[Vec<f64>], both_ways: bool) -> Vec<Vec<usize>> {
    let beat = |i: usize, j: usize| wins[i][j] > 0.0;
    let reached = |start: usize, edge: &dyn Fn(usize, usize) -> bool| {
        let mut seen = vec![false; wins.len()];
        seen[start] = true;
        let mut next = vec![start];
        while let Some(i) = next.pop() {
            for (j, seen) in seen.iter_mut().enumerate() {
                if !*seen && edge(i, j) {
                    *seen = true;
                    next.push(j);
                }
            }
        }
        seen
    };
    let mut placed = vec![false; wins.len()];
    let mut found = Vec::new();
    for start in 0..wins.len() {
        if placed[start] {
            continue;
        }
        let seen = match both_ways {
            false => reached(start, &|i, j| beat(i, j) || beat(j, i)),
            true => {
                let below = reached(start, &beat);
                let above = reached(start, &|i, j| beat(j, i));
                below.iter().zip(above).map(|(&b, a)| b && a).collect()
            }
        };
        let group: Vec<usize> = (0..wins.len()).filter(|&i| seen[i]).collect();
        group.iter().for_each(|&i| placed[i] = true);
        found.push(group);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn game(first: usize, second: usize, outcome: f64) -> Game {
        Game {
            first,
            second,
            outcome,
            weight: 1.0,
        }
    }

    /// By hand: equal players, k = 4, a win moves 2 points; the tie of 1002 with 1000 moves 4 (0.5 - 0.5028782) = -0.0115128.
    #[test]
    fn elo_moves_by_what_was_not_expected() {
        let games = [game(0, 1, 1.0), game(0, 2, 0.5)];
        let ratings = online_elo(3, &games, 4.0);
        assert!((ratings[0] - 1_001.988_487_2).abs() < 1e-6, "{ratings:?}");
        assert_eq!(ratings[1], 998.0);
        assert!((ratings[2] - 1_000.011_512_8).abs() < 1e-6, "{ratings:?}");
    }

    #[test]
    fn ties_are_half_a_win_for_both() {
        let mut heavy = game(1, 0, 0.75);
        heavy.weight = 2.0;
        let wins = win_matrix(2, &[game(0, 1, 1.0), game(0, 1, 0.5), heavy]);
        assert_eq!(wins, [[0.0, 2.0], [2.0, 0.0]]);
    }

    #[test]
    fn groups_are_of_those_who_met_or_who_won_both_ways() {
        // 0 beat 1, 1 tied with 2; 3 beat 4.
        let games = [game(0, 1, 1.0), game(1, 2, 0.5), game(3, 4, 1.0)];
        let wins = win_matrix(5, &games);
        assert_eq!(groups(&wins, false), [vec![0, 1, 2], vec![3, 4]]);
        assert_eq!(groups(&wins, true), [vec![0], vec![1, 2], vec![3], vec![4]]);
        // A cycle of wins is one group.
        let cycle = win_matrix(3, &[game(0, 1, 1.0), game(1, 2, 1.0), game(2, 0, 1.0)]);
        assert_eq!(groups(&cycle, true), [vec![0, 1, 2]]);
    }
}
