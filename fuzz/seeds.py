"""Writes the seeds in binary formats, and those that are made of files elsewhere in the repository; the others are written by hand.

Needs pyarrow. Run from the root of the repository: python fuzz/seeds.py
"""

import gzip
import json
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parent
REFERENCE = ROOT.parent / "tests" / "reference"


def put(target: str, name: str, content: bytes | str) -> None:
    path = ROOT / "seeds" / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


# Rows.
chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]
table = pa.table({
    "prompt": ["a", "b", None, "d\u00e9"] * 4,
    "label": [1, 2, 3, None] * 4,
    "margin": [0.5, -1.0, None, 2.0] * 4,
    "ok": [True, None, False, True] * 4,
    "messages": [chat, [], None, chat[:1]] * 4,
    "when": pa.array([0, 1, None, 3] * 4, pa.timestamp("ms")),
    "bytes": [b"\0\xff", b"", None, b"x"] * 4,
    "price": pa.array([None] * 16, pa.decimal128(5, 2)),
})
for name, options in {
    "snappy": {"compression": "snappy"},
    "zstd": {"compression": "zstd", "data_page_version": "2.0"},
    "gzip": {"compression": "gzip", "use_dictionary": False},
    "plain": {"compression": "none", "use_dictionary": False, "write_statistics": False},
}.items():
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=8, store_schema=False, **options)
    put("rows", f"{name}.parquet", sink.getvalue().to_pybytes())
sink = pa.BufferOutputStream()
pq.write_table(pa.table({"text": ["a", "b"]}), sink, compression="none", store_schema=False)
put("rows", "small.parquet", sink.getvalue().to_pybytes())
put("rows", "rows.jsonl.gz", gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 20, mtime=0))


# safetensors: headers over 1,024 bytes, whole files, an index.
def header(tensors: dict[str, tuple[str, list[int], int]], metadata: dict | None = None) -> str:
    entries, at = ({"__metadata__": metadata} if metadata else {}), 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return json.dumps(entries)


tensors = {"a": ("F32", [4, 16], 256), "b": ("F16", [128], 256), "c": ("BF16", [2, 4, 16], 256), "ids": ("I64", [16], 128),
           "u": ("U8", [128], 128), "none": ("F32", [0], 0)}
put("safetensors", "header.json", header(tensors, {"format": "pt"}))
state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [16, 16]})
name = "model.layers.0.mlp.up_proj.weight"
four_bits = {name: ("U8", [128, 1], 128), f"{name}.absmax": ("F32", [4], 16), f"{name}.quant_map": ("F32", [16], 64),
             f"{name}.quant_state.bitsandbytes__nf4": ("U8", [len(state)], len(state)),
             "rest": ("U8", [816 - len(state)], 816 - len(state))}
text = header(four_bits).encode()
data = b"\x3c" * (128 + 16 + 64) + state.encode() + b"\0" * (816 - len(state))
put("safetensors", "nf4.safetensors", struct.pack("<Q", len(text)) + text + data)
text = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
put("safetensors", "small.safetensors", struct.pack("<Q", len(text)) + text + bytes(8))
put("safetensors", "index.json", json.dumps({"metadata": {"total_size": 8}, "weight_map": {"w": "a.safetensors"}}))


# GGUF.
def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(x) -> bytes:
    match x:
        case bool():
            return struct.pack("<IB", 7, x)
        case int():
            return struct.pack("<II", 4, x)
        case float():
            return struct.pack("<If", 6, x)
        case str():
            return struct.pack("<I", 8) + text(x)
        case list():
            items = [value(item) for item in x]
            return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)


# ggml's numbers of types: bytes of a block, and its length.
BLOCKS = {0: (4, 1), 1: (2, 1), 8: (34, 32), 2: (18, 32), 12: (144, 256), 14: (210, 256)}


