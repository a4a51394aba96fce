#!/usr/bin/env bash
# Tokens/s and peak memory of LoRA fine-tuning against threads, rows in a batch, length, rank, vocabulary and gradient_checkpointing: one line a
# point, from one base point.
# usage: benches/scaling.sh MODEL_DIR TEXT.jsonl
#   TEXT.jsonl  rows with "prompt": they are laid end to end and cut into rows of the wanted length
#   TEMPER      the binary (default: built here)
#   POINTS      what to vary (default: threads rows length rank vocabulary again)
# Another vocabulary is the same model with rows of zeros below its embedding (one file of safetensors, tied). Three steps each; the first is left out of the rate. Nothing else should run meanwhile.
set -euo pipefail
source "$(dirname "$0")/common.sh"
model=$(realpath "${1:?usage: benches/scaling.sh MODEL_DIR TEXT.jsonl}")
text=$(realpath "${2:?usage: benches/scaling.sh MODEL_DIR TEXT.jsonl}")
prepare
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

# The model with a larger vocabulary, in a folder of its own.
with_vocabulary() {
  mkdir -p "$scratch/vocabulary-$1"
  cp "$model"/*.json "$scratch/vocabulary-$1/"
  python3 - "$model" "$scratch/vocabulary-$1" "$1" <<'PY'
import json, struct, sys
model, out, vocabulary = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = json.load(open(f"{out}/config.json"))
config["vocab_size"] = vocabulary
json.dump(config, open(f"{out}/config.json", "w"))
with open(f"{model}/model.safetensors", "rb") as file:
    header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    data = file.read()
name = "model.embed_tokens.weight"
rows, width = header[name]["shape"]
begin, end = header[name]["data_offsets"]
data_of, place = [], 0
for key in sorted((key for key in header if key != "__metadata__"), key=lambda key: header[key]["data_offsets"]):
    part = data[slice(*header[key]["data_offsets"])]
    if key == name:
        part += bytes((vocabulary - rows) * (end - begin) // rows)
        header[key]["shape"] = [vocabulary, width]
    header[key]["data_offsets"] = [place, place + len(part)]
    place += len(part)
    data_of.append(part)
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open(f"{out}/model.safetensors", "wb") as file:
    file.writelines([struct.pack("<Q", len(text)), text, *data_of])
PY
  echo "$scratch/vocabulary-$1"
}

# point THREADS ROWS LENGTH RANK [VOCABULARY] [CHECKPOINTING]
point() {
  local rows=$(($2 * 3)) vocabulary=${5:-$own} base=$model again=${6:-false}
  [ "$vocabulary" = "$own" ] || base=$(with_vocabulary "$vocabulary")
  cat >"$scratch/point.ron" <<RON
(name: "point", model: "$base", stages: [Pretrain(name: "stage", init: Base, gradient_checkpointing: $again, data: (source: Jsonl("$scratch/text.jsonl"), limit: $rows),
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
