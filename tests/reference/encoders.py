"""Makes the tiny classifiers of `encoders` and what transformers computes with them (see README.md).  usage: encoders.py OUT_DIR

Versions: torch==2.15.0 transformers==5.23.0 safetensors==0.8.0
"""
import json
import os
import shutil
import sys

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

STD = 0.2
POSITIONS = 24
TEXTS = [
    "A warm, funny film.",
    "",
    "dull",
    "It was\tneither GOOD nor bad: cafe, caf\u00e9, \u4e2d\u6587 and 100% \U0001f600 unheardofness",
    "the end [SEP] <pad> </s> of it",
    "the film was good and the film was bad and the film was dull and the film was warm and the film was long",
]
PAIRS = [
    ["was the film good?", "it was a good film"],
    ["was the film good, was the film bad, was the film dull, was the film warm?", "the film was long and dull and long and bad and good"],
    ["?", "the film was good and the film was bad and the film was dull and the film was warm and long"],
]
WORDS = "the film was good bad dull warm long funny it a and nor neither end of ! ? . , : % cafe".split()
HIDDEN = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
LABELS = {0: "NEGATIVE", 1: "NEUTRAL", 2: "POSITIVE"}


def number(x):
    """Nine digits: enough to give back every f32."""
    return float(f"{x.item():.9g}")


def randomise(model, seed):
    """Weights large enough that every part of the model moves the result; norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + STD * torch.randn(parameter.shape, generator=generator))


def word_piece(folder, cls, **options):
    """BERT's: whole words, letters, and letters inside words."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789GODé"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens += [t for t in [*letters, *(f"##{c}" for c in letters), "##ness", "中"] if t not in tokens]
    with open(f"{folder}/vocab.txt", "w", encoding="utf-8") as file:
        file.write("".join(f"{token}\n" for token in tokens))
    tokenizer = cls.from_pretrained(folder, model_max_length=POSITIONS, **options)
    return tokenizer, len(tokens)


def byte_level(folder):
    """RoBERTa's: bytes and a few merges."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS), " ".join(f"the film was {word}" for word in WORDS)], trainer)
    backend.model.save(folder)
    return RobertaTokenizer.from_pretrained(folder, model_max_length=POSITIONS), backend.get_vocab_size()


def write(out, name, model, tokenizer, seed, keep, **extra):
    """The classifier and its reference: logits of all texts in one padded batch, and of pairs."""
    folder = f"{out}/encoders/{name}"
    randomise(model, seed)
    model.eval()
    model.save_pretrained(folder)
    rename_keys(folder, name)
    tokenizer.save_pretrained(folder)
    for file in os.listdir(folder):
        if file not in keep and file not in ("config.json", "model.safetensors", "tokenizer_config.json"):
            os.remove(f"{folder}/{file}")
    # Read back as a user would.
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    pairs = tokenizer([a for a, _ in PAIRS], [b for _, b in PAIRS], padding=True, truncation=True, return_tensors="pt")
    left = AutoTokenizer.from_pretrained(folder, truncation_side="left")
    with torch.no_grad():
        reference = {
            "texts": TEXTS,
            "ids": tokenizer(TEXTS, truncation=True)["input_ids"],
            "ids_left": left(TEXTS, truncation=True)["input_ids"],
            "logits": [[number(x) for x in row] for row in model(**texts).logits],
            "pairs": PAIRS,
            "pair_ids": tokenizer([a for a, _ in PAIRS], [b for _, b in PAIRS], truncation=True)["input_ids"],
            "pair_logits": [[number(x) for x in row] for row in model(**pairs).logits],
        }
    with open(f"{folder}/ref.json", "w") as file:
        json.dump({**reference, **extra}, file)
        file.write("\n")


def rename_keys(folder, name):
    """`bert` has the names of BERT's first files, `roberta` what published files hold beside the classifier."""
    path = f"{folder}/model.safetensors"
    tensors = load_file(path)
    if name == "bert":
        for key in list(tensors):
            old = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(key)
        tensors["bert.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    if name == "roberta":
        tensors["roberta.pooler.dense.weight"] = torch.ones(16, 16)
        tensors["roberta.pooler.dense.bias"] = torch.ones(16)
    if name == "distilbert":
        tensors = {key: value.to(torch.float16) for key, value in tensors.items()}
        config = json.load(open(f"{folder}/config.json"))
        config["dtype"] = "float32"
        json.dump(config, open(f"{folder}/config.json", "w"), indent=2)
    save_file(tensors, path, metadata={"format": "pt"})


def main(out):
    shutil.rmtree(f"{out}/encoders", ignore_errors=True)
    for name in ["bert", "distilbert", "roberta", "xlm_roberta"]:
        os.makedirs(f"{out}/encoders/{name}")
    labels = dict(id2label=LABELS, label2id={v: k for k, v in LABELS.items()})
    folder = lambda name: f"{out}/encoders/{name}"

    tokenizer, vocab = word_piece(folder("bert"), BertTokenizer, do_lower_case=False)
    config = BertConfig(**HIDDEN, vocab_size=vocab, max_position_embeddings=POSITIONS, **labels)
    write(out, "bert", BertForSequenceClassification(config), tokenizer, 1, ["tokenizer.json"])

    # vocab.txt alone, one label.
    tokenizer, vocab = word_piece(folder("distilbert"), DistilBertTokenizer)
    config = DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=vocab, max_position_embeddings=POSITIONS, num_labels=1
    )
    write(out, "distilbert", DistilBertForSequenceClassification(config), tokenizer, 2, ["vocab.txt"])

    tokenizer, vocab = byte_level(folder("roberta"))
    tokens = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2)
    roberta = dict(**HIDDEN, **tokens, vocab_size=vocab, max_position_embeddings=POSITIONS + 2, type_vocab_size=1, layer_norm_eps=1e-5)
    config = RobertaConfig(**roberta, num_labels=2, problem_type="multi_label_classification")
    write(out, "roberta", RobertaForSequenceClassification(config), tokenizer, 3, ["vocab.json", "merges.txt"])

    # The tokenizer.json of RoBERTa's, as all files of XLM-RoBERTa are read; the sentencepiece inside is the tokenizers crate's.
    config = XLMRobertaConfig(**{**roberta, "hidden_act": "gelu_new"}, num_labels=2)
    write(out, "xlm_roberta", XLMRobertaForSequenceClassification(config), tokenizer, 4, ["tokenizer.json"])


if __name__ == "__main__":
    main(sys.argv[1])
