"""The text that the job reads: the licences that Debian ships, in the order of their names."""

import hashlib
import os
import re

LICENCES = "/usr/share/common-licenses"
DICTIONARY = "/usr/share/dict/words"
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def lines():
    """Every line of every licence once: the names that link to another (GPL to GPL-3) are left out."""
    for name in sorted(os.listdir(LICENCES)):
        path = os.path.join(LICENCES, name)
        if not os.path.islink(path):
            with open(path, encoding="utf-8", errors="replace") as text:
                yield from text


def words(line):
    return WORD.findall(line.lower())


def digest():
    """Names the text and the dictionary, which differ between releases of Debian."""
    whole = hashlib.sha256()
    for line in lines():
        whole.update(line.encode())
    with open(DICTIONARY, "rb") as dictionary:
        whole.update(dictionary.read())
    return whole.hexdigest()
