"""What bottleneck adapters of the `adapters` library compute and learn (see README.md).  usage: bottlenecks.py OUT_DIR

Reads the models of adapters.py, and the model and rows of trajectories.py. Writes OUT_DIR/bottlenecks/: an adapter a folder, and
trajectories.json. The library wants an older transformers, so this runs in an environment of its own: adapters==1.3.0
transformers==4.57.6 torch==2.15.0 safetensors==0.8.0 peft==0.21.2 trl==1.16.0
"""
import importlib.util
import json
import os
import sys
import tempfile
import warnings

sys.path.pop(0)  # the library has the name of a script beside this one
spec = importlib.util.spec_from_file_location("trajectories", os.path.join(os.path.dirname(os.path.abspath(__file__)), "trajectories.py"))
trl = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trl)  # first: it sets the environment
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
# As in trajectories.py. What training starts from is in bottlenecks/trajectory_houlsby and so on.
SFT = {
    "houlsby": dict(lr=1e-2, max_grad_norm=0.5),
    "houlsby_accumulated": dict(lr=1e-2, accumulation=2, schedule="cosine"),
    "pfeiffer": dict(lr=1e-2, max_grad_norm=0.5, schedule="cosine"),
    "parallel": dict(lr=1e-2, max_grad_norm=0.5),
}
START = {
    "houlsby": DoubleSeqBnConfig(reduction_factor=4),
    "pfeiffer": SeqBnConfig(reduction_factor=8, non_linearity="gelu"),
    "parallel": ParBnConfig(reduction_factor=4, scaling=0.5),
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
    model = AutoModelForCausalLM.from_pretrained(f"{root}/{base}", **options).eval()
    adapters.init(model)
    return model


def make(root, name, seed):
    base, config = CASES[name]
    out = f"{root}/bottlenecks/{name}"
    model = random_adapter(root, f"peft_base/{base}", config, seed)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    sum(token_logprobs(model, row).sum() for row in ROWS).backward()
    reference = {"base": base, "rows": ROWS, "gradients": {key: numbers(p.grad) for key, p in trained.items()}}
    save(model, out, f"random-{base}")
    # What a program that reads the files computes, not what the one that wrote them does.
    read = load(root, f"peft_base/{base}")
    read.load_adapter(out, set_active=True, use_safetensors=True)
    read.eval()
    with torch.no_grad():
        reference["with_adapter"] = [numbers(token_logprobs(read, row)) for row in ROWS]
    with open(f"{out}/ref.json", "w") as file:
        json.dump(reference, file, separators=(",", ":"))
        file.write("\n")


def random_adapter(root, base, config, seed):
    model = load(root, base)
    model.add_adapter("task", config=config)
    model.train_adapter("task")
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(STD * torch.randn(p.shape, generator=generator))
    return model


def save(model, out, base):
    os.makedirs(out, exist_ok=True)
    model.save_adapter(out, "task", use_safetensors=True)
    with open(f"{out}/adapter_config.json") as file:
        saved = json.load(file)
    saved["model_name"] = base
    with open(f"{out}/adapter_config.json", "w") as file:
        json.dump(saved, file, indent=2, sort_keys=True)
        file.write("\n")
    for extra in ["head_config.json", "model_head.safetensors", "pytorch_model_head.bin"]:
        if os.path.exists(f"{out}/{extra}"):
            os.remove(f"{out}/{extra}")


class Sft(trl.Recorder, trl.SFTTrainer):
    """The recorder's hooks as transformers 4 has them."""

    def __init__(self, **options):
        super().__init__(**options)
        clip = self.accelerator.clip_grad_norm_

        def noted(*arguments, **more):
            norm = clip(*arguments, **more)
            self.note(norm)
            return norm

        self.accelerator.clip_grad_norm_ = noted

    def _get_train_sampler(self, *arguments):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train(root, kind, variant, seed):
    model, out = random_adapter(root, "trajectories", START[kind], seed), f"{root}/trajectories"
    model.train()
    args = trl.SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=trl.STEPS, per_device_train_batch_size=variant["rows"],
        gradient_accumulation_steps=variant["accumulation"], learning_rate=variant["lr"], max_grad_norm=variant["max_grad_norm"],
        lr_scheduler_type=variant["schedule"], warmup_ratio=variant["warmup"], weight_decay=variant["weight_decay"], use_cpu=True,
        bf16=False, gradient_checkpointing=False, report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
        max_length=64, seed=1, completion_only_loss=True,
    )
    return trl.run(Sft(model=model, args=args, train_dataset=trl.rows(out, "sft"), processing_class=trl.tokenizer()))


def make_trajectories(root):
    seeds = {kind: 470 + i for i, kind in enumerate(START)}
    for kind, config in START.items():
        save(random_adapter(root, "trajectories", config, seeds[kind]), f"{root}/bottlenecks/trajectory_{kind}", "trajectories")
    found = {"sft": {}}
    for name, changes in SFT.items():
        variant, kind = trl.SHARED | changes, name.split("_")[0]
        found["sft"][name] = {"settings": variant, "steps": train(root, kind, variant, seeds[kind])}
    trl.write(f"{root}/bottlenecks/trajectories.json", found)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for seed, name in enumerate(CASES):
        make(sys.argv[1], name, 450 + seed)
    make_trajectories(sys.argv[1])


if __name__ == "__main__":
    main()
