"""Distils a tiny GPT-2 into a tiny llama with TRL's GKDTrainer and notes every step (see README.md).  usage: distill.py OUT_DIR

Reads the models and rows that trajectories.py writes. Versions: torch==2.15.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0
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


class Gkd(trl.Recorder, GKDTrainer):
    pass


def encoded(out):
    """The rows as TRL's SFT encodes them: ids, and which of them belong to the completion."""
    args = trl.arguments(SFTConfig, trl.SHARED | dict(lr=1e-3), completion_only_loss=True, shuffle_dataset=False)
    trainer = SFTTrainer(model=trl.causal(out), args=args, train_dataset=trl.rows(out, "sft"), processing_class=trl.tokenizer())
    rows = [
        dict(input_ids=row["input_ids"], completion_mask=[int(label != -100) for label in row["labels"]], prompt="")
        for row in trainer.train_dataset
    ]
    return Dataset.from_list(rows)


def train(out, data, name, variant):
    student, teacher = trl.causal(out), trl.causal(f"{out}/gpt2")
    if "lora" in name:
        student = trl.adapted(student, out, "CAUSAL_LM", fresh=False)
    args = trl.arguments(GKDConfig, variant, lmbda=0.0, beta=variant["beta"])
    return trl.run(Gkd(model=student, teacher_model=teacher, args=args, train_dataset=data, processing_class=trl.tokenizer()))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    source, out = f"{sys.argv[1]}/trajectories", f"{sys.argv[1]}/distill"
    os.makedirs(out, exist_ok=True)
    torch.set_num_threads(1)
    data = encoded(source)
    runs = {}
    for name, changes in GKD.items():
        variant = SHARED | changes
        print(f"gkd {name}", end=" ")
        runs[name] = {"settings": variant, "steps": train(source, data, name, variant)}
    trl.write(f"{out}/trajectories.json", {"gkd": runs})


if __name__ == "__main__":
    main()
