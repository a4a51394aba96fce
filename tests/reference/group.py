"""Group methods of TRL on fixed responses and rewards, step by step (see README.md).  usage: group.py OUT_DIR

Reads the model in OUT_DIR/trajectories. Versions: torch==2.15.0 transformers==5.23.0 trl==1.16.0
"""
import json
import os
import random
import sys
import tempfile

from trajectories import STEPS, Recorder, causal, number, tokenizer

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer import grpo_trainer, rloo_trainer

GROUPS = 2
SIZE = 4  # responses to a prompt
LENGTH = 12  # most tokens of a response
VOCAB = 768
EOS = 0

SHARED = dict(
    lr=3e-3, weight_decay=0.1, max_grad_norm=1.0, iterations=1, minibatches=1, accumulation=1, beta=0.0, epsilon=0.2, temperature=1.0
)
# Where the ratio is to differ from 1 a rollout is used twice or in several minibatches.
TWICE = dict(iterations=2)
GRPO = {
    "dapo": {},
    "dapo_accumulated": dict(accumulation=2, temperature=0.7),
    "dapo_twice": TWICE,
    "dapo_minibatches": dict(minibatches=2, iterations=2),
    "dapo_higher": TWICE | dict(epsilon_high=0.28, lr=6e-3),
    "dapo_masked": TWICE | dict(mask_truncated_completions=True),
    "dapo_kl": TWICE | dict(beta=0.2),
    "dapo_kl_plain": dict(beta=0.2, use_bias_correction_kl=False),
    "dapo_delta": TWICE | dict(delta=1.3, lr=1e-2),
    "grpo": TWICE | dict(loss_type="grpo", accumulation=2),
    "grpo_batch": TWICE | dict(loss_type="grpo", scale_rewards="batch"),
    "grpo_masked_kl": TWICE | dict(loss_type="grpo", mask_truncated_completions=True, beta=0.1, lr=2e-3),
    "dr_grpo": TWICE | dict(loss_type="dr_grpo", scale_rewards="none"),
    "bnpo": TWICE | dict(loss_type="bnpo", minibatches=2),
    "cispo": TWICE | dict(loss_type="cispo", epsilon_high=1.1, minibatches=2),
    "gspo": TWICE | dict(loss_type="grpo", importance_sampling_level="sequence", epsilon=0.02, epsilon_high=0.03),
    "gspo_dapo_kl": TWICE | dict(importance_sampling_level="sequence", epsilon=0.05, beta=0.1, minibatches=2),
    "gspo_cispo": TWICE | dict(loss_type="cispo", importance_sampling_level="sequence", epsilon_high=1.02),
}
RLOO = {
    "rloo": dict(beta=0.05),
    "rloo_twice": TWICE | dict(beta=0.05, minibatches=2),
    "rloo_higher": TWICE | dict(epsilon_high=0.5, accumulation=2, temperature=0.7),
    "rloo_normalized": TWICE | dict(beta=0.05, normalize_advantages=True),
    "rloo_clipped": TWICE | dict(reward_clip_range=(-0.5, 0.5)),
}


