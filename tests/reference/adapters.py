"""Makes small bases with PEFT adapters and what they compute (see README.md).  usage: adapters.py OUT_DIR

Writes OUT_DIR/peft_base/ (random models), OUT_DIR/peft/ (an adapter a folder, and refused.json) and OUT_DIR/peft_combined/.

Versions: torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
"""
import json
import os
import sys
import warnings

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import torch
from peft import IA3Config, LoraConfig, PeftModel, TrainableTokensConfig, VeraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPTNeoXConfig, LlamaConfig

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
    "gpt_neox": GPTNeoXConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=0, pad_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
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

# Variants of LoRA.
VARIANTS = {
    "dora": ("llama", dict(
        r=3, lora_alpha=6, target_modules=ALL, use_dora=True, task_type="CAUSAL_LM", rank_pattern={"v_proj": 2},
    )),
    # One of three layers that are one product elsewhere, with rsLoRA.
    "dora_rslora": ("llama", dict(
        r=4, lora_alpha=3, target_modules=["k_proj", "up_proj"], use_dora=True, use_rslora=True, task_type="CAUSAL_LM",
    )),
    # Biases, which are not scaled; Conv1D.
    "dora_gpt2": ("gpt2", dict(
        r=2, lora_alpha=4, target_modules=["c_attn", "c_fc", "c_proj"], use_dora=True, fan_in_fan_out=True, task_type="CAUSAL_LM",
    )),
    # A joint matrix by head: its columns stand in another order here.
    "dora_gpt_neox": ("gpt_neox", dict(
        r=2, lora_alpha=4, target_modules=["query_key_value", "dense_4h_to_h"], use_dora=True, task_type="CAUSAL_LM",
    )),
    "dora_classifier": ("llama", dict(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], use_dora=True, task_type="SEQ_CLS")),
    "lora_bias": ("gpt2", dict(
        r=2, lora_alpha=3, target_modules=["c_attn", "mlp.c_proj"], lora_bias=True, fan_in_fan_out=True, task_type="CAUSAL_LM",
    )),
    "bias_all": ("gpt2", dict(r=2, target_modules=["c_attn"], bias="all", fan_in_fan_out=True, task_type="CAUSAL_LM")),
    "bias_only": ("gpt_neox", dict(r=2, target_modules=["query_key_value", "dense"], bias="lora_only", task_type="CAUSAL_LM")),
    # Parts of the weights that PEFT takes out of the base again when it reads the files.
    "pissa": ("llama", dict(
        r=3, lora_alpha=4, target_modules=["q_proj", "k_proj", "down_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM",
        rank_pattern={"k_proj": 2},
    )),
    # (PEFT's OLoRA fails on Conv1D.)
    "olora": ("llama", dict(
        r=3, lora_alpha=2, target_modules=["v_proj", "gate_proj", "o_proj"], init_lora_weights="olora", task_type="CAUSAL_LM",
    )),
    "pissa_dora": ("gpt_neox", dict(
        r=2, lora_alpha=2, target_modules=["query_key_value", "dense_h_to_4h"], init_lora_weights="pissa", use_dora=True,
        use_rslora=True, task_type="CAUSAL_LM",
    )),
    "loraplus": ("llama", dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "up_proj"], use_dora=True, task_type="CAUSAL_LM")),
}

VERA = {
    "vera": ("llama", dict(r=5, target_modules=["q_proj", "k_proj", "down_proj"], projection_prng_key=3, task_type="CAUSAL_LM")),
    # The matrices by their seed alone; Conv1D.
    "vera_seed": ("gpt2", dict(
        r=3, target_modules=["c_attn", "c_fc"], save_projection=False, projection_prng_key=7, fan_in_fan_out=True, task_type="CAUSAL_LM",
    )),
    "vera_gpt_neox": ("gpt_neox", dict(r=4, target_modules=["query_key_value", "dense"], task_type="CAUSAL_LM")),
    "vera_classifier": ("llama", dict(r=4, target_modules=["v_proj", "up_proj"], layers_to_transform=[0, 2], task_type="SEQ_CLS")),
}

# Modules of the base that are trained whole beside LoRA.
SAVED = {
    # "norm" is an end of every norm's path. Embedding and head are one, and stay it.
    "saved_tied": ("llama", dict(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"], modules_to_save=["embed_tokens", "norm"],
        ensure_weight_tying=True, task_type="CAUSAL_LM",
    )),
    # A head of its own, and norms with biases.
    "saved_gpt_neox": ("gpt_neox", dict(
        r=2, target_modules=["query_key_value", "dense_4h_to_h"], modules_to_save=["embed_in", "lm_head", "final_layer_norm"],
        task_type="CAUSAL_LM",
    )),
    "saved_positions": ("gpt2", dict(
        r=3, target_modules=["c_attn"], modules_to_save=["wpe", "ln_1", "h.1.ln_2"], bias="lora_only", use_dora=True,
        fan_in_fan_out=True, task_type="CAUSAL_LM",
    )),
    "saved_classifier": ("llama", dict(
        r=2, target_modules=["k_proj", "up_proj"], modules_to_save=["embed_tokens", "model.norm"], task_type="SEQ_CLS",
    )),
}

