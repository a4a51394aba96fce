"""The Python peer of benches/compare.sh for PPO: updates of trl 0.19.1's PPOTrainer on a CPU in f32, LoRA policy.

usage: ppo.py MODEL_DIR ROWS.jsonl EPISODES UPDATES
Prints one line: RATE updates per hour, FIRST seconds until the first begins.
Needs torch==2.15.0 trl==0.19.1 transformers==4.53.3 peft==0.16.0 accelerate==1.8.1 datasets==3.6.0.
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
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import PPOConfig, PPOTrainer

folder, path, episodes, updates = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
with open(path) as file:
    prompts = [json.loads(next(file))["prompt"][:400] + "\n\nTL;DR:" for _ in range(episodes * updates + 8)]
data = Dataset.from_list([{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in prompts])


def scalar():
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, torch_dtype=torch.float32)


config = PPOConfig(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=8,
    gradient_accumulation_steps=episodes // 8,
    num_mini_batches=1,
    num_ppo_epochs=4,
    total_episodes=episodes * updates,
    response_length=48,
    temperature=0.7,
    local_rollout_forward_batch_size=16,
    num_sample_generations=0,
    report_to=[],
    use_cpu=True,
    bf16=False,
    save_strategy="no",
    missing_eos_penalty=1.0,
    learning_rate=3e-6,
    logging_steps=1,
)
trainer = PPOTrainer(
    args=config,
    processing_class=tokenizer,
    model=AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32),
    ref_model=None,
    reward_model=scalar(),
    value_model=scalar(),
    train_dataset=data,
    eval_dataset=data.select(range(8)),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
)
start = time.time()
trainer.train()
update = (time.time() - start) / updates
print(f"RATE {3600 / update:.1f} FIRST {start - begin:.1f}")
