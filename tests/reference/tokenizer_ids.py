"""Makes the small tokenizers of `tokenizers/` and what transformers does with them (see README.md).

usage: tokenizer_ids.py OUT_DIR          writes OUT_DIR/tokenizers/
       tokenizer_ids.py --real FOLDER    writes FOLDER/<name>/expected.json beside tokenizers that you have (their files stay yours)

Versions: transformers==5.23.0 tokenizers==0.23.3
"""
import json
import math
import os
import sys
from collections import Counter

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

# Text of our own to learn merges from; every sort of piece that the patterns below tell apart is in it.
CORPUS = [
    "The loss falls while the model learns, and then the loss rises again: that is where the run should stop.",
    "A reward model reads the query and the response. It gives one number, higher when people prefer the response.",
    "In 2024 there were 12345 rows, 678 of them empty; 3.14 is not 22/7. We'll see if it's 99% or 100%.",
    "def mean(xs):\n    total = sum(xs)\n    return total / len(xs)\n\n\nprint(mean([1, 2, 3]))\n",
    "na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d \u2026 \u20ac5, \u00fcber \u00e9t\u00e9, Stra\u00dfe, s\u00e3o, \u0142\u00f3d\u017a",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0442\u0435\u043a\u0441\u0442, \u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8, \u4e2d\u6587\u6587\u672c, \ud55c\uad6d\uc5b4",
    "I'm sure they're here; you've been told, he'd said, she'll come. IT'S LOUD. Don't.",
    "user and assistant and system, user and assistant: hello, how are you? I am well, thank you.",
] * 4

# What tokenizers disagree about: white space, digits, contractions, composed and decomposed accents, scripts, emoji,
# special tokens inside text.
TEXTS = [
    "Hello world",
    "In 2024 there were 12345 apples, 3.14",
    "a  b\n\n  c\t1 2",
    "I'm 10x engineer's 99% sure WE'LL, they'Re",
    "na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d \u2026 \u20ac5",
    "e\u0301te\u0301 \u212b \u1e9b\u0323 \ufb01",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \uff11\uff12\uff13 \u0663\u0664",
    "\U0001f600\U0001f44d\U0001f3fd emoji \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "def f(x):\n    return x ** 2  # c\r\n\r\n",
    "<|im_start|>user\nhi<|im_end|>\n<think>\n\n</think> x<|im_end|>",
    "",
    " ",
    "   leading and trailing   ",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940",
    "a\u0000b\u00a0c\u2028d\ufeff",
    "<s>begins</s> and <unk> <|begin_of_text|>x<|eot_id|>",
    "\u2581 metaspace \u2581\u2581x",
    "snake_case camelCase http://a.b/c?d=e&f=1,234.5",
]

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
QWEN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
LLAMA3 = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


def special(*contents):
    return [AddedToken(content, special=True, normalized=False) for content in contents]


def plain(*contents):
    return [AddedToken(content, special=False, normalized=False) for content in contents]


