"""Load on `temper serve` over loopback, with Python's standard library alone.

    python load.py speed --url http://127.0.0.1:8000 --name MODEL --temper TEMPER --model MODEL [--rounds 3] [--pid PID]
    python load.py soak --url http://127.0.0.1:8000 --name MODEL [--requests 10000]

speed: 16 clients, each with one request after another, against `temper generate` of the same prompts in one batch of 16; rounds of
both take turns, since other work on the machine slows both. Prints tokens a second, their ratio, and the clients' latencies. With
the server's process id also the CPU time of a token on both sides, which other work on the machine changes less (Linux).

soak: many requests of different prompts, seeds and lengths, of which each tenth is left in the middle. Each answer is compared
with the one that the request got alone; nothing may be dropped, changed or mixed up.
"""

import argparse
import http.client
import json
import pathlib
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

CLIENTS = 16


class Client:
    def __init__(self, url):
        self.place = urllib.parse.urlparse(url).netloc
        self.connection = None

    def ask(self, body, leave=False):
        """The answer; None if the client leaves in the middle."""
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.place, timeout=600)
        self.connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        if leave:
            if body.get("stream"):
                self.connection.getresponse().read(200)
            self.connection.close()
            self.connection = None
            return None
        response = self.connection.getresponse()
        text = response.read()
        assert response.status == 200, (response.status, text)
        return json.loads(text)


def in_threads(count, work):
    failures = []

    def run(thread):
        try:
            work(thread)
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(f"client {thread}: {error!r}")

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit("\n".join(failures))


def cpu_of_children():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def cpu_of(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentile(values, p):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(p * len(ordered)))]


def speed(args):
    # Responses of one length: both sides compute the same.
    count, tokens = 4 * CLIENTS, args.tokens
    prompts = [f"Story number {i}: once upon a time there was a {w}" for i in range(count // 4) for w in ["fox", "king", "ship", "tree"]]
    rates = {"offline": [], "served": []}
    cpu = {"offline": [], "served": []}
    latencies = []
    with tempfile.TemporaryDirectory() as folder:
        data, out = pathlib.Path(folder) / "prompts.jsonl", pathlib.Path(folder) / "out.jsonl"
        for number in range(args.rounds):
            # The time of `generate` less that for one token of one prompt, which is mostly loading.
            def offline(rows, length):
                data.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts[:rows]))
                begin, cpu_begin = time.perf_counter(), cpu_of_children()
                subprocess.run(
                    [args.temper, "generate", "--model", args.model, "--data", data, "--output", out, "--max-new-tokens", str(length),
                     "--seed", str(number)], check=True, capture_output=True)
                rows = [json.loads(line) for line in out.read_text().splitlines()]
                return time.perf_counter() - begin, sum(len(row["ids"]) for row in rows), cpu_of_children() - cpu_begin

            # The fastest of each: a process that gets memory which the machine has not used before loads a second longer.
            short, long = min(offline(1, 1) for _ in range(3)), min(offline(CLIENTS, tokens) for _ in range(2))
            rates["offline"].append((long[1] - short[1]) / (long[0] - short[0]))
            cpu["offline"].append((long[2] - short[2]) / (long[1] - short[1]))
            sampled = [0] * CLIENTS

            def client(thread):
                own = Client(args.url)
                for place in range(thread, count, CLIENTS):
                    begin = time.perf_counter()
                    answer = own.ask({"model": args.name, "prompt": prompts[place], "max_tokens": tokens, "seed": number, "temperature": 1})
                    latencies.append(time.perf_counter() - begin)
                    sampled[thread] += answer["usage"]["completion_tokens"]

            begin, cpu_begin = time.perf_counter(), args.pid and cpu_of(args.pid)
            in_threads(CLIENTS, client)
            rates["served"].append(sum(sampled) / (time.perf_counter() - begin))
            if args.pid:
                cpu["served"].append((cpu_of(args.pid) - cpu_begin) / sum(sampled))
            print(f"round {number + 1}: offline {rates['offline'][-1]:.1f}, served {rates['served'][-1]:.1f} tokens a second", flush=True)
    offline, served = (statistics.median(rates[side]) for side in ["offline", "served"])
    print(f"medians: offline {offline:.1f}, served {served:.1f} tokens a second, ratio {served / offline:.3f}")
    if args.pid:
        offline, served = (statistics.median(cpu[side]) * 1e3 for side in ["offline", "served"])
        print(f"CPU time of a token: offline {offline:.2f} ms, served {served:.2f} ms, ratio {offline / served:.3f}")
    print(f"latency of {tokens} tokens: p50 {percentile(latencies, 0.5):.2f} s, p99 {percentile(latencies, 0.99):.2f} s")


def soak(args):
    distinct = 200

    def body(i):
        return {
            "model": args.name, "prompt": f"once {i} " * (1 + i % 5), "seed": i, "max_tokens": 1 + i % 17,
            "temperature": [0, 1, 0.7][i % 3], "stream": False,
        }

    alone = Client(args.url)
    expected = [alone.ask(body(i)) for i in range(distinct)]
    begin, latencies, left = time.perf_counter(), [], [0] * CLIENTS

    def client(thread):
        own, rng = Client(args.url), random.Random(thread)
        for _ in range(thread, args.requests, CLIENTS):
            i = rng.randrange(distinct)
            if rng.random() < 0.1:
                own.ask({**body(i), "max_tokens": 150, "stream": rng.random() < 0.5, "ignore_eos": True}, leave=True)
                left[thread] += 1
                continue
            start = time.perf_counter()
            answer = own.ask(body(i))
            latencies.append(time.perf_counter() - start)
            for key in ["choices", "usage"]:
                assert answer[key] == expected[i][key], (i, answer[key], expected[i][key])

    in_threads(CLIENTS, client)
    seconds = time.perf_counter() - begin
    assert len(latencies) + sum(left) == args.requests
    print(f"{args.requests} requests in {seconds:.1f} s: {len(latencies)} answered as alone, {sum(left)} left in the middle")
    print(f"latency: p50 {percentile(latencies, 0.5) * 1e3:.1f} ms, p99 {percentile(latencies, 0.99) * 1e3:.1f} ms")
    # What was left frees its place.
    place = urllib.parse.urlparse(args.url).netloc
    for _ in range(100):
        connection = http.client.HTTPConnection(place, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        values = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}
        if values["temper_responses_running"] == 0 and values["temper_queue_waiting"] == 0:
            print(f"aborted, as the server counts: {values['temper_aborted_total']:.0f}")
            return
        time.sleep(0.1)
    sys.exit("the server still works on requests that nobody waits for")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["speed", "soak"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--temper")
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pid", type=int)
    parser.add_argument("--requests", type=int, default=10_000)
    args = parser.parse_args()
    {"speed": speed, "soak": soak}[args.what](args)


if __name__ == "__main__":
    main()
