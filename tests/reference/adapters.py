"""Makes small bases with PEFT adapters and what they compute (see README.md).  usage: adapters.py OUT_DIR

Writes OUT_DIR/peft_base/ (two random models) and OUT_DIR/peft/ (an adapter a folder, and refused.json).

Versions: torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
"""
import json
import os
import sys
import warnings

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, LlamaConfig

STD = 0.2
ROWS = [[5, 17, 40, 3, 3, 31, 41, 8], [12, 7], [33, 0, 21, 46, 1]]

BASES = {
    "llama": LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=0,
        pad_token_id=2, tie_word_embeddings=True,
    ),
    "gpt2": GPT2Config(
        vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_inner=24, n_positions=16, bos_token_id=0, eos_token_id=0,
        pad_token_id=2,
    ),
}

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "patterns": ("llama", dict(
        r=4, lora_alpha=8, target_modules=ALL, task_type="CAUSAL_LM",
        # The first that matches counts; `.`, `|` and `^` are those of regular expressions; "proj" is no whole name. PEFT
        # sorts the patterns when it writes them, so that they stand in that order here.
        rank_pattern={"^model.layers.0.self_attn.q_proj": 3, "gate_proj|up_proj": 1, r"layers\.1\..*": 2, "proj": 7, "v_proj": 5},
        alpha_pattern={r"layers\.1\..*": 5.5, r"model\.layers\.2\.mlp\.down_proj": 24, "v_proj": 3},
    )),
    "rslora": ("llama", dict(
        r=6, lora_alpha=3, target_modules=["q_proj", "mlp.down_proj"], task_type="CAUSAL_LM", use_rslora=True,
        rank_pattern={"q_proj": 2}, alpha_pattern={r".*\.2\..*": 1.5},
    )),
    "regex": ("llama", dict(
        r=2, lora_alpha=4, target_modules=r".*layers\.[02]\.(self_attn\.[qv]|mlp\.up)_proj", task_type="CAUSAL_LM",
        exclude_modules=r".*\.2\.self_attn\.v_proj",
    )),
    "layers": ("llama", dict(
        r=3, lora_alpha=6, target_modules=["q_proj", "up_proj", "model.layers.0.self_attn.o_proj"], layers_to_transform=[1, 2],
        exclude_modules=["model.layers.2.mlp.up_proj"], task_type="CAUSAL_LM",
    )),
    "layers_pattern": ("llama", dict(
        r=1, lora_alpha=2, target_modules=["v_proj"], layers_to_transform=2, layers_pattern="layers", task_type="CAUSAL_LM",
    )),
    "all_linear": ("llama", dict(
        r=1, lora_alpha=3, target_modules="all-linear", exclude_modules=["k_proj"], task_type="CAUSAL_LM",
    )),
    "no_task": ("llama", dict(r=2, target_modules=["o_proj"])),
    "classifier": ("llama", dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS", rank_pattern={"v_proj": 3})),
    "gpt2": ("gpt2", dict(
        r=2, lora_alpha=4, target_modules=["c_attn", "c_fc", "mlp.c_proj"], task_type="CAUSAL_LM", fan_in_fan_out=True,
        rank_pattern={"c_attn": 3}, alpha_pattern={r"h\.1\..*": 1},
    )),
    "gpt2_classifier": ("gpt2", dict(r=2, target_modules="all-linear", task_type="SEQ_CLS", fan_in_fan_out=True)),
}

IA3 = {
    "ia3": ("llama", dict(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")),
    # Inputs and outputs of layers that are one product elsewhere; a regular expression; an exception.
    "ia3_mixed": ("llama", dict(
        target_modules=["q_proj", "v_proj", "gate_proj", "up_proj", "o_proj"], feedforward_modules=["up_proj", "q_proj"],
        exclude_modules=["model.layers.1.self_attn.v_proj"], task_type="CAUSAL_LM",
    )),
    "ia3_regex": ("llama", dict(
        target_modules=r".*layers\.[12]\..*(k_proj|down_proj)", feedforward_modules=r".*\.2\..*down_proj", task_type="CAUSAL_LM",
    )),
    "ia3_gpt2": ("gpt2", dict(
        target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True, task_type="CAUSAL_LM",
    )),
    "ia3_classifier": ("llama", dict(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="SEQ_CLS")),
}

# Configurations whose adapters compute something else than low-rank products on linear layers, by the key that says so.
REFUSED = {
    "use_dora": dict(use_dora=True),
    "bias": dict(bias="all"),
    "lora_bias": dict(lora_bias=True),
    "layer_replication": dict(layer_replication=[(0, 2), (1, 3)]),
    "modules_to_save": dict(modules_to_save=["lm_head", "embed_tokens"]),
    "trainable_token_indices": dict(trainable_token_indices=[0, 1]),
    "target_parameters": dict(target_parameters=["mlp.experts.gate_up_proj"]),
    "alora_invocation_tokens": dict(alora_invocation_tokens=[4, 5], task_type="CAUSAL_LM"),
    "megatron_config": dict(megatron_config={"tensor_model_parallel_size": 2}),
    "init_lora_weights": dict(init_lora_weights="pissa"),
    "use_qalora": dict(use_qalora=True),
}


def number(x):
    """Nine digits: enough to give back every f32."""
    return float(f"{x.item():.9g}")


def numbers(tensor):
    return [number(x) for x in tensor.detach().flatten()]


def write(path, value, indent=None):
    with open(path, "w") as file:
        json.dump(value, file, indent=indent, separators=None if indent else (",", ":"))
        file.write("\n")


def randomise(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in parameters:
            centre = 1.0 if ("norm" in name or ".ln_" in name) and name.endswith("weight") else 0.0
            parameter.copy_(centre + STD * torch.randn(parameter.shape, generator=generator))


def logprobs(model):
    out = []
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row])).logits[0, :-1]
        out.append(numbers(logits.log_softmax(-1).gather(-1, torch.tensor(row[1:])[:, None])[:, 0]))
    return out


