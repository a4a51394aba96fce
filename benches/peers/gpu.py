"""The Python peer of benches/gpu.sh: fine-tuning with adapters and sampling by transformers and PEFT on a GPU, beside temper's.

usage: gpu.py MODEL_DIR ROWS.jsonl STEPS
ROWS has "prompt" and "completion". Prints a line for each piece of work as it ends. Batches are padded to their longest row; pads are not counted,
and the first step is left out of rates. Adapters of rank 16 on all linear layers, AdamW, scaled dot-product attention; bf16 is torch's autocast.
Needs torch, transformers and peft.
"""

import contextlib
import json
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAX_LENGTH = 512


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak():
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else float("nan")


def load(folder, precision):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(DEVICE)


def products(precision):
    """Adapters stay in f32 beside a base in bfloat16, as PEFT keeps them."""
    return torch.autocast(DEVICE, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def train(folder, rows, tokenizer, precision, tokens, steps):
    batch = tokens // 256
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load(folder, precision), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optim = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
    seen, spans = [], []
    for step in range(steps):
        part = rows[step * batch : (step + 1) * batch]
        ids = []
        for row in part:
            prompt, completion = (tokenizer(row[key])["input_ids"] for key in ("prompt", "completion"))
            ids.append((prompt, (completion + [tokenizer.eos_token_id])))
        longest = min(MAX_LENGTH, max(len(p) + len(c) for p, c in ids))
        inputs = torch.zeros(len(ids), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(inputs), torch.full_like(inputs, -100)
        for i, (prompt, completion) in enumerate(ids):
            row = (prompt + completion)[:longest]
            inputs[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
            labels[i, len(prompt) : len(row)] = inputs[i, len(prompt) : len(row)]
        start = time.time()
        with products(precision):
            loss = model(input_ids=inputs.to(DEVICE), attention_mask=mask.to(DEVICE), labels=labels.to(DEVICE)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optim.step()
        optim.zero_grad()
        wait()
        seen.append(int(mask.sum()))
        spans.append(time.time() - start)
    rate = sum(seen[1:]) / sum(spans[1:])
    print(f"peer sft-{precision}-{tokens}: {rate:.0f} tokens/s, first step after {spans[0]:.1f} s, peak {peak():.1f} GiB", flush=True)


def decode(folder, rows, tokenizer, precision):
    model = load(folder, precision).eval()
    inputs = tokenizer([row["prompt"] for row in rows[:64]], return_tensors="pt", padding=True).to(DEVICE)
    inputs.pop("token_type_ids", None)
    took = []
    with torch.inference_mode():
        # The first of the three warms up; 64 new tokens less 16 are decoding alone.
        for tokens in (16, 16, 64):
            wait()
            start = time.time()
            model.generate(**inputs, do_sample=True, temperature=1.0, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=tokenizer.eos_token_id)
            wait()
            took.append(time.time() - start)
    print(f"peer decode-{precision}: {64 * 48 / (took[2] - took[1]):.0f} new tokens/s in 64 rows", flush=True)


def main():
    folder, path, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if DEVICE == "cuda":
        print(f"peer: torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    for precision in ("bf16", "f32"):
        for tokens in (4096, 16384):
            train(folder, rows, tokenizer, precision, tokens, steps)
        decode(folder, rows, tokenizer, precision)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


main()
