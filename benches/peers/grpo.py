"""The Python peer of benches/compare.sh for GRPO: updates of TRL's GRPOTrainer on a CPU in f32, LoRA policy.

usage: grpo.py MODEL_DIR ROWS.jsonl EPISODES GENERATIONS UPDATES
Prints one line: RATE updates per hour, FIRST seconds until the first begins, SAMPLING and UPDATE seconds of an update.
The first update is left out. Needs torch==2.15.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0.
"""

import json
import os
import sys
import tempfile
import time

begin = time.time()
os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

folder, path = sys.argv[1], sys.argv[2]
episodes, generations, updates = (int(x) for x in sys.argv[3:6])
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
with open(path) as file:
    prompts = [json.loads(next(file))["prompt"][:400] + "\n\nTL;DR:" for _ in range(episodes // generations * updates)]


class Clock(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_step_begin(self, *args, **kwargs):
        self.start = time.time()

    def on_step_end(self, *args, **kwargs):
        self.steps.append((self.start, time.time()))


class Timed(GRPOTrainer):
    """Notes the seconds of sampling and scoring."""

    sampling = []

    def _generate_and_score_completions(self, inputs):
        start = time.time()
        out = super()._generate_and_score_completions(inputs)
        self.sampling.append(time.time() - start)
        return out


def length(completions, **kwargs):
    """As `Length(target: 20)`."""
    return [-abs(len(text.split()) - 20) / 20 for text in completions]


config = GRPOConfig(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=8,
    gradient_accumulation_steps=episodes // 8,
    num_generations=generations,
    max_completion_length=48,
    max_steps=updates,
    learning_rate=1e-5,
    lr_scheduler_type="constant",
    temperature=1.0,
    beta=0.0,
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
clock = Clock()
trainer = Timed(
    model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    args=config,
    train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
    processing_class=tokenizer,
    reward_funcs=length,
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    callbacks=[clock],
)
trainer.train()
steps = [end - start for start, end in clock.steps[1:]]
mean = lambda values: sum(values) / max(len(values), 1)
sampling = mean(trainer.sampling[1:])
print(f"RATE {3600 / mean(steps):.1f} FIRST {clock.steps[0][0] - begin:.1f} SAMPLING {sampling:.2f} UPDATE {mean(steps) - sampling:.2f}")
