"""The Python peer of benches/compare.sh: one kind of work by TRL or transformers on a CPU in f32.

usage: peer.py WORK MODEL_DIR ROWS.jsonl STEPS BATCH    WORK: sft-lora, sft-full, sft-dora, sft-prefix, reward, dpo, orpo, kto, generate
ROWS has "prompt", "chosen" and "rejected" (kto: "prompt", "completion" and "label"). Prints one line: RATE tokens per second, FIRST seconds until the first step begins.
Tokens are those of the rows, pads not counted (reward, dpo, orpo: prompt and response of both sides; generate: new ones); the first step is left out.
Needs torch==2.15.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0.
"""

import json
import os
import sys
import tempfile
import time

begin = time.time()
os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")

import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

MAX_LENGTH = 512
NEW_TOKENS = 48


class Clock(TrainerCallback):
    """When each optimiser step began and ended."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, *args, **kwargs):
        self.start = time.time()

    def on_step_end(self, *args, **kwargs):
        self.steps.append((self.start, time.time()))


def lora(task, **more):
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task, **more)


def options(steps, batch):
    return dict(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        max_length=MAX_LENGTH,
        shuffle_dataset=False,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        logging_steps=1,
        seed=0,
    )


def trained(work, folder, rows, steps, batch, tokenizer):
    """Rate and time until the first step."""
    clock = Clock()
    config = options(steps, batch)
    if work.startswith("sft"):
        from trl import SFTConfig, SFTTrainer

        data = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        peft = {
            "sft-lora": lora("CAUSAL_LM"),
            "sft-dora": lora("CAUSAL_LM", use_dora=True),
            "sft-prefix": PrefixTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
        }.get(work)
        trainer, config = SFTTrainer, SFTConfig(**config)
        sides = ["chosen"]
    elif work == "reward":
        from trl import RewardConfig, RewardTrainer

        config.pop("shuffle_dataset")
        data = rows
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
        peft = lora("SEQ_CLS")
        trainer, config = RewardTrainer, RewardConfig(**config)
        sides = ["chosen", "rejected"]
    else:
        if work == "dpo":
            from trl import DPOConfig as Config, DPOTrainer as trainer
        elif work == "orpo":
            from trl.experimental.orpo import ORPOConfig as Config, ORPOTrainer as trainer
        else:
            from trl import KTOConfig as Config, KTOTrainer as trainer

        config.pop("shuffle_dataset")
        data = rows
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        peft = lora("CAUSAL_LM")
        config = Config(**config)
        sides = ["completion"] if work == "kto" else ["chosen", "rejected"]
    run = trainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        peft_config=peft,
        callbacks=[clock],
    )
    run.train()
    # The trainer shuffles: of all rows as many tokens as there are, in the steps after the first as many on average.
    lengths = [len(tokenizer(r["prompt"] + r[side])["input_ids"]) + 1 for r in rows for side in sides]
    tokens = sum(lengths) * (steps - 1) / steps
    return tokens / sum(end - start for start, end in clock.steps[1:]), clock.steps[0][0] - begin


def generated(folder, rows, batch, tokenizer):
    """New tokens per second, prompts included in the time, and time until the first batch begins."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer([r["prompt"] for r in rows[:batch]], return_tensors="pt", padding=True)
    marks = []
    for _ in range(3):
        start = time.time()
        with torch.inference_mode():
            model.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
            )
        marks.append((start, time.time()))
    return batch * NEW_TOKENS / min(end - start for start, end in marks), marks[0][0] - begin


def main():
    work, folder, path, steps, batch = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    with open(path) as file:
        rows = [json.loads(next(file)) for _ in range(batch if work == "generate" else steps * batch)]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left" if work == "generate" else "right")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if work == "generate":
        rate, first = generated(folder, rows, batch, tokenizer)
    else:
        rate, first = trained(work, folder, rows, steps, batch, tokenizer)
    print(f"RATE {rate:.1f} FIRST {first:.1f}")


main()
