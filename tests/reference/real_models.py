"""Takes real models through `temper` and through transformers and PEFT, and prints where the numbers differ.

usage: real_models.py [--llama LLAMA] [--table TABLE.md] [--no-training] TEMPER SCRATCH NAME=MODEL..

TEMPER: the binary. SCRATCH: a folder, made anew for each model, which needs up to three times the model's size in f32.
MODEL: a folder in transformers' layout or a GGUF file; a folder of an encoder is scored with a seeded head of two labels.
--no-training: without the steps of LoRA and what comes after them.
LLAMA: the folder with node-llama-cpp of check_gguf.mjs, which then reads the exported GGUF file.

Of a language model: the ids of hard strings, the log-probabilities of three texts, a greedy continuation of 48 tokens for each, a chat
rendered by the model's template and answered, five steps of LoRA with the loss of each, the trained model's log-probabilities, the merged
model opened by transformers, and the merged model as GGUF (f16) read by llama.cpp.
A continuation is equal if each of its tokens is the most probable one to transformers, given those before it.

Exits with 1 if a difference is larger than LIMITS allow.

Versions: torch==2.15.0 transformers==5.23.0 peft==0.21.2 gguf==0.19.0
"""
import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

TEXTS = [
    "The lighthouse keeper climbed the stairs slowly, counting each one under his breath. At the top he found the lamp already lit, and",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    a, b = 0, 1\n    for _ in range(n - 1):\n        a, b = b, a + b\n    return",
    "Die Hauptstadt von Frankreich ist Paris. La capital de Espa\u00f1a es Madrid. The capital of Italy is",
]
HARD = [
    "it's we'll THEY'RE I'M",
    "  two spaces,\tone tab\n\n\nthree breaks \n \n",
    "12345 6.78e-9 1,000,000 \u0663\u0664",
    "na\u00efve e\u0301te\u0301 \u00e9t\u00e9 \u0915\u093f\u0924\u093e\u092c",
    "\u4e2d\u6587\u5206\u8bcd\u3001\u65e5\u672c\u8a9e\u306e\u6587 \ud55c\uad6d\uc5b4",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "<|im_start|>user <bos> <eos> <start_of_turn> [PAD] </s> <|endoftext|>",
    "\u2581x \u00a0y\u3000z \ufeffBOM \u200bzero",
    "for(i=0;i<n;++i){a[i]*=2;}//x\r\n",
    " leading and trailing ",
    "\u0000\u0007 control \u001b[0m",
    "\u2126 \ufb01 \u212b \u00bd \u2167",
]
CHAT = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "  What is the capital of France? "},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "And of Italy?"},
]
ROWS = [
    {"prompt": f"Translate into French: {english}\n", "completion": f"{french}"}
    for english, french in [
        ("the cat", "le chat"), ("a red house", "une maison rouge"), ("good morning", "bonjour"), ("thank you", "merci"),
        ("the sea is blue", "la mer est bleue"), ("two apples", "deux pommes"), ("my brother", "mon fr\u00e8re"), ("where?", "o\u00f9 ?"),
    ]
]
STEPS, LR = 5, 2e-4
# In nats; of scores in their units.
LIMITS = {"logprobs": 1e-3, "loss": 1e-4, "trained": 2e-3, "merged": 1e-3, "scores": 1e-4}


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


# A process begins with the peak memory of the one that started it: a small one in between, which writes down its child's.
SMALL = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


def measured(command, cwd):
    """Runs a command; returns its output, its seconds and its peak memory in MB."""
    peak = os.path.join(cwd, "peak")
    start = time.time()
    done = subprocess.run([sys.executable, "-S", "-c", SMALL, peak, *command], cwd=cwd, capture_output=True, text=True, encoding="utf-8")
    seconds = time.time() - start
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    for line in done.stderr.splitlines():
        if "warning" in line:
            print(f"  temper: {line}")
    with open(peak, encoding="utf-8") as file:
        return done.stdout, seconds, int(file.read()) / 1000


def location(model):
    """The arguments of `from_pretrained` for a folder or a GGUF file."""
    if os.path.isdir(model):
        return model, {}
    return os.path.dirname(model), {"gguf_file": os.path.basename(model)}


