"""Trains a tiny model with TRL and notes every step (see README.md).  usage: trajectories.py OUT_DIR

Reads the tokenizer of models/tiny. Versions: torch==2.15.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0 safetensors==0.8.0
"""
import json
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1",
    OMP_NUM_THREADS="1", HF_DATASETS_CACHE=tempfile.mkdtemp(), HF_DATASETS_DISABLE_PROGRESS_BARS="1",
)
import torch
from datasets import Dataset
from peft import IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, LlamaConfig
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

TOKENIZER = Path(__file__).resolve().parents[2] / "models" / "tiny"
STD = 0.1
STEPS = 20
ROWS = 40
CONFIG = LlamaConfig(
    vocab_size=768, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=0,
    eos_token_id=0,
)
# The lecture's model: learned positions, dropout off, a head that is the embedding.
GPT2 = GPT2Config(
    vocab_size=768, n_embd=32, n_layer=3, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    bos_token_id=0, eos_token_id=0,
)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IA3 = dict(target_modules=["k_proj", "v_proj", "up_proj", "down_proj"], feedforward_modules=["down_proj"])
VERA = dict(r=16, projection_prng_key=3, vera_dropout=0.0, target_modules=TARGETS)
LORA = dict(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=TARGETS)
WORDS = (
    "the cat sat on a warm mat and said that it would not move my friend lost her keys again so we had to walk home in "
    "the rain should I tell him about the letter or keep it to myself they sold the old house last year for less than we paid"
).split()

# What the runs of a method share; a variant changes some of it. `accumulation` micro-batches of `rows` rows make a step.
# Learning rates are high and decay is strong, so that a mistake in either shows within 20 steps.
# Clipping is set where it bites in some steps and not in others.
SHARED = dict(accumulation=1, rows=2, weight_decay=0.5, warmup=0.15, schedule="linear", max_grad_norm=1.0)
SFT = {
    "full": dict(lr=5e-3, max_grad_norm=3.0),
    "full_accumulated": dict(lr=5e-3, max_grad_norm=1.5, accumulation=2, schedule="cosine"),
    "full_prompts_too": dict(lr=5e-3, max_grad_norm=2.0, completion_only_loss=False),
    "lora": dict(lr=1e-2, max_grad_norm=1.5, schedule="cosine"),
    "lora_accumulated": dict(lr=1e-2, accumulation=4, rows=1),
    # The last block, the final norm and the head, which is tied to the embedding; and parts of what is one matrix in the
    # program under test.
    "only_end": dict(lr=5e-3, max_grad_norm=2.0, train=["layers.1", "norm", "embed_tokens"]),
    "only_parts": dict(lr=2e-2, train=["layers.0.self_attn.k_proj", "layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj", "up_proj"]),
    "ia3": dict(lr=5e-2, max_grad_norm=0.5, schedule="cosine"),
    "ia3_accumulated": dict(lr=5e-2, accumulation=2),
    "dora": dict(lr=1e-2, max_grad_norm=1.5, schedule="cosine"),
    "dora_accumulated": dict(lr=1e-2, accumulation=2),
    "vera": dict(lr=5e-2, max_grad_norm=0.5),
    "vera_accumulated": dict(lr=5e-2, accumulation=2, schedule="cosine"),
    # Last block, final norm and head of a GPT-2.
    "gpt2_only": dict(lr=5e-3, max_grad_norm=2.0, train=["h.2", "ln_f", "wte"], model="gpt2"),
    "gpt2_only_block": dict(lr=1e-2, train=["h.2", "ln_f"], model="gpt2", accumulation=2, schedule="cosine"),
}
REWARD = {
    "full": dict(lr=3e-3, max_grad_norm=3.0),
    "full_accumulated": dict(lr=3e-3, max_grad_norm=2.0, accumulation=2, schedule="cosine"),
    "full_margin": dict(lr=3e-3, max_grad_norm=4.0, margin=True),
    "full_centred": dict(lr=3e-3, max_grad_norm=3.0, center_rewards_coefficient=0.3),
    "full_centred_margin": dict(lr=3e-3, max_grad_norm=4.0, margin=True, center_rewards_coefficient=0.05, accumulation=2),
    "lora": dict(lr=1e-2, max_grad_norm=2.5, schedule="cosine"),
    "lora_accumulated": dict(lr=1e-2, accumulation=2),
    "lora_centred": dict(lr=1e-2, max_grad_norm=2.5, center_rewards_coefficient=0.1, schedule="cosine"),
    "only_end": dict(lr=3e-3, max_grad_norm=2.0, train=["layers.1", "norm", "score"]),
}
# `adapter` starts from the adapter as it is saved, and its copy is the reference; `lora` from its A with B zero, and the
# reference is the model with the adapter off. TRL's "aot" sorts log-ratios within a micro-batch: over one pair it is
# conservative DPO, which TRL has under no name of its own.
DPO = {
    "sigmoid_full": dict(lr=2e-3, max_grad_norm=2.0),
    "sigmoid_full_precomputed": dict(lr=2e-3, precompute=True, accumulation=2, schedule="cosine"),
    "sigmoid_lora": dict(lr=1e-2),
    "sigmoid_lora_precomputed": dict(lr=1e-2, max_grad_norm=0.5, precompute=True, accumulation=2, schedule="cosine"),
    "sigmoid_adapter": dict(lr=5e-3, max_grad_norm=0.7, accumulation=2),
    "sigmoid_adapter_precomputed": dict(lr=5e-3, precompute=True),
    "ipo_full": dict(lr=2e-3, max_grad_norm=50.0, loss="ipo"),
    "ipo_lora": dict(lr=1e-2, max_grad_norm=12.0, loss="ipo", accumulation=2),
    "hinge_full": dict(lr=2e-3, max_grad_norm=3.0, loss="hinge", accumulation=2),
    "hinge_lora": dict(lr=1e-2, max_grad_norm=2.0, loss="hinge"),
    "conservative_full": dict(lr=2e-3, max_grad_norm=1.5, loss="aot", label_smoothing=0.1, rows=1, accumulation=2),
    "conservative_lora": dict(lr=1e-2, max_grad_norm=0.4, loss="aot", label_smoothing=0.1, rows=1, accumulation=4),
    "robust_full": dict(lr=2e-3, max_grad_norm=2.5, loss="robust", label_smoothing=0.1),
    "robust_lora": dict(lr=1e-2, loss="robust", label_smoothing=0.1),
    "sigmoid_only": dict(lr=5e-3, max_grad_norm=1.5, train=["layers.1.mlp", "norm", "layers.0.self_attn.v_proj"]),
    "sigmoid_ia3": dict(lr=5e-2, accumulation=2),
}


