"""Trains a tiny model on preferences with TRL and notes every step (see README.md).  usage: preferences.py OUT_DIR

Reads the models and rows of trajectories.py. Writes OUT_DIR/preferences/: rows of comparisons, of labels and of prompts, and
trajectories.json. Versions: torch==2.15.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0 safetensors==0.8.0
"""
import json
import os
import random
import sys

import trajectories as base  # first: it sets the environment

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

# Clipping is set where it bites in some steps and not in others. Losses that sort or average over a batch are compared over one
# micro-batch a step: TRL does so per micro-batch, the program under test over the whole step.
DPO = {
    "exo_full": dict(lr=2e-3, max_grad_norm=4.0, loss="exo_pair", label_smoothing=0.01),
    "exo_lora": dict(lr=1e-2, max_grad_norm=0.59, loss="exo_pair", label_smoothing=0.1, accumulation=2),
    "nca_full": dict(lr=2e-3, max_grad_norm=1.1, loss="nca_pair"),
    "bco_full": dict(lr=2e-3, max_grad_norm=1.5, loss="bco_pair", accumulation=2),
    "bco_lora": dict(lr=1e-2, loss="bco_pair"),
    "sppo_full": dict(lr=2e-3, max_grad_norm=300.0, loss="sppo_hard", accumulation=2),
    "aot_full": dict(lr=2e-3, max_grad_norm=1.1, loss="aot", label_smoothing=0.1, rows=4),
    "aot_lora": dict(lr=1e-2, max_grad_norm=0.54, loss="aot", rows=4),
    "aotunpaired_full": dict(lr=2e-3, max_grad_norm=1.5, loss="aot_unpaired", rows=4),
    "apozero_full": dict(lr=2e-3, max_grad_norm=1.0, loss="apo_zero"),
    "apozero_lora": dict(lr=1e-2, max_grad_norm=0.31, loss="apo_zero", accumulation=2),
    "apodown_full": dict(lr=2e-3, max_grad_norm=0.58, loss="apo_down", accumulation=2),
    "discopop_full": dict(lr=2e-3, max_grad_norm=2.5, loss="discopop"),
    "discopop_lora": dict(lr=1e-2, loss="discopop", discopop_tau=0.5),
    "sigmoidnorm_full": dict(lr=2e-3, max_grad_norm=0.19, loss="sigmoid_norm", accumulation=2),
    "mixed_full": dict(lr=2e-3, max_grad_norm=5.8, loss=["sigmoid", "bco_pair", "sft"], weights=[0.8, 0.2, 1.0]),
    "mixed_lora": dict(lr=1e-2, loss=["sigmoid", "sft"], weights=[0.8, 0.25]),
}
CPO = {
    "sigmoid_full": dict(lr=2e-3, max_grad_norm=6.0),
    "sigmoid_lora": dict(lr=1e-2, cpo_alpha=0.5, label_smoothing=0.1),
    "hinge_full": dict(lr=2e-3, max_grad_norm=8.0, loss="hinge"),
    "ipo_full": dict(lr=2e-3, max_grad_norm=57.0, loss="ipo"),
    "simpo_full": dict(lr=2e-3, max_grad_norm=7.2, loss="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=1.0),
    "simpo_lora": dict(lr=1e-2, max_grad_norm=2.0, loss="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=0.5, label_smoothing=0.05),
    "alpha_full": dict(lr=2e-3, max_grad_norm=36.0, loss="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=0.5, alpha=0.25),
}
ORPO = {
    "odds_full": dict(lr=2e-3, max_grad_norm=2.8),
    "odds_lora": dict(lr=1e-2, max_grad_norm=1.2, beta=0.5, schedule="cosine"),
}
KTO = {
    "kto_full": dict(lr=2e-3, max_grad_norm=0.62, rows=4),
    "kto_precomputed": dict(lr=2e-3, max_grad_norm=0.62, rows=4, precompute=True, schedule="cosine"),
    "kto_lora": dict(lr=1e-2, max_grad_norm=0.57, rows=4, desirable_weight=1.33, undesirable_weight=0.75, beta=0.25),
    "apozero_full": dict(lr=2e-3, max_grad_norm=0.5, rows=2, accumulation=2, loss="apo_zero_unpaired"),
}


class Dpo(base.Dpo):
    pass


class Stored(base.Recorder):
    """Of trainers that keep their metrics in `_stored_metrics`."""

    def note(self, norm):
        self._metrics = {"train": dict(self._stored_metrics["train"])}
        super().note(norm)
        self._stored_metrics["train"].clear()


class Cpo(Stored, CPOTrainer):
    METRICS = (
        "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "nll_loss",
    )


class Orpo(Stored, ORPOTrainer):
    METRICS = Cpo.METRICS + ("log_odds_chosen", "log_odds_ratio")


class Kto(base.Recorder, KTOTrainer):
    METRICS = ("kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")


def tokenizer():
    loaded = base.tokenizer()
    # CPO and ORPO put BOS before a prompt whatever the tokenizer itself does; the others leave that to the tokenizer.
    loaded.bos_token = None
    return loaded


def rows(out, name):
    with open(f"{out}/{name}.jsonl") as file:
        return Dataset.from_list([json.loads(line) for line in file])


def train(root, trainer, config, data, variant, name, **settings):
    """Runs a trainer from the model of trajectories.py, or with its adapter's A and a B of zero."""
    models = f"{root}/trajectories"
    lora = name.endswith("lora")
    peft = LoraConfig(**base.LORA, task_type="CAUSAL_LM") if lora else None
    args = base.arguments(config, variant, **settings)
    made = trainer(
        model=base.causal(models), args=args, train_dataset=data, processing_class=tokenizer(), peft_config=peft
    )
    if lora:
        base.set_adapter(made.model, models, fresh=True)
    return base.run(made)


def train_dpo(root, out, name, variant):
    loss = variant["loss"]
    data = rows(f"{root}/trajectories", "preferences").remove_columns("margin")
    return train(
        root, Dpo, DPOConfig, data, variant, name, beta=variant["beta"],
        loss_type=loss if isinstance(loss, list) else [loss], loss_weights=variant.get("weights"),
        label_smoothing=variant.get("label_smoothing", 0.0), discopop_tau=variant.get("discopop_tau", 0.05),
    )


def train_cpo(root, out, name, variant):
    return train(
        root, Cpo, CPOConfig, rows(out, "preferences"), variant, name, beta=variant["beta"],
        loss_type=variant.get("loss", "sigmoid"), label_smoothing=variant.get("label_smoothing", 0.0),
        cpo_alpha=variant.get("cpo_alpha", 1.0), simpo_gamma=variant.get("simpo_gamma", 0.5), alpha=variant.get("alpha", 0.0),
    )


def train_orpo(root, out, name, variant):
    return train(root, Orpo, ORPOConfig, rows(out, "preferences"), variant, name, beta=variant["beta"])


def train_kto(root, out, name, variant):
    return train(
        root, Kto, KTOConfig, rows(out, "labelled"), variant, name, beta=variant["beta"], loss_type=variant.get("loss", "kto"),
        desirable_weight=variant.get("desirable_weight", 1.0), undesirable_weight=variant.get("undesirable_weight", 1.0),
        precompute_ref_log_probs=variant.get("precompute", False),
    )


def make_rows(out, generator):
    """Comparisons without a token across the end of the prompt, which CPO and ORPO cut elsewhere; labels of both kinds in every two rows
    of labelled responses."""
    words = lambda low, high: " ".join(generator.choice(base.WORDS) for _ in range(generator.randint(low, high)))
    preferences, labelled = [], []
    for i in range(base.ROWS):
        prompt = words(3, 7) + ":"
        preferences.append({"prompt": prompt, "chosen": " " + words(2, 8), "rejected": " " + words(2, 8)})
        crossing = i % 10 == 3
        prompt = words(3, 7) + (" frien" if crossing else ":")
        completion = ("d " if crossing else " ") + words(2, 8)
        label = i % 2 == 0 if i % 4 < 2 else i % 8 in (2, 7)
        labelled.append({"prompt": prompt, "completion": completion, "label": label})
    for name, values in [("preferences", preferences), ("labelled", labelled)]:
        with open(f"{out}/{name}.jsonl", "w") as file:
            file.writelines(json.dumps(value) + "\n" for value in values)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = sys.argv[1]
    out = f"{root}/preferences"
    os.makedirs(out, exist_ok=True)
    torch.set_num_threads(1)
    make_rows(out, random.Random(401))
    trajectories = {"dpo": {}, "cpo": {}, "orpo": {}, "kto": {}}
    train_of = {"dpo": train_dpo, "cpo": train_cpo, "orpo": train_orpo, "kto": train_kto}
    for method, variants in [("dpo", DPO), ("cpo", CPO), ("orpo", ORPO), ("kto", KTO)]:
        for name, changes in variants.items():
            variant = base.SHARED | {"beta": 0.1} | changes
            print(f"{method} {name}", end=" ")
            trajectories[method][name] = {"settings": variant, "steps": train_of[method](root, out, name, variant)}
    base.write(f"{out}/trajectories.json", trajectories)


if __name__ == "__main__":
    main()