def byte_bpe(pre_tokenizer, vocab_size=420, normalizer=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def gpt2():
    tokenizer = byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_tokens(special("<|endoftext|>"))
    return tokenizer, dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def gpt2_bos():
    """Without tokenizer.json the configuration says whether a text begins with BOS."""
    tokenizer, config = gpt2()
    return tokenizer, dict(**config, add_bos_token=True)


def qwen():
    tokenizer = byte_bpe(split(QWEN), normalizer=normalizers.NFC())
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.add_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens(plain("<think>", "</think>"))
    return tokenizer, dict(eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token=None, add_bos_token=False)


def digits():
    tokenizer = byte_bpe(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    )
    tokenizer.add_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    # With tokenizer.json `add_bos_token` says nothing: the post-processor does.
    return tokenizer, dict(
        bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>", add_bos_token=True
    )


def llama3():
    tokenizer = byte_bpe(split(LLAMA3), ignore_merges=True)
    tokenizer.add_tokens(special("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"))
    bos = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(add_prefix_space=True, trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1", special_tokens=[bos]
            ),
        ]
    )
    return tokenizer, dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def byte_fallback():
    """Characters joined by merges, bytes for those that are not there, a mark for the space: as sentencepiece's BPE."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)],
        max_token_length=8,
        show_progress=False,
    )
    # Spaces end words here so that the merges stay within them.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", behavior="merged_with_next")
    # ASCII only: every other character comes out as its bytes.
    tokenizer.train_from_iterator([text for text in CORPUS if text.isascii()], trainer)
    tokenizer.pre_tokenizer = None
    value = json.loads(tokenizer.to_str())
    # sentencepiece joins what makes the best piece, by whatever parts; the trainer has one merge a piece.
    trained = {"".join(pair): -float(rank) for rank, pair in enumerate(value["model"]["merges"])}
    value["model"]["merges"] = [list(pair) for pair in generate_merges(value["model"]["vocab"], trained)]
    # The bytes are entries of the vocabulary, not added tokens.
    value["added_tokens"] = [token for token in value["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(value))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[bos]
    )
    return tokenizer, dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True, add_eos_token=False)


def unigram_pieces():
    """Frequent parts of words with the logarithm of their share. (The library's trainer gives another result each time.)"""
    counts = Counter()
    for text in CORPUS:
        for word in text.split():
            word = "\u2581" + word
            for start in range(len(word)):
                for end in range(start + 1, min(start + 7, len(word)) + 1):
                    counts[word[start:end]] += 1
    total = sum(counts.values())
    kept = [piece for piece, count in counts.items() if len(piece) == 1 or count >= 24]
    kept.sort(key=lambda piece: (-counts[piece] * len(piece), piece))
    marks = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    return marks + [(piece, round(math.log(counts[piece] / total), 4)) for piece in kept]


def unigram():
    tokenizer = Tokenizer(models.Unigram(unigram_pieces(), 0, False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    eos = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[eos]
    )
    return tokenizer, dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


KINDS = dict(
    gpt2=gpt2, gpt2_bos=gpt2_bos, qwen=qwen, digits=digits, llama3=llama3, byte_fallback=byte_fallback, unigram=unigram
)


def expected(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if type(tokenizer).__name__ == "LlamaTokenizer" and os.path.exists(f"{folder}/tokenizer.json"):
        # transformers 5 builds this one anew from the vocabulary and leaves tokenizer.json's normaliser aside: a text that
        # begins with a space, also after a special token, loses the space that sentencepiece puts before it. The file says
        # what the model was trained with.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        whole = tokenizer.encode(text, add_special_tokens=True)
        # Special tokens around and between, to be skipped.
        rows.append(
            {
                "text": text,
                "ids": ids,
                "ids_with_special": whole,
                "decoded": tokenizer.decode(whole),
                "decoded_skipping_special": tokenizer.decode(whole, skip_special_tokens=True),
            }
        )
    return {
        "bos_id": tokenizer.bos_token_id,
        "eos_id": tokenizer.eos_token_id,
        "vocab_size": len(tokenizer),
        "rows": rows,
    }


def write(path, value):
    with open(path, "w") as file:
        json.dump(value, file, separators=(",", ":"))
        file.write("\n")


def make(root, name):
    tokenizer, config = KINDS[name]()
    folder = f"{root}/tokenizers/{name}"
    os.makedirs(folder, exist_ok=True)
    value = json.loads(tokenizer.to_str())
    if name.startswith("gpt2"):
        # The two files that GPT-2 came with; its end of text is an entry of the vocabulary.
        vocab = value["model"]["vocab"] | {"<|endoftext|>": len(value["model"]["vocab"])}
        write(f"{folder}/vocab.json", vocab)
        with open(f"{folder}/merges.txt", "w") as file:
            file.write("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in value["model"]["merges"]))
        config["tokenizer_class"] = "GPT2Tokenizer"
    else:
        write(f"{folder}/tokenizer.json", value)
        config["tokenizer_class"] = "Qwen2Tokenizer" if name == "qwen" else "PreTrainedTokenizerFast"
    write(f"{folder}/tokenizer_config.json", config)
    return expected(folder)


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--real":
        for name in sorted(os.listdir(sys.argv[2])):
            folder = f"{sys.argv[2]}/{name}"
            if os.path.exists(f"{folder}/tokenizer.json") or os.path.exists(f"{folder}/vocab.json"):
                write(f"{folder}/expected.json", expected(folder))
    elif len(sys.argv) == 2:
        os.makedirs(f"{sys.argv[1]}/tokenizers", exist_ok=True)
        write(f"{sys.argv[1]}/tokenizers/ref.json", {name: make(sys.argv[1], name) for name in KINDS})
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
