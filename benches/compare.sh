#!/usr/bin/env bash
# The same work by temper and by TRL / transformers, in turn, on the CPU in f32: tokens/s, peak memory and time until the first step begins, and the ratios.
# usage: benches/compare.sh MODEL_DIR ROWS.jsonl PYTHON [WORK]...
#   MODEL_DIR   a model in the layout of transformers (f32 safetensors, tokenizer.json)
#   ROWS.jsonl  rows with "prompt" and "completion"
#   PYTHON      the interpreter of an environment with torch==2.15.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0
#   WORK        sft-lora sft-full sft-dora sft-prefix (20 virtual tokens) reward dpo orpo kto generate grpo ppo ppo-trunk (the value
#               function a head on the policy), with -bf16 or -int8 behind it for a base in reduced precision, and -mixed behind that for products in bfloat16;
#               llama-16 llama-1 (decoding of 16 rows and of one from a GGUF file's own blocks, beside llama.cpp). If none is named all in
#               f32 and generation in all three, ppo and ppo-trunk only with PPO_PYTHON, llama-16 and llama-1 only with LLAMA
#   PPO_PYTHON  the interpreter of an environment with trl==0.19.1 transformers==4.53.3 peft==0.16.0, the last with a PPOTrainer
#   GGUF        a GGUF file with tokenizer.json and the like beside it
#   LLAMA       a folder with llama.cpp as built for a CPU, which node runs:
#               npm install --prefix LLAMA --ignore-scripts --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
#   RUNS        runs of each, of which the median counts (default 1)
#   TEMPER      the binary (default: built here)
# Training: batches of 8 rows (reward, dpo, orpo: 8 pairs, the other side being the next row's completion; kto: 8 responses, every second one
# desirable, the others being the next row's completion), STEPS of them (default 8), at most 512 tokens, rank 16 on all linear layers, AdamW. generate: 16 prompts, 48 new tokens each. -bf16 and -int8 are temper's base_precision, -mixed
# its matmul_precision; the peer's stays f32. ppo: updates of 32 episodes of 48 tokens, 4 epochs. grpo: STEPS updates of 32 episodes, 8 to
# each of 4 prompts, of at most 48 tokens, one pass; with the seconds of sampling and of the update.
# Pads are not counted; the first step is left out of rates. Nothing else should run meanwhile.
set -euo pipefail
source "$(dirname "$0")/common.sh"
usage="usage: benches/compare.sh MODEL_DIR ROWS.jsonl PYTHON [WORK]..."
model=$(realpath "${1:?$usage}")
rows=$(realpath "${2:?$usage}")
python=${3:?$usage}
[ -z "${GGUF:-}" ] || GGUF=$(realpath "$GGUF")
[ -z "${LLAMA:-}" ] || LLAMA=$(realpath "$LLAMA")
shift 3
works=("$@")
if [ ${#works[@]} = 0 ]; then
  works=(sft-lora sft-full sft-dora sft-prefix reward dpo orpo kto grpo generate generate-bf16 generate-int8)
  [ -z "${PPO_PYTHON:-}" ] || works+=(ppo ppo-trunk)
  [ -z "${LLAMA:-}" ] || works+=(llama-16 llama-1)
fi
steps=${STEPS:-8}
runs=${RUNS:-1}
prepare

pairs "$python" "$rows" "$scratch/rows.jsonl"
labels "$python" "$scratch/rows.jsonl" "$scratch/labels.jsonl"

# The work without its precisions, and the precisions.
kind() {
  local work=${1%-mixed}
  work=${work%-bf16}
  echo "${work%-int8}"
}
precision() {
  case ${1%-mixed} in
    *-bf16) echo bf16 ;;
    *-int8) echo int8 ;;
    llama-*) echo stored ;;
    *) echo f32 ;;
  esac
}
products() {
  case $1 in
    *-mixed) echo bf16 ;;
    *) echo f32 ;;
  esac
}

