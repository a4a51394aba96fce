"""Reads the event files of a run with TensorBoard's own reader and compares them with the logs.  usage: check_events.py RUN

Every number of metrics.jsonl and timing.jsonl must be there once, at its step, and every sample as a text. Version: tensorboard==2.21.0
"""
import json
import math
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def single(value):
    return struct.unpack("f", struct.pack("f", math.nan if value is None else value))[0]


def check(stage):
    events = EventAccumulator(str(stage), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    # The reader turns simple values into tensors of its scalars plugin where asked; here they stay scalars.
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    expected = {}
    for name, prefix in (("metrics.jsonl", ""), ("timing.jsonl", "timing/")):
        for row in lines(stage / name):
            for key, value in row.items():
                if key != "step":
                    expected.setdefault(prefix + key, []).append((row["step"], single(value)))
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for tag, series in expected.items():
        same = len(series) == len(found[tag]) and all(
            a[0] == b[0] and (a[1] == b[1] or (math.isnan(a[1]) and math.isnan(b[1]))) for a, b in zip(series, found[tag])
        )
        assert same, f"{tag}: expected {series}, found {found[tag]}"
    texts = [tag for tag in events.Tags()["tensors"] if tag.startswith("samples/")]
    read = [e.tensor_proto.string_val[0].decode() for tag in texts for e in events.Tensors(tag)]
    samples = lines(stage / "samples.jsonl")
    assert len(read) == len(samples), f"expected {len(samples)} samples, found {len(read)}"
    for sample in samples:
        first = next((line for line in sample["response"].splitlines() if line.strip()), "")
        assert any(first in text for text in read), sample
    recipe = events.Tensors("recipe")[0].tensor_proto.string_val[0].decode()
    assert "stages" in recipe
    return sum(map(len, expected.values())), len(samples)


def main():
    run = pathlib.Path(sys.argv[1])
    stages = sorted({path.parent for path in run.glob("*/*tfevents*")})
    assert stages, f"{run}: no event files"
    for stage in stages:
        scalars, samples = check(stage)
        print(f"{stage.name}: {scalars} numbers and {samples} samples as in the logs")


main()
