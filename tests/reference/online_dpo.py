"""Online DPO of TRL on fixed responses and rewards, step by step (see README.md).  usage: online_dpo.py OUT_DIR

Reads the model in OUT_DIR/trajectories. Versions: torch==2.15.0 transformers==5.23.0 trl==1.16.0
"""
import json
import os
import random
import sys

import trajectories as base  # first: it sets the environment

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
from datasets import Dataset
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

PROMPTS = 4  # of a step, with two responses each
LENGTH = 12  # most tokens of a response
VOCAB = 768
EOS = 0
# Clipping is set where it bites in some steps and not in others.
SHARED = base.SHARED | dict(rows=PROMPTS, weight_decay=0.1, beta=0.1, loss="sigmoid")
VARIANTS = {
    "sigmoid": dict(lr=2e-3, max_grad_norm=1.5),
    "sigmoid_eos": dict(lr=2e-3, max_grad_norm=5.9, beta=0.4, missing_eos_penalty=1.0, schedule="cosine"),
    "ipo": dict(lr=1e-3, max_grad_norm=312.0, loss="ipo"),
    "ipo_eos": dict(lr=1e-3, max_grad_norm=60.0, loss="ipo", beta=0.5, missing_eos_penalty=0.25, schedule="cosine"),
}
METRICS = (
    "objective/scores", "objective/scores_margin", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
    "logps/chosen", "logps/rejected",
)


class Online(base.Recorder, OnlineDPOTrainer):
    """Takes responses and scores of each step from a list: the first response to every prompt, then the second."""

    METRICS = METRICS

    def _generate(self, model, prompts, images=None):
        self.current = self.rollouts.pop(0)
        queries = [self.current["queries"][i % PROMPTS] for i in range(2 * PROMPTS)]
        return *padded(queries, left=True), *padded(self.in_halves("responses"), left=False), None

    def _calculate_rewards_from_functions(self, prompts, completions, completion_ids_list, **reward_kwargs):
        return torch.tensor(self.in_halves("scores"), dtype=torch.float32)

    def in_halves(self, name):
        values = self.current[name]
        return values[0::2] + values[1::2]

    def note(self, norm):
        self._metrics = {"train": dict(self.stats)}
        super().note(norm)
        self.stats = {name: [] for name in self.stats}


def padded(rows, left):
    """Ids and mask."""
    longest = max(len(row) for row in rows)
    side = lambda row, filler: [filler] * (longest - len(row))
    ids = [side(row, EOS) + row if left else row + side(row, EOS) for row in rows]
    mask = [side(row, 0) + [1] * len(row) if left else [1] * len(row) + side(row, 0) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def reward(prompts, completions, **kwargs):
    raise NotImplementedError  # the rewards are fixed


def run(out, variant, rollouts):
    args = base.arguments(
        OnlineDPOConfig, variant, beta=variant["beta"], loss_type=variant["loss"], max_new_tokens=LENGTH,
        missing_eos_penalty=variant.get("missing_eos_penalty"),
    )
    data = Dataset.from_list([{"prompt": str(i)} for i in range(PROMPTS * base.STEPS)])
    trainer = Online(
        model=base.causal(f"{out}/trajectories"), args=args, train_dataset=data, processing_class=base.tokenizer(), reward_funcs=reward
    )
    trainer.rollouts = list(rollouts)
    return base.run(trainer)


def make_rollouts(random):
    """Two responses to each prompt, with scores that differ with and without the penalties; some of the greatest length without EOS."""
    rollouts = []
    for _ in range(base.STEPS):
        queries = [[random.randrange(1, VOCAB) for _ in range(random.randint(2, 6))] for _ in range(PROMPTS)]
        responses, scores = [], []
        for _ in range(PROMPTS):
            for score in random.sample(range(-8, 8), 2):
                length = random.choice([2, 3, 5, 8, LENGTH, LENGTH])
                ids = [random.randrange(1, VOCAB) for _ in range(length)]
                if length < LENGTH or random.random() < 0.3:
                    ids[-1] = EOS
                responses.append(ids)
                # Odd eighths: a penalty of a quarter or of 1 makes none of two equal.
                scores.append(score / 8 + len(responses) % 2 / 16)
        rollouts.append({"queries": queries, "responses": responses, "scores": scores})
    return rollouts


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = sys.argv[1]
    os.makedirs(f"{out}/online_dpo", exist_ok=True)
    torch.set_num_threads(1)
    rollouts = make_rollouts(random.Random(500))
    lines = []
    for name, changes in VARIANTS.items():
        variant = SHARED | changes
        print(name, end=" ")
        steps = run(out, variant, rollouts)
        series = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in steps.items())
        lines.append(f'  {json.dumps(name)}: {{"settings": {json.dumps(variant)}, "steps": {{\n{series}}}}}')
    sizes = {"response_length": LENGTH, "eos": EOS}
    with open(f"{out}/online_dpo/ref.json", "w") as file:
        file.write(f'{{"sizes": {json.dumps(sizes)},\n "rollouts": [\n')
        file.write(",\n".join("  " + json.dumps(rollout) for rollout in rollouts))
        file.write('\n ],\n "variants": {\n' + ",\n".join(lines) + "\n }\n}\n")


if __name__ == "__main__":
    main()
