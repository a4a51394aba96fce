"""REINFORCE++ from its equations in plain torch, on the rollouts of group.py (see README.md).  usage: reinforce_plus_plus.py OUT_DIR

TRL has no trainer of it. Reads the model in OUT_DIR/trajectories and the rollouts in OUT_DIR/group.
Equations: Hu, Liu, Xu and Shen 2025, arXiv:2501.03262. Versions: torch==2.15.0 transformers==5.23.0
"""
import json
import os
import sys

from trajectories import STEPS, causal, number

import torch

SHARED = dict(
    lr=3e-3, weight_decay=0.1, max_grad_norm=1.0, iterations=1, minibatches=1, accumulation=1, beta=0.1, epsilon=0.2, temperature=1.0,
    gamma=1.0, baseline=False,
)
TWICE = dict(iterations=2)
VARIANTS = {
    "plain": {},
    "plain_twice": TWICE | dict(minibatches=2, beta=0.05),
    "plain_discounted": TWICE | dict(gamma=0.9, temperature=0.7, accumulation=2),
    "plain_higher": TWICE | dict(epsilon_high=0.28, lr=6e-3),
    "plain_without_kl": TWICE | dict(beta=0.0),
    "baseline": TWICE | dict(baseline=True),
    "baseline_minibatches": TWICE | dict(baseline=True, minibatches=2, beta=0.3),
    "baseline_accumulated": dict(baseline=True, accumulation=2, beta=0.02, lr=6e-3),
}


def forward(model, query, response, temperature):
    """Log-probabilities of the response's tokens, and the entropies of their distributions."""
    logits = model(torch.tensor([query + response])).logits[0, len(query) - 1 : -1] / temperature
    logprobs = logits.log_softmax(-1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, torch.tensor(response)[:, None])[:, 0], entropies


def advantages(scores, old, reference, variant, size):
    """Of every token of every response, normalised over all of them."""
    if variant["baseline"]:
        # The KL is in the loss.
        groups = [scores[i // size * size : i // size * size + size] for i in range(len(scores))]
        rewards = [torch.zeros_like(row) for row in old]
        scores = [score - sum(group) / size for score, group in zip(scores, groups)]
    else:
        # k1 at every token.
        rewards = [-variant["beta"] * (row - ref) for row, ref in zip(old, reference)]
    returns = []
    for row, score in zip(rewards, scores):
        row = row.clone()
        row[-1] += score
        total, result = 0.0, []
        for reward in reversed(row.tolist()):
            total = reward + variant["gamma"] * total
            result.append(total)
        returns.append(torch.tensor(result[::-1]))
    flat = torch.cat(returns)
    scaled = (flat - flat.mean()) / (flat.var(correction=0) + 1e-8).sqrt()
    return scaled.split([len(row) for row in returns])


def train(out, variant, rollouts, size):
    model, reference_model = causal(f"{out}/trajectories"), causal(f"{out}/trajectories")
    parameters = dict(model.named_parameters())
    decayed = [p for name, p in parameters.items() if "norm" not in name]
    others = [p for name, p in parameters.items() if "norm" in name]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": variant["weight_decay"]}, {"params": others, "weight_decay": 0.0}], lr=variant["lr"]
    )
    low, high = 1 - variant["epsilon"], 1 + variant.get("epsilon_high", variant["epsilon"])
    steps = {name: [] for name in ["loss", "grad_norm", "entropy", "kl", "clip_ratio/region_mean"]}
    for rollout in rollouts:
        if len(steps["loss"]) == STEPS:
            break
        queries = [rollout["queries"][i // size] for i in range(len(rollout["responses"]))]
        rows = list(zip(queries, rollout["responses"]))
        temperature = variant["temperature"]
        with torch.no_grad():
            old = [forward(model, *row, temperature)[0] for row in rows]
            reference = [forward(reference_model, *row, temperature)[0] for row in rows]
        advantage = advantages(rollout["scores"], old, reference, variant, size)
        for _ in range(variant["iterations"]):
            for minibatch in torch.arange(len(rows)).chunk(variant["minibatches"]):
                minibatch = minibatch.tolist()
                passes = [forward(model, *rows[i], temperature) for i in minibatch]
                new = torch.cat([logprobs for logprobs, _ in passes])
                ratio = (new - torch.cat([old[i] for i in minibatch])).exp()
                of_tokens = torch.cat([advantage[i] for i in minibatch])
                loss = -torch.minimum(ratio * of_tokens, ratio.clamp(low, high) * of_tokens).mean()
                kl = None
                if variant["baseline"]:
                    # k2, whose gradient is that of KL(policy || reference).
                    kl = (0.5 * (new - torch.cat([reference[i] for i in minibatch])) ** 2).mean()
                    loss = loss + variant["beta"] * kl
                optimiser.zero_grad()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(parameters.values(), variant["max_grad_norm"])
                optimiser.step()
                clipped = ((ratio < low) & (of_tokens < 0)) | ((ratio > high) & (of_tokens > 0))
                steps["loss"].append(loss.item())
                steps["grad_norm"].append(norm.item())
                steps["entropy"].append(torch.cat([entropies for _, entropies in passes]).mean().item())
                steps["clip_ratio/region_mean"].append(clipped.float().mean().item())
                if kl is not None:
                    steps["kl"].append(kl.item())
    print(f"loss {steps['loss'][0]:.4f} -> {steps['loss'][-1]:.4f}, clipped {max(steps['clip_ratio/region_mean']):.2f}", flush=True)
    return {name: series for name, series in steps.items() if series}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = sys.argv[1]
    os.makedirs(f"{out}/reinforce_plus_plus", exist_ok=True)
    torch.set_num_threads(1)
    with open(f"{out}/group/ref.json") as file:
        group = json.load(file)
    lines = []
    for name, changes in VARIANTS.items():
        variant = SHARED | changes
        print(name, end=": ")
        steps = train(out, variant, group["rollouts"], group["sizes"]["size"])
        series = ",\n".join(f"    {json.dumps(k)}: {json.dumps([number(x) for x in v])}" for k, v in steps.items())
        head = {"method": "reinforce_plus_plus", "settings": variant}
        lines.append(f'  {json.dumps(name)}: {json.dumps(head)[:-1]}, "steps": {{\n{series}}}}}')
    with open(f"{out}/reinforce_plus_plus/ref.json", "w") as file:
        file.write('{"variants": {\n' + ",\n".join(lines) + "\n }\n}\n")


if __name__ == "__main__":
    main()
