"""Compares `temper serve` with lm-eval's transformers backend: log-likelihoods and generation, document by document.

    python check_lm_eval.py --url http://127.0.0.1:8000 --name MODEL --folder FOLDER

MODEL is the model's name on the server, FOLDER its files in Hugging Face's layout. Needs lm-eval, torch and transformers; no network.
Exits with 1 if a metric (of at most 1, else relatively) or a document's log-likelihood differs by more than 1e-3, or a generated text
differs.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import lm_eval
from lm_eval.tasks import TaskManager

TASKS = ["temper_choice", "temper_continue", "temper_rolling"]
TOLERANCE = 1e-3


def evaluate(model, args, manager, limit):
    return lm_eval.simple_evaluate(
        model=model, model_args=args, tasks=TASKS, task_manager=manager, log_samples=True, bootstrap_iters=0, batch_size=4,
        limit=limit,
    )


def numbers(value):
    """All numbers in a nested answer, in order."""
    if isinstance(value, (list, tuple)):
        return [x for part in value for x in numbers(part)]
    return [float(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def main():
    parser = argparse.ArgumentParser()
    for name in ["--url", "--name", "--folder"]:
        parser.add_argument(name, required=True)
    parser.add_argument("--limit", type=int, help="documents of each task [default: all 24]")
    args = parser.parse_args()
    source = pathlib.Path(__file__).parent / "tasks"
    with tempfile.TemporaryDirectory() as folder:
        for file in source.glob("*.yaml"):
            text = file.read_text().replace("DOCS", json.dumps(str((source / "docs.jsonl").resolve())))
            (pathlib.Path(folder) / file.name).write_text(text)
        manager = TaskManager(include_path=folder, include_defaults=False)
        served = evaluate("local-completions", {
            "model": args.name, "base_url": f"{args.url}/v1/completions", "tokenizer": args.folder,
            "tokenizer_backend": "huggingface", "max_length": 1024,
        }, manager, args.limit)
        local = evaluate("hf", {"pretrained": args.folder, "dtype": "float32", "device": "cpu", "max_length": 1024}, manager, args.limit)
    worst, wrong = 0.0, 0
    for task in TASKS:
        for name, expected in local["results"][task].items():
            if isinstance(expected, float) and "stderr" not in name:
                found = served["results"][task][name]
                # Of perplexities in the thousands it is the relative difference.
                wrong += abs(found - expected) > TOLERANCE * max(1, abs(expected))
                print(f"{task:16} {name:24} {found:12.6f} {expected:12.6f}")
        by_doc = lambda run: {s["doc_id"]: s for s in run["samples"][task]}
        theirs, ours = by_doc(local), by_doc(served)
        assert theirs.keys() == ours.keys() and len(ours) == (args.limit or 24), f"{task}: {len(ours)} documents"
        for doc, sample in theirs.items():
            expected, found = sample["resps"], ours[doc]["resps"]
            if task == "temper_continue":
                if expected != found:
                    wrong += 1
                    print(f"{task} {doc}: {found} instead of {expected}")
                continue
            pairs = list(zip(numbers(found), numbers(expected), strict=True))
            assert pairs, f"{task} {doc}: no log-likelihoods"
            difference = max(abs(a - b) for a, b in pairs)
            worst = max(worst, difference)
            wrong += difference > TOLERANCE
            if task == "temper_choice":
                greedy = lambda resps: [answer[0][1] for answer in resps]
                wrong += greedy(found) != greedy(expected)
    print(f"largest difference of a log-likelihood: {worst:.2e} nats; {wrong} beyond {TOLERANCE}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
