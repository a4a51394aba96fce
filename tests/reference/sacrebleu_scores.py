"""Sentence BLEU, chrF and chrF++ of pairs of texts by sacrebleu.  usage: sacrebleu_scores.py OUT_DIR

Versions: sacrebleu==2.6.0
"""
import json
import random
import sys

import sacrebleu

WORDS = "the a cat dogs sat on warm mat and said it would not move U.S. 3.5 1,000 don't e.g. re-run C++ (hi) \"no\" 50% x/y".split()
PAIRS = [
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("the cat sat on the mat", "the cat sat on a mat."),
    ("The quick brown fox, jumping over 2,024 lazy dogs.", "A quick brown fox jumps over 2024 lazy dogs!"),
    ("It's 3.5 points - \"not\" 1,000-2 (e.g. a/b).", "It's 3.5 points, not 1,000-2 (e.g. a/b)"),
    ("Tom &amp; Jerry &lt;3 &quot;cheese&quot;", "Tom & Jerry <3 \"cheese\""),
    ("a broken-\nline and\nanother", "a brokenline and another\n"),
    ("one", "one"),
    ("one", "two"),
    ("one two", "one two three four five six seven"),
    ("a long reference of many words that goes on and on", "a long"),
    ("reference", ""),
    ("", "response"),
    ("caf\u00e9 na\u00efve \u2014 \u00fcber", "cafe na\u00efve \u2014 uber"),
    ("\u732b\u304c\u5ea7\u3063\u305f\u3002", "\u732b\u304c\u5bdd\u305f\u3002"),
    ("tabs\tand\u00a0spaces\x1chere", "tabs and spaces here"),
    ("...!?", "!?..."),
    ("the the the the", "the the"),
    ("<skipped>kept words stay here", "kept words stay <skipped>here"),
]


def drawn(generator):
    """A text, and one that shares some of its words."""
    text = [generator.choice(WORDS) for _ in range(generator.randint(1, 14))]
    other = [word if generator.random() < 0.7 else generator.choice(WORDS) for word in text]
    if generator.random() < 0.5:
        other = other[: generator.randint(1, len(other))]
    end = lambda: generator.choice(["", ".", " .", ",", "!"])
    return " ".join(text) + end(), " ".join(other) + end()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    generator = random.Random(7)
    pairs = PAIRS + [drawn(generator) for _ in range(60)]
    rows = [
        {
            "reference": reference,
            "response": response,
            "bleu": sacrebleu.sentence_bleu(response, [reference]).score,
            "chrf": sacrebleu.sentence_chrf(response, [reference]).score,
            "chrf++": sacrebleu.sentence_chrf(response, [reference], word_order=2).score,
        }
        for reference, response in pairs
    ]
    with open(f"{sys.argv[1]}/sacrebleu.json", "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(f"{len(rows)} pairs")


if __name__ == "__main__":
    main()
