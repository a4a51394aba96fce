"""Compares `temper logprobs` or `temper score` with transformers and PEFT.

usage: check_export.py MODEL_DIR [--adapter DIR] ROWS.jsonl                        log-probabilities
       check_export.py MODEL_DIR [--adapter DIR] ROWS.jsonl --scores SCORES.jsonl [--padded]  scores

ROWS.jsonl: {"input_ids": [..], "logprobs": [..]} a line, the log-probabilities being those of the last tokens of input_ids.
SCORES.jsonl: {"score": x} a line, the score of the row of the same number; ROWS.jsonl then needs input_ids only.
Prints the largest difference; exits 1 if it is above the tolerance (1e-3 nats or units of the score, if not said otherwise).

Versions: torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
"""
import argparse
import json
import os
import sys
import warnings

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


def lines(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def load(args):
    """The model, and what our scores are shifted by, which the other files know nothing of."""
    shift = 0.0
    if args.scores:
        model = AutoModelForSequenceClassification.from_pretrained(args.model_dir, num_labels=1, dtype=torch.float32)
        if not args.padded:
            model.config.pad_token_id = None  # one row at a time: the score is that of the last token
        shift = getattr(model.config, "score_offset", None) or 0.0
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model_dir, dtype=torch.float32)
    if args.adapter:
        from peft import PeftModel

        with warnings.catch_warnings():
            # Keys that are missing, unknown or not used are warnings in PEFT.
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            model = PeftModel.from_pretrained(model, args.adapter)
        sidecar = f"{args.adapter}/tempering.json"
        if args.scores and os.path.exists(sidecar):
            with open(sidecar) as file:
                shift = json.load(file).get("score_offset", 0.0)
    return model.eval(), shift


def differences(args, model, shift):
    """The largest difference of each row, and how many numbers were compared."""
    rows = lines(args.rows)
    scores = lines(args.scores) if args.scores else [None] * len(rows)
    if len(scores) != len(rows):
        sys.exit(f"{args.scores}: {len(scores)} scores for {len(rows)} rows")
    if args.padded:
        longest = max(len(row["input_ids"]) for row in rows)
        surplus = [longest - len(row["input_ids"]) for row in rows]
        ids = [row["input_ids"] + [model.config.pad_token_id] * more for row, more in zip(rows, surplus)]
        mask = [[1] * len(row["input_ids"]) + [0] * more for row, more in zip(rows, surplus)]
        logits = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits
        for ours, theirs in zip(scores, logits[:, 0].tolist()):
            yield abs(theirs - shift - ours["score"]), 1
        return
    for line_number, (row, score) in enumerate(zip(rows, scores), 1):
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits
        if score is not None:
            yield abs(logits[0, 0].item() - shift - score["score"]), 1
            continue
        ids, ours = row["input_ids"], row["logprobs"]
        if len(ours) > len(ids) - 1 or any(x is None for x in ours):
            sys.exit(f"{args.rows}:{line_number}: {len(ours)} log-probabilities for {len(ids)} tokens")
        if not ours:
            yield 0.0, 0
            continue
        theirs = logits[0, :-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[-len(ours):, 0]
        yield (theirs - torch.tensor(ours)).abs().max().item(), len(ours)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir")
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT adapter to put on the model")
    parser.add_argument("--scores", metavar="SCORES.jsonl", help="what `temper score` wrote for the rows")
    parser.add_argument("--padded", action="store_true", help="all rows of --scores in one batch, padded as config.json says")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("rows")
    args = parser.parse_args()

    model, shift = load(args)
    largest, rows, compared = 0.0, 0, 0
    with torch.no_grad():
        for difference, count in differences(args, model, shift):
            rows, compared = rows + 1, compared + count
            if not difference <= largest:  # a NaN is kept
                largest = difference
    what = "scores" if args.scores else "tokens"
    print(f"rows {rows}  {what} {compared}  largest difference {largest:.3g} (allowed {args.tolerance})")
    if compared == 0 or not largest <= args.tolerance:
        sys.exit(1)


if __name__ == "__main__":
    main()
