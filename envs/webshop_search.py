"""WebShop's search: Lucene's BM25 over product texts, in numpy.

The official environment asks Lucene (pyserini, k1 = 0.9, b = 0.4) for the 50 best products.  The
agent sees their order, so "nearly the same ranking" is another environment.  Three things decide
it, in this order of weight:

    words    Lucene's StandardTokenizer splits by Unicode's word-break rules (UAX #29), emoji
             included; then a possessive 's is cut, 33 stop words go, and Porter's own later version
             of his stemmer shortens the rest
    lengths  a document's length is kept in one byte, so lengths of 40 and more are rounded
    floats   each term's weight is float32, their sum float64, the final score float32; ties go to
             the smaller product id

    index = Index.build(["a red lamp", "two lamps"], ["A1", "A2"])      # ids break ties
    index.search("red lamps", 50)                         # -> array([0, 1]), best first
"""

import re
from array import array
from collections import Counter
from functools import lru_cache

import numpy as np
import regex

K1, B = np.float32(0.9), np.float32(0.4)
LARGE = 50_000  # documents from which on a search looks first for those that are worth scoring
LONGEST = 255  # characters; the tokenizer cuts a longer token into pieces
STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with".split()
)

# --- words ----------------------------------------------------------------------------------------

# Extended_Pictographic as it stood when Lucene took it over (Emoji 11).  Newer Unicode tables
# dropped many of these signs (the
# black star, for one), so the property of an installed `regex` is of no use here.
_PICTOGRAPHIC = (
    r"\u00A9\u00AE\u203C\u2049\u2122\u2139\u2194-\u2199\u21A9\u21AA\u231A\u231B\u2328\u2388\u23CF"
    r"\u23E9-\u23F3\u23F8-\u23FA\u24C2"
    r"\u25AA\u25AB\u25B6\u25C0\u25FB-\u25FE\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705"
    r"\u2708-\u2712\u2714\u2716\u271D\u2721"
    r"\u2728\u2733\u2734\u2744\u2747\u274C\u274E\u2753-\u2755\u2757\u2763-\u2767\u2795-\u2797"
    r"\u27A1\u27B0\u27BF\u2934\u2935"
    r"\u2B05-\u2B07\u2B1B\u2B1C\u2B50\u2B55\u3030\u303D\u3297\u3299\U0001F000-\U0001F0FF"
    r"\U0001F10D-\U0001F10F\U0001F12F"
    r"\U0001F16C-\U0001F171\U0001F17E\U0001F17F\U0001F18E\U0001F191-\U0001F19A"
    r"\U0001F1AD-\U0001F1E5\U0001F201-\U0001F20F\U0001F21A"
    r"\U0001F22F\U0001F232-\U0001F23A\U0001F23C-\U0001F23F\U0001F249-\U0001F3FA"
    r"\U0001F400-\U0001F53D\U0001F546-\U0001F64F"
    r"\U0001F680-\U0001F6FF\U0001F774-\U0001F77F\U0001F7D5-\U0001F7FF\U0001F80C-\U0001F80F"
    r"\U0001F848-\U0001F84F\U0001F85A-\U0001F85F"
    r"\U0001F888-\U0001F88F\U0001F8AE-\U0001F8FF\U0001F90C-\U0001F93A\U0001F93C-\U0001F945"
    r"\U0001F947-\U0001FFFD"
)

_SKIN_TONES = r"\U0001F3FB-\U0001F3FF"
_TAKES_SKIN_TONE = (
    r"\u261D\u26F9\u270A-\u270D\U0001F385\U0001F3C2-\U0001F3C4\U0001F3C7\U0001F3CA-\U0001F3CC"
    r"\U0001F442\U0001F443"
    r"\U0001F446-\U0001F450\U0001F466-\U0001F469\U0001F46E\U0001F470-\U0001F478\U0001F47C"
    r"\U0001F481-\U0001F483\U0001F485-\U0001F487"
    r"\U0001F4AA\U0001F574\U0001F575\U0001F57A\U0001F590\U0001F595\U0001F596\U0001F645-\U0001F647"
    r"\U0001F64B-\U0001F64F\U0001F6A3"
    r"\U0001F6B4-\U0001F6B6\U0001F6C0\U0001F6CC\U0001F918-\U0001F91C\U0001F91E\U0001F91F\U0001F926"
    r"\U0001F930-\U0001F939"
    r"\U0001F93D\U0001F93E\U0001F9B5\U0001F9B6\U0001F9B8\U0001F9B9\U0001F9D1-\U0001F9DD"
)


