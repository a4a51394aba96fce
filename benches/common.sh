# What the scripts beside this one share; sourced, not run.

# Goes to the root of the repository, with a folder for scratch that is gone at the end, and TEMPER the binary, built here unless it is given.
prepare() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  if [ -z "${TEMPER:-}" ]; then
    cargo build --release --quiet
    TEMPER=${CARGO_TARGET_DIR:-target}/release/temper
  fi
}

# pairs PYTHON ROWS.jsonl OUT.jsonl: prompt, chosen and rejected, which is the next row's completion, short enough that neither side cuts a row.
pairs() {
  "$1" - "$2" "$3" <<'PY'
import json, sys
rows = [json.loads(line) for line, _ in zip(open(sys.argv[1]), range(513))]
with open(sys.argv[2], "w") as file:
    for row, other in zip(rows, rows[1:]):
        out = {"prompt": row["prompt"][:900] + "\n\nTL;DR:", "chosen": " " + row["completion"], "rejected": " " + other["completion"]}
        out["completion"] = out["chosen"]
        file.write(json.dumps(out) + "\n")
PY
}

# labels PYTHON PAIRS.jsonl OUT.jsonl: prompt, completion and label, in turn the chosen response of a pair and the rejected one of the next.
labels() {
  "$1" - "$2" "$3" <<'PY'
import json, sys
with open(sys.argv[2], "w") as file:
    for i, line in enumerate(open(sys.argv[1])):
        row, label = json.loads(line), i % 2 == 0
        row = {"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label}
        file.write(json.dumps(row) + "\n")
PY
}

# measured PYTHON COMMAND..: runs a command and prints its output, then "PEAK megabytes".
measured() {
  local python=$1
  shift
  "$python" - "$@" <<'PY'
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(f"PEAK {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000:.0f}")
sys.exit(code)
PY
}
