"""What bitsandbytes makes of weights in NF4, and what transformers computes with them.  usage: nf4.py OUT_DIR

`nf4.json`: matrices of exact numbers by a formula that the tests have too; codes, scales and every 53rd of the numbers that they stand for.
Rows end with blocks, inside blocks (one with a short last block), and there are more than 256 blocks.

`llama_nf4`, `gpt2_nf4`: `llama_untied` and `gpt2` (Conv1D) loaded with `load_in_4bit` and double quantisation, and saved: safetensors as
bitsandbytes stores them; `llama_nf4_plain` without double quantisation. `ref.json` holds the rows of families.py and the log-probability of
every token but a row's first, by transformers in f32 with the numbers that bitsandbytes gives back.

Versions: those of families.py, and bitsandbytes==0.50.2
"""
import json
import os
import sys

import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit
from families import ROWS, logprobs, numbers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def drawn(length):
    """Exact in f32: sums of three multiples of 2^-20, times a power of two that goes by the block."""
    i = np.arange(length, dtype=np.uint64)

    def hashed(i):
        return (((i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(44)).astype(np.float32)) / np.float32(1 << 20)

    with np.errstate(over="ignore"):
        three = np.uint64(3)
        total = hashed(three * i + np.uint64(1)) + hashed(three * i + np.uint64(2)) + hashed(three * i + three)
    scale = np.float32(0.5) ** ((i // np.uint64(64)) % three).astype(np.float32)
    return (total - np.float32(1.5)) * scale.astype(np.float32)


def dequantized(codes, state):
    """The numbers of a matrix; as one row, because on a CPU bitsandbytes 0.50.2 gives others where rows are shorter than a block."""
    shape = state.shape
    state.shape = torch.Size((1, shape.numel()))
    values = dequantize_4bit(codes, state).reshape(shape)
    state.shape = shape
    return values


def matrix(rows, columns):
    weight = torch.from_numpy(drawn(rows * columns)).reshape(rows, columns)
    codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    values = dequantized(codes, state)
    return {
        "shape": [rows, columns],
        "quantiles": state.code.tolist(),
        "codes": bytes(codes.flatten().tolist()).hex(),
        "absmax": bytes(state.absmax.tolist()).hex(),
        "nested_absmax": state.state2.absmax.tolist(),
        "nested_map": state.state2.code.tolist(),
        "offset": state.offset.item(),
        "values": values.flatten()[::53].tolist(),
    }


def model(root, base, name, double):
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        os.path.join(root, base), quantization_config=config, dtype=torch.float32, attn_implementation="eager",
        device_map={"": "cpu"},
    ).eval()
    folder = os.path.join(root, name)
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "generation_config.json"))
    # bitsandbytes' own product on a CPU takes bfloat16 and rows of whole blocks.
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            full = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            full.weight = torch.nn.Parameter(dequantized(layer.weight.data, layer.weight.quant_state))
            full.bias = layer.bias
            model.set_submodule(name, full)
    with torch.no_grad():
        found = [numbers(logprobs(model, row)[0]) for row in ROWS]
    with open(os.path.join(folder, "ref.json"), "w") as file:
        json.dump({"rows": ROWS, "logprobs": found}, file)
        file.write("\n")


def main():
    root = sys.argv[1]
    torch.set_num_threads(1)
    model(root, "llama_untied", "llama_nf4", True)
    model(root, "llama_untied", "llama_nf4_plain", False)
    model(root, "gpt2", "gpt2_nf4", True)
    with open(os.path.join(root, "nf4.json"), "w") as file:
        json.dump([matrix(8, 128), matrix(20, 70), matrix(300, 64)], file)
        file.write("\n")


if __name__ == "__main__":
    main()
