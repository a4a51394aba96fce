"""What PEFT's methods with virtual tokens compute and learn (see README.md).  usage: prompts.py OUT_DIR

Reads the models of families.py and adapters.py, and the model and rows of trajectories.py. Writes OUT_DIR/prompts/: an adapter a
folder, and trajectories.json. Versions: torch==2.15.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0 safetensors==0.8.0
"""
import json
import os
import sys
import warnings

import trajectories as trl  # first: it sets the environment
import torch
from adapters import number, numbers, randomise, write
from peft import PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

ROWS = [[5, 17, 40, 3, 3, 31, 41, 8], [12], [12, 7], [33, 0, 21, 46, 1]]

PROMPT, PREFIX, ENCODER = PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig
LLAMA, GPT2 = "peft_base/llama", "peft_base/gpt2"
# By name: base, configuration, settings. The windows of mistral and gemma2 are of four tokens.
CASES = {
    "prompt": (LLAMA, PROMPT, dict(num_virtual_tokens=5)),
    "prompt_gpt2": (GPT2, PROMPT, dict(num_virtual_tokens=3)),
    "prompt_vocabulary": (LLAMA, PROMPT, dict(num_virtual_tokens=2, prompt_tuning_init="SAMPLE_VOCAB")),
    "prompt_gemma2": ("gemma2", PROMPT, dict(num_virtual_tokens=3)),
    "prompt_gpt_neox": ("gpt_neox", PROMPT, dict(num_virtual_tokens=1)),
    "prompt_opt": ("opt", PROMPT, dict(num_virtual_tokens=4)),
    "prompt_mistral": ("mistral", PROMPT, dict(num_virtual_tokens=3)),
    "prompt_classifier": (LLAMA, PROMPT, dict(num_virtual_tokens=3, task_type="SEQ_CLS")),
    "prefix": (LLAMA, PREFIX, dict(num_virtual_tokens=5)),
    "prefix_gpt2": (GPT2, PREFIX, dict(num_virtual_tokens=3)),
    "prefix_qwen3": ("qwen3", PREFIX, dict(num_virtual_tokens=2)),
    "prefix_gpt_neox": ("gpt_neox", PREFIX, dict(num_virtual_tokens=4)),
    "prefix_opt": ("opt", PREFIX, dict(num_virtual_tokens=1)),
    "prefix_gemma2": ("gemma2", PREFIX, dict(num_virtual_tokens=3)),
    "prefix_classifier": (LLAMA, PREFIX, dict(num_virtual_tokens=3, task_type="SEQ_CLS")),
    "prefix_mlp": (LLAMA, PREFIX, dict(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7)),
    "prefix_mlp_gpt2": (GPT2, PREFIX, dict(num_virtual_tokens=2, prefix_projection=True)),
    "p_mlp": (LLAMA, ENCODER, dict(num_virtual_tokens=4, encoder_hidden_size=10)),
    "p_lstm": (LLAMA, ENCODER, dict(
        num_virtual_tokens=4, encoder_hidden_size=6, encoder_reparameterization_type="LSTM", encoder_num_layers=2,
    )),
    "p_lstm_gpt2": (GPT2, ENCODER, dict(
        num_virtual_tokens=2, encoder_reparameterization_type="LSTM", encoder_num_layers=1,
    )),
    "prompt_bloom": ("bloom", PROMPT, dict(num_virtual_tokens=2)),
    "prefix_bloom": ("bloom", PREFIX, dict(num_virtual_tokens=3)),
}

