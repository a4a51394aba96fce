"""Compares `temper logprobs` with transformers and PEFT.  usage: check_export.py MODEL_DIR [--adapter DIR] ROWS.jsonl

ROWS.jsonl: {"input_ids": [..], "logprobs": [..]} a line, the log-probabilities being those of the last tokens of input_ids.
Prints the largest difference; exits 1 if it is above 1e-3 nats.

Versions: torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
"""
import argparse
import json
import os
import sys

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import torch
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir")
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT adapter to put on the model")
    parser.add_argument("rows")
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.model_dir, dtype=torch.float32)
    if args.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, args.adapter)
    model.eval()

    largest, total, tokens = 0.0, 0, 0
    with open(args.rows) as file, torch.no_grad():
        for line_number, line in enumerate(file, 1):
            row = json.loads(line)
            ids, ours = row["input_ids"], row["logprobs"]
            if len(ours) > len(ids) - 1 or any(x is None for x in ours):
                sys.exit(f"{args.rows}:{line_number}: {len(ours)} log-probabilities for {len(ids)} tokens")
            total += 1
            if not ours:
                continue
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
            theirs = logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[-len(ours):, 0]
            difference = (theirs - torch.tensor(ours)).abs().max().item()
            tokens += len(ours)
            if not difference <= largest:  # a NaN is kept
                largest = difference
    print(f"rows {total}  tokens {tokens}  largest difference {largest:.3g} nats (allowed {TOLERANCE})")
    if tokens == 0 or not largest <= TOLERANCE:
        sys.exit(1)


if __name__ == "__main__":
    main()
