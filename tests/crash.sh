#!/usr/bin/env bash
# Ends a short run before its k-th file operation for each k, resumes it, and compares what is left with an undisturbed run.
#
#   tests/crash.sh [FIRST [STEP [LAST]]]     k = FIRST, FIRST + STEP, .. (default: 1, 1, all of them)
#
#   TEMPER       the program (default: built here, as a release)
#   RECIPE       (default tests/soak/short.ron)
#   CRASH_ERRNO  instead of a kill, operation k and all later ones fail with this error: 28 is a full disk
#
# Needs Linux and a C compiler. Compared as in tests/soak.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
first=${1:-1} step=${2:-1}
RECIPE=${RECIPE:-tests/soak/short.ron}
. tests/soak/common.sh
code=${CRASH_ERRNO:-}
unset CRASH_ERRNO
"${CC:-cc}" -O1 -shared -fPIC -o "$scratch/crash.so" tests/soak/crash.c -ldl

undisturbed LD_PRELOAD="$scratch/crash.so" CRASH_COUNT="$scratch/count"
all=$(cat "$scratch/count")
last=${3:-$all}
echo "undisturbed: $all file operations"

crashes=0 different=0 failed=0
for ((k = first; k <= last; k += step)); do
  rm -rf "$run"
  status=0
  # The shell's own message about the kill is not wanted.
  { env LD_PRELOAD="$scratch/crash.so" CRASH_AT="$k" CRASH_ERRNO="${code:-0}" "${temper[@]}" >"$scratch/log" 2>&1; } 2>/dev/null || status=$?
  expected=137
  [ -z "$code" ] || expected=1
  if [ "$status" != "$expected" ] && [ -z "$code" ]; then
    echo "operation $k: exit $status instead of $expected"
    failed=$((failed + 1))
  fi
  crashes=$((crashes + 1))
  resume=()
  [ -e "$run" ] && resume=(--resume)
  if ! "${temper[@]}" "${resume[@]}" >"$scratch/log" 2>&1; then
    echo "operation $k: the run does not go on:"
    tail -n 2 "$scratch/log"
    failed=$((failed + 1))
  elif ! same "$scratch/whole" "$run" >"$scratch/differences"; then
    echo "operation $k: other files:"
    cat "$scratch/differences"
    different=$((different + 1))
  fi
done
echo "$crashes runs ended before an operation: $failed do not go on, $different differ"
[ $((failed + different)) = 0 ]
