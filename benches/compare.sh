#!/usr/bin/env bash
# LoRA fine-tuning of the same model on the same rows, side by side: temper, and transformers + PEFT in eager PyTorch.
# usage: benches/compare.sh MODEL_DIR ROWS.jsonl PYTHON [STEPS]
#   MODEL_DIR   a model in the layout of transformers (f32 safetensors, tokenizer.json)
#   ROWS.jsonl  rows with "prompt" and "completion"
#   PYTHON      the interpreter of an environment with torch==2.15.0 transformers==5.23.0 peft==0.21.2
# Both take batches of 8 rows in the order of the file, rank 16, alpha 32, all linear layers, AdamW at 2e-4. Prints tokens/s (no pads
# counted; the first step left out), peak memory and wall time. Nothing else should run meanwhile.
set -euo pipefail
model=${1:?usage: benches/compare.sh MODEL_DIR ROWS.jsonl PYTHON [STEPS]}
rows=$(realpath "${2:?rows}")
python=${3:?python}
steps=${4:-12}
model=$(realpath "$model")
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cat >"$scratch/compare.ron" <<RON
(
    name: "compare",
    model: "$model",
    stages: [
        Sft(
            name: "sft",
            data: (source: Jsonl("$rows"), limit: $((steps * 8))),
            peft: Lora(rank: 16, alpha: 32.0),
            optim: (lr: 2e-4),
            batch_size: 8,
            max_length: 4096,
            micro_batch_tokens: 4096,
        ),
    ],
)
RON
cargo build --release --quiet
temper=${CARGO_TARGET_DIR:-target}/release/temper

# Peak memory in MB and wall time in s of a command, as "TIME SECONDS MEGABYTES".
measured() {
  "$python" - "$@" <<'PY'
import resource, subprocess, sys, time
begin = time.time()
code = subprocess.call(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
print(f"TIME {time.time() - begin:.1f} {peak:.0f}")
sys.exit(code)
PY
}

cat >"$scratch/peer.py" <<'PY'
import json, sys, time
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

model_dir, rows_path, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(model_dir)
model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, config).train()
optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.0)
with open(rows_path) as file:
    rows = [json.loads(next(file)) for _ in range(steps * 8)]
tokens = begin = 0
for step in range(steps):
    if step == 1:
        begin = time.time()
    encoded = []
    for row in rows[step * 8 : step * 8 + 8]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        encoded.append((prompt, completion))
    longest = max(len(p) + len(c) for p, c in encoded)
    ids = torch.zeros(8, longest, dtype=torch.long)
    mask = torch.zeros(8, longest, dtype=torch.long)
    labels = torch.full((8, longest), -100)
    for i, (prompt, completion) in enumerate(encoded):
        n = len(prompt) + len(completion)
        ids[i, :n] = torch.tensor(prompt + completion)
        mask[i, :n] = 1
        labels[i, len(prompt) : n] = torch.tensor(completion)
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    if step > 0:
        tokens += int(mask.sum())
print(f"RATE {tokens / (time.time() - begin):.1f} loss of the last step {loss.item():.3f}")
PY

echo "transformers + PEFT:"
measured "$python" "$scratch/peer.py" "$model" "$rows" "$steps" 2>/dev/null | sed 's/^/  /'
echo "temper:"
measured "$temper" recipe "$scratch/compare.ron" --output "$scratch/run" 2>"$scratch/log" | grep '^TIME' | sed 's/^/  /' || {
  tail -n 20 "$scratch/log" >&2
  exit 1
}
"$python" - "$scratch/run/sft/timing.jsonl" <<'PY'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
# The rate of a line is of all steps so far; without the first step, as for the peer.
(first, first_s), (all_of_it, all_s) = [(x["tokens_per_s"] * x["elapsed_s"], x["elapsed_s"]) for x in (lines[0], lines[-1])]
print(f"  RATE {(all_of_it - first) / (all_s - first_s):.1f}")
PY
