#!/usr/bin/env bash
# Stops a run of every stage kind at N random instants, resumes it each time, and compares what is left with an undisturbed run.
#
#   tests/soak.sh N     of the stops 7 in 10 are SIGKILL, the others SIGTERM and SIGINT; some of these are sent twice
#
#   TEMPER  the program (default: built here, as a release)
#   SEED    of the instants and signals (default 1): the same seed draws the same ones, what they hit depends on the machine
#   RECIPE  (default tests/soak/recipe.ron)
#
# Compared byte for byte: every file of the run folder, but for times and memory in stage.json, timing.jsonl, run.json and reports. Ends with 0 if all runs were the same.
set -euo pipefail
cd "$(dirname "$0")/.."
number=${1:?"usage: tests/soak.sh N"}
RECIPE=${RECIPE:-tests/soak/recipe.ron}
. tests/soak/common.sh
RANDOM=${SEED:-1}

now_ms() { date +%s%3N; }
begin=$(now_ms)
undisturbed
whole_ms=$(($(now_ms) - begin))
# About ten stops a run, so that it comes to its end and every part of it is hit.
most_ms=$((whole_ms / 5 + 1))
echo "undisturbed: $whole_ms ms, $(find "$scratch/whole" -type f | wc -l) files; stops within $most_ms ms of each start"

declare -A signals=() places=()
stops=0 runs=0 different=0
while [ "$stops" -lt "$number" ]; do
  runs=$((runs + 1))
  while :; do
    resume=()
    [ -e "$run" ] && resume=(--resume)
    # A shell lets its background processes ignore SIGINT.
    env --default-signal=INT "${temper[@]}" "${resume[@]}" >"$scratch/log" 2>&1 &
    process=$!
    signal=
    if [ "$stops" -lt "$number" ]; then
      delay=$(((RANDOM * 32768 + RANDOM) % most_ms))
      case $((RANDOM % 20)) in
        [0-9] | 1[0-3]) signal=KILL ;;
        1[4-6]) signal=TERM ;;
        *) signal=INT ;;
      esac
      twice=$((RANDOM % 4))
      sleep "$((delay / 1000)).$(printf %03d $((delay % 1000)))"
      if kill -"$signal" "$process" 2>/dev/null; then
        stops=$((stops + 1))
        signals[$signal]=$((${signals[$signal]:-0} + 1))
        if [ "$signal" != KILL ] && [ "$twice" = 0 ]; then
          sleep 0.05
          kill -"$signal" "$process" 2>/dev/null && signals[twice]=$((${signals[twice]:-0} + 1)) || true
        fi
      else
        signal=
      fi
    fi
    code=0
    wait "$process" 2>/dev/null || code=$?
    [ "$code" = 0 ] && break
    case $signal:$code in
      # Stopped before the handler was set, after it, and by the second signal.
      KILL:137 | TERM:143 | INT:130 | TERM:130) ;;
      TERM:1 | INT:1) grep -q 'resume' "$scratch/log" || signal= ;;
      *) signal= ;;
    esac
    if [ -z "$signal" ]; then
      echo "run $runs does not go on (exit $code):"
      tail -n 5 "$scratch/log"
      keep=1
      exit 1
    fi
    place=start
    for folder in "$run"/*/; do
      if [ -e "$folder/stage.json" ] && [ ! -e "$folder/DONE" ]; then place=$(basename "$folder"); fi
    done
    places[$place]=$((${places[$place]:-0} + 1))
  done
  [ -t 2 ] && printf '%s of %s stops\r' "$stops" "$number" >&2
  if same "$scratch/whole" "$run" >"$scratch/differences"; then
    rm -rf "$run"
  else
    echo "run $runs differs:"
    cat "$scratch/differences"
    different=$((different + 1))
    mv "$run" "$scratch/run-$runs"
    keep=1
  fi
done

echo "| stopped in | times |"
echo "|---|--:|"
for place in "${!places[@]}"; do echo "| $place | ${places[$place]} |"; done | LC_ALL=C sort
echo
echo "$stops stops (SIGKILL ${signals[KILL]:-0}, SIGTERM ${signals[TERM]:-0}, SIGINT ${signals[INT]:-0}, of these twice ${signals[twice]:-0}) in $runs runs," \
  "$(($(now_ms) - begin)) ms: $different runs differ"
[ "$different" = 0 ]
