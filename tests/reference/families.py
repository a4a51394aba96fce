"""Makes the tiny models and reference numbers of this folder (see README.md).  usage: families.py OUT_DIR

Versions: torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
"""
import json
import os
import shutil
import sys

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
)

STD = 0.15
ROWS = [[5, 17, 90, 3, 3, 64, 41, 8, 95], [12], [77, 0, 33, 50, 1]]
PROBES = [(0, 2), (0, 8), (1, 0), (2, 4)]  # (row, position) whose logits are kept

LLAMA = dict(
    vocab_size=96, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=0,
)
CONFIGS = {
    "llama_tied": LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama_untied": LlamaConfig(
        **LLAMA, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1000.0}
    ),
    "qwen3": Qwen3Config(
        **{**LLAMA, "rms_norm_eps": 1e-6}, head_dim=16, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ),
    "gpt2": GPT2Config(
        vocab_size=96, n_embd=48, n_layer=2, n_head=4, n_inner=96, n_positions=64, bos_token_id=0, eos_token_id=0,
    ),
}


def number(x):
    """Nine digits: enough to give back every f32."""
    return float(f"{x.item():.9g}")


def numbers(tensor):
    return [number(x) for x in tensor.detach().flatten()]


def randomise(model, seed):
    """Weights large enough that every part of the model moves the result; norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if ("norm" in name or ".ln_" in name) and name.endswith("weight") else 0.0
            parameter.copy_(centre + STD * torch.randn(parameter.shape, generator=generator))


def logprobs(model, row):
    """Log-probability of each token but the first, given those before it; and all logits."""
    logits = model(input_ids=torch.tensor([row])).logits[0]
    chosen = logits[:-1].log_softmax(-1).gather(-1, torch.tensor(row[1:], dtype=torch.long)[:, None])[:, 0]
    return chosen, logits


def reference(model):
    """Forward and backward over all rows; the loss is the mean over all predicted tokens."""
    model.eval()
    model.zero_grad()
    results = [logprobs(model, row) for row in ROWS]
    loss = -torch.cat([chosen for chosen, _ in results]).mean()
    loss.backward()
    return {
        "rows": ROWS,
        "logits": [
            {"row": row, "position": position, "values": numbers(results[row][1][position])} for row, position in PROBES
        ],
        "token_logprobs": [numbers(chosen) for chosen, _ in results],
        "mean_loss": number(loss),
        "gradients": {
            name: {
                "shape": list(parameter.shape),
                "norm": number(parameter.grad.norm()),
                "first": numbers(parameter.grad.flatten()[:8]),
            }
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        },
    }


def sequence_classification(out, config, seed, scratch):
    """Scores of each row by the same backbone under a random scalar head, and the names in the file."""
    model = AutoModelForSequenceClassification.from_pretrained(
        out, num_labels=1, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(model.score.weight.shape, generator=generator))
        scores = [number(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in ROWS]
    model.save_pretrained(scratch)
    with safe_open(f"{scratch}/model.safetensors", "pt") as file:
        names = sorted(file.keys())
    shutil.rmtree(scratch)
    return {
        "architecture": type(model).__name__,
        "score_weight": numbers(model.score.weight),
        "scores": scores,
        "tensor_names": names,
    }


def write(path, value):
    with open(path, "w") as file:
        json.dump(value, file, indent=None, separators=(",", ":"))
        file.write("\n")


def make_family(root, name, seed):
    out = f"{root}/{name}"
    config = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    randomise(model, seed)
    model.tie_weights()
    model.save_pretrained(out)
    os.remove(f"{out}/generation_config.json")
    result = reference(model)
    result["sequence_classification"] = sequence_classification(out, config, seed + 1, f"{out}/scratch")
    write(f"{out}/ref.json", result)


def make_lora(root, base, seed, name):
    out = f"{root}/{name}"
    model = AutoModelForCausalLM.from_pretrained(f"{root}/{base}", dtype=torch.float32, attn_implementation="eager")
    gpt2 = base == "gpt2"
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=gpt2
    )
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.copy_(STD * torch.randn(parameter.shape, generator=generator))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(out)
    if os.path.exists(f"{out}/README.md"):
        os.remove(f"{out}/README.md")  # a model card, of no use here
    with open(f"{out}/adapter_config.json") as file:
        saved = json.load(file)
    saved["target_modules"].sort()  # PEFT writes a set, in any order
    with open(f"{out}/adapter_config.json", "w") as file:
        json.dump(saved, file, indent=2)
        file.write("\n")
    result = reference(model)
    # The names that the file has.
    result["gradients"] = {key.replace(".default", ""): value for key, value in result["gradients"].items()}
    write(f"{out}/ref.json", result)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = sys.argv[1]
    torch.set_num_threads(1)
    for seed, name in enumerate(CONFIGS):
        make_family(root, name, 100 + 10 * seed)
    make_lora(root, "llama_tied", 200, "llama_lora")
    make_lora(root, "gpt2", 210, "gpt2_lora")


if __name__ == "__main__":
    main()
