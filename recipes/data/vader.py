#!/usr/bin/env python3
"""Scores responses by VADER, a sentiment classifier of rules and a lexicon: a `Command` reward source.

    temper recipe recipes/reviews.ron --set 'stages.compare.rewards=
        {"reward": Learned(stage: "rm"), "vader": Command(command: ["python3", "recipes/data/vader.py"])}'

Needs `pip install vaderSentiment==3.3.2`. Reads one JSON object a line and writes its compound score, from -1 (negative) to 1 (positive).
It knows nothing of the ratings that recipes/reviews.ron learns from; it orders 64.0 % of the valid pairs and 65.4 % of the test pairs as
the raters did, ties counting half.
"""

import json
import sys

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

analyzer = SentimentIntensityAnalyzer()
for line in sys.stdin:
    request = json.loads(line)
    score = analyzer.polarity_scores(request["completion"])["compound"]
    print(json.dumps({"id": request["id"], "score": score}), flush=True)
