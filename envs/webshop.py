"""WebShop, the shopping benchmark (Yao et al. 2022), as text in plain Python: no JVM, no Flask, no
gym, no pyserini.

An instruction asks for a product with attributes, options and a price cap; the agent searches,
opens pages, picks options, buys.

    env = WebShop()                         # products of $WEBSHOP_DATA, else the generated shop
    step = env.reset(env.tasks("test")[0])  # step.observation, step.admissible
    step = env.step("search[red lamp]")     # click[b012345678], click[large], click[buy now], ...

Pages, no-ops, goals, rewards and search order equal the official text environment's, recorded step
by step (tests/test_golden.py). Where we differ, on purpose:
    one seed     233 draws caps and range prices and shuffles the goals, so goal i is the same goal
                 in every process.  The official code leaves caps and prices to chance; verl-agent
                 shuffles anew in every worker, so its test goals get trained on
    splits       `test` is goals 0-499 and `train` the rest; train_from=1500 is the paper's split
                 (then 500-1499 is `dev`); by_product=True keeps all goals of a product in one split
                 (of the official 500 test goals 481 share a product with a train goal)
    reward       10 for a purchase with score exactly 1, else 0; the score itself is in Step.score
    no crash     the two searches that raise an error there (`<a> x`, `<c>` alone) find nothing here
    clean text   webshop_data.clean defuses separators, prompt tags and control characters; the
                 official 1,000 products have none

The score's formula is the official one with its flaws: a colour inside another word (recTANgular)
spoils an option match, so 458 of the 6,910 goals of the 1,000 products cannot reach 1.
`ceiling(split)` says how many can.
"""

import copy
import json
import os
import random
import re
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path

import numpy as np

from envs import Step, UserError, shop, webshop_prompts
from envs.webshop_data import HITS, Catalogue, Nouns, load

SEED = 233
TEST_GOALS = 500
NO_CAP = 1_000_000
PAGE_SIZE = 10
SUB_PAGES = ("description", "features", "reviews", "attributes")

# --- goals ----------------------------------------------------------------------------------------


