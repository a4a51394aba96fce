#!/usr/bin/env bash
# Every adapter method of recipes/adapters.ron at three or four learning rates each, and the table of docs/adapters.md.
# usage: benches/adapters.sh MODEL RUNS [PART]...
#   MODEL   a name of `temper models`, or a folder or GGUF file
#   RUNS    the folder of the runs: one of METHOD/RATE for each. What has finished is not run again, so an interrupted sweep goes on
#   PART    train   each method at each rate, in the order of its list
#           rouge   greedy responses to unseen rows, of each method at the rate with the lowest held-out loss so far
#           speed   six steps of each method, each right after six of lora-8; peak memory of the same runs
#           table   the table, of what is there
#           (default: all, in this order)
#   TEMPER  the binary (default: built here)
# Needs data/debian_tldr.{train,valid}.jsonl.gz (recipes/data) and python3.
set -euo pipefail
source "$(dirname "$0")/common.sh"
usage="usage: benches/adapters.sh MODEL RUNS [PART]..."
model=${1:?$usage}
[ ! -e "$model" ] || model=$(realpath "$model")
mkdir -p "${2:?$usage}"
runs=$(realpath "$2")
shift 2
parts=("$@")
[ ${#parts[@]} != 0 ] || parts=(train rouge speed table)
prepare

# A stage of the recipe, -nf4 behind it for a base in four bits, and its learning rates: where the lowest loss was at the highest of three,
# a fourth is above it.
methods="full 1e-4 3e-4 3e-5
last-block 3e-4 1e-3 1e-4 3e-3
last-4-blocks 3e-4 1e-3 1e-4 3e-3
last-block-and-head 3e-4 1e-3 1e-4 3e-3
norms 3e-3 1e-2 1e-3
lora-1 1e-3 3e-3 3e-4 1e-2
lora-8 1e-3 3e-3 3e-4 1e-2
lora-64 3e-4 1e-3 1e-4 3e-3
lora-8-attention 1e-3 3e-3 3e-4 1e-2
rslora-64 1e-3 3e-3 3e-4
dora-8 1e-3 3e-3 1e-2
pissa-8 3e-4 1e-3 3e-3
vera 1e-2 3e-2 1e-1
ia3 1e-2 3e-2 1e-1
pfeiffer 1e-3 3e-3 1e-2
houlsby 1e-3 3e-3 1e-2
prefix 1e-2 3e-2 1e-1
prompt 1e-2 3e-2 1e-1
p-tuning 1e-3 3e-3 1e-2
lora-8-nf4 1e-3 3e-3 1e-2"

# recipe METHOD STAGE OUTPUT [PATH=VALUE]...: sets `run` to what runs one stage of the recipe as the method has it.
recipe() {
  local method=$1 stage=$2 output=$3 value
  shift 3
  run=("$TEMPER" recipe recipes/adapters.ron --stage "$stage" --output "$output" --set "model=\"$model\"")
  if [[ $method == *-nf4 ]]; then
    run+=(--set base_precision=nf4)
    # Weights in four bits cannot be trained: the stages that do so, which are not run, would be refused.
    for value in full last-block last-4-blocks last-block-and-head norms; do run+=(--set "stages.$value.peft=Lora()"); done
  fi
  for value in "$@"; do run+=(--set "$value"); done
}

# Runs a command without its output, unless it fails.
quietly() {
  "$@" </dev/null >"$scratch/log" 2>&1 || {
    tail -n 20 "$scratch/log" >&2
    return 1
  }
}

# best METHOD RATE...: of the rates that were run, that with the lowest held-out loss.
best() {
  python3 - "$runs" "$@" <<'PY'
import json, os, sys
runs, method, *rates = sys.argv[1:]
stage = method.removesuffix("-nf4")
loss = lambda rate: [x["eval/loss"] for x in map(json.loads, open(f"{runs}/{method}/{rate}/{stage}/metrics.jsonl")) if "eval/loss" in x][-1]
done = [rate for rate in rates if os.path.exists(f"{runs}/{method}/{rate}/{stage}/DONE")]
print(min(done, key=lambda rate: loss(rate) if loss(rate) is not None else float("inf"), default=""))
PY
}

train() {
  local turn method rates rate lowest output
  for turn in 0 1 2 3; do
    while read -r method rates; do
      rates=($rates)
      [ -n "${rates[turn]:-}" ] || continue
      output=$runs/$method/${rates[turn]}
      [ ! -e "$output/${method%-nf4}/DONE" ] || continue
      rm -rf "$output"
      recipe "$method" "${method%-nf4}" "$output" "stages.${method%-nf4}.optim.lr=${rates[turn]}"
      quietly "${run[@]}"
      echo "$method ${rates[turn]}: $(cat "$output/${method%-nf4}/DONE")"
      # Whole models are large: that of the best rate so far stays.
      lowest=$(best "$method" "${rates[@]}")
      for rate in "${rates[@]}"; do [ "$rate" = "$lowest" ] || rm -rf "$runs/$method/$rate/${method%-nf4}/model"; done
    done <<<"$methods"
  done
}

rouge() {
  local method rates rate result policy
  while read -r method rates; do
    if [ "$method" = base ]; then
      policy=Base result=$runs/base
    else
      rate=$(best "$method" $rates)
      [ -n "$rate" ] || continue
      result=$runs/$method/$rate
      policy=$(ls -d "$result/${method%-nf4}"/{adapter,model} 2>/dev/null | head -n 1 || true)
      policy="Folder(\"$policy\")"
    fi
    [ ! -e "$result/compare/DONE" ] || continue
    rm -rf "$result/compare"
    recipe "$method" compare "$result" "stages.compare.policies=[$policy]" "stages.compare.reference=$policy" stages.compare.num_samples=48
    quietly "${run[@]}"
    echo "$method${rate:+ $rate}: $(tail -n 1 "$result/compare/metrics.jsonl")"
  done <<<"base
$methods"
}

speed() {
  local method rates other
  while read -r method rates; do
    [ ! -e "$runs/$method/speed" ] || continue
    for other in lora-8 "$method"; do
      rm -rf "$scratch/run"
      recipe "$other" "${other%-nf4}" "$scratch/run" "stages.${other%-nf4}.data.limit=48" "stages.${other%-nf4}.eval_data=None"
      measured python3 "${run[@]}" >"$scratch/peak" 2>"$scratch/log" || {
        tail -n 20 "$scratch/log" >&2
        return 1
      }
      python3 - "$scratch/run/${other%-nf4}/timing.jsonl" "$scratch/peak" >"$scratch/speed-$other" <<'PY'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
tokens = lambda line: line["tokens_per_s"] * line["elapsed_s"]
rate = (tokens(lines[-1]) - tokens(lines[0])) / (lines[-1]["elapsed_s"] - lines[0]["elapsed_s"])
peak = [line.split()[1] for line in open(sys.argv[2]) if line.startswith("PEAK")][-1]
print(f"{rate:.1f} {peak}")
PY
    done
    # Tokens per second of lora-8 and of the method, and the method's peak in megabytes.
    echo "$(cut -d' ' -f1 "$scratch/speed-lora-8") $(cat "$scratch/speed-$method")" >"$runs/$method/speed.new"
    mv "$runs/$method/speed.new" "$runs/$method/speed"
    echo "$method: $(cat "$runs/$method/speed")"
  done <<<"$methods"
}

table() {
  "$TEMPER" recipe recipes/adapters.ron --set "model=\"$model\"" --dry-run >"$scratch/plan"
  echo "$methods" >"$scratch/methods"
  python3 - "$runs" "$scratch/plan" "$scratch/methods" <<'PY'
import json, os, re, statistics, sys

runs, plan, methods = sys.argv[1:]


def rows(path):
    return [json.loads(line) for line in open(path)] if os.path.exists(path) else []


def count(text):
    number, _, unit = text.replace(",", "").partition(" ")
    return float(number) * {"": 1, "k": 1e3, "M": 1e6}[unit]


# Columns of the plan: stage, kind, trainable, parameters, ..
planned = {}
for line in open(plan):
    cells = re.split(r"\s{2,}", line.strip())
    if cells[1:2] == ["Sft"]:
        planned[cells[0]] = cells[2]
whole = count(planned["full"])
# Scores of the responses to each row, to be compared row by row.
scores = lambda folder: [x["scores"]["rouge-l"] for x in rows(f"{folder}/compare/samples.jsonl")]
losses = lambda folder, stage: [x["eval/loss"] for x in rows(f"{folder}/{stage}/metrics.jsonl") if "eval/loss" in x]
size = lambda path: sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path) if f.endswith(".safetensors"))
found = []
for line in open(methods):
    method, *rates = line.split()
    stage = method.removesuffix("-nf4")
    done = {r: losses(f"{runs}/{method}/{r}", stage) for r in rates if os.path.exists(f"{runs}/{method}/{r}/{stage}/DONE")}
    if done:
        ends = {r: d[-1] if d[-1] is not None else float("inf") for r, d in done.items()}
        found.append((method, stage, min(ends, key=ends.get), ends, next(iter(done.values()))[0]))
folder = {method: f"{runs}/{method}/{rate}" for method, _, rate, _, _ in found}
full = scores(folder["full"]) if "full" in folder else []
print("| method | trained | of all | held-out loss | ROUGE-L | to full | tokens/s to lora-8's | peak MB | file MB | rate | loss at the others |")
print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|")
base = scores(f"{runs}/base")


def quality(own):
    """The mean score, and its difference to full fine-tuning with the standard error."""
    if not own:
        return "", ""
    mean = f"{statistics.mean(own):.3f}"
    if own == full or len(own) != len(full):
        return mean, ""
    differences = [a - b for a, b in zip(own, full)]
    return mean, f"{statistics.mean(differences):+.3f} ± {statistics.stdev(differences) / len(own) ** 0.5:.3f}"


starts = [start for method, _, _, _, start in found if method == "full"]
print(f"| base | 0 | | {starts[0]:.3f} | {' | '.join(quality(base))} | | | | | |" if starts else "")
for method, stage, rate, ends, _ in found:
    speed = open(f"{runs}/{method}/speed").read().split() if os.path.exists(f"{runs}/{method}/speed") else None
    ratio, peak = (f"{float(speed[1]) / float(speed[0]):.2f}", speed[2]) if speed else ("", "")
    result = next(f"{folder[method]}/{stage}/{kind}" for kind in ("adapter", "model") if os.path.exists(f"{folder[method]}/{stage}/{kind}"))
    megabytes = size(result) / 1e6
    share = 100 * count(planned[stage]) / whole
    others = ", ".join(f"{r}: {ends[r]:.3f}" for r in sorted(ends, key=float) if r != rate)
    cells = [method, planned[stage], f"{share:.2g} %" if share < 10 else f"{share:.0f} %", f"{ends[rate]:.3f}", *quality(scores(folder[method]))]
    print("| " + " | ".join(cells + [ratio, peak, f"{megabytes:.3g}", rate, others]) + " |")
PY
}

for part in "${parts[@]}"; do
  case $part in
    train | rouge | speed | table) "$part" ;;
    *)
      echo "no such part: $part; $usage" >&2
      exit 2
      ;;
  esac
done
