"""The reduce step: reads one result a line on standard input, writes the answer to standard output."""

import collections
import json
import sys

import texts

counts = collections.Counter()
lines = tasks = 0
for result in map(json.loads, sys.stdin):
    if result["outcome"] != "succeeded":
        sys.exit(f"task {result['task_id']} ended as {result['outcome']}; the counts would be too small")
    part = json.loads(result["stdout"])
    counts.update(part["counts"])
    lines += part["lines"]
    tasks += 1
if tasks == 0:
    sys.exit("no result came on standard input")

with open(texts.DICTIONARY, encoding="utf-8") as dictionary:
    known = {word.strip().lower() for word in dictionary}


def most(words, how_many):
    ranked = sorted(words, key=lambda word: (-counts[word], word))[:how_many]
    return [[word, counts[word]] for word in ranked]


json.dump(
    {
        "top": most(counts, 40),
        "top_outside_dictionary": most(counts.keys() - known, 10),
        "lines": lines,
        "words": sum(counts.values()),
        "distinct_words": len(counts),
        "distinct_in_dictionary": len(counts.keys() & known),
        "text_sha256": texts.digest(),
    },
    sys.stdout,
    indent=1,
)
print()