def _word_pattern():
    """The tokenizer as one pattern; alternatives are tried in order at each position, everything
    between matches is dropped."""
    # Marks, soft hyphens and joiners belong to the character before them (UAX #29 rule WB4); skin
    # tones are emoji of their own.
    ext = rf"[\p{{WB=Extend}}\p{{WB=Format}}\p{{WB=ZWJ}}--[{_SKIN_TONES}]]*"
    letter = rf"(?:[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}--\p{{Sk}}]{ext})"
    digit = rf"(?:\p{{WB=Numeric}}{ext})"
    kana = rf"(?:\p{{WB=Katakana}}{ext})"
    under = rf"(?:\p{{WB=ExtendNumLet}}{ext})"
    # One of these between two letters (u.s.a, o'neill) or two digits (3.5, 1,000) joins them.
    either = r".'\u2018\u2019\u2024\uFE52\uFF07\uFF0E"
    mid_letter = rf"(?:[:\u00B7\u0387\u05F4\u2027\uFE13\uFE55\uFF1A{either}]{ext})"
    marks = r",;\u037E\u0589\u060C\u060D\u066C\u07F8\u2044\uFE10\uFE14\uFE50\uFE54\uFF0C\uFF1B"
    mid_digit = rf"(?:[{marks}{either}]{ext})"
    letters = rf"{letter}(?:(?:{under}*|{mid_letter}){letter})*+"
    digits = rf"{digit}(?:(?:{under}*|{mid_digit}){digit})*+"
    katakana = rf"{kana}(?:{under}*{kana})*+"
    run = rf"(?:{katakana}|(?:{letters}|{digits})++)"
    word = rf"{under}*+{run}(?:{under}++{run})*+{under}*+"
    # One picture, or several held together by joiners; a flag is two letters, a keycap a digit
    # under a lid.
    tail = rf"[\p{{WB=Extend}}\p{{WB=Format}}\p{{WB=ZWJ}}--[\uFE0E\uFE0F{_SKIN_TONES}]]*"
    picture = (
        rf"(?:[{_TAKES_SKIN_TONE}]?[{_SKIN_TONES}]{tail}|[{_PICTOGRAPHIC}](?:\uFE0F\u200D*|{tail}))"
    )
    emoji = rf"\u200D*{picture}(?:(?<=\u200D){picture})*|\p{{RI}}{ext}\p{{RI}}{ext}"
    emoji += rf"|[#*]\uFE0F?\u20E3{ext}"
    # Thai and its neighbours stay whole; Han and Hiragana are one token a character.
    rest = rf"(?:\p{{LB=SA}}{ext})+|\p{{Han}}{ext}|\p{{Hiragana}}{ext}"
    return regex.compile(rf"{emoji}|{word}|{rest}", regex.V1)


_WORD = _word_pattern()
# The same for plain ASCII, eleven times as fast; it also finds lone underscores, which are no
# words.
_PLAIN = re.compile(
    r"[a-zA-Z0-9_]+(?:(?:(?<=[a-zA-Z])[:.'](?=[a-zA-Z])|(?<=[0-9])[,;.'](?=[0-9]))[a-zA-Z0-9_]+)*"
)
_POSSESSIVE = ("'s", "\u2019s", "\uff07s")


def tokens(text):
    """Words and emoji of a text, in order."""
    for piece in [text] if text.isascii() else text.split(" "):  # no token holds a space
        words = _PLAIN.findall(piece) if piece.isascii() else []
        if words and len(max(words, key=len)) <= LONGEST:
            yield from (word for word in words if word.strip("_"))
        else:
            yield from any_tokens(piece)


def any_tokens(text):
    """`tokens` of any text.  One over 255 characters is cut there and reading goes on after the
    cut."""
    position = 0
    while match := _WORD.search(text, position):
        if match.end() - match.start() > LONGEST:
            match = _WORD.match(text, match.start(), match.start() + LONGEST)
        yield match.group()
        position = match.end()


def analyze(text):
    """Text -> list of index terms: split, lower-case, cut possessives, drop stop words, stem."""
    terms = (token[:-2] if token.endswith(_POSSESSIVE) else token for token in tokens(text.lower()))
    return [stem(term) for term in terms if term not in STOP_WORDS]


# --- Porter's stemmer ----------------------------------------------------------------------------
# 1980, with the author's later changes: `bli`, `logi`, and words of one or two letters left alone

_STEP2 = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize",
    "bli": "ble", "alli": "al", "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize",
    "ation": "ate", "ator": "ate", "alism": "al", "iveness": "ive", "fulness": "ful",
    "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble", "logi": "log",
}  # fmt: skip
_STEP3 = {
    "icate": "ic",
    "ative": "",
    "alize": "al",
    "iciti": "ic",
    "ical": "ic",
    "ful": "",
    "ness": "",
}
_STEP4 = dict.fromkeys(
    "al ance ence er ic able ible ant ement ment ent sion tion ou ism ate iti ous ive ize".split(),
    "",
) | {"sion": "s", "tion": "t"}  # fmt: skip
_LONGEST_FIRST = [
    sorted(step.items(), key=lambda rule: -len(rule[0])) for step in (_STEP2, _STEP3, _STEP4)
]