# Trained biases: beside VeRA, and at LoRA+'s rates. After the others, whose random numbers depend on their place.
VERA_BIASES = {
    "vera_bias_all": ("gpt2", dict(r=3, target_modules=["c_attn"], bias="all", fan_in_fan_out=True, task_type="CAUSAL_LM")),
    "vera_bias_only": ("gpt_neox", dict(r=3, target_modules=["query_key_value", "dense"], bias="vera_only", task_type="CAUSAL_LM")),
}
BIASES = {
    "loraplus_bias": ("gpt2", dict(
        r=2, lora_alpha=4, target_modules=["c_attn"], bias="all", lora_bias=True, fan_in_fan_out=True, task_type="CAUSAL_LM",
    )),
}
# Embedding and head, tied or not.
TABLES = {
    "embedding": ("llama", dict(
        r=3, lora_alpha=4, target_modules=["embed_tokens", "q_proj"], rank_pattern={"embed_tokens": 2}, task_type="CAUSAL_LM",
    )),
    "head": ("llama", dict(r=2, lora_alpha=3, target_modules=["lm_head", "down_proj"], use_rslora=True, task_type="CAUSAL_LM")),
    "tied_tables": ("gpt2", dict(r=2, lora_alpha=3, target_modules=["wte", "lm_head"], task_type="CAUSAL_LM")),
    "tables": ("gpt_neox", dict(
        r=2, lora_alpha=4, target_modules=["embed_in", "lm_head", "query_key_value"], task_type="CAUSAL_LM",
    )),
    "embedding_classifier": ("llama", dict(r=2, target_modules=["embed_tokens", "v_proj"], task_type="SEQ_CLS")),
}

# Rows of single tokens, beside LoRA and alone.
TOKENS = {
    "tokens": ("llama", dict(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"], trainable_token_indices=[40, 5, 3], task_type="CAUSAL_LM",
    )),
    "tokens_untied": ("gpt_neox", dict(
        r=2, lora_alpha=3, target_modules=["query_key_value"], trainable_token_indices={"embed_in": [31, 8], "lm_head": [12, 33, 0]},
        task_type="CAUSAL_LM",
    )),
    "tokens_gpt2": ("gpt2", dict(
        r=3, target_modules=["c_attn"], trainable_token_indices={"wte": [8]}, modules_to_save=["ln_f"], bias="lora_only", use_dora=True,
        fan_in_fan_out=True, task_type="CAUSAL_LM",
    )),
    # LoRA on the head, rows of the embedding.
    "tokens_head": ("gpt_neox", dict(
        r=2, lora_alpha=3, target_modules=["lm_head", "dense"], trainable_token_indices=[0, 41], task_type="CAUSAL_LM",
    )),
    "tokens_classifier": ("llama", dict(
        r=2, target_modules=["k_proj", "up_proj"], trainable_token_indices=[1, 12, 41], task_type="SEQ_CLS",
    )),
}
ONLY_TOKENS = {
    "only_tokens": ("llama", dict(token_indices=[41, 33, 5], task_type="CAUSAL_LM")),
    "only_tokens_untied": ("gpt_neox", dict(target_modules=["embed_in", "lm_head"], token_indices=[3, 40, 12], task_type="CAUSAL_LM")),
    "only_tokens_gpt2": ("gpt2", dict(target_modules=["wte"], token_indices=[8, 46], task_type="CAUSAL_LM")),
}

