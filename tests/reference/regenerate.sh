#!/usr/bin/env bash
# Makes every reference number anew, byte for byte.   usage: regenerate.sh PYTHON [--check]
#   PYTHON    interpreter of an environment with the versions that README.md names
#   --check   works on a copy and says whether the files here are what the scripts write; exits 1 if not
set -euo pipefail
python=$(command -v "${1:?usage: regenerate.sh PYTHON [--check]}")
here=$(cd "$(dirname "$0")" && pwd)
out=$here
if [ "${2:-}" = --check ]; then
  out=$(mktemp -d)/reference
  trap 'rm -rf "$(dirname "$out")"' EXIT
  cp -r "$here" "$out"
fi
for script in families heads mixed nf4 adapters tokenizer_ids tokenizer_files trl_rows templates trajectories prompts optimisers ppo; do
  echo "$script.py" >&2
  "$python" "$here/$script.py" "$out" >&2
done
if [ "$out" != "$here" ]; then
  diff -r --brief "$here" "$out" || {
    echo "these files are not what the scripts write" >&2
    exit 1
  }
  echo "all files are what the scripts write" >&2
fi