def _shape(word):
    """`c` for consonants and `v` for vowels; y is a vowel after a consonant.  Digits and foreign
    letters count as consonants."""
    shape = ""
    for char in word:
        shape += "v" if char in "aeiou" or (char == "y" and shape[-1:] == "c") else "c"
    return shape


def _measure(stem):
    """Porter's m: how many times a vowel is followed by a consonant."""
    return _shape(stem).count("vc")


def _ends_cvc(word):
    return _shape(word).endswith("cvc") and word[-1] not in "wxy"


@lru_cache(1 << 18)
def stem(word):
    """Porter's stem of a lower-case word."""
    if len(word) <= 2:
        return word
    # Step 1a: plurals.
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    # Step 1b: past tense and -ing.
    if word.endswith("eed"):
        word = word[:-1] if _measure(word[:-3]) > 0 else word
    else:
        cut = 2 if word.endswith("ed") else 3 if word.endswith("ing") else 0
        if cut and "v" in _shape(word[:-cut]):
            word = word[:-cut]
            if word.endswith(("at", "bl", "iz")):
                word += "e"
            elif len(word) > 1 and word[-1] == word[-2] and _shape(word)[-1] == "c":
                word = word if word[-1] in "lsz" else word[:-1]
            elif _measure(word) == 1 and _ends_cvc(word):
                word += "e"
    # Step 1c: -y.
    if word.endswith("y") and "v" in _shape(word[:-1]):
        word = word[:-1] + "i"
    # Steps 2 to 4: the longest suffix that fits is looked at, and only that one.
    for rules, least in zip(_LONGEST_FIRST, (1, 1, 2)):
        for suffix, new in rules:
            if word.endswith(suffix):
                # -ion goes, but its s or t counts as part of the stem.
                if (
                    _measure(
                        word[: len(word) - len(suffix)]
                        + (new if suffix in ("sion", "tion") else "")
                    )
                    >= least
                ):
                    word = word[: len(word) - len(suffix)] + new
                break
    # Step 5: a last -e, and one of a double l.
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _ends_cvc(word[:-1])):
            word = word[:-1]
    if word.endswith("ll") and _measure(word[:-1]) > 1:
        word = word[:-1]
    return word


# --- the index ------------------------------------------------------------------------------------


def _one_byte_lengths(lengths):
    """Document lengths as Lucene remembers them in one byte: exact below 40, then 24 plus a number
    of four significant bits."""
    above = np.maximum(lengths - 24, 1)
    shift = np.maximum(np.floor(np.log2(above)).astype(np.int64) - 3, 0)
    return np.where(lengths < 40, lengths, 24 + ((above >> shift) << shift))