def logprobs_of(model, ids, start):
    """Log-probabilities of `ids[start:]`, and the most probable token at each of their places."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, start - 1 : -1].float()
    logprobs = torch.log_softmax(logits, -1)
    return logprobs.gather(-1, torch.tensor(ids[start:])[:, None])[:, 0], logits.argmax(-1), logprobs


def largest(found, expected):
    return max(float((torch.tensor(a) - torch.as_tensor(b)).abs().max()) for a, b in zip(found, expected, strict=True))


class Model:
    """One language model on its way."""

    def __init__(self, args, name, path):
        self.temper, self.llama, self.name, self.path = os.path.abspath(args.temper), args.llama, name, os.path.abspath(path)
        self.scratch = os.path.join(os.path.abspath(args.scratch), name)
        shutil.rmtree(self.scratch, ignore_errors=True)
        os.makedirs(self.scratch)
        self.trains = not args.no_training
        self.row, self.failed = {"model": name}, []

    def run(self, *command):
        return measured([self.temper, *command], self.scratch)

    def at(self, name):
        return os.path.join(self.scratch, name)

    def note(self, key, value, limit=None):
        self.row[key] = f"{value:.1e}" if isinstance(value, float) else value
        print(f"  {key}: {self.row[key]}", flush=True)
        if limit is not None and not value <= limit:
            self.failed.append(f"{key} {value:.1e}, allowed {limit:.1e}")

    def go(self):
        print(self.name, flush=True)
        folder, how = location(self.path)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **how)
        self.ids()
        write(self.at("rows.jsonl"), [{"input_ids": self.tokenizer(text)["input_ids"]} for text in TEXTS])
        write(self.at("prompts.jsonl"), [{"prompt": text} for text in TEXTS])
        self.first()
        if self.trains:
            self.train()
            self.export()
        start = time.time()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()
        print(f"  transformers: loaded in {time.time() - start:.1f} s")
        self.note("family", f"{model.config.model_type}, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M")
        self.compare(model)
        if self.trains:
            self.compare_training(model)
            del model
            gc.collect()
            self.compare_merged()
        return self.row, self.failed

    def ids(self):
        write(self.at("hard.jsonl"), [{"text": text} for text in HARD])
        self.run("logprobs", "--model", self.path, "--data", "hard.jsonl", "--output", "hard.out")
        others = 0
        for text, row in zip(HARD, lines(self.at("hard.out")), strict=True):
            found, expected = row["input_ids"], self.tokenizer(text)["input_ids"]
            if found != expected:
                others += 1
                print(f"  {text!r}:\n    temper       {found}\n    transformers {expected}")
        self.note("ids", f"{len(HARD) - others} of {len(HARD)}")
        if others:
            self.failed.append(f"{others} texts with other ids")

    def first(self):
        write(self.at("one.jsonl"), [{"input_ids": self.tokenizer("a b")["input_ids"]}])
        _, seconds, peak = self.run("logprobs", "--model", self.path, "--data", "one.jsonl", "--output", "one.out")
        self.note("load", f"{seconds:.1f} s, {peak:.0f} MB")
        self.run("logprobs", "--model", self.path, "--data", "rows.jsonl", "--output", "rows.out")
        greedy = ["--temperature", "0", "--max-new-tokens", "48"]
        self.run("generate", "--model", self.path, "--data", "prompts.jsonl", *greedy, "--output", "greedy.out")
        if self.tokenizer.chat_template:
            write(self.at("chat.jsonl"), [{"prompt": CHAT}, {"prompt": CHAT[1:2]}])
            self.run("generate", "--model", self.path, "--data", "chat.jsonl", *greedy, "--output", "chat.out")

    def train(self):
        write(self.at("train.jsonl"), ROWS)
        recipe = (
            f'(name: "real", model: {json.dumps(self.path)}, stages: [Sft(name: "sft", data: (source: "train.jsonl"),'
            f" peft: Lora(rank: 8, alpha: 16.0), optim: (lr: {LR}), batch_size: {len(ROWS)}, shuffle: false, max_steps: {STEPS})])"
        )
        with open(self.at("real.ron"), "w", encoding="utf-8") as file:
            file.write(recipe)
        # The adapter before the first step: a step of no size leaves it.
        self.run("recipe", "real.ron", "--output", "start", "--set", "stages.sft.max_steps=1", "--set", "stages.sft.optim.lr=1e-30")
        _, seconds, peak = self.run("recipe", "real.ron", "--output", "run")
        self.note("training", f"{seconds:.0f} s, {peak:.0f} MB")
        self.run("logprobs", "--run", "run", "--stage", "sft", "--data", "rows.jsonl", "--output", "trained.out")

    def export(self):
        self.run("export", "--run", "run", "--stage", "sft", "--merge", "--to", "merged")
        if self.llama:
            self.run("export", "--model", "merged", "--to", "merged.gguf")
            greedy = ["--temperature", "0", "--max-new-tokens", "48"]
            self.run("generate", "--model", "merged.gguf", "--data", "prompts.jsonl", *greedy, "--output", "answers.jsonl")
            script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "check_gguf.mjs")
            command = ["node", script, self.llama, self.at("merged.gguf"), self.at("answers.jsonl")]
            done = subprocess.run(command, capture_output=True, text=True)
            print(f"  llama.cpp: {done.stdout.strip()}{done.stderr.strip()}")
            found = re.search(r"largest difference (\S+) nats, (\d+) other choices", done.stdout)
            self.note("llama.cpp", f"{found[1]}, {found[2]} other choices" if found else "failed")
            if done.returncode != 0:
                self.failed.append("llama.cpp")
            os.remove(self.at("merged.gguf"))

    def answers(self, model, prompts, path):
        """How many continuations are greedy to `model`, too, and the largest difference of their log-probabilities."""
        equal, most = 0, 0.0
        for ids, row in zip(prompts, lines(path), strict=True):
            logprobs, argmax, every = logprobs_of(model, ids + row["ids"], len(ids))
            same = argmax.tolist() == row["ids"]
            equal += same
            if not same:
                at = next(i for i, (a, b) in enumerate(zip(argmax.tolist(), row["ids"])) if a != b)
                print(f"  another token at {at}, whose log-probability is {every[at].max() - every[at, row['ids'][at]]:.1e} higher")
            most = max(most, largest([row["logprobs"]], [logprobs]))
        return equal, most

    def compare(self, model):
        rows = [row["input_ids"] for row in lines(self.at("rows.jsonl"))]
        self.expected = [logprobs_of(model, ids, 1)[0] for ids in rows]
        found = [row["logprobs"] for row in lines(self.at("rows.out"))]
        self.note("logprobs", largest(found, self.expected), LIMITS["logprobs"])
        equal, most = self.answers(model, rows, self.at("greedy.out"))
        self.note("greedy", f"{equal} of {len(rows)}")
        self.note("greedy logprobs", most, LIMITS["logprobs"])
        if equal != len(rows):
            self.failed.append("greedy")
        if not self.tokenizer.chat_template:
            self.note("chat", "no template")
        else:
            chats = [CHAT, CHAT[1:2]]
            chats = [self.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
            equal, most = self.answers(model, chats, self.at("chat.out"))
            self.note("chat", f"{equal} of {len(chats)}, {most:.1e}")
            if equal != len(chats) or most > LIMITS["logprobs"]:
                self.failed.append("chat")

    def compare_training(self, model):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, self.at("start/sft/adapter"), is_trainable=True).eval()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
        write(self.at("ids.jsonl"), ROWS)
        self.run("logprobs", "--model", self.path, "--data", "ids.jsonl", "--output", "ids.out")
        rows = [(row["input_ids"], len(row["logprobs"])) for row in lines(self.at("ids.out"))]
        eos = self.tokenizer.eos_token_id
        losses = []
        for _ in range(STEPS):
            optimiser.zero_grad()
            total, count = 0.0, sum(length + 1 for _, length in rows)
            for ids, length in rows:
                ids = torch.tensor([ids + [eos]])
                logits = model(ids).logits[0, -length - 2 : -1]
                loss = torch.nn.functional.cross_entropy(logits, ids[0, -length - 1 :], reduction="sum") / count
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            losses.append(total)
        found = [row["loss"] for row in lines(self.at("run/sft/metrics.jsonl")) if "loss" in row]
        print(f"  losses: temper {found}\n          PEFT   {losses}")
        self.note("loss", largest([found], [losses]), LIMITS["loss"])
        trained = [logprobs_of(model, row["input_ids"], 1)[0] for row in lines(self.at("rows.jsonl"))]
        self.note("trained", largest([row["logprobs"] for row in lines(self.at("trained.out"))], trained), LIMITS["trained"])

    def compare_merged(self):
        model = AutoModelForCausalLM.from_pretrained(self.at("merged"), dtype=torch.float32).eval()
        expected = [logprobs_of(model, row["input_ids"], 1)[0] for row in lines(self.at("rows.jsonl"))]
        self.note("merged", largest([row["logprobs"] for row in lines(self.at("trained.out"))], expected), LIMITS["merged"])
        tokenizer = AutoTokenizer.from_pretrained(self.at("merged"))
        same = all(tokenizer(text)["input_ids"] == self.tokenizer(text)["input_ids"] for text in HARD)
        self.note("merged tokenizer", "equal" if same else "other ids")
        if not same:
            self.failed.append("the merged model's tokenizer")
        shutil.rmtree(self.at("merged"))


def encoder(args, name, path):
    """Scores of an encoder with a seeded head, for texts and for pairs of them."""
    print(name, flush=True)
    model = Model(args, name, path)
    torch.manual_seed(5)
    peer = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2, dtype=torch.float32).eval()
    with torch.no_grad():
        peer.classifier.weight.normal_(std=0.5)
        peer.classifier.bias.normal_(std=0.5)
    tokenizer = AutoTokenizer.from_pretrained(path)
    # A pooler that the file lacks is drawn, too: the classifier that both read is this one.
    peer.save_pretrained(model.at("classifier"))
    tokenizer.save_pretrained(model.at("classifier"))
    model.note("family", f"{peer.config.model_type}, {sum(p.numel() for p in peer.parameters()) / 1e6:.0f} M")
    texts = [text for text in HARD + TEXTS if text.strip()]
    write(model.at("texts.jsonl"), [{"prompt": "", "completion": text} for text in texts])
    options = ["--reads", "response", "--label", "LABEL_1", "--label-score", "logit"]
    _, seconds, peak = model.run("score", "--model", "classifier", "--data", "texts.jsonl", *options, "--output", "scores.out")
    model.note("load", f"{seconds:.1f} s, {peak:.0f} MB")
    with torch.no_grad():
        expected = [float(peer(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0, 1]) for text in texts]
    found = [row["score"] for row in lines(model.at("scores.out"))]
    model.note("scores", largest([found], [expected]), LIMITS["scores"])
    return model.row, model.failed


COLUMNS = {
    "model": "model", "family": "family, parameters", "load": "load and one row", "ids": "ids of hard strings", "logprobs": "log-probabilities",
    "greedy": "greedy, 48 tokens", "chat": "chat", "training": "5 steps of LoRA", "loss": "their losses", "trained": "log-probabilities after",
    "merged": "merged, by transformers", "llama.cpp": "as GGUF, by llama.cpp", "scores": "scores",
}


def main():
    warnings.filterwarnings("ignore", category=FutureWarning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("temper")
    parser.add_argument("scratch")
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--llama")
    parser.add_argument("--table")
    parser.add_argument("--no-training", action="store_true")
    args = parser.parse_args()
    rows, failures = [], []
    for text in args.models:
        name, path = text.split("=", 1)
        is_encoder = os.path.isdir(path) and AutoConfig.from_pretrained(path).model_type in ("bert", "distilbert", "roberta", "xlm-roberta")
        row, failed = encoder(args, name, path) if is_encoder else Model(args, name, path).go()
        rows.append(row)
        failures += [f"{name}: {failure}" for failure in failed]
    used = [key for key in COLUMNS if any(key in row for row in rows)]
    table = ["| " + " | ".join(COLUMNS[key] for key in used) + " |", "|" + "---|" * len(used)]
    table += ["| " + " | ".join(row.get(key, "") for key in used) + " |" for row in rows]
    print("\n".join(table))
    if args.table:
        with open(args.table, "w", encoding="utf-8") as file:
            file.write("\n".join(table) + "\n")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
