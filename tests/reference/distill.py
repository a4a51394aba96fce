"""Distils a tiny GPT-2 into a tiny llama with TRL's GKDTrainer and notes every step (see README.md).  usage: distill.py OUT_DIR

Reads the models and rows that trajectories.py writes. Writes OUT_DIR/distill/: rows.jsonl and trajectories.json. Versions: torch==2.15.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0
"""
import json
import os
import sys

import trajectories as trl  # first: it sets the environment
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

# One row a pass: TRL pads on the left, which moves the learned positions of the teacher.
SHARED = trl.SHARED | dict(rows=1, accumulation=2)
GKD = {
    "forward_full": dict(lr=2e-3, max_grad_norm=0.3, beta=0.0),
    "reverse_full": dict(lr=2e-3, max_grad_norm=0.25, beta=1.0, schedule="cosine"),
    "mixture_full": dict(lr=2e-3, max_grad_norm=0.045, beta=0.5, accumulation=4),
    "skewed_full": dict(lr=2e-3, max_grad_norm=0.02, beta=0.1),
    "forward_lora": dict(lr=1e-2, max_grad_norm=0.1, beta=0.0, accumulation=4, schedule="cosine"),
    "reverse_lora": dict(lr=1e-2, max_grad_norm=0.13, beta=1.0),
    "mixture_lora": dict(lr=1e-2, max_grad_norm=0.025, beta=0.7),
}
# Whose responses a step trains on where `lmbda` is 0.5: the draws of the program under test from its seed 1, in place of TRL's.
HALF = [0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0]
# On generated responses. They are the likeliest ones, since random numbers differ: sampled at a temperature near 0.
GENERATED = dict(max_new_tokens=8, temperature=1e-6)
ON_POLICY = {
    "student_full": dict(lr=2e-3, max_grad_norm=0.3, beta=0.5, lmbda=1.0),
    "student_forward_full": dict(lr=2e-3, beta=0.0, lmbda=1.0, schedule="cosine"),
    "student_lora": dict(lr=1e-2, beta=1.0, lmbda=1.0),
    "half_full": dict(lr=2e-3, beta=0.3, lmbda=0.5),
    "teacher_full": dict(lr=2e-3, beta=0.0, lmbda=0.0, seq_kd=True),
    "half_teacher_lora": dict(lr=1e-2, beta=0.5, lmbda=0.5, seq_kd=True),
}
# A token that is the likeliest by less could be another one on the other side.
LEAST_GAP = 1e-4


class Gkd(trl.Recorder, GKDTrainer):
    """TRL decides by micro-batch who writes its response, and divides by the tokens of the data's completions even then. Here a step's
    responses are written before its first pass, by TRL's own function, so that they are counted."""

    METRICS = ("on_policy", "response_length")
    writers = None
    smallest_gap = float("inf")

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.writers is None:
            return batches, count
        writer = self.writers[self.state.global_step]
        if writer is not None:
            for batch in batches:
                self.respond(self.model if writer == "student" else self.teacher_model, batch)
            count = sum((batch["labels"] != -100).sum() for batch in batches)
        self._metrics["train"]["on_policy"].append(float(writer == "student"))
        self._metrics["train"]["response_length"].append(int(count) / sum(len(batch["labels"]) for batch in batches))
        return batches, count

    def respond(self, model, batch):
        was = model.training
        model.eval()
        with torch.no_grad():
            ids, mask, labels = self.generate_on_policy_outputs(model, batch, self.generation_config)
            top = model(input_ids=ids, attention_mask=mask).logits[:, :-1][labels[:, 1:] != -100].topk(2, dim=-1).values
        model.train(was)
        self.smallest_gap = min(self.smallest_gap, (top[:, 0] - top[:, 1]).min().item())
        batch.update(input_ids=ids, attention_mask=mask, labels=labels)


def whole_prompts(source, out):
    """Rows whose prompts are tokens of their own: TRL generates after the tokens before a completion, the program after the prompt's."""
    with open(f"{source}/sft.jsonl") as file:
        lines = [line for line in file if json.loads(line)["prompt"].endswith(":")]
    lines += lines[: trl.ROWS - len(lines)]
    with open(f"{out}/rows.jsonl", "w") as file:
        file.writelines(lines)
    return trl.rows(out, "rows")


def encoded(out, rows):
    """The rows as TRL's SFT encodes them: ids, and which of them belong to the completion."""
    args = trl.arguments(SFTConfig, trl.SHARED | dict(lr=1e-3), completion_only_loss=True, shuffle_dataset=False)
    trainer = SFTTrainer(model=trl.causal(out), args=args, train_dataset=rows, processing_class=trl.tokenizer())
    rows = [
        dict(input_ids=row["input_ids"], completion_mask=[int(label != -100) for label in row["labels"]], prompt="")
        for row in trainer.train_dataset
    ]
    return Dataset.from_list(rows)


def train(out, data, name, variant):
    student, teacher = trl.causal(out), trl.causal(f"{out}/gpt2")
    if "lora" in name:
        student = trl.adapted(student, out, "CAUSAL_LM", fresh=False)
    more = GENERATED if name in ON_POLICY else {}
    args = trl.arguments(GKDConfig, variant, lmbda=0.0, beta=variant["beta"], **more)
    trainer = Gkd(model=student, teacher_model=teacher, args=args, train_dataset=data, processing_class=trl.tokenizer())
    if name in ON_POLICY:
        trainer.writers = writers(variant)
    steps = trl.run(trainer)
    assert trainer.smallest_gap > LEAST_GAP, trainer.smallest_gap
    return steps


def writers(variant):
    """Who writes the responses of each step; none where they are the data's."""
    own = {0.0: [0] * trl.STEPS, 0.5: HALF, 1.0: [1] * trl.STEPS}[variant["lmbda"]]
    other = "teacher" if variant.get("seq_kd") else None
    return ["student" if is_own else other for is_own in own]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    source, out = f"{sys.argv[1]}/trajectories", f"{sys.argv[1]}/distill"
    os.makedirs(out, exist_ok=True)
    torch.set_num_threads(1)
    data = encoded(source, trl.rows(source, "sft"))
    prompts = encoded(source, whole_prompts(source, out))
    runs = {}
    for name, changes in (GKD | ON_POLICY).items():
        variant = SHARED | changes
        print(f"gkd {name}", end=" ")
        runs[name] = {"settings": variant, "steps": train(source, prompts if name in ON_POLICY else data, name, variant)}
    trl.write(f"{out}/trajectories.json", {"gkd": runs})


if __name__ == "__main__":
    main()
