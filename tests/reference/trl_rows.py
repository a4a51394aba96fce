"""Makes `trl_rows/`: rows as TRL's trainers tokenise them, with tokenizers that put BOS or EOS around a text, a template whose
prompt for a response ends with what a finished turn lacks, and another EOS (see README.md).

usage: trl_rows.py OUT_DIR          writes OUT_DIR/trl_rows/ (after tokenizer_files.py, whose vocabulary it takes)

Versions: transformers==5.23.0 trl==1.16.0 datasets==5.2.0
"""
import json
import os
import sys
import tempfile

os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1",
    CUDA_VISIBLE_DEVICES="", HF_DATASETS_CACHE=tempfile.mkdtemp(), HF_DATASETS_DISABLE_PROGRESS_BARS="1",
)
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tokenizer_files import END, bpe, put, special, whole
from tokenizers import processors

THINK = (
    "{% for m in messages %}{% if m.role == 'assistant' %}[assistant]{{ m.content.split('</think>')[-1] }}{{ eos_token }}"
    "{% else %}[user]{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
)
TURNS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


ROWS = {
    "completion": [{"prompt": "a b", "completion": " hi"}, {"prompt": "hi\n\n", "completion": f"12{END}"}],
    "chat": [
        {"prompt": [user("hi")], "completion": [assistant("yo")]},
        {"prompt": [user("a"), assistant("b"), user("we")], "completion": [assistant("<think>x</think>12")]},
    ],
    "preference": [{"prompt": "a b", "chosen": " hi", "rejected": " we"}],
    "chat_preference": [{"prompt": [user("hi")], "chosen": [assistant("yo")], "rejected": [assistant("no")]}],
}


def cases(vocab, merges):
    size = len(vocab)
    end = size + 2

    def files(template=None, single=None):
        post = single and processors.TemplateProcessing(single=single, pair=None, special_tokens=[(END, size)])
        tokenizer = whole(vocab, merges, post)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END, "pad_token": "<plain>",
                  "added_tokens_decoder": {str(end): special("<end>")}}
        if template:
            config["chat_template"] = template
        return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}

    return {
        "nothing": (files(), None, ["completion", "preference"]),
        "before": (files(single=f"{END} $A"), None, ["completion", "preference"]),
        "after": (files(single=f"$A {END}"), None, ["completion", "preference"]),
        "both": (files(single=f"{END} $A {END}"), None, ["completion", "preference"]),
        "think": (files(THINK), None, ["chat", "chat_preference"]),
        "think_before": (files(THINK, f"{END} $A"), None, ["chat", "chat_preference"]),
        "turns": (files(TURNS), None, ["chat", "chat_preference"]),
        "eos_token": (files(TURNS), "<end>", ["completion", "chat"]),
    }


def model():
    config = LlamaConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                         num_key_value_heads=1, max_position_embeddings=64)
    return LlamaForCausalLM(config)


def rows_of(tokenizer, kind, eos_token):
    common = dict(output_dir=tempfile.gettempdir(), report_to="none", use_cpu=True, bf16=False, max_length=None)
    dataset = Dataset.from_list(ROWS[kind])
    if "preference" in kind:
        trainer = DPOTrainer(
            model=model(), ref_model=model(), args=DPOConfig(**common), train_dataset=dataset, processing_class=tokenizer
        )
        return [[row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]] for row in trainer.train_dataset]
    args = SFTConfig(**common, eos_token=eos_token)
    trainer = SFTTrainer(model=model(), args=args, train_dataset=dataset, processing_class=tokenizer)
    rows = [[row["input_ids"], [int(label != -100) for label in row["labels"]]] for row in trainer.train_dataset]
    stops = trainer.model.generation_config.eos_token_id
    return {"rows": rows, "eos_token_id": trainer.model.config.eos_token_id, "stops": stops} if eos_token else rows


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found = {}
    for name, (files, eos_token, kinds) in cases(*bpe()).items():
        with tempfile.TemporaryDirectory() as folder:
            put(folder, files)
            load = AutoTokenizer.from_pretrained
            found[name] = {"files": files, "eos_token": eos_token}
            for kind in kinds:
                found[name][kind] = rows_of(load(folder), kind, eos_token)
    shared = whole(*bpe())
    for case in found.values():
        if case["files"]["tokenizer.json"] == shared:
            case["files"]["tokenizer.json"] = "shared"
    os.makedirs(f"{sys.argv[1]}/trl_rows", exist_ok=True)
    with open(f"{sys.argv[1]}/trl_rows/ref.json", "w") as file:
        json.dump({"rows": ROWS, "shared": {"tokenizer.json": shared}, "cases": found}, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
