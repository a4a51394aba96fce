#!/usr/bin/env bash
# Peak memory that `temper recipe --dry-run` plans beside the peak of the same recipe's run, one line a stage.
# usage: benches/plan.sh MODEL_DIR ROWS.jsonl [STAGE]...
#   MODEL_DIR   a model with f32 safetensors
#   ROWS.jsonl  rows with "prompt" and "completion"
#   STAGE       sft-lora sft-bf16 sft-int8 sft-again (gradient_checkpointing) sft-2048 (32 rows a step, passes of 2,048 tokens) sft-full sft-full-1024 (passes of
#               1,024 tokens) reward dpo ppo ppo-trunk (the value function a head on the policy) long-1024 long-2048 long-4096 (one row of so many tokens)
#               (default: all)
#   TEMPER      the binary (default: built here)
set -euo pipefail
source "$(dirname "$0")/common.sh"
usage="usage: benches/plan.sh MODEL_DIR ROWS.jsonl [STAGE]..."
model=$(realpath "${1:?$usage}")
rows=$(realpath "${2:?$usage}")
shift 2
stages=("$@")
[ ${#stages[@]} != 0 ] || stages=(sft-lora sft-bf16 sft-int8 sft-again sft-2048 sft-full sft-full-1024 reward dpo ppo ppo-trunk long-1024 long-2048 long-4096)
prepare

pairs python3 "$rows" "$scratch/rows.jsonl"

# Prompts laid end to end: texts longer than any length below.
python3 - "$rows" "$scratch/text.jsonl" <<'PY'
import json, sys
words = " ".join(json.loads(line)["prompt"] for line, _ in zip(open(sys.argv[1]), range(513)))
with open(sys.argv[2], "w") as file:
    for begin in (0, 1000):
        file.write(json.dumps({"text": words[begin : begin + 40_000]}) + "\n")
PY

lora="peft: Lora(rank: 16, alpha: 32.0),"

# Prints the keys of a stage that trains on so many rows, in batches and passes of so many rows and tokens.
rows_of() {
  echo "data: (source: Jsonl(\"$scratch/rows.jsonl\"), limit: $1), batch_size: $2, micro_batch_tokens: $3, optim: (lr: 2e-4), max_length: 512, shuffle: false"
}

# Prints the recipe of a stage.
recipe() {
  local precision=f32 trunk=Own
  case $1 in
    sft-bf16) precision=bf16 ;;
    sft-int8) precision=int8 ;;
    ppo-trunk) trunk=Policy ;;
  esac
  echo "(name: \"plan\", model: \"$model\", base_precision: $precision, stages: ["
  case $1 in
    sft-lora | sft-bf16 | sft-int8) echo "Sft(name: \"stage\", $lora $(rows_of 16 8 4096))," ;;
    sft-again) echo "Sft(name: \"stage\", gradient_checkpointing: true, $lora $(rows_of 16 8 4096))," ;;
    sft-2048) echo "Sft(name: \"stage\", $lora $(rows_of 64 32 2048))," ;;
    sft-full) echo "Sft(name: \"stage\", $(rows_of 16 8 4096))," ;;
    sft-full-1024) echo "Sft(name: \"stage\", $(rows_of 16 8 1024))," ;;
    reward) echo "RewardModel(name: \"stage\", init: Base, $lora $(rows_of 16 8 4096))," ;;
    dpo) echo "Dpo(name: \"stage\", init: Base, $lora $(rows_of 16 8 4096))," ;;
    ppo | ppo-trunk)
      echo "RewardModel(name: \"rm\", init: Base, $lora $(rows_of 2 2 4096)),"
      echo "Ppo(name: \"stage\", init: Base, $lora data: (source: Jsonl(\"$scratch/rows.jsonl\"), format: (prompt: \"{{ prompt[:400] }}\\n\\nTL;DR:\"),"
      echo "  limit: 128), reward: Learned(stage: \"rm\"), total_episodes: 32, batch_size: 32, num_ppo_epochs: 1, response_length: 48,"
      echo "  optim: (lr: 3e-6), missing_eos: Subtract(1.0), micro_batch_tokens: 2048, value_trunk: $trunk)," ;;
    long-*) echo "Pretrain(name: \"stage\", init: Base, $lora data: (source: Jsonl(\"$scratch/text.jsonl\")), batch_size: 1, max_length: ${1#long-}, micro_batch_tokens: ${1#long-})," ;;
    *)
      echo "no such stage: $1" >&2
      return 1
      ;;
  esac
  echo "])"
}

for stage in "${stages[@]}"; do
  recipe "$stage" >"$scratch/plan.ron"
  "$TEMPER" recipe "$scratch/plan.ron" --dry-run >"$scratch/plan"
  rm -rf "$scratch/run"
  python3 - "$stage" "$scratch/plan" "$TEMPER" recipe "$scratch/plan.ron" --output "$scratch/run" --no-check <<'PY'
import re, resource, subprocess, sys
stage, plan, *command = sys.argv[1:]
units = {"MiB": 1 / 1024, "GiB": 1}
line = next(line for line in open(plan) if re.match(r"stage +[A-Z]", line))
number, unit = re.search(r"([\d.]+) (MiB|GiB)\s*$", line).groups()
planned = float(number) * units[unit]
run = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
if run.returncode:
    sys.exit(run.stderr)
measured = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
print(f"{stage:14} planned {planned:.2f} GiB   measured {measured:.2f} GiB   {planned / measured:.2f}")
PY
done
