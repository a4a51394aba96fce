"""Ratings of policies from comparisons (see README.md).  usage: ratings.py OUT_DIR

Writes OUT_DIR/ratings/: comparisons.jsonl, games of five players with ties, and ratings.json: Bradley-Terry strengths by the
minorisation-maximisation of Hunter 2004, which has neither gradients nor a prior, on the scale of Elo; Elo game by game; and scores with a
Gaussian prior by Newton's method on the dense problem. Version: numpy alone.
"""
import json
import pathlib
import sys

import numpy as np

PLAYERS = ["base", "sft", "best-of-4", "dpo", "ppo"]
STRENGTHS = np.array([-1.0, 0.0, 0.4, 0.7, 1.1])
K = 4.0


def games(rng):
    """Rows in which stronger players win more often, and one in eight is a tie."""
    rows = []
    for index in range(400):
        a, b = rng.choice(len(PLAYERS), size=2, replace=False)
        p = 1 / (1 + np.exp(STRENGTHS[b] - STRENGTHS[a]))
        draw = rng.random()
        winner = "tie" if draw < 0.125 else ("model_a" if (draw - 0.125) / 0.875 < p else "model_b")
        rows.append({"prompt": f"prompt {index % 80}", "model_a": PLAYERS[a], "model_b": PLAYERS[b], "winner": winner})
    return rows


def minorise_maximise(wins):
    """Strengths p_i = W_i / sum_j n_ij / (p_i + p_j), iterated to the last digit (Hunter 2004, equation 3)."""
    p = np.ones(len(wins))
    played = wins + wins.T
    for _ in range(100_000):
        new = wins.sum(1) / (played / (p[:, None] + p[None, :])).sum(1)
        new /= np.exp(np.log(new).mean())
        if np.abs(new - p).max() < 1e-15:
            break
        p = new
    return np.log(p)


def with_prior(wins, prior):
    """argmax sum_ij wins_ij log sigmoid(x_i - x_j) - prior / 2 |x|^2."""
    x = np.zeros(len(wins))
    for _ in range(200):
        s = 1 / (1 + np.exp(x[None, :] - x[:, None]))
        gradient = (wins * (1 - s) - wins.T * s).sum(1) - prior * x
        slope = (wins + wins.T) * s * (1 - s)
        hessian = np.diag(slope.sum(1) + prior) - slope
        x = x + np.linalg.solve(hessian, gradient)
    return x


def online(rows):
    """R += K (S - E), from 1000 on."""
    ratings = {name: 1000.0 for name in PLAYERS}
    for row in rows:
        a, b = row["model_a"], row["model_b"]
        expected = 1 / (1 + 10 ** ((ratings[b] - ratings[a]) / 400))
        score = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5}[row["winner"]]
        ratings[a], ratings[b] = ratings[a] + K * (score - expected), ratings[b] - K * (score - expected)
    return [ratings[name] for name in PLAYERS]


def main():
    out = pathlib.Path(sys.argv[1]) / "ratings"
    out.mkdir(parents=True, exist_ok=True)
    rows = games(np.random.default_rng(23))
    (out / "comparisons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wins = np.zeros((len(PLAYERS), len(PLAYERS)))
    for row in rows:
        a, b = PLAYERS.index(row["model_a"]), PLAYERS.index(row["model_b"])
        score = {"model_a": 1.0, "model_b": 0.0, "tie": 0.5}[row["winner"]]
        wins[a, b] += score
        wins[b, a] += 1 - score
    strengths = minorise_maximise(wins)
    points = 1000 + 400 / np.log(10) * (strengths - strengths[0])
    reference = {
        "players": PLAYERS,
        "wins": wins.tolist(),
        "bradley_terry": points.round(9).tolist(),
        "elo": [round(rating, 9) for rating in online(rows)],
        "prior": 1.0,
        "with_prior": with_prior(wins, 1.0).round(12).tolist(),
    }
    (out / "ratings.json").write_text(json.dumps(reference, indent=1) + "\n")


main()
