#!/usr/bin/env python3
"""A model of a training step on many ranks, by simulation: what binds at 8, 64 and 1,024.

    python3 benches/cluster_model.py            the table of docs/cluster.md
    python3 benches/cluster_model.py --help     the numbers to put in: measured ones of one's own machines
    .. --parameters 134.5e6 --trained 4.88e6 --ranks 1 2    another model (here SmolLM2 with LoRA of rank 16), other numbers of ranks

A step of a rank is: its rows (forward and backward at a measured pace, their lengths drawn, dealt out longest first as
src/collective/parts.rs does), the wait for the slowest rank, the sum of gradients (all-to-all and all-gather in the order of ranks, as
src/collective/mpi.rs does it), the optimiser's step, and the numbers of all rows, which every rank reads. Weights are replicated: nothing is sharded. No dependencies.
"""

import argparse
import heapq
import math
import random

# Name, parameters, trained parameters with LoRA of rank 16 on all linear layers.
MODELS = [("0.6B", 0.6e9, 10e6), ("1.7B", 1.7e9, 17e6), ("8B", 8.0e9, 42e6)]
WORLDS = [1, 8, 64, 1024]


def rows_times(args, world, params, lora, rng):
    """Seconds of every rank's rows: lengths are log-normal around the mean, arithmetic is 6 operations a parameter and token when all
    weights are trained, 4 with frozen ones."""
    sigma = args.spread
    rows = [args.tokens * rng.lognormvariate(-sigma * sigma / 2, sigma) for _ in range(args.rows * world)]
    loads = [0.0] * world
    for row in sorted(rows, reverse=True):
        heapq.heapreplace(loads, loads[0] + row)
    return [tokens * params * (4 if lora else 6) / (args.tflops * 1e12) for tokens in loads]


def sum_time(args, world, trained):
    """Seconds of a sum over ranks: every rank sends and receives its vector twice, in pieces; each piece costs a message."""
    if world == 1:
        return 0.0
    size = 4 * trained
    chunks = math.ceil(trained / (4 << 20))
    moved = 2 * size * (world - 1) / world
    # The all-to-all sends to each rank; the all-gather is a ring or a tree of messages.
    messages = chunks * ((world - 1) * args.overhead + (math.log2(world) + 2) * args.latency)
    added = size * (world - 1) / world / (args.memory * 1e9) * 2
    copied = 2 * size / (args.host * 1e9)
    return moved / (args.network * 1e9) + messages + added + copied


def step(args, world, params, trained, lora, rng):
    """Mean seconds of a step and of its parts."""
    parts = {"rows": 0.0, "wait": 0.0, "sum": 0.0, "update": 0.0, "numbers": 0.0}
    for _ in range(args.steps):
        times = rows_times(args, world, params, lora, rng)
        parts["rows"] += sum(times) / world
        parts["wait"] += max(times) - sum(times) / world
        parts["sum"] += sum_time(args, world, trained)
        # AdamW reads and writes weights, moments and gradients once.
        parts["update"] += trained * 28 / (args.memory * 1e9)
        # Every rank receives and adds up the numbers of all rows (log-probabilities, 4 bytes a token).
        numbers = world * args.rows * args.tokens
        parts["numbers"] += (world > 1) * (4 * numbers / (args.network * 1e9) + numbers * args.per_number)
    return {name: seconds / args.steps for name, seconds in parts.items()}


def main():
    p = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--rows", type=int, default=8, help="rows of a rank in a step")
    p.add_argument("--tokens", type=float, default=512, help="mean tokens of a row")
    p.add_argument("--spread", type=float, default=0.5, help="standard deviation of the logarithm of a row's length")
    p.add_argument("--tflops", type=float, default=100.0, help="arithmetic of a rank in 1e12/s, as measured in training")
    p.add_argument("--memory", type=float, default=1000.0, help="GB/s of the device's memory")
    p.add_argument("--host", type=float, default=10.0, help="GB/s between device and host: gradients pass over the host")
    p.add_argument("--network", type=float, default=12.5, help="GB/s of a rank's network, both ways at once (12.5: 100 Gb/s)")
    p.add_argument("--latency", type=float, default=5e-6, help="seconds of a message's way")
    p.add_argument("--overhead", type=float, default=1e-6, help="seconds that sending a message costs a rank")
    p.add_argument("--per-number", type=float, default=4e-9, help="host seconds of a number of the metrics")
    p.add_argument("--steps", type=int, default=20, help="steps that are simulated")
    p.add_argument("--ranks", type=int, nargs="+", default=WORLDS, help="numbers of ranks")
    p.add_argument("--parameters", type=float, help="parameters of a model of one's own, in place of the table")
    p.add_argument("--trained", type=float, help="trained parameters of that model")
    args = p.parse_args()
    models = MODELS
    if args.parameters:
        models = [("own", args.parameters, args.trained or args.parameters)]
    print("| model | trained | ranks | step | rows | wait for the slowest | sum of gradients | numbers of all | efficiency | binds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, params, adapter in models:
        kinds = [("LoRA", adapter), ("all", params)]
        for kind, trained in kinds if not args.trained else kinds[:1]:
            for world in args.ranks:
                rng = random.Random(world)
                parts = step(args, world, params, trained, kind == "LoRA", rng)
                total = sum(parts.values())
                lost = {key: parts[key] for key in ("wait", "sum", "numbers")}
                binds = max(lost, key=lost.get) if world > 1 else ""
                ms = lambda key: f"{1e3 * parts[key]:.0f} ms"
                print(
                    f"| {name} | {kind} | {world:,} | {1e3 * total:.0f} ms | {ms('rows')} | {ms('wait')} | {ms('sum')} | "
                    f"{ms('numbers')} | {100 * (parts['rows'] + parts['update']) / total:.0f} % | {binds} |"
                )


if __name__ == "__main__":
    main()