# As in trajectories.py. What training starts from is in prompts/trajectory_prompt and so on.
SFT = {
    "prompt": dict(lr=2e-1, max_grad_norm=0.2, schedule="cosine"),
    "prompt_accumulated": dict(lr=2e-1, max_grad_norm=0.13, accumulation=2),
    "prefix": dict(lr=2e-1, max_grad_norm=0.13),
    "prefix_accumulated": dict(lr=2e-1, max_grad_norm=0.08, accumulation=2, schedule="cosine"),
    "mlp": dict(lr=2e-2, max_grad_norm=0.2),
    "mlp_accumulated": dict(lr=2e-2, accumulation=2, schedule="cosine"),
    "lstm": dict(lr=5e-2, max_grad_norm=0.2, schedule="cosine"),
}
START = {
    "prompt": PROMPT(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "prefix": PREFIX(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    # P-tuning's encoders, whose start is in encoder.safetensors.
    "mlp": ENCODER(num_virtual_tokens=4, encoder_hidden_size=10, task_type="CAUSAL_LM"),
    "lstm": ENCODER(
        num_virtual_tokens=4, encoder_hidden_size=6, encoder_reparameterization_type="LSTM", encoder_num_layers=2, task_type="CAUSAL_LM",
    ),
}


def load(root, base, classifier):
    auto = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    more = dict(num_labels=1) if classifier else {}
    return auto.from_pretrained(f"{root}/{base}", dtype=torch.float32, attn_implementation="eager", **more).eval()


def token_logprobs(model, row):
    """Of every token but the row's first; the outputs at virtual tokens come before the row's own."""
    logits = model(input_ids=torch.tensor([row])).logits[0][-len(row):-1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(row[1:], dtype=torch.long)[:, None])[:, 0]


def results(model, classifier):
    if classifier:
        return [number(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in ROWS]
    return [numbers(token_logprobs(model, row)) for row in ROWS]


def parameters(encoder, num_layers):
    """The parameters of an encoder by their names in the program under test, and how to read them out of PEFT's."""
    own = dict(encoder.named_parameters())
    if set(own) == {"embedding.weight"}:
        return {"prompt_embeddings": lambda t: t(own["embedding.weight"])}
    if "transform.0.weight" in own:
        names = {"prefix.embedding": lambda t: t(own["embedding.weight"])}
        for end in ["weight", "bias"]:
            names[f"prefix.input.{end}"] = lambda t, end=end: t(own[f"transform.0.{end}"])
            for layer in range(num_layers):
                names[f"prefix.{layer}.output.{end}"] = lambda t, end=end, layer=layer: t(own[f"transform.2.{end}"]).chunk(num_layers)[layer]
        return names
    names = {"prompt_encoder.embedding": lambda t: t(own["embedding.weight"])}
    for name in own:
        module, *rest = name.split(".")
        if module == "mlp_head":
            place = f"prompt_encoder.head.{int(rest[0]) // 2}.{rest[1]}"
        elif module == "lstm_head":  # weight_ih_l0, bias_hh_l1_reverse
            kind, gate, layer, *reverse = rest[0].split("_")
            direction = "backward" if reverse else "forward"
            part = "input" if gate == "ih" else "recurrent"
            place = f"prompt_encoder.lstm.{layer[1:]}.{direction}.{part}.{kind}"
        else:
            continue
        names[place] = lambda t, name=name: t(own[name])
    return names


def make(root, name, seed):
    base, method, settings = CASES[name]
    settings = dict(task_type="CAUSAL_LM") | settings
    classifier = settings["task_type"] == "SEQ_CLS"
    out = f"{root}/prompts/{name}"
    torch.manual_seed(seed)
    plain = load(root, base, classifier)
    reference = {"base": base, "rows": ROWS, "task": "scores" if classifier else "logprobs"}
    reference["without_adapter"] = None if classifier else results(plain, classifier)
    model = get_peft_model(plain, method(**settings)).eval()
    randomise([(key, p) for key, p in model.named_parameters() if p.requires_grad], seed)
    encoder, config = model.prompt_encoder["default"], model.peft_config["default"]
    # No folder of that name: PEFT would look into it.
    config.base_model_name_or_path = f"random-{base.split('/')[-1]}"
    model.save_pretrained(out)
    if os.path.exists(f"{out}/README.md"):
        os.remove(f"{out}/README.md")  # a model card, of no use here
    with open(f"{out}/adapter_config.json") as file:
        saved = json.load(file)
    if saved.get("modules_to_save"):
        saved["modules_to_save"] = ["score"]  # PEFT writes "classifier" too, in any order
    write(f"{out}/adapter_config.json", saved, indent=2)
    if not classifier:
        sum(token_logprobs(model, row).sum() for row in ROWS).backward()
        named = parameters(encoder, config.num_layers)
        reference["gradients"] = {key: numbers(of(lambda p: p.grad)) for key, of in named.items()}
        if len(named) > 1:
            tensors = {key: of(lambda p: p.detach()).contiguous().clone() for key, of in named.items()}
            save_file(tensors, f"{out}/encoder.safetensors")
    # What a program that reads the files computes, not what the one that wrote them does.
    with torch.no_grad():
        read = PeftModel.from_pretrained(load(root, base, classifier), out).eval()
        reference["with_adapter"] = results(read, classifier)
    write(f"{out}/ref.json", reference)


def start(root, kind):
    """A model with the saved tokens, to be trained on: PEFT itself loads such files for inference only."""
    model = get_peft_model(trl.causal(f"{root}/trajectories"), START[kind])
    generator = torch.Generator().manual_seed(320)
    with torch.no_grad():
        for weight in model.prompt_encoder["default"].parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return model


def train(root, kind, variant):
    model, out = start(root, kind), f"{root}/trajectories"
    args = trl.arguments(trl.SFTConfig, variant, completion_only_loss=True, shuffle_dataset=False)
    return trl.run(trl.Sft(model=model, args=args, train_dataset=trl.rows(out, "sft"), processing_class=trl.tokenizer()))


def make_trajectories(root):
    for kind in START:
        model, out = start(root, kind), f"{root}/prompts/trajectory_{kind}"
        model.peft_config["default"].base_model_name_or_path = "trajectories"
        model.save_pretrained(out)
        if os.path.exists(f"{out}/README.md"):
            os.remove(f"{out}/README.md")
        encoder, config = model.prompt_encoder["default"], model.peft_config["default"]
        named = parameters(encoder, config.num_layers)
        if len(named) > 1:
            tensors = {key: of(lambda p: p.detach()).contiguous().clone() for key, of in named.items()}
            save_file(tensors, f"{out}/encoder.safetensors")
    found = {"sft": {}}
    for name, changes in SFT.items():
        variant, kind = trl.SHARED | changes, name.split("_")[0]
        found["sft"][name] = {"settings": variant, "steps": train(root, kind, variant)}
    trl.write(f"{root}/prompts/trajectories.json", found)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    warnings.simplefilter("ignore")
    root = sys.argv[1]
    os.makedirs(f"{root}/prompts", exist_ok=True)
    torch.set_num_threads(1)
    for seed, name in enumerate(CASES):
        make(root, name, 400 + seed)
    make_trajectories(root)


if __name__ == "__main__":
    main()
