"""What reference implementations make of 20 steps of every optimiser, and of schedules (see README.md).  usage: optimisers.py OUT_DIR

Versions: torch==2.15.0 transformers==5.23.0 bitsandbytes==0.50.2
"""
import json
import os
import sys
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TRANSFORMERS_VERBOSITY="error")
import bitsandbytes as bnb
import torch
from transformers import optimization as schedules

STEPS = 20
# Name: shape as files hold it. `embed_tokens` is large enough for moments of 8 bits, and no whole number of blocks.
SHAPES = {
    "q_proj.weight": (24, 16), "k_proj.weight": (8, 16), "q_proj.bias": (24,), "k_proj.bias": (8,),
    "down_proj.weight": (16, 48), "embed_tokens.weight": (81, 64),
}
HIDDEN = [name for name, shape in SHAPES.items() if len(shape) == 2 and "embed" not in name]


def stride(count):
    """Of large tensors every so many entries are noted."""
    return 1 if count < 100 else 5 if count < 1000 else 37


def hashed(which, index, step):
    """The same number in every language: whole numbers below 2^53, one division, powers of two."""
    mixed = (index * 7919 + (index * index) % 1009 * 31 + which * 12983 + step * 104729) % 2003
    return (mixed - 1001) / 1000 / 2 ** (index % 5)


def numbers(which, shape, step):
    """Parameters at step 0. Later gradients: half of each the same at every step."""
    count = torch.Size(shape).numel()
    fixed = [hashed(which, i, 0) for i in range(count)]
    values = fixed if step == 0 else [(a + hashed(which, i, step)) / 2 for i, a in enumerate(fixed)]
    return torch.tensor(values, dtype=torch.float64).to(torch.float32).reshape(shape)


def run(make):
    """Final parameters after 20 steps at a rate that falls linearly; `make` gives optimisers for the parameters by name."""
    params = {name: torch.nn.Parameter(numbers(i, shape, 0)) for i, (name, shape) in enumerate(SHAPES.items())}
    optimisers = make(params)
    peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    for step in range(STEPS):
        for i, (name, param) in enumerate(params.items()):
            param.grad = numbers(i, SHAPES[name], step + 1)
        for optimiser, rates in zip(optimisers, peaks):
            for group, lr in zip(optimiser.param_groups, rates):
                group["lr"] = lr * (1 - step / STEPS)
            optimiser.step()
    noted = {}
    for name, param in params.items():
        flat = param.detach().flatten()
        noted[name] = [float(f"{x:.9g}") for x in flat[::stride(flat.numel())].tolist()]
    return noted


def groups(params, decay):
    """Norms and biases do not decay."""
    return [
        {"params": [p for p in params if p.ndim == 2], "weight_decay": decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]


def grouped(optimiser, decay=0.1, own=(), **settings):
    """As `one`, with what `own` says of the tensors whose names contain a part."""
    def make(params):
        rest, split = dict(params), []
        for part, rates in own:
            chosen = [rest.pop(name) for name in list(rest) if part in name]
            split += [group | rates | {"weight_decay": min(group["weight_decay"], rates.get("weight_decay", decay))}
                      for group in groups(chosen, decay) if group["params"]]
        return [optimiser(split + groups(rest.values(), decay), **settings)]

    return make


def one(optimiser, decay=0.1, **settings):
    return lambda params: [optimiser(groups(params.values(), decay), **settings)]


class SinglePrecision:
    """torch, with f32 for bfloat16: torch.optim.Muon multiplies in bfloat16 whatever its parameters are."""

    bfloat16 = torch.float32

    def __getattr__(self, name):
        return getattr(torch, name)


def to_nearest(values, code, absmax_out, codes_out, blocksize):
    """As bitsandbytes rounds on GPUs and in its PyTorch code: its CPU kernel takes another code than the nearest for small numbers."""
    blocks = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % blocksize)).reshape(-1, blocksize)
    absmax = blocks.abs().amax(1)
    parts = blocks / torch.where(absmax == 0, 1.0, absmax)[:, None]
    codes = (parts[..., None] - code).abs().argmin(-1)
    codes_out.copy_(codes.flatten()[: values.numel()].reshape(values.shape))
    absmax_out.copy_(absmax)