# Prints the recipe of one kind of work.
recipe() {
  local lora="peft: Lora(rank: 16, alpha: 32.0)," common data trunk=Own
  [ "$(kind "$1")" != ppo-trunk ] || trunk=Policy
  data="data: (source: Jsonl(\"$scratch/rows.jsonl\"), limit: $((steps * 8)))"
  common="$data, batch_size: 8, optim: (lr: 2e-4), max_length: 512, shuffle: false, micro_batch_tokens: 4096"
  echo "(name: \"compare\", model: \"$model\", base_precision: $(precision "$1"), matmul_precision: $(products "$1"), stages: ["
  case $(kind "$1") in
    sft-lora) echo "Sft(name: \"stage\", $lora $common)," ;;
    sft-full) echo "Sft(name: \"stage\", $common)," ;;
    sft-dora) echo "Sft(name: \"stage\", peft: Lora(rank: 16, alpha: 32.0, use_dora: true), $common)," ;;
    sft-prefix) echo "Sft(name: \"stage\", peft: PrefixTuning(num_virtual_tokens: 20), $common)," ;;
    reward) echo "RewardModel(name: \"stage\", init: Base, $lora $common)," ;;
    dpo) echo "Dpo(name: \"stage\", init: Base, $lora $common)," ;;
    orpo) echo "Orpo(name: \"stage\", init: Base, $lora $common)," ;;
    kto) echo "Kto(name: \"stage\", init: Base, $lora ${common//rows.jsonl/labels.jsonl})," ;;
    grpo)
      echo "Grpo(name: \"stage\", init: Base, $lora data: (source: Jsonl(\"$scratch/rows.jsonl\"), format: (prompt: \"{{ prompt[:400] }}\\n\\nTL;DR:\"),"
      echo "  limit: $((steps * 4))), reward: Length(target: 20), total_episodes: $((steps * 32)), batch_size: 32, num_generations: 8,"
      echo "  response_length: 48, optim: (lr: 1e-5), micro_batch_tokens: 1024)," ;;
    ppo | ppo-trunk)
      echo "RewardModel(name: \"rm\", init: Base, $lora data: (source: Jsonl(\"$scratch/rows.jsonl\"), limit: 2), batch_size: 2),"
      echo "Ppo(name: \"stage\", init: Base, $lora data: (source: Jsonl(\"$scratch/rows.jsonl\"), format: (prompt: \"{{ prompt[:400] }}\\n\\nTL;DR:\"),"
      echo "  limit: 128), reward: Learned(stage: \"rm\"), total_episodes: 96, batch_size: 32, num_ppo_epochs: 4, response_length: 48,"
      echo "  optim: (lr: 3e-6), missing_eos: Subtract(1.0), micro_batch_tokens: 2048, value_trunk: $trunk)," ;;
  esac
  echo "])"
}

# generation MODEL ROWS BASE PRODUCTS: as `ours`.
generation() {
  cargo build --release --quiet --example generation_speed
  measured "$python" "${CARGO_TARGET_DIR:-target}/release/examples/generation_speed" "$1" "$scratch/rows.jsonl" "$2" 48 "$3" "$4"
}

# One run of temper: "RATE tokens per second" (ppo: updates per hour), "FIRST seconds", "PEAK megabytes".
ours() {
  case $1 in
    generate*)
      generation "$model" 16 "$(precision "$1")" "$(products "$1")"
      return
      ;;
    llama-*)
      local rows
      rows=$(kind "$1")
      generation "$GGUF" "${rows#llama-}" "$(precision "$1")" "$(products "$1")"
      return
      ;;
  esac
  recipe "$1" >"$scratch/compare.ron"
  rm -rf "$scratch/run"
  local start
  start=$(date +%s.%N)
  measured "$python" "$TEMPER" recipe "$scratch/compare.ron" --output "$scratch/run" 2>"$scratch/log" || {
    tail -n 20 "$scratch/log" >&2
    return 1
  }
  "$python" - "$(kind "$1")" "$scratch/run" "$start" <<'PY'