# Modules that are trained whole beside other methods, and sides of a table that PEFT parts: without ensure_weight_tying, which LoRA alone
# has, each named side becomes a copy, and the other one stays the base's.
IA3_SAVED = {
    "ia3_saved": ("llama", dict(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"],
        modules_to_save=["embed_tokens", "lm_head", "norm"], task_type="CAUSAL_LM",
    )),
    "ia3_saved_classifier": ("llama", dict(
        target_modules=["v_proj"], feedforward_modules=[], modules_to_save=["embed_tokens", "model.norm"], task_type="SEQ_CLS",
    )),
}
VERA_SAVED = {
    "vera_saved": ("llama", dict(
        r=4, target_modules=["q_proj", "up_proj"], modules_to_save=["embed_tokens", "model.norm"], projection_prng_key=5,
        task_type="CAUSAL_LM",
    )),
    "vera_saved_gpt2": ("gpt2", dict(
        r=3, target_modules=["c_attn"], modules_to_save=["ln_f", "wpe"], bias="vera_only", fan_in_fan_out=True, task_type="CAUSAL_LM",
    )),
}
APART = {
    "saved_head": ("llama", dict(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")),
}

ALL_CASES = {
    **CASES, **IA3, **VARIANTS, **VERA, **SAVED, **VERA_BIASES, **BIASES, **TABLES, **TOKENS, **ONLY_TOKENS, **IA3_SAVED, **VERA_SAVED, **APART,
}

# Cases that are trained for some steps from their saved state, with the learning rate.
TRAINED = {
    "rslora": 1e-2, "gpt2": 1e-2, "ia3": 3e-2, "dora": 1e-2, "dora_rslora": 1e-2, "dora_gpt2": 1e-2, "dora_gpt_neox": 1e-2,
    "lora_bias": 1e-2, "bias_all": 1e-2, "bias_only": 1e-2, "pissa": 1e-2, "olora": 1e-2, "pissa_dora": 1e-2, "loraplus": 2e-3, "vera": 3e-2, "vera_gpt_neox": 3e-2,
    "saved_tied": 1e-2, "saved_gpt_neox": 1e-2, "saved_positions": 1e-2,
    "vera_bias_all": 1e-2, "vera_bias_only": 1e-2, "loraplus_bias": 2e-3,
    "embedding": 1e-2, "head": 1e-2, "tied_tables": 1e-2, "tables": 1e-2,
    "tokens": 1e-2, "tokens_untied": 1e-2, "tokens_gpt2": 1e-2, "only_tokens": 3e-2, "only_tokens_untied": 3e-2,
    "ia3_saved": 1e-2, "vera_saved": 1e-2, "vera_saved_gpt2": 1e-2,
}
# Learning rate of B as a multiple of A's.
LORAPLUS = {"loraplus": 8.0, "loraplus_bias": 8.0}
STEPS = 10

# Configurations whose adapters compute something else than low-rank products on linear layers, by the key that says so.
REFUSED = {
    "layer_replication": dict(layer_replication=[(0, 2), (1, 3)]),
    "target_parameters": dict(target_parameters=["mlp.experts.gate_up_proj"]),
    "alora_invocation_tokens": dict(alora_invocation_tokens=[4, 5], task_type="CAUSAL_LM"),
    "megatron_config": dict(megatron_config={"tensor_model_parallel_size": 2}),
    "init_lora_weights": dict(init_lora_weights="pissa_niter_4"),
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
            if "magnitude" in name:
                centre = 0.8  # the norm of 16 numbers of that deviation
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


def saved_name(name):
    """A parameter's name as files have it."""
    name = name.replace(".modules_to_save.default", "").replace(".default", "")
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def train(root, base, out, lr, ratio):
    """Ten steps, or twenty, of AdamW on the mean negative log-probability: losses, the first gradients, and what comes of the adapter."""
    model = PeftModel.from_pretrained(load_base(root, base, False), out, is_trainable=True).eval()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    result = {"lr": lr, "losses": []}
    if ratio is None:
        optimizer = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=0.0)
    else:
        result["loraplus_lr_ratio"] = ratio
        optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=lr, loraplus_lr_ratio=ratio)
    for step in range(2 * STEPS if "tokens" in os.path.basename(out) else STEPS):
        picked = []
        for row in ROWS:
            logits = model(input_ids=torch.tensor([row])).logits[0, :-1]
            picked.append(logits.log_softmax(-1).gather(-1, torch.tensor(row[1:])[:, None])[:, 0])
        loss = -torch.cat(picked).mean()
        optimizer.zero_grad()
        loss.backward()
        result["losses"].append(number(loss))
        if step == 0:
            result["gradients"] = {saved_name(name): numbers(p.grad) for name, p in trained.items()}
        optimizer.step()
    result["trained"] = {saved_name(name): numbers(p) for name, p in trained.items()}
    write(f"{out}/trained.json", result)


def make_adapter(root, name, seed):
    base, settings = ALL_CASES[name]
    out = f"{root}/peft/{name}"
    classifier = settings.get("task_type") == "SEQ_CLS"
    measure = scores if classifier else logprobs
    torch.manual_seed(seed)
    method = IA3Config if name in IA3 | IA3_SAVED else VeraConfig if name in VERA | VERA_BIASES | VERA_SAVED else LoraConfig
    method = TrainableTokensConfig if name in ONLY_TOKENS else method
    model = get_peft_model(load_base(root, base, classifier), method(**settings)).eval()
    parts = ["lora_", "ia3_", "vera_", "trainable_tokens_delta", "modules_to_save"]
    trained = [(key, p) for key, p in model.named_parameters() if p.requires_grad or any(part in key for part in parts)]
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
        # Of tied tables PEFT changes both when it merges the adapter of one.
        tied = name in TABLES and base != "gpt_neox" and not classifier
        result["merged"] = None if tied else measure(read.merge_and_unload())
    write(f"{out}/ref.json", result)
    if name in TRAINED:
        train(root, base, out, TRAINED[name], LORAPLUS.get(name))


# Adapters that are combined, and how: the adapters, their weights, and what add_weighted_adapter takes.
PARTS = {
    "a": dict(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj", "down_proj"]),
    "b": dict(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"]),
    "c": dict(r=3, lora_alpha=3, target_modules=["q_proj", "up_proj"], use_rslora=True),
    # Embedding and head, and the embedding alone.
    "d": dict(r=2, lora_alpha=3, target_modules=["embed_tokens", "lm_head"]),
    "e": dict(r=2, lora_alpha=5, target_modules=["embed_tokens", "q_proj"]),
}
COMBINED = {
    "linear": (["a", "b"], [0.7, -0.3], {}),
    "cat": (["a", "b", "c"], [0.7, 0.3, -1.5], {}),
    "svd": (["a", "b", "c"], [0.7, 0.3, 1.0], {}),
    "svd_rank": (["a", "c"], [1.0, 1.0], dict(combination_type="svd", svd_rank=2)),
    "ties": (["a", "b"], [0.7, 0.3], dict(density=0.5)),
    "ties_frequency": (["a", "b"], [1.0, 2.0], dict(combination_type="ties", density=0.7, majority_sign_method="frequency")),
    "ties_svd": (["a", "b", "c"], [0.7, 0.3, 1.0], dict(density=0.4)),
    "magnitude_prune": (["a", "b"], [0.5, 0.5], dict(density=0.3)),
    "magnitude_prune_svd": (["a", "c"], [0.5, -0.5], dict(density=0.3)),
    # By chance, but for a share of 1.
    "dare_linear": (["a", "b"], [0.7, 0.3], dict(density=1.0)),
    "dare_ties": (["a", "b"], [0.7, 0.3], dict(density=1.0)),
    "one": (["c"], [0.5], dict(combination_type="ties", density=0.1)),
    "tables_linear": (["d", "e"], [0.7, -0.3], dict(combination_type="linear")),
    "tables_cat": (["d", "e", "c"], [0.7, 0.3, 0.5], dict(combination_type="cat")),
    "tables_ties": (["d", "e"], [0.7, 0.3], dict(combination_type="ties", density=0.5)),
    "tables_svd": (["d", "e"], [0.7, 0.3], dict(combination_type="svd")),
}


def make_combined(root):
    """Some adapters, and the changes of the weights that each combination of them makes."""
    out = f"{root}/peft_combined"
    model = None
    for seed, (name, settings) in enumerate(PARTS.items()):
        config = LoraConfig(task_type="CAUSAL_LM", **settings)
        if model is None:
            model = get_peft_model(load_base(root, "llama", False), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        randomise([(key, p) for key, p in model.named_parameters() if f".{name}." in key], 400 + seed)
        model.peft_config[name].base_model_name_or_path = "random-llama"
        model.save_pretrained(out, selected_adapters=[name])
        with open(f"{out}/{name}/adapter_config.json") as file:
            saved = json.load(file)
        saved["target_modules"].sort()
        write(f"{out}/{name}/adapter_config.json", saved, indent=2)
    if os.path.exists(f"{out}/README.md"):
        os.remove(f"{out}/README.md")
    result = {}
    for name, (adapters, weights, settings) in COMBINED.items():
        settings = dict(combination_type=name) | settings
        model.add_weighted_adapter(adapters, weights, name, **settings)
        scale = 1.0
        if model.peft_config[name].use_rslora:
            scale = model.peft_config[name].r ** -0.5  # PEFT keeps the first adapter's use_rslora beside an alpha that is the rank
        changes = {}
        for path, module in model.base_model.model.named_modules():
            if hasattr(module, "lora_A") and (name in module.lora_A or name in module.lora_embedding_A):
                changes[path] = numbers(module.get_delta_weight(name) * scale)
        result[name] = {"adapters": adapters, "weights": weights, "settings": settings, "changes": changes}
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
    for seed, name in enumerate(ALL_CASES):
        make_adapter(root, name, 310 + seed)
    make_combined(root)
    make_refused(root)


if __name__ == "__main__":
    main()