def muon(decay=0.1, lr=1e-2, **settings):
    def make(params):
        hidden = [params[name] for name in HIDDEN]
        rest = [param for name, param in params.items() if name not in HIDDEN]
        return [
            torch.optim.Muon(hidden, lr=lr, weight_decay=decay, **settings),
            torch.optim.AdamW(groups(rest, decay), lr=lr, betas=(0.9, 0.95)),
        ]

    return make


def adafactor(params, decay=0.1, **settings):
    return one(schedules.Adafactor, decay, relative_step=False, **settings)(params)


# What a recipe says, and the reference.
BETAS = "beta1: 0.9, beta2: 0.95"
VARIANTS = {
    "AdamW": (f"lr: 1e-2, {BETAS}", one(torch.optim.AdamW, lr=1e-2, betas=(0.9, 0.95))),
    "AdamW8bit": (f"algorithm: AdamW8bit, lr: 1e-2, {BETAS}", one(bnb.optim.AdamW8bit, lr=1e-2, betas=(0.9, 0.95))),
    "Lion": ("algorithm: Lion(), lr: 2e-3", one(bnb.optim.Lion32bit, lr=2e-3, betas=(0.9, 0.99))),
    "Lion, other betas": (
        "algorithm: Lion(beta1: 0.95, beta2: 0.98), lr: 2e-3", one(bnb.optim.Lion32bit, lr=2e-3, betas=(0.95, 0.98))
    ),
    "SGD": ("algorithm: Sgd(momentum: 0.0), lr: 0.1", one(torch.optim.SGD, lr=0.1)),
    "SGD, momentum": ("algorithm: Sgd(), lr: 0.02", one(torch.optim.SGD, lr=0.02, momentum=0.9)),
    "SGD, Nesterov": (
        "algorithm: Sgd(momentum: 0.8, nesterov: true), lr: 0.02",
        one(torch.optim.SGD, lr=0.02, momentum=0.8, nesterov=True),
    ),
    "Adafactor": ("algorithm: Adafactor(), lr: 1e-2", lambda p: adafactor(p, lr=1e-2, scale_parameter=False)),
    "Adafactor, scaled": (
        "algorithm: Adafactor(scale_parameter: true, decay_rate: -0.7, clip_threshold: 0.5), lr: 5e-2",
        lambda p: adafactor(p, lr=5e-2, scale_parameter=True, decay_rate=-0.7, clip_threshold=0.5),
    ),
    "Adafactor, first moment": (
        "algorithm: Adafactor(beta1: 0.9), lr: 1e-2",
        lambda p: adafactor(p, lr=1e-2, scale_parameter=False, beta1=0.9),
    ),
    "AdamW, groups": (
        f"lr: 1e-2, {BETAS}, groups: [(pattern: \"k_proj\", lr: 3e-3), (pattern: \"^(down|k)_proj\", weight_decay: 0.0)]",
        grouped(torch.optim.AdamW, own=[("k_proj", {"lr": 3e-3}), ("down_proj", {"weight_decay": 0.0})], lr=1e-2, betas=(0.9, 0.95)),
    ),
    "Adafactor, groups": (
        "algorithm: Adafactor(beta1: 0.9), lr: 1e-2, groups: [(pattern: \"q_proj\", lr: 2e-2, weight_decay: 0.05)]",
        grouped(schedules.Adafactor, own=[("q_proj", {"lr": 2e-2, "weight_decay": 0.05})], lr=1e-2, scale_parameter=False,
                relative_step=False, beta1=0.9),
    ),
    "Muon": (f"algorithm: Muon(adjust_lr: match_rms_adamw), lr: 1e-2, {BETAS}", muon(adjust_lr_fn="match_rms_adamw")),
    "Muon, original": (
        f"algorithm: Muon(adjust_lr: original, nesterov: false, momentum: 0.9, ns_steps: 3), lr: 1e-2, {BETAS}",
        muon(adjust_lr_fn="original", nesterov=False, momentum=0.9, ns_steps=3),
    ),
}

