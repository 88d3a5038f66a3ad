"""Words of a text, and how telling they are."""

import math
from collections import Counter


def words(text):
    """The words of a text in lower case; everything that is no letter or digit parts them."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def tfidf(texts):
    """A unit-length TF-IDF vector per text, as a dict word -> weight."""
    # words of one or two letters tell nothing
    counts = [Counter(word for word in words(text) if len(word) > 2) for text in texts]
    n_texts = Counter(word for count in counts for word in count)  # how many texts have the word
    vectors = []
    for count in counts:
        vector = {w: n * math.log((1 + len(texts)) / n_texts[w]) for w, n in count.items()}
        length = math.sqrt(sum(x * x for x in vector.values())) or 1.0
        vectors.append({w: x / length for w, x in vector.items()})
    return vectors