class Fixed(Recorder):
    """Takes prompts, responses and rewards of each rollout from a list."""

    METRICS = ("entropy", "kl", "clip_ratio/region_mean", "cispo_clip_ratio", "reward", "reward_std", "frac_reward_zero_std")

    def _generate(self, prompts):
        self.current = self.rollouts.pop(0)
        queries = [self.current["queries"][i // SIZE] for i in range(len(prompts))]
        return self.generated(queries, self.current["responses"])

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        return torch.tensor(self.current["scores"], dtype=torch.float32)[:, None]


class Grpo(Fixed, GRPOTrainer):
    @staticmethod
    def generated(prompts, responses):
        return prompts, responses, None, [""] * len(responses), None, {}, None, None


class Rloo(Fixed, RLOOTrainer):
    @staticmethod
    def generated(prompts, responses):
        return prompts, responses, [""] * len(responses)


def reward(prompts, completions, **kwargs):
    raise NotImplementedError  # the rewards are fixed


def run(out, trainer_class, config_class, variant, rollouts):
    named = {"lr", "weight_decay", "max_grad_norm", "iterations", "minibatches", "accumulation"}
    rows = GROUPS * SIZE
    args = config_class(
        output_dir=tempfile.mkdtemp(), max_steps=STEPS, learning_rate=variant["lr"], weight_decay=variant["weight_decay"],
        max_grad_norm=variant["max_grad_norm"], lr_scheduler_type="constant", num_generations=SIZE, max_completion_length=LENGTH,
        per_device_train_batch_size=rows // variant["minibatches"] // variant["accumulation"],
        gradient_accumulation_steps=variant["accumulation"], generation_batch_size=rows, num_iterations=variant["iterations"],
        shuffle_dataset=False, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], disable_tqdm=True,
        save_strategy="no", logging_strategy="no", seed=1, **{k: v for k, v in variant.items() if k not in named},
    )
    data = Dataset.from_list([{"prompt": str(i)} for i in range(GROUPS * STEPS)])
    trainer = trainer_class(
        model=causal(f"{out}/trajectories"), args=args, train_dataset=data, processing_class=tokenizer(), reward_funcs=reward
    )
    trainer.rollouts = list(rollouts)
    trainer.train()
    steps = trainer.steps
    assert len(steps) == STEPS
    print(f"loss {steps[0]['loss']:.4f} -> {steps[-1]['loss']:.4f}, metrics {sorted(steps[-1])}", flush=True)
    # Those of a rollout are noted in the step after it only.
    return {name: [step[name] for step in steps] for name in steps[0] if all(name in step for step in steps)}


def make_rollouts(random):
    """A response of the greatest length has EOS or not; in one of four groups the rewards are equal."""
    rollouts = []
    for _ in range(STEPS):
        queries = [[random.randrange(1, VOCAB) for _ in range(random.randint(2, 6))] for _ in range(GROUPS)]
        responses, scores = [], []
        for _ in range(GROUPS):
            equal = random.random() < 0.25
            same = random.randint(-4, 4) / 4
            for _ in range(SIZE):
                length = random.choice([2, 3, 5, 8, LENGTH, LENGTH])
                ids = [random.randrange(1, VOCAB) for _ in range(length)]
                if length < LENGTH or random.random() < 0.3:
                    ids[-1] = EOS
                responses.append(ids)
                scores.append(same if equal else random.randint(-8, 8) / 8)
        rollouts.append({"queries": queries, "responses": responses, "scores": scores})
    return rollouts


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = sys.argv[1]
    os.makedirs(f"{out}/group", exist_ok=True)
    torch.set_num_threads(1)
    # The order of a rollout's responses is given, not drawn.
    grpo_trainer.shuffle_sequence_dict = rloo_trainer.shuffle_sequence_dict = lambda batch: batch
    rollouts = make_rollouts(random.Random(400))
    lines = []
    for method, variants, trainer, config in [("grpo", GRPO, Grpo, GRPOConfig), ("rloo", RLOO, Rloo, RLOOConfig)]:
        for name, changes in variants.items():
            variant = SHARED | changes
            print(name, end=": ")
            steps = run(out, trainer, config, variant, rollouts)
            series = ",\n".join(f"    {json.dumps(k)}: {json.dumps([number(x) for x in v])}" for k, v in steps.items())
            head = {"method": method, "settings": variant}
            lines.append(f'  {json.dumps(name)}: {json.dumps(head)[:-1]}, "steps": {{\n{series}}}}}')
    sizes = {"size": SIZE, "response_length": LENGTH, "eos": EOS}
    with open(f"{out}/group/ref.json", "w") as file:
        file.write(f'{{"sizes": {json.dumps(sizes)},\n "rollouts": [\n')
        file.write(",\n".join("  " + json.dumps(rollout) for rollout in rollouts))
        file.write('\n ],\n "variants": {\n' + ",\n".join(lines) + "\n }\n}\n")


if __name__ == "__main__":
    main()
