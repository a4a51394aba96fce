#!/usr/bin/env bash
# Makes every reference number anew, byte for byte.   usage: regenerate.sh PYTHON [--bottlenecks PYTHON] [--check]
#   PYTHON          interpreter of an environment with the versions that README.md names
#   --bottlenecks   interpreter of the environment of bottlenecks.py, which wants an older transformers; without it, its files stay as they are
#   --check         works on a copy and says whether the files here are what the scripts write; exits 1 if not
set -euo pipefail
usage="usage: regenerate.sh PYTHON [--bottlenecks PYTHON] [--check]"
python=$(command -v "${1:?$usage}")
shift
here=$(cd "$(dirname "$0")" && pwd)
out=$here
older=
while [ $# != 0 ]; do
  case $1 in
    --bottlenecks)
      older=$(command -v "${2:?$usage}")
      shift 2
      ;;
    --check)
      out=$(mktemp -d)/reference
      trap 'rm -rf "$(dirname "$out")"' EXIT
      cp -r "$here" "$out"
      shift
      ;;
    *)
      echo "$usage" >&2
      exit 2
      ;;
  esac
done
for script in families encoders heads mixed nf4 ggml_blocks adapters resized tokenizer_ids tokenizer_files trl_rows templates trajectories distill preferences prompts optimisers ppo group reinforce_plus_plus online_dpo sacrebleu_scores ratings bottlenecks; do
  interpreter=$python
  [ "$script" != bottlenecks ] || interpreter=$older
  if [ -z "$interpreter" ]; then
    echo "$script.py is left out, without its interpreter" >&2
    continue
  fi
  echo "$script.py" >&2
  "$interpreter" "$here/$script.py" "$out" >&2
done
if [ "$out" != "$here" ]; then
  diff -r --brief "$here" "$out" || {
    echo "these files are not what the scripts write" >&2
    exit 1
  }
  echo "all files are what the scripts write" >&2
fi