def gguf(metadata: dict, tensors: dict[str, tuple[list[int], int]]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(key) + value(x) for key, x in metadata.items())
    data = b""
    for name, (shape, kind) in tensors.items():
        size, length = BLOCKS[kind]
        count = 1
        for dim in shape:
            count *= dim
        data += bytes(-len(data) % 32)
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += (b"\x3c" * size) * (count // length)
    return head + bytes(-len(head) % 32) + data


def decoder(family: str, kind: int = 0, width: int = 8) -> tuple[dict, dict]:
    half = width // 2
    tensors = {"token_embd.weight": ([width, 4], 0), "output_norm.weight": ([width], 0)}
    for layer in range(2):
        for name, shape in {"attn_q": [width, width], "attn_k": [width, half], "attn_v": [width, half], "attn_output": [width, width],
                            "ffn_gate": [width, width], "ffn_up": [width, width], "ffn_down": [width, width]}.items():
            tensors[f"blk.{layer}.{name}.weight"] = (shape, kind)
        for name in ["attn_norm", "ffn_norm"]:
            tensors[f"blk.{layer}.{name}.weight"] = ([width], 0)
    keys = {"embedding_length": width, "feed_forward_length": width, "block_count": 2, "context_length": 16, "attention.head_count": 2,
            "attention.head_count_kv": 1, "attention.key_length": half, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e5}
    return {"general.architecture": family} | {f"{family}.{key}": x for key, x in keys.items()}, tensors


SENTENCEPIECE = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "</s>", "\u2581a", "b"],
                 "tokenizer.ggml.scores": [0.0, 0.0, -1.0, -2.0], "tokenizer.ggml.token_type": [2, 3, 1, 1],
                 "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": True,
                 "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}</s>{% endfor %}"}
BYTE_LEVEL = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": ["a", "b", "ab", "</s>"],
              "tokenizer.ggml.token_type": [1, 1, 1, 3], "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 3}
metadata, tensors = decoder("llama")
put("gguf", "llama.gguf", gguf(metadata | SENTENCEPIECE, tensors))
put("gguf", "header.gguf", gguf(metadata | SENTENCEPIECE, {"token_embd.weight": ([8, 4], 0)}))
metadata, tensors = decoder("qwen3", 8, 32)
tensors |= {f"blk.{layer}.attn_{x}_norm.weight": ([16], 0) for layer in range(2) for x in "qk"}
put("gguf", "qwen3.gguf", gguf(metadata | BYTE_LEVEL, tensors))
metadata, tensors = decoder("gemma3", 2, 32)
put("gguf", "gemma3.gguf", gguf(metadata | SENTENCEPIECE | {"gemma3.attention.sliding_window": 8}, tensors))
metadata, tensors = decoder("phi3")
put("gguf", "phi3.gguf", gguf(metadata | {"phi3.rope.dimension_count": 4} | SENTENCEPIECE,
                              tensors | {"rope_factors_long.weight": ([2], 0), "rope_factors_short.weight": ([2], 0)}))
gpt2 = {"general.architecture": "gpt2", "gpt2.embedding_length": 4, "gpt2.block_count": 1, "gpt2.attention.head_count": 2,
        "gpt2.context_length": 8, "gpt2.feed_forward_length": 16, "gpt2.attention.layer_norm_epsilon": 1e-5}
put("gguf", "gpt2.gguf", gguf(gpt2 | BYTE_LEVEL, {"token_embd.weight": ([4, 4], 0), "position_embd.weight": ([4, 8], 1),
                                                  "blk.0.ffn_up.weight": ([4, 16], 0), "blk.0.attn_qkv.weight": ([4, 12], 0)}))
bloom = {"general.architecture": "bloom", "bloom.embedding_length": 4, "bloom.block_count": 1, "bloom.attention.head_count": 2,
         "bloom.context_length": 8, "bloom.attention.layer_norm_epsilon": 1e-5}
put("gguf", "bloom.gguf", gguf(bloom | BYTE_LEVEL, {"token_embd.weight": ([4, 4], 0), "blk.0.attn_qkv.weight": ([4, 12], 0),
                                                    "blk.0.attn_qkv.bias": ([12], 0)}))
put("gguf", "k-quants.gguf", gguf({"general.architecture": "llama", "llama.attention.head_count": 2},
                                  {"blk.0.ffn_up.weight": ([256, 1], 12), "blk.0.ffn_down.weight": ([256, 1], 14),
                                   "blk.0.attn_q.weight": ([32, 4], 8), "blk.0.ffn_gate.weight": ([1, 32], 1)}))

