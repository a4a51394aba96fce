"""Renders chat templates with transformers (see README.md).

usage: templates.py OUT_DIR          renders OUT_DIR/templates/*.jinja, written for the tests, into OUT_DIR/templates/ref.json;
                                     the tokenizers are those of OUT_DIR/tokenizers (run tokenizer_ids.py first)
       templates.py --real FOLDER    renders FOLDER/*.jinja, templates that you have (they stay yours), into FOLDER/expected.json

Versions: transformers==5.23.0 tokenizers==0.23.3 Jinja2==3.1.6
"""
import datetime
import glob
import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import transformers.utils.chat_template_utils as chat_template_utils
from transformers import AutoTokenizer

NOW = 1721992440  # 2024-07-26 11:14:00 UTC


class FixedDate(datetime.datetime):
    @classmethod
    def now(cls):
        return cls.fromtimestamp(NOW, datetime.timezone.utc)


chat_template_utils.datetime = FixedDate


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city; it's \"now\" \u2014 in \u00b0C.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "e.g. Z\u00fcrich"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Z\u00fcrich", "days": 2, "x": [1.5, None, True]}}}

CONVERSATIONS = {
    "one": [user("Hello")],
    "system": [system("Be brief."), user("Hello")],
    "answered": [user("Hello"), assistant("Hi there.")],
    "turns": [system("Be brief."), user("a"), assistant("b"), user("c"), assistant("d"), user("e")],
    "turns_answered": [user("a"), assistant("b"), user("c"), assistant("d")],
    "empty": [system(""), user(""), assistant("")],
    "spaces": [system("  s \n"), user("\n\n a  "), assistant("  b\n\n"), user(" c\t"), assistant("d \n")],
    "unicode": [user("na\u00efve \u65e5\u672c\u8a9e \U0001f600"), assistant("\u00e9\U0001f44d\U0001f3fd \u0440\u0443\u0441"), user("\u0939\u093f"), assistant("ok \u65e5")],
    "markup": [user("{{ x }} {% y %} <|im_end|> <b>&amp;</b> \\n \"q\" 'p'"), assistant("<|eot_id|>{# no #}")],
    "roles": [user("a"), user("b"), assistant("c"), assistant("d")],
    "nothing": [user("a"), assistant(None), user("b")],
    "parts": [user([{"type": "text", "text": "part one"}, {"type": "text", "text": " part two"}]), assistant([{"type": "text", "text": "seen"}])],
    "reasoning": [user("1+1?"), assistant("2", reasoning_content="one and one"), user("2+2?"), assistant("4", thinking="two and two")],
    "think_tags": [user("1+1?"), assistant("<think>\none\n</think>\n\n2"), user("2+2?"), assistant("<think>\ntwo\n</think>\n\n4")],
    "call": [user("Weather?"), assistant("", tool_calls=[CALL])],
    "call_answered": [
        system("Use tools."),
        user("Weather in Z\u00fcrich?"),
        assistant("I look.", tool_calls=[CALL]),
        {"role": "tool", "name": "get_weather", "content": "{\"t\": 21.5}"},
        {"role": "tool", "name": "get_weather", "content": "sunny"},
        assistant("21.5 degrees."),
        user("Thanks"),
    ],
    "calls": [user("Twice"), assistant("", tool_calls=[CALL, {"type": "function", "function": {"name": "now", "arguments": {}}}])],
    "starts_with_assistant": [assistant("Welcome."), user("Hello")],
}

PLAIN = ["one", "system", "answered", "turns", "turns_answered", "empty", "spaces", "unicode", "markup", "roles", "nothing", "parts"]
OPTIONS = {
    "plain": dict(),
    "prompt": dict(add_generation_prompt=True),
    "continue": dict(continue_final_message=True),
    "tools": dict(tools=[WEATHER, CLOCK]),
    "tools_prompt": dict(tools=[WEATHER], add_generation_prompt=True),
    "no_thinking": dict(add_generation_prompt=True, enable_thinking=False),
    "thinking": dict(add_generation_prompt=True, enable_thinking=True),
    "date": dict(date_string="1 May 2025"),
}


def cases():
    for name, messages in CONVERSATIONS.items():
        yield name, "plain"
        yield name, "prompt"
        if messages[-1]["role"] == "assistant":
            yield name, "continue"
    for name in ["one", "turns", "call_answered", "calls"]:
        yield name, "tools"
    yield "system", "tools_prompt"
    for name in ["one", "turns", "reasoning"]:
        yield name, "no_thinking"
        yield name, "thinking"
    yield "system", "date"


def tokenizer_of(name, source):
    return "llama3" if "_header_id" in source or "begin_of_text" in source else "qwen"


def render(tokenizer, source, messages, options):
    try:
        return tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
    except Exception:
        return None  # refused


def whole_characters(tokenizer, text, ids, mask):
    """The mask with every token of a character that it has the first token of.

    transformers ends a span at the first token of its last character: of a character with several tokens the rest would
    be left out, and a model trained to write half a character. Only a span without an end-of-turn token shows it.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == ids
    offsets, mask = encoded["offset_mapping"], list(mask)
    for i in range(1, len(mask)):
        if mask[i - 1] and offsets[i] == offsets[i - 1] and offsets[i][1] - offsets[i][0] == 1:
            mask[i] = 1
    return mask


def reference(templates, tokenizers):
    """Every template over every case. `null`: transformers refuses."""
    out = {}
    for path in templates:
        name = os.path.basename(path).removesuffix(".jinja")
        with open(path, encoding="utf-8") as file:
            source = file.read()
        tokenizer = tokenizers[tokenizer_of(name, source)]
        specials = {"bos_token": tokenizer.bos_token or "<s>", "eos_token": tokenizer.eos_token}
        rows = []
        for conversation, option in cases():
            options = {**specials, **OPTIONS[option]}
            rows.append([conversation, option, render(tokenizer, source, CONVERSATIONS[conversation], options)])
        entry = {"tokenizer": tokenizer_of(name, source), "specials": specials, "rendered": rows}
        if re.search(r"\{%-?\s*generation\s*-?%\}", source):
            masks = []
            for conversation, messages in CONVERSATIONS.items():
                try:
                    got = tokenizer.apply_chat_template(
                        messages, chat_template=source, return_dict=True, return_assistant_tokens_mask=True, **specials
                    )
                except Exception:
                    continue
                ids, mask = got["input_ids"], got["assistant_masks"]
                text = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **specials)
                masks.append([conversation, ids, "".join(map(str, whole_characters(tokenizer, text, ids, mask)))])
            entry["masks"] = masks
        out[name] = entry
    return {"now": NOW, "conversations": CONVERSATIONS, "options": OPTIONS, "templates": out}


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--real":
        folder, tokenizers, path = sys.argv[2], f"{HERE}/tokenizers", f"{sys.argv[2]}/expected.json"
    elif len(sys.argv) == 2:
        folder, tokenizers = f"{sys.argv[1]}/templates", f"{sys.argv[1]}/tokenizers"
        path = f"{folder}/ref.json"
    else:
        sys.exit(__doc__)
    tokenizers = {name: AutoTokenizer.from_pretrained(f"{tokenizers}/{name}") for name in ["qwen", "llama3"]}
    value = reference(sorted(glob.glob(f"{folder}/*.jinja")), tokenizers)
    with open(path, "w") as file:
        json.dump(value, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
