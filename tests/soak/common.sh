# Shared by tests/soak.sh and tests/crash.sh: the program, a folder for runs, and the comparison of two runs. Source it at the root.

# A folder that is removed at the end unless something differed.
scratch=$(mktemp -d)
keep=
trap '[ -n "$keep" ] && echo "runs are kept in $scratch" || rm -rf "$scratch"' EXIT

if [ -z "${TEMPER:-}" ]; then
  cargo build --release --quiet --bin temper
  TEMPER=${CARGO_TARGET_DIR:-target}/release/temper
fi
TEMPER=$(realpath "$TEMPER")

# The program sets this for itself by starting itself anew, which would hide the process from a signal or a preloaded library.
export MIMALLOC_PURGE_DELAY=-1
export RUST_BACKTRACE=1

# The recipe into the run folder, on one thread. Every run has this folder: files name it. An array and not a function, so that a
# signal to a process in the background is one to the program.
run=$scratch/run
temper=("$TEMPER" recipe "$RECIPE" --output "$run" --threads 1)

# undisturbed VARIABLE=VALUE..: the undisturbed run, moved to $scratch/whole.
undisturbed() {
  env "$@" "${temper[@]}" >"$scratch/log" 2>&1 || {
    cat "$scratch/log"
    exit 1
  }
  mv "$run" "$scratch/whole"
}

# Without what depends on the clock or on memory: reads a file whose name is $1.
timeless() {
  case $1 in
    *timing.jsonl) sed -E 's/"step":/"STEP":/; s/("[a-z_/]+"):[-+.0-9e]+/\1:T/g' ;;
    *stage.json) sed -E 's/("(seconds|peak_bytes)"): [-+.0-9e]+/\1: T/' ;;
    *run.json) sed -E 's/("(started|finished)"): "[^"]*"/\1: T/' ;;
    *report.html)
      sed -E 's#(<th>(time|tokens per second|started|time of the stages|peak memory[a-z ]*)</th>)<td>[^<]*#\1<td>T#g
        s#[0-9.]+ (s|min|h)( [0-9]+ (s|min))? · [^<]*#T#g
        s# · [0-9.]+ (s|min|h)( [0-9]+ (s|min))?<# · T<#g'
      ;;
    *) cat ;;
  esac
}

# One line a file, link or empty folder of the run: its hash without what depends on the clock, and its name.
digest() {
  (
    cd "$1"
    find . -type f ! -name timing.jsonl ! -name stage.json ! -name run.json ! -name report.html -print0 | xargs -0 -r sha256sum
    find . \( -type l -o -type d -empty \) -printf 'kind %y %l  %p\n'
    find . -type f \( -name timing.jsonl -o -name stage.json -o -name run.json -o -name report.html \) | while read -r file; do
      printf '%s  %s\n' "$(timeless "$file" <"$file" | sha256sum | cut -c1-64)" "$file"
    done
  ) | LC_ALL=C sort -k 2
}

# same WHOLE PART: whether both runs have left the same; prints what differs.
same() {
  [ -s "$1.digest" ] || digest "$1" >"$1.digest"
  digest "$2" >"$2.digest"
  diff "$1.digest" "$2.digest" | sed -n 's/^[<>] .*  /    /p' | sort -u
  cmp -s "$1.digest" "$2.digest"
}
