#!/usr/bin/env bash
# All that one wants to know of a GPU, in one folder of results, within eight minutes: the device, its numbers, its speed, and the peer's beside it.
# For a machine with a GPU and nothing else: it needs this checkout and the binary, neither cargo nor a network.
# usage: benches/gpu.sh RESULTS
#   RESULTS     folder to write; results come part by part, so that what was measured stays if the machine goes
#   TEMPER      the binary (default: target/release/temper)
#   BACKEND     cuda or wgpu (default: what `auto` takes)
#   GPU_TESTS   the test program, carried (`cargo test --release --features cuda --test gpu --no-run` names it); it looks for this checkout where it was built
#   PYTHON      the interpreter of the peer (default: python3); the part is left out unless it has torch, transformers and peft
#   SHAPES      the model's shapes, a config.json (default: Qwen3-0.6B's); weights are random
#   STEPS       optimiser steps of a training part, the first of which is left out of its rate (default 6)
#   SECONDS_ALL seconds for everything (default 465)
set -euo pipefail
usage="usage: benches/gpu.sh RESULTS"
begin=$SECONDS
mkdir -p "${1:?$usage}"
results=$(realpath "$1")
root=$(realpath "$(dirname "$0")/..")
temper=$(realpath "${TEMPER:-$root/target/release/temper}")
python=${PYTHON:-python3}
steps=${STEPS:-6}
all=${SECONDS_ALL:-465}
backend=()
[ -z "${BACKEND:-}" ] || backend=(--backend "$BACKEND")
work=$results/work
mkdir -p "$work"
[ -z "${GPU_TESTS:-}" ] || GPU_TESTS=$(realpath "$GPU_TESTS")
[ -z "${SHAPES:-}" ] || SHAPES=$(realpath "$SHAPES")

# part NAME SECONDS COMMAND..: runs it for that long at most, and never beyond the end; its output goes to NAME.txt, a line about it to summary.txt.
part() {
  local name=$1 most=$2 left=$((all - (SECONDS - begin))) from=$SECONDS code=0
  shift 2
  [ "$most" -lt "$left" ] || most=$left
  if [ "$most" -lt 5 ]; then
    echo "$name: left out, the time is over" | tee -a "$results/summary.txt"
    return
  fi
  (cd "$work" && timeout --kill-after=3 "$most" "$@") >"$results/$name.txt" 2>&1 || code=$?
  case $code in
    0) echo "$name: ok in $((SECONDS - from)) s" ;;
    124 | 137) echo "$name: cut after $most s" ;;
    *) echo "$name: FAILED (exit $code) after $((SECONDS - from)) s: $(tail -n 1 "$results/$name.txt")" ;;
  esac | tee -a "$results/summary.txt"
  return 0
}

say() {
  echo "$*" | tee -a "$results/summary.txt"
}

device() {
  uname -a
  "$temper" --version
  ! command -v nvidia-smi >/dev/null || nvidia-smi
  ! command -v vulkaninfo >/dev/null || vulkaninfo --summary
  for icd in /usr/share/vulkan/icd.d /etc/vulkan/icd.d; do
    [ ! -d "$icd" ] || ls "$icd"
  done
  nproc
  grep -E 'MemTotal|MemAvailable' /proc/meminfo
}

# Rows of 60 to 180 words, the same ones each time: rows COUNT.
rows() {
  awk -v count="$1" 'BEGIN {
    split("the car was old and my sister did not want to drive it so we sold house bought a boat on monday then it rained for weeks", word, " ")
    for (word_count = 0; (word_count + 1) in word; word_count++) {}
    state = 12345
    for (row = 0; row < count; row++) {
      text = ""
      words = 60 + row * 37 % 121
      for (i = 0; i < words; i++) {
        state = (state * 1103515245 + 12345) % 2147483648
        text = text " " word[int(state / 65536) % word_count + 1]
      }
      printf "{\"prompt\": \"Post:%s\\n\\nTL;DR:\", \"completion\": \" we sold the old car and bought a boat.\"}\n", text
    }
  }'
}

# A folder with the shapes, the embedded model's tokenizer, and random weights as a stage writes them.
model() {
  mkdir -p "$work/shapes"
  cp "$root"/models/tiny/tokenizer.json "$root"/models/tiny/tokenizer_config.json "$work/shapes/"
  if [ -n "${SHAPES:-}" ]; then
    cp "$SHAPES" "$work/shapes/config.json"
  else
    cat >"$work/shapes/config.json" <<'JSON'
{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
 "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
 "rope_theta": 1000000.0, "initializer_range": 0.02, "tie_word_embeddings": true, "vocab_size": 151936, "bos_token_id": 0, "eos_token_id": 0}
JSON
  fi
  cat >"$work/model.ron" <<'RON'
(name: "weights", seed: 1, stages: [
    Pretrain(name: "model", init: Random("shapes/config.json"), data: (source: Jsonl("rows.jsonl"), format: (text: "{{ prompt }}"), limit: 1), batch_size: 1, max_length: 512,
        micro_batch_tokens: 512, optim: (lr: 1e-9)),
])
RON
  "$temper" "${backend[@]}" recipe model.ron --no-check --output weights
}

