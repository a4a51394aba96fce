#!/usr/bin/env bash
# Efficiency of two processes of one thread each beside one process of one thread: SFT with LoRA and PPO, seconds a step, the first left out.
# usage: benches/ranks.sh MODEL_DIR ROWS.jsonl
#   ROWS.jsonl  rows with "prompt" and "completion"
#   TEMPER      a binary built with --features mpi
#   STEPS       steps of each run (default: 4)
#   BATCH       rows of a step, of all processes together (default: 16)
# Nothing else should run meanwhile. mpirun binds each process to a core; one process is bound by taskset.
set -euo pipefail
model=$(realpath "${1:?usage: benches/ranks.sh MODEL_DIR ROWS.jsonl}")
rows=$(realpath "${2:?usage: benches/ranks.sh MODEL_DIR ROWS.jsonl}")
temper=${TEMPER:?a binary built with --features mpi}
steps=${STEPS:-4} batch=${BATCH:-16}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

common="init: Base, peft: Lora(rank: 16), optim: (lr: 1e-4)"
cat >"$scratch/sft.ron" <<RON
(name: "r", model: "$model", stages: [Sft(name: "s", $common, data: (source: Jsonl("$rows"), limit: $((batch * steps))),
    batch_size: $batch, max_length: 256, max_steps: $steps, cadence: (num_samples: 0))])
RON
cat >"$scratch/ppo.ron" <<RON
(name: "r", model: "$model", stages: [Ppo(name: "s", $common, data: (source: Jsonl("$rows"), limit: 64), reward: Length(target: 20),
    total_episodes: $((batch * steps)), batch_size: $batch, num_ppo_epochs: 2, response_length: 32, max_prompt_length: 160,
    cadence: (num_samples: 0))])
RON

# seconds FOLDER: seconds a step after the first.
seconds() {
  sed 's/.*"elapsed_s":\([0-9.e+-]*\).*/\1/' "$1/s/timing.jsonl" | awk 'NR == 1 { first = $1 } { last = $1 } END { print (last - first) / (NR - 1) }'
}
peak() { sed -n 's/.*"peak_bytes": *\([0-9]*\).*/\1/p' "$1/s/stage.json" | awk '{ printf "%.0f", $1 / 1e6 }'; }

echo "| work | 1 process: s/step | 2 processes: s/step | efficiency | peak MB of a process | alone |"
echo "|---|---:|---:|---:|---:|---:|"
for work in ${WORK:-sft ppo}; do
  taskset -c 0 "$temper" recipe "$scratch/$work.ron" --threads 1 --output "$scratch/$work-1" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; exit 1; }
  mpirun -n 2 --bind-to core "$temper" recipe "$scratch/$work.ron" --threads 1 --output "$scratch/$work-2" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; exit 1; }
  one=$(seconds "$scratch/$work-1") two=$(seconds "$scratch/$work-2")
  echo "| $work | $one | $two | $(awk -v a="$one" -v b="$two" 'BEGIN { printf "%.1f %%", 100 * a / (2 * b) }') | $(peak "$scratch/$work-2") | $(peak "$scratch/$work-1") |"
done
