#!/usr/bin/env bash
# Memory, processor time, open files and threads over many steps of each kind of stage, on the embedded model.
#
#   tests/long.sh [STEPS [KIND..]]     (default: 2000 steps, all kinds)
#
#   TEMPER  the program (default: built here, as a release)
#   MEMORY  MB that the peak of the fourth quarter may be above that of the second (default 4)
#   TIME    percent, from 500 steps on, that a step of the fourth quarter may take more than one of the second (default 5)
#
# Processor time and not that of the clock: other programs do not count. Needs Linux. Ends with 0 if nothing grows.
set -euo pipefail
cd "$(dirname "$0")/.."
steps=${1:-2000}
shift || true
kinds=("$@")
[ ${#kinds[@]} -gt 0 ] || kinds=(Pretrain Sft Rank Sample Judge Revise RewardModel Dpo Cpo Orpo Kto OnlineDpo Hir Ppo Grpo Rloo
  ReinforcePlusPlus Distill Compare)
RECIPE=
. tests/soak/common.sh

pairs=$scratch/pairs.jsonl
# pair_rows NUMBER
pair_rows() {
  awk -v n="$1" 'BEGIN { for (i = 0; i < n; i++) printf "{\"prompt\": \"Post %d is about %d.\", \"chosen\": \" a word\", \"rejected\": \" of %d\"}\n", i, i % 7, i % 5 }' >"$pairs"
}

# The stage of kind $1 with about $steps steps.
stage() {
  local posts="data: (source: Posts(rows: 64, seed: 2))" many="data: (source: Posts(rows: $((32 * steps)), seed: 2))"
  local some="data: (source: Posts(rows: $((4 * steps)), seed: 2))"
  local train="peft: Lora(rank: 2), optim: (lr: 1e-4), cadence: (eval_steps: 100, save_steps: 100)" rows="data: (source: \"$pairs\")"
  local answers="response_length: 4, max_prompt_length: 96" policy="init: Base, reward: Length(target: 3), peft: Lora(rank: 2), optim: (lr: 1e-5), cadence: (save_steps: 100)"
  pair_rows 64
  case $1 in
    Pretrain | Sft) echo "$1(name: \"s\", $posts, $train, batch_size: 2, max_length: 64, max_steps: $steps)" ;;
    Rank) echo "Rank(name: \"s\", init: Base, $many, $answers, num_responses: 2, reward: Gold, generation_batch_size: 4)" ;;
    Sample) echo "Sample(name: \"s\", init: Base, $many, $answers, num_responses: 2, reward: Gold, generation_batch_size: 4)" ;;
    Judge)
      pair_rows $((16 * steps))
      echo "Judge(name: \"s\", judge: Model(Base), $rows, max_unanswered: 1.0)"
      ;;
    Revise) echo "Revise(name: \"s\", init: Base, $some, principles: \"tests/soak/principles.jsonl\", num_revisions: 1, $answers, generation_batch_size: 2)" ;;
    RewardModel | Dpo) echo "$1(name: \"s\", init: Base, $rows, $train, batch_size: 2, max_length: 64, max_steps: $steps)" ;;
    Cpo | Orpo | Kto) echo "$1(name: \"s\", init: Base, $rows, $train, batch_size: 2, max_length: 64, max_steps: $steps)" ;;
    OnlineDpo) echo "OnlineDpo(name: \"s\", $posts, $policy, $answers, total_episodes: $((2 * steps)), batch_size: 2)" ;;
    Hir) echo "Hir(name: \"s\", $posts, $policy, $answers, threshold: -0.6, iterations: $steps, prompts_per_iteration: 2, num_responses: 2, batch_size: 2)" ;;
    Ppo) echo "Ppo(name: \"s\", $posts, $policy, $answers, total_episodes: $((2 * steps)), batch_size: 2, num_ppo_epochs: 1)" ;;
    Grpo | Rloo) echo "$1(name: \"s\", $posts, $policy, $answers, total_episodes: $((2 * steps)), batch_size: 2, num_generations: 2)" ;;
    ReinforcePlusPlus) echo "$1(name: \"s\", $posts, $policy, $answers, total_episodes: $((2 * steps)), batch_size: 2)" ;;
    Distill) echo "Sft(name: \"t\", $posts, batch_size: 2, max_length: 64, max_steps: 1), Distill(name: \"s\", teacher: Stage(\"t\"), $posts, $train, batch_size: 2, response_length: 4, max_length: 64, max_steps: $steps)" ;;
    Compare) echo "Compare(name: \"s\", policies: [Base], $some, $answers, rewards: {\"gold\": Gold}, generation_batch_size: 2)" ;;
    *)
      echo "no stage kind $1" >&2
      exit 2
      ;;
  esac
}

