"""Makes `tokenizer_files/`: a small vocabulary, the many ways in which the files beside it can name tokens, classes and
templates, and what transformers makes of each (see README.md).

usage: tokenizer_files.py OUT_DIR          writes OUT_DIR/tokenizer_files/

Versions: transformers==5.23.0 tokenizers==0.23.3
"""
import json
import os
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

# What the classes disagree about: digits, line breaks after punctuation, contractions, accents in two forms, a first space.
TEXTS = [
    "a <tool> b<pic> <pad>",
    "hi  hi\n\nhi <|endoftext|> IT'S we'll 123",
    "e\u0301te\u0301 \u00e9t\u00e9 \u0915\u093f x!\n\n\n y",
    " hi",
    "",
]
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
END = "<|endoftext|>"
WORDS = ["hi", " hi", "12", "e\u0301", "\u00e9", "!\n", "\n\n", "'s", "'S", "we", " we", "'ll", "\u0915\u093f"]


def bpe():
    """Bytes, and merges that spell the words: the patterns show in which of them come about."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {char: id for id, char in enumerate(sorted(alphabet))}
    merges = []
    for word in WORDS:
        pieces = list("".join(piece for piece, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(word)))
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            pieces[:2] = ["".join(pair)]
            if pieces[0] not in vocab:
                vocab[pieces[0]] = len(vocab)
                merges.append(pair)
    return vocab, merges


def whole(vocab, merges, post_processor=None):
    """The same as a tokenizer.json, with END as a special token and <plain> as one that is not."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(END, special=True, normalized=False), AddedToken("<plain>", special=False)])
    if post_processor:
        tokenizer.post_processor = post_processor
    return json.loads(tokenizer.to_str())


def token(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False} | flags


def special(content, **flags):
    return token(content, special=True, **flags)


