"""What the families of families.py compute with products in bfloat16 (see README.md).  usage: mixed.py OUT_DIR

Both sides of every product with a weight, forward and backward, are rounded to bfloat16; sums, activations and gradients stay f32.
Versions: those of families.py
"""
import os
import sys

import families
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D


# Gradients that are zero in exact arithmetic are a sum of roundings to 8 bits here.
ROUNDING = 1e-3


def half(x):
    return x.to(torch.bfloat16).to(torch.float32)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        """x: [.., in], weight: [out, in]."""
        ctx.save_for_backward(x, weight)
        return half(x) @ half(weight).T

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = half(grad)
        rows = grad.reshape(-1, grad.shape[-1])
        return grad @ half(weight), rows.T @ half(x).reshape(-1, x.shape[-1])


def forward(module):
    def run(x):
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        y = Product.apply(x, weight)
        return y if module.bias is None else y + module.bias

    return run


def main():
    root = sys.argv[1]
    torch.set_num_threads(1)
    for name in families.CONFIGS:
        folder = f"{root}/{name}"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        for module in model.modules():
            if isinstance(module, (torch.nn.Linear, Conv1D)):
                # Conv1D has no bias that may be missing.
                module.forward = forward(module)
        # Not llama_rope3's long row: where sums in another order put a number across an edge of rounding, and in 40 tokens some do,
        # torch itself is 5e-3 nats away from its own sums in f64; in these rows 5e-7.
        families.write(os.path.join(folder, "mixed.json"), families.reference(model, families.ROWS, ROUNDING))


if __name__ == "__main__":
    main()