# Lines of steps, ticks of processor time, resident kB, open files, threads of process $1; nothing when it has ended.
sample() {
  local lines=0 stat rss
  [ -e "$run/s/timing.jsonl" ] && lines=$(wc -l <"$run/s/timing.jsonl")
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  rss=$(awk '/^VmRSS/ { print $2 }' "/proc/$1/status" 2>/dev/null) || return 0
  [ -n "$rss" ] || return 0
  echo "$lines" "$(awk '{ print $12 + $13 }' <<<"${stat##*) }")" "$rss" "$(ls "/proc/$1/fd" 2>/dev/null | wc -l)" "$(ls "/proc/$1/task" 2>/dev/null | wc -l)"
}

echo "| stage | steps | ms a step, 2nd quarter | 4th quarter | MB at most, 2nd quarter | 4th quarter | files | threads |"
echo "|---|--:|--:|--:|--:|--:|--:|--:|"
# Runs kind $1, prints its line; fails if something grows.
measure() {
  local kind=$1
  rm -rf "$run"
  echo "(name: \"long\", model: \"tiny\", stages: [$(stage "$kind")])" >"$scratch/long.ron"
  "$TEMPER" recipe "$scratch/long.ron" --output "$run" --threads 1 >"$scratch/log" 2>&1 &
  process=$!
  : >"$scratch/samples"
  while kill -0 "$process" 2>/dev/null; do
    sample "$process" >>"$scratch/samples"
    sleep 0.05
  done
  wait "$process" || {
    echo "$kind does not end:"
    tail -n 3 "$scratch/log"
    exit 1
  }
  # Stages without steps count by the clock.
  awk -v kind="$kind" -v most_memory="${MEMORY:-4}" -v most_time="${TIME:-5}" '
    NF == 5 { n++; lines[n] = $1; ticks[n] = $2; rss[n] = $3; files[n] = $4; threads[n] = $5 }
    # The sample before which a share of the steps, or of the samples, are done.
    function at(share, i) {
      if (!lines[n]) return int(n * share) > 1 ? int(n * share) : 1
      for (i = 1; i < n && lines[i] < lines[n] * share; i++);
      return i
    }
    function peak(values, from, to, i, best) {
      for (i = from; i <= to; i++) if (values[i] > best) best = values[i]
      return best
    }
    # A file or thread that is left stays, so that the least counts.
    function least(values, from, to, i, best) {
      for (i = from; i <= to; i++) if (values[i] > 0 && (!best || values[i] < best)) best = values[i]
      return best
    }
    function cost(from, to) { return lines[to] > lines[from] ? 10 * (ticks[to] - ticks[from]) / (lines[to] - lines[from]) : 0 }
    # Other programs take caches and memory bandwidth, so that the better of two eighths counts.
    function smaller(x, y) { return x < y ? x : y }
    END {
      # Without the end, where the report is written.
      a = at(0.25); b = at(0.5); c = at(0.75); last = at(0.99)
      early = smaller(cost(a, at(0.375)), cost(at(0.375), b)); late = smaller(cost(c, at(0.875)), cost(at(0.875), last))
      low = peak(rss, a, b) / 1000; high = peak(rss, c, last) / 1000
      printf "| %s | %d | %.2f | %.2f | %.1f | %.1f | %d, %d | %d, %d |\n", kind, lines[n], early, late, low, high,
        least(files, a, b), least(files, c, last), least(threads, a, b), least(threads, c, last)
      bad = ""
      if (high > low + most_memory) bad = bad " memory"
      # Few steps differ by chance, and have few ticks.
      if (lines[n] >= 500 && late > early * (1 + most_time / 100)) bad = bad " time"
      if (least(files, c, last) > least(files, a, b)) bad = bad " files"
      if (least(threads, c, last) > least(threads, a, b)) bad = bad " threads"
      if (bad) { print kind ": grows:" bad; exit 1 }
    }' "$scratch/samples"
}

failed=0
for kind in "${kinds[@]}"; do
  # On a machine that does other things a line may be wrong by chance; what grows does so again.
  measure "$kind" || measure "$kind" || failed=1
done
exit "$failed"
