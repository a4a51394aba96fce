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
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

STD = 0.2
ROWS = [[5, 17, 60, 3, 3, 44, 41, 8, 55], [12], [37, 0, 33, 50, 9]]
PROBES = [(0, 2), (0, 8), (1, 0), (2, 4)]  # (row, position) whose logits are kept
GREEDY = 6  # tokens
# Long enough to go beyond the positions that llama 3's scaling was made for.
LONG_ROW = [(7 * i * i + 3 * i + 11) % 61 + 3 for i in range(40)]

SIZES = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
TOKENS = dict(bos_token_id=2, eos_token_id=0)
LLAMA = dict(**SIZES, **TOKENS, intermediate_size=48, num_key_value_heads=2, rms_norm_eps=1e-5)
QWEN = {**LLAMA, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}
NEOX = dict(**SIZES, **TOKENS, intermediate_size=48, tie_word_embeddings=False)
SMALL = dict(
    **TOKENS, vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    intermediate_size=24, max_position_embeddings=64, pad_token_id=1,
)
OPT = dict(**SIZES, ffn_dim=48, bos_token_id=2, eos_token_id=2, pad_token_id=1)
CONFIGS = {
    "llama_tied": LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama_untied": LlamaConfig(
        **LLAMA, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1000.0}
    ),
    "llama_rope3": LlamaConfig(
        **LLAMA, head_dim=16, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    ),
    "qwen2": Qwen2Config(**QWEN, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**QWEN, head_dim=16, tie_word_embeddings=True),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_inner=48, n_positions=64, bos_token_id=0, eos_token_id=0,
    ),
    "gpt_neox": GPTNeoXConfig(
        **NEOX, use_parallel_residual=True, hidden_act="gelu",
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
    ),
    "gpt_neox_sequential": GPTNeoXConfig(
        **NEOX, use_parallel_residual=False, hidden_act="gelu_new",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    ),
    "opt": OPTConfig(**OPT, do_layer_norm_before=True, word_embed_proj_dim=32),
    "opt_post": OPTConfig(**OPT, do_layer_norm_before=False, word_embed_proj_dim=16),
    "qwen2_window": Qwen2Config(
        **QWEN, tie_word_embeddings=False, use_sliding_window=True, sliding_window=3, max_window_layers=1
    ),
    "mistral": MistralConfig(
        **LLAMA, head_dim=16, tie_word_embeddings=False, sliding_window=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    # The padding token's embedding has no gradient in torch, and 0, Gemma's default, is in the rows.
    "gemma2": Gemma2Config(
        **SIZES, **TOKENS, pad_token_id=1, intermediate_size=48, num_key_value_heads=2, head_dim=16,
        query_pre_attn_scalar=12, sliding_window=4, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
    ),
    "gemma": GemmaConfig(**SIZES, **TOKENS, pad_token_id=1, intermediate_size=48, num_key_value_heads=1, head_dim=16),
    "bloom_post": BloomConfig(
        **TOKENS, vocab_size=64, hidden_size=16, n_layer=2, n_head=4, apply_residual_connection_post_layernorm=True,
    ),
    # Slopes of a number of heads that is no power of two.
    "bloom": BloomConfig(**TOKENS, vocab_size=64, hidden_size=30, n_layer=2, n_head=5),
    "gemma3": Gemma3TextConfig(
        **SIZES, **TOKENS, pad_token_id=1, intermediate_size=48, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=12,
        sliding_window=4, final_logit_softcapping=3.0, layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "olmo2": Olmo2Config(**SMALL, rope_parameters={"rope_type": "default", "rope_theta": 100.0}),
    "smollm3": SmolLM3Config(
        **SMALL, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=4, mlp_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    ),
    "phi3": Phi3Config(
        **SMALL, original_max_position_embeddings=32, sliding_window=6,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.5, 2.5], "long_factor": [1.0, 3.0, 9.0],
        },
    ),
}
# A llama for each RoPE scaling, with the same weights; rows within the original context of 32 tokens and beyond.
SCALED = LlamaConfig(
    **TOKENS, vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
)
SCALED_ROWS = [ROWS[0], LONG_ROW, LONG_ROW[:30]]
FACTORS = [1.0, 1.1, 1.3, 1.7, 2.0, 2.6, 3.1, 4.0]
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 2.6},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn_mscale": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 32, "beta_fast": 4.0, "beta_slow": 0.25,
        "mscale": 0.707, "mscale_all_dim": 1.3, "truncate": False,
    },
    "longrope": {
        "rope_type": "longrope", "short_factor": FACTORS, "long_factor": [3.0 * x for x in FACTORS],
        "original_max_position_embeddings": 32,
    },
    "llama3": {
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
# Adapters and what they stand on; the OPT one has the projections in and out of the embedding.
LORAS = {
    "llama_lora": "llama_tied", "gpt2_lora": "gpt2", "gpt_neox_lora": "gpt_neox", "opt_lora": "opt_post", "bloom_lora": "bloom",
    "phi3_lora": "phi3",
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
            norm = "norm" in name or ".ln_" in name
            centre = 1.0 if norm and name.endswith("weight") else 0.0
            parameter.copy_(centre + STD * torch.randn(parameter.shape, generator=generator))


def logprobs(model, row):
    """Log-probability of each token but the first, given those before it; and all logits."""
    logits = model(input_ids=torch.tensor([row])).logits[0]
    chosen = logits[:-1].log_softmax(-1).gather(-1, torch.tensor(row[1:], dtype=torch.long)[:, None])[:, 0]
    return chosen, logits


def fingerprint(tensor):
    """The fingerprint of a tensor: shape, norm, largest and first entries, and its product with a wave, which no other
    order of the entries has."""
    flat = tensor.detach().double().flatten()
    wave = torch.cos(0.1 * torch.arange(len(flat), dtype=torch.float64) + 1.0)
    return {
        "shape": list(tensor.shape),
        "norm": number(flat.norm()),
        "largest": number(flat.abs().max()),
        "first": numbers(flat[:8]),
        "dot": number(flat @ wave),
    }


def gradient(parameter, bound):
    """A key's bias moves all scores of a query alike: without rotation its gradient is zero but for rounding."""
    if parameter.grad.norm() < bound:
        return {"shape": list(parameter.shape), "below": number(bound)}
    return fingerprint(parameter.grad)


def greedy(model, row):
    """The likeliest continuation, without an end."""
    ids = list(row)
    for _ in range(GREEDY):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(row):]


def file_name(model, name):
    """Files of GPT-NeoX keep the name that the output matrix had before transformers 5."""
    return "embed_out.weight" if name == "lm_head.weight" and model.config.model_type == "gpt_neox" else name


def reference(model, rows, zero=1e-6):
    """Forward and backward over all rows; the loss is the mean over all predicted tokens. `zero`: below this share of the whole
    gradient a parameter's is rounding."""
    model.eval()
    model.zero_grad()
    results = [logprobs(model, row) for row in rows]
    loss = -torch.cat([chosen for chosen, _ in results]).mean()
    loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    total = torch.stack([parameter.grad.norm() for parameter in trained.values()]).norm()
    return {
        "rows": rows,
        "logits": [
            {"row": row, "position": position, "values": numbers(results[row][1][position])} for row, position in PROBES
        ],
        "token_logprobs": [numbers(chosen) for chosen, _ in results],
        "mean_loss": number(loss),
        "gradients": {file_name(model, name): gradient(parameter, zero * total) for name, parameter in trained.items()},
    }


def sequence_classification(out, rows, seed, scratch):
    """Scores of each row by the same backbone under a random scalar head, and the names in the file."""
    model = AutoModelForSequenceClassification.from_pretrained(
        out, num_labels=1, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(model.score.weight.shape, generator=generator))
        scores = [number(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]
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
    rows = ROWS + [LONG_ROW] if name == "llama_rope3" else ROWS
    result = reference(model, rows)
    with torch.no_grad():
        result["greedy"] = [greedy(model, row) for row in rows]
    result["sequence_classification"] = sequence_classification(out, rows, seed + 1, f"{out}/scratch")
    write(f"{out}/ref.json", result)


def bits(tensor):
    return tensor.detach().float().flatten().view(torch.int32).tolist()


def greedy_by_cache(model, row):
    """As `greedy`, with keys that stay in the cache as they were rotated."""
    ids, found, past = row, [], None
    for _ in range(GREEDY):
        output = model(input_ids=torch.tensor([ids]), past_key_values=past, use_cache=True)
        past = output.past_key_values
        ids = [int(output.logits[0, -1].argmax())]
        found += ids
    return found


def make_scalings(root, name, seed):
    """One file of weights, and what each scaling computes with them."""
    out = f"{root}/{name}"
    model = AutoModelForCausalLM.from_config(SCALED, dtype=torch.float32, attn_implementation="eager")
    randomise(model, seed)
    model.tie_weights()
    model.save_pretrained(out)
    os.remove(f"{out}/generation_config.json")
    cases = []
    for scaling, parameters in SCALINGS.items():
        # The dynamic one has no other context.
        changes = {"max_position_embeddings": 32} if scaling == "dynamic" else {}
        parameters = {"rope_theta": 100.0, **parameters}
        config = LlamaConfig(**{**SCALED.to_dict(), **changes, "rope_parameters": dict(parameters)})
        model = AutoModelForCausalLM.from_pretrained(
            out, config=config, dtype=torch.float32, attn_implementation="eager"
        )
        result = reference(model, SCALED_ROWS)
        del result["logits"]
        rotary = model.model.rotary_emb
        with torch.no_grad():
            result["greedy_by_cache"] = [greedy_by_cache(model, row) for row in SCALED_ROWS]
            result["inv_freq"] = {}
            for row in SCALED_ROWS:
                model(input_ids=torch.tensor([row]))
                result["inv_freq"][len(row)] = bits(rotary.inv_freq)
        result["attention_factor"] = number(torch.tensor(rotary.attention_scaling))
        changes["rope_parameters"] = parameters
        cases.append({"name": scaling, "config": changes, **result})
    write(f"{out}/cases.json", cases)


def make_lora(root, name, base, seed):
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
    result = reference(model, ROWS)
    # The names that the file has.
    result["gradients"] = {key.replace(".default", ""): value for key, value in result["gradients"].items()}
    merged = model.merge_and_unload()
    result["merged"] = {
        f"{path}.weight": fingerprint(merged.get_submodule(path).weight) for path in saved["target_modules"]
    }
    write(f"{out}/ref.json", result)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = sys.argv[1]
    torch.set_num_threads(1)
    for seed, name in enumerate(CONFIGS):
        make_family(root, name, 100 + 10 * seed)
    make_scalings(root, "rope_scalings", 90)
    for seed, (name, base) in enumerate(LORAS.items()):
        make_lora(root, name, base, 200 + 10 * seed)


if __name__ == "__main__":
    main()