def scores(model):
    return [number(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in ROWS]


def make_base(root, name, seed):
    model = AutoModelForCausalLM.from_config(BASES[name], dtype=torch.float32, attn_implementation="eager")
    randomise(model.named_parameters(), seed)
    model.tie_weights()
    model.save_pretrained(f"{root}/peft_base/{name}")
    os.remove(f"{root}/peft_base/{name}/generation_config.json")


def load_base(root, name, classifier):
    options = dict(dtype=torch.float32, attn_implementation="eager")
    if classifier:
        return AutoModelForSequenceClassification.from_pretrained(f"{root}/peft_base/{name}", num_labels=1, **options)
    return AutoModelForCausalLM.from_pretrained(f"{root}/peft_base/{name}", **options)


def make_adapter(root, name, seed):
    base, settings = CASES.get(name) or IA3[name]
    out = f"{root}/peft/{name}"
    classifier = settings.get("task_type") == "SEQ_CLS"
    measure = scores if classifier else logprobs
    torch.manual_seed(seed)
    method = IA3Config if name in IA3 else LoraConfig
    model = get_peft_model(load_base(root, base, classifier), method(**settings)).eval()
    trained = [(key, p) for key, p in model.named_parameters() if "lora_" in key or "ia3_" in key or "modules_to_save" in key]
    randomise(trained, seed)
    # No folder of that name: PEFT would look into it and, finding another vocabulary, save the embeddings too.
    model.peft_config["default"].base_model_name_or_path = f"random-{base}"
    model.save_pretrained(out)
    if os.path.exists(f"{out}/README.md"):
        os.remove(f"{out}/README.md")  # a model card, of no use here
    with open(f"{out}/adapter_config.json") as file:
        saved = json.load(file)
    for key in ["target_modules", "exclude_modules", "feedforward_modules"]:
        if isinstance(saved.get(key), list):
            saved[key].sort()  # PEFT writes a set, in any order
    if name == "patterns":
        # Another order, as a program that does not sort may write it: v_proj of layer 1 gets another alpha.
        saved["alpha_pattern"] = dict(reversed(saved["alpha_pattern"].items()))
    write(f"{out}/adapter_config.json", saved, indent=2)
    # What a program that reads the files computes, not what the one that wrote them does.
    read = PeftModel.from_pretrained(load_base(root, base, classifier), out).eval()
    with torch.no_grad():
        result = {"base": base, "rows": ROWS, "task": "scores" if classifier else "logprobs"}
        result["with_adapter"] = measure(read)
        result["without_adapter"] = None if classifier else measure(load_base(root, base, classifier).eval())
        result["merged"] = measure(read.merge_and_unload())
    write(f"{out}/ref.json", result)


def make_refused(root):
    refused = {}
    for key, settings in REFUSED.items():
        config = LoraConfig(target_modules=["q_proj"], **settings).to_dict()
        refused[key] = {name: sorted(v) if isinstance(v, set) else v for name, v in config.items()}
    write(f"{root}/peft/refused.json", refused)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    warnings.simplefilter("ignore")
    root = sys.argv[1]
    os.makedirs(f"{root}/peft", exist_ok=True)
    torch.set_num_threads(1)
    for seed, name in enumerate(BASES):
        make_base(root, name, 300 + seed)
    for seed, name in enumerate([*CASES, *IA3]):
        make_adapter(root, name, 310 + seed)
    make_refused(root)


if __name__ == "__main__":
    main()