# train NAME PRECISION TOKENS: supervised fine-tuning with adapters, so many tokens a pass and a pass a step.
train() {
  local batch=$(($3 / 256))
  cat >"$work/$1.ron" <<RON
(name: "$1", model: "weights/model/model", base_precision: $2, matmul_precision: $2, stages: [
    Sft(name: "stage", data: (source: Jsonl("rows.jsonl"), limit: $((batch * steps))), batch_size: $batch, micro_batch_tokens: $3,
        max_length: 512, peft: Lora(rank: 16, alpha: 32.0), optim: (lr: 2e-4), shuffle: false),
])
RON
  rm -rf "${work:?}/$1"
  "$temper" "${backend[@]}" recipe "$1.ron" --no-check --output "$1"
}

# Tokens a second of the steps after the first, which waits for kernels to be compiled; of those that were done, if the part was cut.
rate() {
  awk -v name="$1" '
    { split("", value); gsub(/[{}" ]/, ""); count = split($0, pair, ",")
      for (i = 1; i <= count; i++) { split(pair[i], kv, ":"); value[kv[1]] = kv[2] }
      tokens = value["tokens_per_s"] * value["elapsed_s"]; seconds = value["elapsed_s"]
      if (NR == 1) { first = tokens; first_s = seconds } }
    END { if (NR > 1) printf "%s: %.0f tokens/s over %d steps of %.0f tokens, first step after %.1f s\n", name, (tokens - first) / (seconds - first_s), NR - 1, (tokens - first) / (NR - 1), first_s }
  ' "$work/$1/stage/timing.jsonl" 2>/dev/null | tee -a "$results/summary.txt" || true
}

# decode PRECISION: 64 rows, 16 tokens and then 64: the difference is decoding alone.
decode() {
  local from tokens took=()
  head -n 64 rows.jsonl >prompts.jsonl
  for tokens in 16 64; do
    from=$(date +%s%N)
    "$temper" "${backend[@]}" generate --model weights/model/model --base-precision "$1" --matmul-precision "$1" --data prompts.jsonl \
      --max-new-tokens "$tokens" --output "decoded-$1-$tokens.jsonl"
    took+=($((($(date +%s%N) - from) / 1000000)))
  done
  awk -v short="${took[0]}" -v long="${took[1]}" -v what="decode-$1" 'BEGIN {
    printf "%s: %.0f new tokens/s in 64 rows (16 tokens in %.1f s, 64 in %.1f s, loading and prompts included)\n", what, 64 * 48 * 1000 / (long - short), short / 1000, long / 1000 }'
}

# One step of training with every kernel timed by the runtime, which waits for each.
kernels() {
  printf '[profiling]\nlogger = { level = "basic", file = "kernels.log", append = false }\n' >cubecl.toml
  steps=3 train kernels bf16 4096
  rm -f cubecl.toml
}

peer() {
  "$python" "$root/benches/peers/gpu.py" weights/model/model rows.jsonl "$steps"
}

# Memory of the device while parts run, twice a second.
watch_memory() {
  nvidia-smi --query-gpu=timestamp,memory.used,utilization.gpu,power.draw --format=csv,noheader -lms 500 >"$results/memory.csv" 2>/dev/null &
  watcher=$!
  trap 'kill "$watcher" 2>/dev/null || true' EXIT
}

export -f device model train decode kernels peer
export temper work root results python steps
export BACKEND=${BACKEND:-} SHAPES=${SHAPES:-}
run() {
  local name=$1 most=$2
  shift 2
  # Arrays are not exported: the parts' shell makes its own.
  part "$name" "$most" bash -euo pipefail -c 'backend=(); [ -z "$BACKEND" ] || backend=(--backend "$BACKEND"); "$@"' bash "$@"
}

: >"$results/summary.txt"
say "commit $(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown), $(date -u +%FT%TZ), backend ${BACKEND:-auto}"
! command -v nvidia-smi >/dev/null || watch_memory
rows 2048 >"$work/rows.jsonl"
run device 15 device
run doctor 75 "$temper" ${BACKEND:+--backend "$BACKEND"} doctor
run model 75 model
for tokens in 4096 16384; do
  for precision in f32 bf16; do
    run "sft-$precision-$tokens" 55 train "sft-$precision-$tokens" "$precision" "$tokens"
    rate "sft-$precision-$tokens"
  done
done
for precision in f32 bf16; do
  run "decode-$precision" 45 decode "$precision"
  grep '^decode-' "$results/decode-$precision.txt" | tee -a "$results/summary.txt" || true
done
if "$python" -c 'import torch, transformers, peft' 2>/dev/null; then
  run peer 100 peer
  grep '^peer ' "$results/peer.txt" | tee -a "$results/summary.txt" || true
else
  say "peer: left out, $python has no torch, transformers and peft"
fi
run kernels 40 kernels
cp "$work/kernels.log" "$results/kernels.log" 2>/dev/null || true
if [ -n "${GPU_TESTS:-}" ]; then
  run tests 600 "$GPU_TESTS" --test-threads 1
  grep -E '^test result|FAILED$' "$results/tests.txt" | tee -a "$results/summary.txt" || true
else
  say "tests: left out, GPU_TESTS names no program"
fi
[ ! -s "$results/memory.csv" ] || say "most device memory: $(awk -F', ' '{ if ($2 + 0 > most) most = $2 + 0 } END { print most " MiB" }' "$results/memory.csv")"
rm -rf "${work:?}/weights" "${work:?}"/sft-* "${work:?}/kernels"
say "all in $((SECONDS - begin)) s; results in $results"