class Goals:
    """All goals of a catalogue in their fixed order, unpacked one at a time: `goals[i]` is a dict.

    prices: (N,) what each product costs; of a price range the seed draws a point
    product: (M,) the product number of each goal; which: (M,) its combination of options, or its
    instruction among the human ones
    cap: (M,) the price that a purchase must not exceed"""

    def __init__(self, catalogue, human=False, seed=SEED):
        self.catalogue, self.human = catalogue, human
        table = catalogue.table
        # One generator for prices, then caps, in catalogue order: the official order of draws after
        # random.seed(seed).
        rng = random.Random(seed)
        self.prices = table["low"].copy()
        for number in np.flatnonzero(~np.isnan(table["high"])):
            self.prices[number] = rng.uniform(
                float(table["low"][number]), float(table["high"][number])
            )
        counts = table["human"] if human else table["combinations"]
        product = np.repeat(np.arange(len(counts)), counts)
        which = np.arange(len(product)) - np.repeat(np.cumsum(counts) - counts, counts)
        if (
            human
        ):  # every instruction has its own cap; the option combinations of a product share one
            cap = np.array([self._cap(rng, self.prices[number]) for number in product], float)
        else:
            cap = np.zeros(len(counts))
            for number in np.flatnonzero(table["instructed"]):
                cap[number] = self._cap(rng, self.prices[number])
            cap = cap[product]
        order = list(range(len(product)))
        random.Random(seed).shuffle(order)
        self.product, self.which, self.cap = product[order], which[order], cap[order]

    @staticmethod
    def _cap(rng, price):
        """One of the four round prices above the product's own, but never the nearest; none above
        990 dollars."""
        above = int(price // 10) * 10 + 10
        candidates = range(above, min(above + 40, 1000), 10)
        return max(rng.sample(candidates, 2)) if len(candidates) >= 2 else NO_CAP

    def __len__(self):
        return len(self.product)

    def __getitem__(self, i):
        """Goal i as the official dict: asin, category, query, name, product_category,
        instruction_text, attributes, price_upper, goal_options (name -> value; a list of values for
        human goals) and weight (of the official draw; our splits draw evenly)."""
        product = self.catalogue.product(int(self.product[i]))
        which, cap = int(self.which[i]), float(self.cap[i])
        if self.human:
            text, attributes, options = product.human[which]
            text = text.strip(".")
        else:
            text, attributes, options = product.instruction, product.instruction_attributes, {}
            for name in sorted(
                product.options, reverse=True
            ):  # names in order, the last one varies fastest
                which, place = divmod(which, len(product.options[name]))
                options[name] = product.options[name][place]
            options = dict(reversed(options.items()))
            if options:
                text += " with " + ", and ".join(
                    f"{name}: {value}" for name, value in options.items()
                )
        if cap < NO_CAP:
            text += f", and price lower than {cap:.2f} dollars"
        return {
            "asin": product.asin,
            "category": product.category,
            "query": product.query,
            "name": product.title,
            "product_category": product.product_category,
            "instruction_text": text,
            "attributes": attributes,
            "price_upper": cap,
            "goal_options": options,
            "weight": 1 if self.human else float(self.catalogue.table["weight"][self.product[i]]),
        }


# --- the score ------------------------------------------------------------------------------------

COLOURS = """
    alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown
    burgundy camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee
    cognac copper coral cranberry cream crystal dark denim eggplant elephant espresso fuchsia gold
    granite grape graphite grass gray green grey heather indigo ivory ivy khaki lavender lemon
    leopard light lilac lime magenta maroon mauve merlot midnight mint mocha multicolor mushroom
    mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal
    rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal
    tiger turquoise violet walnut wheat white wine yellow
""".split()


def _colour(option):
    """The first colour found in an option, else the option.  In a text that is a substring; a
    (name, value) pair must hold it whole."""
    return next((colour for colour in COLOURS if colour in option), option)


def _words(text):
    text = re.sub("[\x80-\xff]", "", text)
    return set(re.sub(r"\W", " ", text).lower().split())


def _ratio(first, second):
    if first == second:
        return 100
    return round(100 * SequenceMatcher(None, first, second).ratio()) if first and second else 0


@lru_cache(1 << 16)
def fuzzy(first, second):
    """thefuzz 0.19's token_set_ratio of two strings, 0 to 100: how alike are their sets of
    words?"""
    if first == second:
        return 100
    a, b = _words(first), _words(second)
    if not a or not b:
        return 0
    common = " ".join(sorted(a & b))
    with_a = f"{common} {' '.join(sorted(a - b))}".strip()
    with_b = f"{common} {' '.join(sorted(b - a))}".strip()
    return max(_ratio(common, with_a), _ratio(common, with_b), _ratio(with_a, with_b))


def _attribute_matches(product, wanted):
    texts = (product.title.lower(), " ".join(product.bullets).lower(), product.description.lower())
    return sum(
        any(fuzzy(attribute, want) > 85 for attribute in product.attributes)
        or any(want in text for text in texts)
        for want in wanted
    )


def _option_matches(chosen, wanted):
    # A synthetic goal's option enters as the text of a (name, value) tuple: "('size', 'large')"
    # holds all words of "large".
    chosen = [_colour(value) for value in chosen]
    wanted = [str(_colour(option)) for option in wanted]
    return sum(any(fuzzy(value, want) > 85 for value in chosen) for want in wanted)


def _levels(product_category):
    return {level.strip() for level in product_category.split("›")}


def score(goal, product, chosen, price, title_nouns, goal_nouns):
    """The official score of a purchase, in [0, 1], and its parts as a dict.

    chosen: the option values picked, whatever their groups; title_nouns, goal_nouns: nouns of the
    bought and of the wanted title."""
    query_match = product.query == goal["query"]
    category_match = len(_levels(product.product_category) & _levels(goal["product_category"])) >= 2
    title_score = len(set(title_nouns) & set(goal_nouns)) / len(goal_nouns) if goal_nouns else 0.2
    r_type = 1.0
    if not (query_match or category_match or title_score > 0.2):
        r_type = 0.5
    if title_score < 0.1:
        r_type = 0.1
    if title_score == 0:
        r_type = 0.0

    wanted = goal["goal_options"]
    wanted = list(wanted.items() if isinstance(wanted, dict) else wanted)
    attributes = _attribute_matches(product, goal["attributes"])
    options = _option_matches(chosen, wanted)
    cheap = bool(price <= goal["price_upper"])
    parts = len(goal["attributes"]) + len(wanted) + 1
    info = {
        "r_type": r_type,
        "r_att": attributes / len(goal["attributes"]),
        "w_att": len(goal["attributes"]) / parts,
        "query_match": query_match,
        "category_match": category_match,
        "title_score": title_score,
        "r_price": cheap,
        "w_price": 1 / parts,
    }
    if wanted:
        info |= {"r_option": options / len(wanted), "w_option": len(wanted) / parts}
    return (attributes + options + cheap) / parts * r_type, info


# --- the environment ------------------------------------------------------------------------------

ACTION = re.compile(r"(.+)\[(.+)\]")


def _nodes(*texts):
    """Page text from its parts.  A part is stripped, and one without text does not show."""
    return [text for text in map(str.strip, texts) if text]


class WebShop:
    """The environment of envs/__init__.py.

    data: folder of the official files (default $WEBSHOP_DATA; without one, the generated shop);
    human: goals that people wrote;
    train_from: first training goal; by_product: split by product (default: only for the generated
    shop);
    show_attrs: item pages offer their attributes, as the official flag does; nouns: a `Nouns`, else
    found beside the data;
    files: a shop in memory, as shop.files() makes it, instead of data (with its nouns).
    Raises UserError where data is missing or damaged, or holds no goals."""

    max_prompt = 4096  # tokens, as in the reference

    def __init__(
        self,
        data=None,
        human=False,
        seed=SEED,
        train_from=TEST_GOALS,
        by_product=None,
        show_attrs=False,
        nouns=None,
        max_steps=15,
        files=None,
    ):
        data = None if files else data or os.environ.get("WEBSHOP_DATA")
        if data:
            self.name, self.catalogue = Path(data).name, load(data)
            self.nouns = nouns or Nouns.find(data)
        else:
            items, instructions, written = files or shop.files()
            self.name, self.catalogue = (
                "generated shop",
                Catalogue.build(items, instructions, written),
            )
            self.nouns = nouns or Nouns(shop.title_nouns())
        self.goals = Goals(self.catalogue, human, seed)
        self.show_attrs, self.max_steps = show_attrs, max_steps
        if not len(self.goals):
            needs = (
                "items_human_ins.json with instructions"
                if human
                else "items_ins_v2*.json with instructions"
            )
            raise UserError(
                f"WebShop: {len(self.catalogue)} products of {self.name}, but no goal; {needs} "
                "for these products is needed"
            )
        self.by_product = (not data) if by_product is None else by_product
        self.splits = self._split(train_from)
        self.split_names = tuple(self.splits)
        self.clickables, self.task = {}, None

    def _split(self, train_from):
        """name -> goal numbers, ascending; no goal in two of them."""
        if train_from < TEST_GOALS:
            raise UserError(
                f"WebShop: the first {TEST_GOALS} goals are test goals; train_from={train_from} "
                f"must be {TEST_GOALS} or more"
            )
        numbers = np.arange(len(self.goals))
        if not self.by_product:
            splits = {
                "train": numbers[train_from:],
                "test": numbers[:TEST_GOALS],
                "dev": numbers[TEST_GOALS:train_from],
            }
            return {name: split for name, split in splits.items() if len(split) or name != "dev"}
        # Whole products go to `test`, in the goals' own order, until it has a fifth of the goals,
        # at most 500.
        _, first, counts = np.unique(self.goals.product, return_index=True, return_counts=True)
        tested, total = set(), 0
        for place in np.argsort(first):
            if total + counts[place] <= min(TEST_GOALS, len(numbers) // 5):
                tested.add(int(self.goals.product[first[place]]))
                total += counts[place]
        in_test = np.isin(self.goals.product, list(tested))
        return {"train": numbers[~in_test], "test": numbers[in_test]}

    # ---- tasks ----

    def tasks(self, split):
        """Goal ids of a split, sorted: "goal-0000012" is goal 12 of the shuffled list."""
        return [f"goal-{number:07d}" for number in self._numbers(split)]

    def _numbers(self, split):
        if split not in self.splits:
            raise UserError(
                f"WebShop has no split {split!r}; choose one of {', '.join(self.splits)}"
            )
        if not len(self.splits[split]):
            raise UserError(
                f"WebShop: the split {split} is empty, {self.name} has only {len(self.goals)} "
                "goals; choose another split"
            )
        return self.splits[split]

    def task_type(self, task_id):
        """One type: shopping skills are about queries, options and prices, whatever is bought."""
        return "shopping"

    def describe(self, split):
        kind = "human" if self.goals.human else "synthetic"
        rule = "by product" if self.by_product else "by goal"
        count = len(self._numbers(split))
        goals = f"{count} of {len(self.goals)} {kind} goals (split {rule})"
        return f"WebShop, {self.name}: {len(self.catalogue)} products, {split}: {goals}"

    def ceiling(self, split):
        """Share of a split's goals that buying the goal's own product with the asked options scores
        exactly 1.

        The rest fail by the official formula.  For human goals, whose options are free text, any
        value of the product may match."""
        return float(np.mean([self._reachable(int(i)) for i in self._numbers(split)]))

    def _reachable(self, i):
        goal, number = self.goals[i], int(self.goals.product[i])
        product, options = self.catalogue.product(number), goal["goal_options"]
        chosen = (
            list(options.values())
            if isinstance(options, dict)
            else [value for group in product.options.values() for value in group]
        )
        # Same product, same type: no noun is looked at.
        return score(goal, product, chosen, self.goals.prices[number], [], [])[0] == 1

    def fork(self):
        """Another player in the same shop; products, goals and index are shared."""
        player = copy.copy(self)
        player.clickables, player.task = {}, None
        return player

    # ---- playing ----

    def reset(self, task_id, seed=0):
        """A new episode.  seed: only the official query tag `<r>`, fifty random products, depends
        on it."""
        number = task_id.removeprefix("goal-")
        if not number.isdecimal() or int(number) >= len(self.goals):
            raise UserError(
                f"WebShop: no goal {task_id!r}; ids run from goal-{0:07d} to "
                f"goal-{len(self.goals) - 1:07d}"
            )
        self.number = int(number)
        self.goal = self.goals[self.number]
        self.nouns.check(
            self.catalogue.product(int(self.goals.product[self.number]))
        )  # fail now, not at the purchase
        self.task = self.goal["instruction_text"]
        self.rng = random.Random(f"{seed} {task_id}")
        self.steps, self.purchase = 0, None
        self._start()
        return self._step()

    def step(self, action):
        """One action.  What the page does not offer changes nothing; after a purchase the shop goes
        on answering."""
        if self.task is None:
            raise UserError("WebShop: step before reset; call env.reset(task_id) first")
        self.steps += 1
        self.purchase = None
        match = ACTION.match(action)
        name, argument = match.groups() if match else ("", "")
        argument = argument.lower()
        if name == "search":
            self._results(argument, 1)
        elif name == "click" and argument in self.clickables and argument != "search":
            self._click(argument)
        return self._step()

    def _step(self):
        """The Step of the page that now shows; `self.purchase` holds the last action's score parts
        where it was a purchase."""
        bought = self.purchase is not None
        value = self.purchase["score"] if bought else 0.0
        won = value == 1.0
        done = bought or self.steps >= self.max_steps
        return Step(self.observation, self.admissible, 10.0 if won else 0.0, done, won, value)

    def _click(self, word):
        kind = self._apparent_kind()
        if word == "buy now":
            self._done()
        elif word == "back to search":
            self._start()
        elif word == "next >" and kind == "search_results":
            self._results(self.query, self.page + 1)
        elif word == "< prev" and kind == "search_results":
            self._results(self.query, self.page - 1)
        elif word == "< prev" and kind == "item_page":
            self._results(self.query, self.page)
        elif word == "< prev":
            self._item()
        elif word in SUB_PAGES:
            self._sub_page(word)
        else:
            meaning = self.clickables[word]
            if isinstance(meaning, int):
                self.item = meaning
            else:
                self.options[meaning] = word
            self._item()

    def _apparent_kind(self):
        """The kind of page, as the official code finds it: by a word in an address that also holds
        query and options.

        So a search for `search_results` makes `< prev` on an item page turn the results page
        back."""
        address = f"{self.kind} {self.query} {self.options}"
        return next(
            (
                word
                for word in ("search_results", "item_page", "item_sub_page", "done")
                if word in address
            ),
            "",
        )

    # ---- pages: each sets kind, observation, clickables (text -> product number, option group or N

    def _show(self, kind, nodes, clickables):
        self.kind, self.clickables = kind, clickables
        self.observation = " [SEP] ".join(nodes)
        search_bar = ["search[<your query>]"] if kind == "index" else []
        self.admissible = search_bar + [f"click[{text}]" for text in clickables]

    def _start(self):
        self.query, self.page, self.item, self.options = None, None, None, {}
        self._show(
            "index", _nodes("WebShop", "Instruction:", self.task, "Search"), {"search": None}
        )

    def _head(self, *more):
        return _nodes("Instruction:", self.task, "Back to Search", *more)

    def _hits(self, query):
        """Product numbers of a query.  A tag in front lists products without ranking: <r> random,
        <c> category, <q> query."""
        tag, *words = query.split(" ")
        if tag == "<r>":
            return self.rng.sample(range(len(self.catalogue)), min(HITS, len(self.catalogue)))
        if tag == "<c>":
            return self.catalogue.by_category.get(words[0].strip(), []) if words else []
        if tag == "<q>":
            return self.catalogue.by_query.get(" ".join(words).strip(), [])
        return [] if tag == "<a>" else self.catalogue.search(query)

    def _results(self, query, page):
        self.query, self.page, self.item, self.options = query, page, None, {}
        hits = self._hits(query)
        clickables = {"back to search": None}
        nodes = self._head(f"Page {page} (Total results: {len(hits)})")
        if page > 1:
            nodes.append("< Prev")
            clickables["< prev"] = None
        nodes.append("Next >")
        clickables["next >"] = None
        for number in hits[PAGE_SIZE * (page - 1) : PAGE_SIZE * page]:
            product = self.catalogue.product(number)
            nodes += _nodes(product.asin, product.title, product.price_text)
            clickables[product.asin.lower()] = number
        self._show("search_results", nodes, clickables)

    def _item(self):
        """An item page.  All of it but the instruction is the product's own and is rendered once;
        chosen options do not show."""
        product = self.catalogue.product(self.item)
        sub_pages = SUB_PAGES if self.show_attrs else SUB_PAGES[:3]
        if sub_pages not in product.pages:
            groups = [text for name, values in product.options.items() for text in (name, *values)]
            nodes = _nodes(
                "< Prev", *groups, product.title, f"Price: {product.price_text}", "Rating: N.A."
            )
            nodes += [*map(str.capitalize, sub_pages), "Buy Now"]
            clickables = dict.fromkeys(["back to search", "< prev", *sub_pages, "buy now"])
            for name, values in product.options.items():
                clickables |= dict.fromkeys(
                    values, name
                )  # equal texts merge: first place, last meaning
            actions = [f"click[{text}]" for text in clickables]
            product.pages[sub_pages] = " [SEP] ".join(nodes), clickables, actions
        text, self.clickables, self.admissible = product.pages[sub_pages]
        self.kind, self.observation = "item_page", " [SEP] ".join(self._head(text))

    def _sub_page(self, name):
        product = self.catalogue.product(self.item)
        if name == "description":
            lines = _nodes(product.description)
        elif name == "features":
            lines = [bullet.strip() for bullet in product.bullets]  # here an empty line does show
        elif name == "attributes":
            lines = [attribute.strip() for attribute in product.attributes]
            lines += _nodes(product.category, product.query, product.product_category)
        else:
            lines = []  # no product has reviews
        self._show(
            "item_sub_page", self._head("< Prev") + lines, {"back to search": None, "< prev": None}
        )

    def _done(self):
        product = self.catalogue.product(self.item)
        wanted = self.catalogue.product(int(self.goals.product[self.number]))
        price = float(self.goals.prices[self.item])
        value, info = score(
            self.goal,
            product,
            self.options.values(),
            price,
            self.nouns(product),
            self.nouns(wanted),
        )
        self.purchase = {
            "score": value,
            "info": info,
            "asin": product.asin,
            "options": dict(self.options),
        }
        options = json.dumps(self.options, sort_keys=True)
        for char in "<>&'":
            options = options.replace(char, f"\\u{ord(char):04x}")
        texts = [
            "Thank you for shopping with us!",
            "Your code:",
            "None",
            "(Paste it in your MTurk interface.)",
            "Purchased",
        ]
        texts += ["asin", product.asin, "options", options]
        texts += ["attrs", "None", "category", "None", "query", "None", "product category", "None"]
        texts += [
            "Target",
            "asin",
            "options",
            "attrs",
            "price upper",
            "instuction text",
            "category",
            "product category",
            "query",
        ]
        texts += [
            "Goal",
            "None",
            "Reward",
            "Your score (min 0.0, max 1.0)",
            str(value),
            "Reward Details",
            "None",
        ]
        self._show("done", texts, {})

    # ---- words: see webshop_prompts.py ----

    anchor = staticmethod(webshop_prompts.anchor)
    is_admissible = staticmethod(
        lambda action, step: (
            action in step.admissible
            or (action.startswith("search[") and "search[<your query>]" in step.admissible)
        )
    )
    prompt = staticmethod(webshop_prompts.prompt)
    continuation = staticmethod(webshop_prompts.continuation)
    responses = staticmethod(webshop_prompts.responses)
    parse = staticmethod(webshop_prompts.parse)
    summary_prompt = staticmethod(webshop_prompts.summary_prompt)

    def parse_skill(self, response, style="chat"):
        """A skill from a response; ValueError with the reason where it is none, or where it names a
        product."""
        skill = webshop_prompts.parse_skill(response, style)
        text = f"{skill['condition']} {skill['strategy']}".lower()
        for number in self.catalogue.search(text)[:PAGE_SIZE]:
            title = self.catalogue.product(number).title.lower()
            if title in text and len(title.split()) > 3:
                raise ValueError("names a product")
        return skill
