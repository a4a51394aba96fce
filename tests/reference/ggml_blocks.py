"""Blocks of ggml's formats and the numbers that they stand for.  usage: ggml_blocks.py OUT_DIR

`ggml_blocks.json`: by the name of a format its number in files, random blocks as hexadecimal bytes, the bits of the first eight values that
the gguf package's `quants.dequantize` gives, and the SHA-256 of all of them as little-endian singles. Scales of the blocks in turn: an
ordinary one, a negative one, zero, minus zero, the smallest and the largest subnormal, a small one, the largest; of MXFP4 exponents.

Versions: gguf==0.19.0 numpy
"""
import hashlib
import json
import sys

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Where a block has halves.
HALVES = dict(
    Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0], Q2_K=[80, 82], Q3_K=[108], Q4_K=[0, 2], Q5_K=[0, 2], Q6_K=[208],
    IQ4_NL=[0], IQ4_XS=[0], MXFP4=[],
)
SCALES = [0.0123, -0.57, 0.0, -0.0, 2.0**-24, 1023 * 2.0**-24, 1.1e-4, 1.0]
EXPONENTS = [120, 127, 0, 1, 2, 130, 64, 200]


def blocks(name, kind):
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    size = GGML_QUANT_SIZES[kind][1]
    bytes_ = np.random.default_rng(seed).integers(0, 256, (len(SCALES), size), dtype=np.uint8)
    for at, block in enumerate(bytes_):
        for number, place in enumerate(HALVES[name]):
            # A minimum that is not the scale.
            scale = np.float16(SCALES[(at + 3 * number) % len(SCALES)])
            block[place : place + 2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
        if name == "MXFP4":
            block[0] = EXPONENTS[at]
    return bytes_


def main():
    found = {}
    for name in HALVES:
        kind = GGMLQuantizationType[name]
        bytes_ = blocks(name, kind)
        values = dequantize(bytes_, kind).astype("<f4").flatten()
        found[name] = {
            "id": int(kind),
            "bytes": bytes_.tobytes().hex(),
            "first": values.view(np.uint32)[:8].tolist(),
            "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
        }
    with open(f"{sys.argv[1]}/ggml_blocks.json", "w") as file:
        json.dump(found, file, indent=0)
        file.write("\n")


if __name__ == "__main__":
    main()