def at_least(scores, k):
    """A score that k of them reach; 0 where there are no k.  Not always the highest such score: the
    largest of each of some groups are looked at, which is faster than looking at all."""
    width = max(1, len(scores) // (20 * k))
    groups = scores[: len(scores) // width * width].reshape(-1, width).max(1)
    return np.partition(groups, -k)[-k] if len(groups) > k else 0


class Index:
    """An inverted index of D documents, V terms and P postings (a posting: this term occurs in this
    document).

    terms: dict term -> t; the postings of term t are those from starts[t] to starts[t + 1]
    docs, damp: (P,) the document and 1 + tf / (k1 (1 - b + b length / average)), the one number
    that BM25 needs of a posting
    peaks: (V,) the largest damp of a term; computed where it is not given
    ranks: (D,) place of each document among equal scores; count: documents that are not empty"""

    def __init__(self, terms, starts, docs, damp, ranks, count, peaks=None):
        self.terms, self.starts, self.docs, self.damp, self.ranks = terms, starts, docs, damp, ranks
        if peaks is None:
            peaks = np.maximum.reduceat(damp, starts[:-1]) if terms else np.zeros(0, np.float32)
        self.peaks = peaks
        # idf = ln(1 + (N - df + 0.5) / (df + 0.5)), rounded to float32 as Lucene does
        frequency = np.diff(starts)
        self.idf = np.log(1 + (count - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
        self.count = count

    @classmethod
    def build(cls, texts, ids):
        """texts: D strings (any iterable); ids: D strings whose ascending order breaks ties."""
        terms, lengths = {}, []
        posting_terms, posting_docs, frequencies = array("i"), array("i"), array("i")
        for doc, text in enumerate(texts):
            counts = Counter(analyze(text))
            lengths.append(counts.total())
            posting_terms.extend(terms.setdefault(term, len(terms)) for term in counts)
            posting_docs.extend([doc] * len(counts))
            frequencies.extend(counts.values())
        of_term = np.frombuffer(posting_terms, np.int32) if posting_terms else np.zeros(0, np.int32)
        order = np.argsort(of_term, kind="stable")  # by term, inside a term by document
        docs = np.array(posting_docs, np.int32)[order]
        starts = np.concatenate(
            [[0], np.cumsum(np.bincount(of_term, minlength=len(terms)))]
        ).astype(np.int64)

        lengths = np.array(lengths, np.int64)
        count = int((lengths > 0).sum())
        average = np.float32(lengths.sum() / max(count, 1))
        one = np.float32(1)
        # Every operation in float32 and in Lucene's order: the last bit decides between
        # near-duplicates.
        norm = one / (
            K1 * ((one - B) + B * _one_byte_lengths(lengths).astype(np.float32) / average)
        )
        damp = one + np.array(frequencies, np.float32)[order] * norm[docs]
        ranks = np.empty(len(lengths), np.int32)
        ranks[sorted(range(len(lengths)), key=list(ids).__getitem__)] = np.arange(len(lengths))
        return cls(terms, starts, docs, damp, ranks, count)

    def search(self, query, k=50):
        """The k best documents of a query, best first, as an array of document numbers; documents
        without a common term never."""
        found = []  # (postings, weight, most that it can add to a score) of the query's terms
        for term, times in Counter(analyze(query)).items():
            if (t := self.terms.get(term)) is not None:
                weight = np.float32(times) * self.idf[t]
                here = slice(int(self.starts[t]), int(self.starts[t + 1]))
                found.append((here, weight, weight - weight / self.peaks[t]))
        scores = self.scores(found, self.promising(found, k)).astype(np.float32)
        # Everything that ties with the last place is still in; the order of equal scores is settled
        # by rank.
        best = np.flatnonzero((scores >= at_least(scores, k)) & (scores > 0))
        return best[np.lexsort((self.ranks[best], -scores[best]))][:k]

    def scores(self, found, among=None):
        """(D,) float64 scores; of other documents than `among`, a mask, 0."""
        scores = np.zeros(len(self.ranks))
        for here, weight, _ in found:
            docs, damp = self.docs[here], self.damp[here]
            if among is not None:
                chosen = np.flatnonzero(among[docs])
                docs, damp = docs[chosen], damp[chosen]
            gain = (
                weight - weight / damp
            )  # BM25 in float32, summed in float64, in the query's order
            np.add.at(
                scores, docs.astype(np.intp), gain.astype(float)
            )  # in these types numpy adds fast
        return scores

    def promising(self, found, k):
        """A mask of the documents that can be among the k best, None for all.

        The rare terms are added up first.  The k best by these have full scores of at least
        `least`;
        who is further behind than the common terms can make good is out."""
        if len(self.ranks) < LARGE:
            return None
        found = sorted(found, key=lambda one: one[0].stop - one[0].start)
        total = np.cumsum([here.stop - here.start for here, *_ in found])
        rare = int(np.searchsorted(total, total[-1] / 4)) if found else 0
        scores = self.scores(found[:rare])
        good = np.flatnonzero(scores >= max(at_least(scores, k), 1e-9))[:k]
        if len(good) < k:
            return None
        least = scores[good]
        for here, weight, _ in found[rare:]:
            docs = self.docs[here]
            place = np.minimum(np.searchsorted(docs, good), len(docs) - 1)
            least = least + (docs[place] == good) * (weight - weight / self.damp[here][place])
        rest = sum(float(most) for *_, most in found[rare:])
        return scores >= least.min() - rest - 1e-3  # for rounding

    def arrays(self):
        """The index as arrays for np.savez; `from_arrays` takes them back."""
        terms = np.frombuffer("\n".join(self.terms).encode("utf-8", "surrogatepass"), np.uint8)
        names = ("starts", "docs", "damp", "ranks", "peaks")
        return {name: getattr(self, name) for name in names} | {
            "terms": terms,
            "count": np.int64(self.count),
        }

    @classmethod
    def from_arrays(cls, terms, starts, docs, damp, ranks, count, peaks):
        # No term holds a line break: the tokenizer never lets one in.
        words = terms.tobytes().decode("utf-8", "surrogatepass").split("\n") if len(terms) else []
        return cls(
            {word: t for t, word in enumerate(words)}, starts, docs, damp, ranks, int(count), peaks
        )