def template(text):
    return text + "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def cases(vocab, merges):
    tokenizer = whole(vocab, merges)
    size = len(vocab)
    first = size + 2  # After END and <plain>.

    def beside(**files):
        """tokenizer.json with other files; a configuration always names EOS."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END} | files.pop("config", {})
        files = {name.replace("__", "."): value for name, value in files.items()}
        return {"tokenizer.json": tokenizer, "tokenizer_config.json": config} | files

    def pair(config=None, model=None, vocab=vocab | {END: size}, **files):
        """vocab.json and merges.txt."""
        text = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in merges)
        files = {name.replace("__", "."): value for name, value in files.items()}
        found = {"vocab.json": vocab, "merges.txt": text} | files
        if config is not None:
            found["tokenizer_config.json"] = config
        if model is not None:
            found["config.json"] = model
        return found

    around = {}
    for name, single, tokens in [
        ("before", f"{END} $A", [END]),
        ("after", f"$A {END}", [END]),
        ("both", f"<plain> {END} $A {END}", [END, "<plain>"]),
    ]:
        ids = {END: size, "<plain>": size + 1}
        post = processors.TemplateProcessing(single=single, pair=None, special_tokens=[(t, ids[t]) for t in tokens])
        around[f"post_processor_{name}"] = beside() | {"tokenizer.json": whole(vocab, merges, post)}

    gpt2 = {"tokenizer_class": "GPT2Tokenizer"}
    qwen2 = {"tokenizer_class": "Qwen2Tokenizer"}
    named = [{"name": "default", "template": template("list ")}, {"name": "tool_use", "template": template("tools ")}]
    return {
        # Tokens that only one file names.
        "additional": beside(config={"additional_special_tokens": ["<tool>"]}),
        "extra": beside(config={"extra_special_tokens": ["<tool>", "<pic>"]}),
        "extra_over_additional": beside(config={"extra_special_tokens": ["<pic>"], "additional_special_tokens": ["<tool>"]}),
        "extra_map": beside(config={"extra_special_tokens": {"tool_token": "<tool>"}}),
        "own_name": beside(config={"image_token": "<pic>"}),
        "pad": beside(config={"pad_token": "<pad>"}),
        "pad_strips": beside(config={"pad_token": special("<pad>", lstrip=True) | {"__type": "AddedToken"}}),
        "order": beside(config={"extra_special_tokens": ["<tool>", "<pic>"], "pad_token": "<pad>"}),
        "map_additional": beside(special_tokens_map__json={"additional_special_tokens": ["<tool>"]}),
        "map_extra": beside(special_tokens_map__json={"extra_special_tokens": ["<tool>"]}),
        "map_extra_map": beside(special_tokens_map__json={"extra_special_tokens": {"tool_token": "<tool>"}}),
        "map_and_config": beside(
            config={"extra_special_tokens": ["<pic>"]}, special_tokens_map__json={"additional_special_tokens": ["<tool>"]}
        ),
        "map_pad": beside(special_tokens_map__json={"pad_token": "<pad>"}),
        "map_is_older": beside(
            config={"added_tokens_decoder": {}}, special_tokens_map__json={"additional_special_tokens": ["<tool>"]}
        ),
        "added_tokens": beside(added_tokens__json={"<pic>": first + 1, "<tool>": first}),
        "added_tokens_special": beside(
            added_tokens__json={"<tool>": first, "<pic>": first + 1}, config={"additional_special_tokens": ["<tool>"]}
        ),
        "decoder": beside(config={"added_tokens_decoder": {str(first): special("<tool>"), str(first + 1): token("<pic>")}}),
        "decoder_strips": beside(config={"added_tokens_decoder": {str(first): special("<tool>", lstrip=True, rstrip=True)}}),
        "decoder_over_tokenizer": beside(config={"added_tokens_decoder": {str(size): special(END, lstrip=True)}}),
        # Vocabulary and merges by class.
        "pair_alone": pair(model={"model_type": "gpt2"}),
        "pair_gpt2": pair(gpt2),
        "pair_gpt2_fast": pair({"tokenizer_class": "GPT2TokenizerFast"}),
        "pair_gpt2_prefix": pair(gpt2 | {"add_prefix_space": True}),
        "pair_gpt2_bos_eos": pair(gpt2 | {"add_bos_token": True, "add_eos_token": True}),
        "pair_gpt2_new_eos": pair(gpt2 | {"eos_token": "<end>", "pad_token": "<pad>"}),
        "pair_gpt2_added": pair(gpt2, added_tokens__json={"<tool>": size + 1}),
        "pair_no_end": pair(gpt2, vocab=vocab),
        "pair_neox": pair({"tokenizer_class": "GPTNeoXTokenizer"}),
        "pair_qwen2": pair(qwen2),
        "pair_qwen2_chat": pair(
            qwen2
            | {
                "eos_token": "<end>",
                "pad_token": END,
                "bos_token": None,
                "additional_special_tokens": ["<begin>", "<end>"],
                "added_tokens_decoder": {
                    str(size): special(END),
                    str(size + 1): special("<begin>"),
                    str(size + 2): special("<end>"),
                    str(size + 3): token("<tool>"),
                },
            }
        ),
        "pair_model_type_qwen3": pair(model={"model_type": "qwen3"}),
        "pair_model_type_qwen2_over_class": pair(gpt2, model={"model_type": "qwen2"}),
        "pair_class_over_model_type": pair(gpt2, model={"model_type": "qwen3"}),
        "pair_codegen": pair({"tokenizer_class": "CodeGenTokenizer"}),
        # What stands around a text.
        **around,
        # Templates.
        "template_string": beside(config={"chat_template": template("config ")}),
        "template_list": beside(config={"chat_template": named}),
        "template_tools_only": beside(config={"chat_template": named[1:]}),
        "template_file": beside(config={"chat_template": named}, chat_template__jinja=template("file ")),
        "template_folder": beside(
            config={"chat_template": template("config ")},
            **{
                "chat_template__jinja": template("file "),
                "additional_chat_templates/tool_use__jinja": template("folder {{ tools | tojson }} "),
                "additional_chat_templates/rag__jinja": template("rag "),
            },
        ),
        "template_folder_alone": beside(
            config={"chat_template": template("config ")},
            **{"additional_chat_templates/tool_use__jinja": template("folder ")},
        ),
        "template_names": beside(
            config={"chat_template": template("{{ eos_token }}{{ image_token }}{{ tool_token }} "), "image_token": "<pic>",
                    "extra_special_tokens": {"tool_token": "<tool>"}},
        ),
    }


def put(folder, files):
    for name, content in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(content if isinstance(content, str) else json.dumps(content))


def rendered(tokenizer, tools):
    try:
        return tokenizer.apply_chat_template(MESSAGES, tools=tools, tokenize=False)
    except ValueError:
        return None


def expected(files):
    with tempfile.TemporaryDirectory() as folder:
        put(folder, files)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = []
        for text in TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=True)
            rows.append([text, ids, tokenizer.decode(ids, skip_special_tokens=True)])
        found = {"class": type(tokenizer).__name__, "eos_id": tokenizer.eos_token_id, "bos_id": tokenizer.bos_token_id,
                 "max_id": max(tokenizer.get_vocab().values()), "rows": rows}
        if tokenizer.chat_template:
            found["chat"] = rendered(tokenizer, None)
            found["chat_with_tools"] = rendered(tokenizer, TOOLS)
        return found


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    vocab, merges = bpe()
    # What most cases share is written once.
    shared = {"tokenizer.json": whole(vocab, merges), "vocab.json": vocab | {END: len(vocab)}}
    found = {}
    for name, files in cases(vocab, merges).items():
        own = {file: ("shared" if content == shared.get(file) else content) for file, content in files.items()}
        found[name] = {"files": own, "expected": expected(files)}
    os.makedirs(f"{sys.argv[1]}/tokenizer_files", exist_ok=True)
    with open(f"{sys.argv[1]}/tokenizer_files/ref.json", "w") as file:
        json.dump({"messages": MESSAGES, "tools": TOOLS, "shared": shared, "cases": found}, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