PEAK = 3e-4
# What a recipe says, steps, and transformers' function with its settings.
CURVES = {
    "constant": ("Constant(warmup_ratio: 0.2)", 20, "constant_schedule_with_warmup", dict(num_warmup_steps=4)),
    "linear": ("Linear(warmup_steps: 3)", 20, "linear_schedule_with_warmup", dict(num_warmup_steps=3)),
    "linear, share with a minimum": (
        "Linear(warmup_ratio: 0.03, warmup_steps: 5)", 40, "linear_schedule_with_warmup", dict(num_warmup_steps=5)
    ),
    "cosine": ("Cosine(warmup_ratio: 0.1)", 30, "cosine_schedule_with_warmup", dict(num_warmup_steps=3)),
    "cosine, floor": (
        "Cosine(warmup_steps: 2, floor: 0.1)", 20, "cosine_with_min_lr_schedule_with_warmup",
        dict(num_warmup_steps=2, min_lr_rate=0.1),
    ),
    "restarts, one cycle": (
        "CosineWithRestarts()", 12, "cosine_with_hard_restarts_schedule_with_warmup", dict(num_warmup_steps=0)
    ),
    "restarts, three cycles": (
        "CosineWithRestarts(num_cycles: 3, warmup_steps: 2)", 26, "cosine_with_hard_restarts_schedule_with_warmup",
        dict(num_warmup_steps=2, num_cycles=3),
    ),
    "polynomial": (
        "Polynomial(power: 2.0, floor: 0.05, warmup_steps: 4)", 25, "polynomial_decay_schedule_with_warmup",
        dict(num_warmup_steps=4, power=2.0, lr_end=0.05 * PEAK),
    ),
    "polynomial, root": (
        "Polynomial(power: 0.5)", 15, "polynomial_decay_schedule_with_warmup",
        dict(num_warmup_steps=0, power=0.5, lr_end=0.0),
    ),
    "inverse root": ("InverseSqrt(warmup_steps: 5)", 40, "inverse_sqrt_schedule", dict(num_warmup_steps=5)),
    "inverse root, timescale": (
        "InverseSqrt(warmup_steps: 3, timescale: Some(7))", 20, "inverse_sqrt_schedule",
        dict(num_warmup_steps=3, timescale=7),
    ),
    "wsd": (
        "Wsd(warmup_steps: 4, decay_ratio: 0.2)", 30, "wsd_schedule", dict(num_warmup_steps=4, num_decay_steps=6)
    ),
    "wsd, linear": (
        "Wsd(decay_steps: 9, decay_type: linear, floor: 0.1)", 24, "wsd_schedule",
        dict(num_warmup_steps=0, num_decay_steps=9, decay_type="linear", min_lr_ratio=0.1),
    ),
    "wsd, one minus root": (
        "Wsd(warmup_ratio: 0.1, decay_ratio: 0.5, decay_type: one_minus_sqrt)", 20, "wsd_schedule",
        dict(num_warmup_steps=2, num_decay_steps=10, decay_type="1-sqrt"),
    ),
}


def curve(steps, function, settings):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    if function not in ("constant_schedule_with_warmup", "inverse_sqrt_schedule"):
        settings = settings | dict(num_training_steps=steps)
    schedule = getattr(schedules, f"get_{function}")(optimiser, **settings)
    rates = []
    for _ in range(steps + 1):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    return rates


def write(path, value):
    path.write_text(json.dumps(value, indent=None, separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")


def main():
    torch.set_num_threads(1)
    torch.optim._muon.torch = SinglePrecision()
    bnb.backends.cpu.ops._quant_blockwise_fp32_direct = to_nearest
    out = Path(sys.argv[1]) / "optimisers"
    out.mkdir(parents=True, exist_ok=True)
    write(out / "optimisers.json", [
        {"name": name, "optim": f"({text}, weight_decay: 0.1, schedule: Linear(), max_grad_norm: None)", "values": run(make)}
        for name, (text, make) in VARIANTS.items()
    ])
    write(out / "schedules.json", [
        {"name": name, "schedule": text, "peak": PEAK, "steps": steps, "lr": curve(steps, function, settings)}
        for name, (text, steps, function, settings) in CURVES.items()
    ])


main()