# Settings, tokenizers and templates of the tests' references.
for family in ["bloom", "gemma2", "gemma3", "gpt2", "gpt_neox", "llama_rope3", "mistral", "olmo2", "opt", "phi3", "qwen2_window", "qwen3",
               "smollm3", "encoders/bert", "encoders/distilbert", "encoders/roberta", "llama_nf4"]:
    put("config", f"{family.split('/')[-1]}.json", (REFERENCE / family / "config.json").read_bytes())
for adapter in ["peft/dora", "peft/ia3", "peft/vera_bias_all", "peft/only_tokens", "peft/patterns", "prompts/p_lstm", "prompts/prefix_mlp",
                "prompts/prompt", "bottlenecks/houlsby"]:
    put("config", f"adapter-{adapter.split('/')[-1]}.json", (REFERENCE / adapter / "adapter_config.json").read_bytes())
for file in sorted((REFERENCE / "templates").glob("*.jinja")):
    put("template", file.name, file.read_bytes())


def joined(folder: str, *names: str) -> bytes:
    files = [REFERENCE / folder / name for name in names]
    return b"".join(f"--- {file.name}\n".encode() + file.read_bytes().rstrip(b"\n") + b"\n" for file in files)


for name in ["unigram", "digits", "qwen"]:
    put("tokenizer", name, joined(f"tokenizers/{name}", "tokenizer_config.json", "tokenizer.json"))
put("tokenizer", "gpt2", joined("tokenizers/gpt2_bos", "tokenizer_config.json", "vocab.json", "merges.txt"))
put("tokenizer", "bert", joined("encoders/bert", "tokenizer_config.json", "config.json", "tokenizer.json"))
put("tokenizer", "distilbert", joined("encoders/distilbert", "tokenizer_config.json", "vocab.txt"))

# Small tokenizers of every component.
words = {"a": 0, "b": 1, "ab": 2, "</s>": 3, "<unk>": 4, " ": 5, "\u2581": 6, "<0x61>": 7}
models = {
    "bpe": {"type": "BPE", "vocab": words, "merges": [["a", "b"]], "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True,
            "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False},
    "wordpiece": {"type": "WordPiece", "vocab": words | {"##b": 8}, "unk_token": "<unk>", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100},
    "wordlevel": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    "unigram-small": {"type": "Unigram", "unk_id": 4, "byte_fallback": True, "vocab": [[word, -float(i)] for word, i in words.items()]},
}
charsmap = "ALQCAACEAAAAAACAAQAAgMz8AgC4BQAAhyIAgMzkAgC4PQAAeyIAgMzsAgC4BQAAiyIAgMw8AADNvAAAmwkAgJ4JAIChCQCAgx0AAIAZAACBGQAA"
normalizers = [
    {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}, {"type": "StripAccents"}, {"type": "Nmt"},
                                         {"type": "Strip", "strip_left": True, "strip_right": False}, {"type": "Prepend", "prepend": "\u2581"},
                                         {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
    {"type": "Precompiled", "precompiled_charsmap": charsmap},
]
pre_tokenizers = [
    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "Isolated"},
                                           {"type": "Split", "pattern": {"Regex": "\\p{L}+|(?!a)\\s"}, "behavior": "MergedWithPrevious",
                                            "invert": True}, {"type": "UnicodeScripts"}]},
    {"type": "BertPreTokenizer"},
    {"type": "CharDelimiterSplit", "delimiter": " "},
    {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
]
post_processors = [
    {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
     "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
     "special_tokens": {"</s>": {"id": "</s>", "ids": [3], "tokens": ["</s>"]}}},
    {"type": "BertProcessing", "sep": ["</s>", 3], "cls": ["<unk>", 4]},
    {"type": "RobertaProcessing", "sep": ["</s>", 3], "cls": ["<unk>", 4], "trim_offsets": True, "add_prefix_space": False},
    {"type": "Sequence", "processors": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}]},
]
decoders = [
    {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
                                      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    {"type": "BPEDecoder", "suffix": "</w>"},
]
added = [{"id": 3, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": True, "normalized": False, "special": True}]
for at, (name, model) in enumerate(models.items()):
    put("tokenizer", f"{name}.json", json.dumps({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 4}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"},
        "added_tokens": added, "normalizer": normalizers[at], "pre_tokenizer": pre_tokenizers[at], "post_processor": post_processors[at],
        "decoder": decoders[at], "model": model}, ensure_ascii=False))
