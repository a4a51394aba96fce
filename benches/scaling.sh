#!/usr/bin/env bash
# Tokens/s and peak memory of LoRA fine-tuning against threads, rows in a batch, length, rank, vocabulary and gradient_checkpointing: one line a
# point, from one base point.
# usage: benches/scaling.sh MODEL_DIR TEXT.jsonl
#   TEXT.jsonl  rows with "prompt": they are laid end to end and cut into rows of the wanted length
#   TEMPER      the binary (default: built here)
#   POINTS      what to vary (default: threads rows length rank vocabulary again)
# Another vocabulary is one of random weights: the embedding has more rows than the tokenizer has tokens. Three steps each; the first is left out of the rate. Nothing else should run meanwhile.
set -euo pipefail
model=$(realpath "${1:?usage: benches/scaling.sh MODEL_DIR TEXT.jsonl}")
text=$(realpath "${2:?usage: benches/scaling.sh MODEL_DIR TEXT.jsonl}")
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -z "${TEMPER:-}" ]; then
  cargo build --release --quiet
  TEMPER=${CARGO_TARGET_DIR:-target}/release/temper
fi
# A row of more tokens than any length below.
python3 - "$text" "$scratch/text.jsonl" <<'PY'
import json, sys
words = " ".join(json.loads(line)["prompt"] for line in open(sys.argv[1]))
size = 40_000
with open(sys.argv[2], "w") as file:
    for i in range(96):
        begin = i * 1_000 % max(1, len(words) - size)
        file.write(json.dumps({"text": words[begin : begin + size]}) + "\n")
PY

# A folder with the model's configuration and tokenizer, and another size of vocabulary.
with_vocabulary() {
  mkdir -p "$scratch/vocabulary-$1"
  cp "$model"/*.json "$scratch/vocabulary-$1/"
  python3 - "$scratch/vocabulary-$1/config.json" "$1" <<'PY'
import json, sys
config = json.load(open(sys.argv[1]))
config["vocab_size"] = int(sys.argv[2])
json.dump(config, open(sys.argv[1], "w"))
PY
  echo "$scratch/vocabulary-$1"
}

# point THREADS ROWS LENGTH RANK [VOCABULARY] [CHECKPOINTING]
point() {
  local rows=$(($2 * 3)) vocabulary=${5:-$own} from again=${6:-false}
  from="init: Base"
  [ "$vocabulary" = "$own" ] || from="init: Random(\"$(with_vocabulary "$vocabulary")\")"
  cat >"$scratch/point.ron" <<RON
(name: "point", model: "$model", stages: [Pretrain(name: "stage", $from, gradient_checkpointing: $again, data: (source: Jsonl("$scratch/text.jsonl"), limit: $rows),
    peft: Lora(rank: $4, alpha: 32.0), batch_size: $2, max_length: $3, micro_batch_tokens: $(($2 * $3 > $3 ? $2 * $3 : $3)))])
RON
  rm -rf "$scratch/run"
  python3 - "$1" "$2" "$3" "$4" "$vocabulary" "$again" "$TEMPER" recipe "$scratch/point.ron" --output "$scratch/run" --threads "$1" <<'PY'
import json, resource, subprocess, sys
threads, rows, length, rank, vocabulary, again = sys.argv[1:7]
run = sys.argv[sys.argv.index("--output") + 1]
done = subprocess.run(sys.argv[7:], capture_output=True, text=True)
if done.returncode:
    sys.exit(done.stderr[-2000:])
steps = [json.loads(line) for line in open(f"{run}/stage/timing.jsonl")]
(a, a_s), (b, b_s) = [(x["tokens_per_s"] * x["elapsed_s"], x["elapsed_s"]) for x in (steps[0], steps[-1])]
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
print(f"| {threads} | {rows} | {length} | {rank} | {vocabulary} | {again} | {(b - a) / (b_s - a_s):.0f} | {peak:.0f} |", flush=True)
PY
}

all=$(nproc)
own=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["vocab_size"])' "$model/config.json")
echo "| threads | rows | length | rank | vocabulary | gradient_checkpointing | tokens/s | peak MB |"
echo "|---:|---:|---:|---:|---:|---|---:|---:|"
point "$all" 8 128 16
for points in ${POINTS:-threads rows length rank vocabulary again}; do
  case $points in
    threads) for threads in $(seq 1 $((all - 1))); do point "$threads" 8 128 16; done ;;
    rows) for rows in 2 4 16; do point "$all" "$rows" 128 16; done ;;
    length) for length in 256 512 1024 2048 4096; do point "$all" 1 "$length" 16; done ;;
    rank) for rank in 4 64; do point "$all" 8 128 "$rank"; done ;;
    vocabulary) for times in 2 3; do point "$all" 8 128 16 $((times * own)); done ;;
    again)
      point "$all" 8 128 16 "$own" true
      point "$all" 1 4096 16 "$own" true
      ;;
  esac
done
