"""What transformers computes where a file holds another head than its config.json says.  usage: heads.py OUT_DIR

`tied_conflict`: `llama_tied`, whose config.json ties the head to the embedding, with a stored lm_head.weight: the embedding with its rows
in reverse order. Versions: those of families.py
"""
import json
import os
import shutil
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def main():
    root = sys.argv[1]
    torch.set_num_threads(1)
    with open(f"{root}/llama_tied/ref.json") as file:
        rows = json.load(file)["rows"]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(f"{root}/llama_tied/config.json", folder)
        tensors = load_file(f"{root}/llama_tied/model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
        save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    found = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            logprobs = torch.log_softmax(model(ids).logits[0, :-1], -1)
            found.append(logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist())
    with open(os.path.join(root, "heads.json"), "w") as file:
        json.dump({"tied_conflict": found}, file)
        file.write("\n")


if __name__ == "__main__":
    main()