import json, os, sys
work, run, start = sys.argv[1], sys.argv[2], float(sys.argv[3])
lines = [json.loads(line) for line in open(f"{run}/stage/timing.jsonl")]
spans = [(x["tokens_per_s"] * x["elapsed_s"], x["elapsed_s"]) for x in (lines[0], lines[-1])]
(first, first_s), (last, last_s) = spans
rate = (len(lines) - 1) * 3600 / (last_s - first_s) if work.startswith(("ppo", "grpo")) else (last - first) / (last_s - first_s)
# The stage's clock starts with the stage; what came before it is loading.
begun = os.stat(f"{run}/stage/timing.jsonl").st_mtime - last_s
mean = lambda name: sum(line[name] for line in lines[1:]) / max(len(lines) - 1, 1)
parts = f" SAMPLING {mean('sampling_s'):.2f} UPDATE {mean('update_s'):.2f}" if work == "grpo" else ""
print(f"RATE {rate:.1f} FIRST {begun - start:.1f}{parts}")
PY
}

theirs() {
  local work
  work=$(kind "$1")
  if [[ $work == ppo* ]]; then
    measured "$python" "${PPO_PYTHON:?ppo needs PPO_PYTHON}" benches/peers/ppo.py "$model" "$scratch/rows.jsonl" 32 2 2>/dev/null
  elif [[ $work == grpo ]]; then
    measured "$python" "$python" benches/peers/grpo.py "$model" "$scratch/rows.jsonl" 32 8 "$steps" 2>/dev/null
  elif [[ $work == llama-* ]]; then
    measured "$python" node benches/peers/llama.mjs "$LLAMA" "$GGUF" "$scratch/rows.jsonl" "${work#llama-}" 48 2>/dev/null
  else
    local batch=8
    [ "$work" != generate ] || batch=16
    local data="$scratch/rows.jsonl"
    [ "$work" != kto ] || data="$scratch/labels.jsonl"
    measured "$python" "$python" benches/peers/peer.py "$work" "$model" "$data" "$steps" "$batch" 2>/dev/null
  fi
}

for work in "${works[@]}"; do
  if [[ $work == llama-* ]] && ! { [ -n "${GGUF:-}" ] && [ -d "${LLAMA:-}/node_modules/node-llama-cpp" ] && command -v node >/dev/null; }; then
    printf '%-19s left out: needs GGUF, LLAMA and node\n' "$work"
    continue
  fi
  for ((i = 0; i < runs; i++)); do
    # A trainer's own log goes to stdout, too.
    theirs "$work" | sed -nE 's/^(RATE|PEAK)/peer &/p'
    ours "$work" | sed -nE 's/^(RATE|PEAK)/temper &/p'
  done | tee -a "$scratch/raw" | "$python" -c '
import statistics, sys
work, unit = sys.argv[1], "updates/h" if sys.argv[1].startswith(("ppo", "grpo")) else "tokens/s"
found = {}
for line in sys.stdin:
    who, *pairs = line.split()
    for name, value in zip(pairs[::2], pairs[1::2]):
        found.setdefault((who, name), []).append(float(value))
of = lambda who, name: statistics.median(found[who, name])
rate, peak, first = ([of(who, name) for who in ("peer", "temper")] for name in ("RATE", "PEAK", "FIRST"))
print(f"{work:19} {rate[0]:7.0f} -> {rate[1]:7.0f} {unit} ({rate[1] / rate[0]:.2f}x)   peak {peak[0]:6.0f} -> {peak[1]:6.0f} MB (1/{peak[0] / peak[1]:.1f})   first step {first[0]:5.1f} -> {first[1]:5.1f} s")
if ("peer", "SAMPLING") in found:
    for who in ("peer", "temper"):
        sampling, update = of(who, "SAMPLING"), of(who, "UPDATE")
        print(f"{work:19} {who}: sampling {sampling:.2f} s ({100 * sampling / (sampling + update):.0f} %), update {update:.2f} s")
' "$work"
done
