"""Makes adapters on bases whose vocabulary has grown and what they compute (see README.md).  usage: resized.py OUT_DIR

Reads OUT_DIR/peft_base/ (adapters.py), writes OUT_DIR/resized/.

Versions: torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
"""
import os
import shutil
import sys
import warnings

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import json

import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TrainableTokensConfig, get_peft_model

from adapters import load_base, numbers, randomise, write

# Tokens 48 and above are new.
ROWS = [[5, 48, 40, 3, 49, 31, 41, 8], [12, 48], [33, 0, 49, 46, 1]]
NEW = 2

# Base, method, and whether the new rows are other than the mean when they are saved.
CASES = {
    "tied": ("llama", LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"), True),
    "untied": ("gpt_neox", LoraConfig(r=2, lora_alpha=3, target_modules=["query_key_value"], task_type="CAUSAL_LM"), True),
    "mean": ("llama", LoraConfig(r=1, lora_alpha=2, target_modules=["v_proj"], task_type="CAUSAL_LM"), False),
    "prompt": ("gpt2", PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), True),
    # The rows of the new tokens are trained, and the file holds them instead of the tables.
    "tokens": ("llama", LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], trainable_token_indices=[48, 49], task_type="CAUSAL_LM"), False),
    "only_tokens": ("gpt2", TrainableTokensConfig(token_indices=[49, 5, 48], task_type="CAUSAL_LM"), False),
    # Both, as PEFT stores them when it finds that the base has another vocabulary.
    "tokens_and_tables": (
        "gpt_neox",
        LoraConfig(r=2, lora_alpha=3, target_modules=["dense"], trainable_token_indices={"embed_in": [48, 49]}, task_type="CAUSAL_LM"),
        True,
    ),
}
# Those whose files hold no tables.
ROWS_ALONE = ["tokens", "only_tokens"]


def tables(model):
    tables = [model.get_input_embeddings().weight]
    if not model.config.tie_word_embeddings:
        tables.append(model.get_output_embeddings().weight)
    return tables


def resize(model):
    """The model with rows at the mean of the old ones: what transformers draws lies around it."""
    old = model.config.vocab_size
    torch.manual_seed(0)
    model.resize_token_embeddings(old + NEW, mean_resizing=True)
    with torch.no_grad():
        for table in tables(model):
            mean = table[:old].double().mean(0).float()
            assert (table[old:] - mean).abs().max() < 1e-3, "transformers resizes in another way"
            table[old:] = mean
    return model.eval()


def measure(model):
    """Log-probabilities of every token but a row's first, in f32. What virtual tokens add stands before a row's own logits."""
    found = []
    with torch.no_grad():
        for row in ROWS:
            logits = model(input_ids=torch.tensor([row])).logits[0, -len(row) : -1]
            found.append(numbers(logits.log_softmax(-1).gather(-1, torch.tensor(row[1:])[:, None])[:, 0]))
    return found


def make(root, name, seed):
    base, config, moved = CASES[name]
    out = f"{root}/resized/{name}"
    plain = resize(load_base(root, base, False))
    result = {"base": base, "rows": ROWS, "resized": measure(plain), "mean": [numbers(table[-1]) for table in tables(plain)]}
    torch.manual_seed(seed)
    model = get_peft_model(resize(load_base(root, base, False)), config).eval()
    randomise([(key, p) for key, p in model.named_parameters() if p.requires_grad], seed)
    if moved:
        with torch.no_grad():
            for table in tables(model.get_base_model()):
                table[-NEW:] += 0.1 * torch.randn(NEW, table.shape[1])
    model.peft_config["default"].base_model_name_or_path = f"random-{base}"
    model.save_pretrained(out, save_embedding_layers=name not in ROWS_ALONE)
    if os.path.exists(f"{out}/README.md"):
        os.remove(f"{out}/README.md")
    with open(f"{out}/adapter_config.json") as file:
        saved = json.load(file)
    if isinstance(saved.get("target_modules"), list):
        saved["target_modules"].sort()
    write(f"{out}/adapter_config.json", saved, indent=2)
    read = PeftModel.from_pretrained(resize(load_base(root, base, False)), out).eval()
    result["with_adapter"] = measure(read)
    write(f"{out}/ref.json", result)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    warnings.simplefilter("ignore")
    root = sys.argv[1]
    shutil.rmtree(f"{root}/resized", ignore_errors=True)
    os.makedirs(f"{root}/resized")
    torch.set_num_threads(1)
    for seed, name in enumerate(CASES):
        make(root, name, 500 + seed)


if __name__ == "__main__":
    main()
