"""What bottleneck adapters of the `adapters` library compute (see README.md).  usage: bottlenecks.py OUT_DIR

Reads the models of adapters.py. Writes OUT_DIR/bottlenecks/, an adapter a folder. The library wants an older transformers, so this runs
in an environment of its own: adapters==1.3.0 transformers==4.57.6 torch==2.15.0 safetensors==0.8.0
"""
import json
import os
import sys
import warnings

sys.path.pop(0)  # the library has the name of a script beside this one
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import adapters
import torch
from adapters import DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from transformers import AutoModelForCausalLM

STD = 0.2
ROWS = [[5, 17, 40, 3, 3, 31, 41, 8], [12], [12, 7], [33, 0, 21, 46, 1]]
# By name: base, configuration.
CASES = {
    "houlsby": ("llama", DoubleSeqBnConfig(reduction_factor=4)),
    "houlsby_gpt2": ("gpt2", DoubleSeqBnConfig(reduction_factor=2, non_linearity="gelu")),
    "pfeiffer": ("llama", SeqBnConfig(reduction_factor=5)),
    "pfeiffer_gpt2": ("gpt2", SeqBnConfig(reduction_factor=16, non_linearity="gelu_new", leave_out=[0])),
    "parallel": ("llama", ParBnConfig(reduction_factor=2)),
    "parallel_gpt2": ("gpt2", ParBnConfig(reduction_factor=4, scaling=0.5)),
}


def number(x):
    """Nine digits: enough to give back every f32."""
    return float(f"{x.item():.9g}")


def numbers(tensor):
    return [number(x) for x in tensor.detach().flatten()]


def token_logprobs(model, row):
    logits = model(input_ids=torch.tensor([row])).logits[0][:-1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(row[1:], dtype=torch.long)[:, None])[:, 0]


def load(root, base):
    options = dict(dtype=torch.float32, attn_implementation="eager")
    model = AutoModelForCausalLM.from_pretrained(f"{root}/peft_base/{base}", **options).eval()
    adapters.init(model)
    return model


def make(root, name, seed):
    base, config = CASES[name]
    model, out = load(root, base), f"{root}/bottlenecks/{name}"
    model.add_adapter("task", config=config)
    model.train_adapter("task")
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in trained.values():
            p.copy_(STD * torch.randn(p.shape, generator=generator))
    sum(token_logprobs(model, row).sum() for row in ROWS).backward()
    reference = {"base": base, "rows": ROWS, "gradients": {key: numbers(p.grad) for key, p in trained.items()}}
    os.makedirs(out, exist_ok=True)
    model.save_adapter(out, "task", use_safetensors=True)
    with open(f"{out}/adapter_config.json") as file:
        saved = json.load(file)
    saved["model_name"] = f"random-{base}"
    with open(f"{out}/adapter_config.json", "w") as file:
        json.dump(saved, file, indent=2, sort_keys=True)
        file.write("\n")
    for extra in ["head_config.json", "model_head.safetensors", "pytorch_model_head.bin"]:
        if os.path.exists(f"{out}/{extra}"):
            os.remove(f"{out}/{extra}")
    # What a program that reads the files computes, not what the one that wrote them does.
    read = load(root, base)
    read.load_adapter(out, set_active=True, use_safetensors=True)
    read.eval()
    with torch.no_grad():
        reference["with_adapter"] = [numbers(token_logprobs(read, row)) for row in ROWS]
    with open(f"{out}/ref.json", "w") as file:
        json.dump(reference, file, separators=(",", ":"))
        file.write("\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for seed, name in enumerate(CASES):
        make(sys.argv[1], name, 450 + seed)


if __name__ == "__main__":
    main()