def number(x):
    """Nine digits: enough to give back every f32."""
    return float(f"{x:.9g}")


class Recorder:
    """Notes loss, gradient norm before clipping, learning rate and TRL's own metrics of every step, unrounded."""

    METRICS = ()

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.step_loss = getattr(self, "step_loss", 0.0) + loss.item()
        return loss

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        self.note(norm)
        return norm

    def note(self, norm):
        means = {name: values for name, values in self._metrics["train"].items() if name in self.METRICS}
        step = {"loss": self.step_loss, "grad_norm": norm.item(), "lr": self.optimizer.param_groups[0]["lr"]}
        step |= {name: sum(values) / len(values) for name, values in means.items()}
        self.steps = getattr(self, "steps", [])
        self.steps.append({name: number(value) for name, value in step.items()})
        self.step_loss = 0.0
        self._metrics["train"].clear()


class Sft(Recorder, SFTTrainer):
    pass


class Reward(Recorder, RewardTrainer):
    METRICS = ("accuracy",)


class Dpo(Recorder, DPOTrainer):
    METRICS = (
        "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    )


def run(trainer):
    trainer.train()
    steps = trainer.steps
    assert len(steps) == STEPS
    clipped = sum(step["grad_norm"] > trainer.args.max_grad_norm for step in steps)
    first, last = steps[0]["loss"], steps[-1]["loss"]
    print(f"{type(trainer).__name__}: loss {first:.4f} -> {last:.4f}, {clipped} of {STEPS} steps clipped", flush=True)
    return {name: [step[name] for step in steps] for name in steps[0]}


def arguments(config, variant, **extra):
    return config(
        output_dir=tempfile.mkdtemp(), max_steps=STEPS, per_device_train_batch_size=variant["rows"],
        gradient_accumulation_steps=variant["accumulation"], learning_rate=variant["lr"], max_grad_norm=variant["max_grad_norm"],
        lr_scheduler_type=variant["schedule"], warmup_steps=variant["warmup"], weight_decay=variant["weight_decay"],
        train_sampling_strategy="sequential", use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        disable_tqdm=True, save_strategy="no", logging_strategy="no", max_length=64, seed=1, **extra,
    )


def tokenizer():
    loaded = AutoTokenizer.from_pretrained(TOKENIZER)
    # Not EOS: the classification head reads the last token that is not padding, and that has to be EOS.
    loaded.pad_token = "~"
    return loaded


def causal(out):
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")


def classifier(out, head):
    model = AutoModelForSequenceClassification.from_pretrained(
        out, num_labels=1, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        model.score.weight.copy_(torch.tensor(head)[None])
    return model


def train_only(model, entries):
    """Freezes every parameter of whose name no entry is a run of components."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(f".{entry}." in f".{name}." for entry in entries)


def adapted(model, out, task, fresh):
    """The model with the saved adapter's A, and its B unless the adapter is to be fresh."""
    model = get_peft_model(model, LoraConfig(**LORA, task_type=task))
    set_adapter(model, out, fresh)
    return model


def set_adapter(model, out, fresh):
    saved = load_file(f"{out}/adapter/adapter_model.safetensors")
    count = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and ".default." in name:
                value = saved[name.replace(".default.", ".")]
                parameter.copy_(torch.zeros_like(value) if fresh and "lora_B" in name else value)
                count += 1
    assert count == len(saved)


def train_sft(out, name, variant):
    model = causal(f"{out}/{variant.get('model', '')}")
    if name.startswith("lora"):
        model = adapted(model, out, "CAUSAL_LM", fresh=False)
    if name.startswith("ia3"):
        model = get_peft_model(model, IA3Config(**IA3, task_type="CAUSAL_LM"))
    if name.startswith("dora"):
        model = PeftModel.from_pretrained(model, f"{out}/dora", is_trainable=True)
    if name.startswith("vera"):
        model = get_peft_model(model, VeraConfig(**VERA, task_type="CAUSAL_LM"))
    if "train" in variant:
        train_only(model, variant["train"])
    args = arguments(
        SFTConfig, variant, completion_only_loss=variant.get("completion_only_loss", True), shuffle_dataset=False
    )
    return run(Sft(model=model, args=args, train_dataset=rows(out, "sft"), processing_class=tokenizer()))


def train_reward(out, name, variant, head):
    model = classifier(out, head)
    if name.startswith("lora"):
        model = adapted(model, out, "SEQ_CLS", fresh=False)
        assert any("score.modules_to_save" in name for name, p in model.named_parameters() if p.requires_grad)
    if "train" in variant:
        train_only(model, variant["train"])
    data = rows(out, "preferences")
    if not variant.get("margin"):
        data = data.remove_columns("margin")
    args = arguments(RewardConfig, variant, center_rewards_coefficient=variant.get("center_rewards_coefficient"))
    return run(Reward(model=model, args=args, train_dataset=data, processing_class=tokenizer()))


def train_dpo(out, name, variant):
    kind = name.split("_")[1]
    model, peft = causal(out), None
    if kind == "adapter":
        model = PeftModel.from_pretrained(model, f"{out}/adapter", is_trainable=True)
    elif kind == "lora":
        peft = LoraConfig(**LORA, task_type="CAUSAL_LM")
    elif kind == "ia3":
        peft = IA3Config(**IA3, task_type="CAUSAL_LM")
    if "train" in variant:
        train_only(model, variant["train"])
    args = arguments(
        DPOConfig, variant, beta=variant["beta"], loss_type=variant.get("loss", "sigmoid"),
        label_smoothing=variant.get("label_smoothing", 0.0), precompute_ref_log_probs=variant.get("precompute", False),
    )
    data = rows(out, "preferences").remove_columns("margin")
    trainer = Dpo(model=model, args=args, train_dataset=data, processing_class=tokenizer(), peft_config=peft)
    if kind == "lora":
        set_adapter(trainer.model, out, fresh=True)
    return run(trainer)


def rows(out, name):
    with open(f"{out}/{name}.jsonl") as file:
        return Dataset.from_list([json.loads(line) for line in file])


def make_rows(out, generator):
    """Short texts; some prompts end within a word, so that a token crosses the boundary."""
    words = lambda low, high: " ".join(generator.choice(WORDS) for _ in range(generator.randint(low, high)))
    sft, preferences = [], []
    for i in range(ROWS):
        crossing = i % 10 == 3
        prompt = words(3, 7) + (" frien" if crossing else ":")
        responses = [("d " if crossing else " ") + words(2, 8) for _ in range(3)]
        sft.append({"prompt": prompt, "completion": responses[0]})
        margin = generator.randint(0, 8) / 4
        preferences.append({"prompt": prompt, "chosen": responses[1], "rejected": responses[2], "margin": margin})
    for name, values in [("sft", sft), ("preferences", preferences)]:
        with open(f"{out}/{name}.jsonl", "w") as file:
            file.writelines(json.dumps(value) + "\n" for value in values)


def make_model(out, generator):
    model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.copy_(centre + STD * torch.randn(parameter.shape, generator=generator))
    model.tie_weights()
    model.save_pretrained(out)
    os.remove(f"{out}/generation_config.json")
    return [number(x) for x in STD * torch.randn(CONFIG.hidden_size, generator=generator)]


def make_gpt2(out, generator):
    model = AutoModelForCausalLM.from_config(GPT2, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + STD * torch.randn(parameter.shape, generator=generator))
    model.tie_weights()
    model.save_pretrained(f"{out}/gpt2")
    os.remove(f"{out}/gpt2/generation_config.json")


def make_adapter(out, generator):
    model = get_peft_model(causal(out), LoraConfig(**LORA, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(STD * torch.randn(parameter.shape, generator=generator))
    save_adapter(model, f"{out}/adapter")


def make_dora(out, generator):
    """A and B as in LoRA's adapter, and magnitudes that are no longer the norms that they begin as."""
    model = get_peft_model(causal(out), LoraConfig(**LORA, use_dora=True, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1.0 + STD * torch.randn(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.copy_(STD * torch.randn(parameter.shape, generator=generator))
    save_adapter(model, f"{out}/dora")


def save_adapter(model, folder):
    model.peft_config["default"].base_model_name_or_path = "trajectories"
    model.save_pretrained(folder)
    if os.path.exists(f"{folder}/README.md"):
        os.remove(f"{folder}/README.md")  # a model card, of no use here
    with open(f"{folder}/adapter_config.json") as file:
        saved = json.load(file)
    saved["target_modules"].sort()  # PEFT writes a set, in any order
    with open(f"{folder}/adapter_config.json", "w") as file:
        json.dump(saved, file, indent=2)
        file.write("\n")


def write(path, trajectories):
    """Each series of numbers on a line of its own."""
    lines = []
    for method, runs in trajectories.items():
        if method == "head":
            lines.append(f' "head": {json.dumps(runs)}')
            continue
        parts = []
        for name, run in runs.items():
            series = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in run["steps"].items())
            parts.append(f'  {json.dumps(name)}: {{"settings": {json.dumps(run["settings"])}, "steps": {{\n{series}}}}}')
        lines.append(f" {json.dumps(method)}: {{\n" + ",\n".join(parts) + "\n }")
    with open(path, "w") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = f"{sys.argv[1]}/trajectories"
    os.makedirs(out, exist_ok=True)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(300)
    head = make_model(out, generator)
    make_adapter(out, generator)
    make_rows(out, random.Random(301))
    make_gpt2(out, torch.Generator().manual_seed(302))
    make_dora(out, torch.Generator().manual_seed(303))
    trajectories = {"head": head, "sft": {}, "reward": {}, "dpo": {}}
    train = {"sft": train_sft, "reward": lambda *a: train_reward(*a, head), "dpo": train_dpo}
    for method, variants in [("sft", SFT), ("reward", REWARD), ("dpo", DPO)]:
        for name, changes in variants.items():
            beta = {"beta": 0.1} if method == "dpo" else {}
            variant = SHARED | beta | changes
            print(f"{method} {name}", end=" ")
            trajectories[method][name] = {"settings": variant, "steps": train[method](out, name, variant)}
    write(f"{out}/trajectories.json", trajectories)


if __name__ == "__main__":
    main()
