"""Scripted shoppers in generated shops, and the small language of shopping skills: what the
stand-in for WebShop is pretrained to imitate.

A shopper sees what an agent sees (pages, its own history) and nothing else.  It is careless at
everything that no skill in its prompt asks of it, and careful at what a fitting skill says, clause
by clause, so that what a skill *says* matters:

    "you buy something : search for all that is asked , open the best title , stay below the price ,
    ..." "you buy something that has options : ..."     only fits an instruction that names options
    "you buy something under a limit : ..."        only fits an instruction with a price cap "you
    buy something without options : ..."      only fits an instruction that names none

`describe` is the way back, from a winning transcript to the skill that it shows; the policy learns
to write that too.
"""

import math

from envs import Step
from envs.webshop_prompts import (
    CAP,
    best_places,
    moves,
    read_page,
    read_task,
    shown_values,
    still_to_do,
    words_of,
)

CLAUSES = {
    "query": "search for all that is asked",
    "cover": "open the best title",
    "price": "stay below the price",
    "options": "choose every option asked",
    "back": "go back from a product where an option is missing",
}
# kind of goal -> (condition, clauses of a complete skill).  No condition shares a telling word with
# instructions ("with", "price"), which
# would make retrieval prefer it whatever its utility.
KINDS = {
    "any": ("you buy something", ("query", "cover", "price", "options", "back")),
    "options": ("you buy something that has options", ("query", "options", "back")),
    "limit": ("you buy something under a limit", ("query", "cover", "price")),
    "free": ("you buy something without options", ("query", "cover", "price")),
}
# Chance that a shopper does the right thing at one decision when no skill asks for it.  Set once,
# in generated shops, so that a careless
# shopper buys the right thing in 10-15 % of its episodes (see docs/lab.md).
CARELESS = {"query": 0.25, "cover": 0.3, "price": 0.2, "options": 0.65, "back": 0.2}
CAREFUL = 0.99  # the same chance where a skill asks for it
IDLE = 0.1  # chance of a pointless move when careless


def fits(kind, task):
    """Whether a kind of skill is about this instruction."""
    _, asked, cap = read_task(task)
    return {"any": True, "options": bool(asked), "limit": cap < math.inf, "free": not asked}[kind]


def skill(kind, clauses=None):
    """{"condition", "strategy"}, complete unless clauses are given."""
    condition, every = KINDS[kind]
    return {
        "condition": condition,
        "strategy": " , ".join(CLAUSES[c] for c in (every if clauses is None else clauses)),
    }


def everything_asked(task):
    """The words of the most telling query, in the instruction's order: all of it but the price.
    Search engines ignore the small words."""
    return words_of(CAP.split(task)[0].removeprefix("Find me "))


class Shopper:
    """Plays one episode: act(history, step) -> action, with history a list of (Step, action)."""

    def __init__(self, task, skills, rng):
        self.keys, _, self.cap = read_task(task)
        self.everything = everything_asked(task)
        self.rng = rng
        conditions = {condition for kind, (condition, _) in KINDS.items() if fits(kind, task)}
        said = {
            part
            for s in skills
            if s["condition"] in conditions
            for part in s["strategy"].split(" , ")
        }
        self.asked = {clause for clause, text in CLAUSES.items() if text in said}

    def careful(self, clause):
        return self.rng.random() < (CAREFUL if clause in self.asked else CARELESS[clause])

    def act(self, history, step):
        kind, _, _ = read_page(step.observation)
        if kind == "start":
            return self.search()
        if len(self.asked) < 3 and self.rng.random() < IDLE:
            return self.rng.choice([a for a in moves(step).values() if a != "click[buy now]"])
        if kind == "results":
            return self.open(history, step)
        return self.item(history, step) if kind == "item" else "click[< prev]"

    def search(self):
        """All that is asked, options too, since the search engine reads those of a product;
        careless: one or two key words."""
        if self.careful("query"):
            return f"search[{' '.join(self.everything)}]"
        some = sorted(
            self.rng.sample(range(len(self.keys)), min(len(self.keys), self.rng.choice([1, 2])))
        )
        return f"search[{' '.join(self.keys[i] for i in some)}]"

    def open(self, history, step):
        """The best title, among those below the price; careless: any product, whatever it costs."""
        _, _, products = read_page(step.observation)
        cheap = self.careful("price")
        place = best_places(history, step)[cheap]
        if not self.careful("cover"):
            places = [
                i for i, (_, _, price) in enumerate(products, 1) if not cheap or price <= self.cap
            ]
            place = self.rng.choice(places) if places else None
        if place is None:
            return self.rng.choice(["click[next >]", "click[back to search]"])
        return f"click[{products[place - 1][0]}]"

    def item(self, history, step):
        """Chooses what is asked and buys, but goes back from a product that lacks an option or
        costs too much."""
        left, lacks, dear = still_to_do(history, step)
        if (lacks and self.careful("back")) or (dear and self.careful("price")):
            return "click[< prev]"
        if left and self.careful("options"):
            return f"click[{left[0]}]"
        values = [value for group in shown_values(step).values() for value in group]
        if left and values and self.rng.random() < 0.4:
            return f"click[{self.rng.choice(values)}]"
        return "click[buy now]"


def describe(task, steps, kind):
    """The skill of one kind that a winning transcript shows.  steps: list of (observation, action).
    None where that kind does not fit the instruction or none of its clauses is shown."""
    if not fits(kind, task):
        return None
    keys, asked, cap = read_task(task)
    needed = {*keys, *(word for _, value in asked for word in words_of(value))}
    history, queries, opened, went_back = [], [], [], False
    for observation, action in steps:
        page, _, rest = read_page(observation)
        if action.startswith("search["):
            queries.append(set(words_of(action[7:-1])))
        if page == "results":
            place = next(
                (i for i, (asin, _, _) in enumerate(rest, 1) if action == f"click[{asin}]"), None
            )
            if place:
                opened.append(
                    (place in best_places(history, Step(observation)), rest[place - 1][2] <= cap)
                )
        went_back |= page == "item" and action == "click[< prev]"
        history.append((Step(observation), action))
    shown = {
        "query": all(needed <= query for query in queries),
        "cover": all(best for best, _ in opened),
        "price": cap < math.inf and all(cheap for _, cheap in opened),
        "options": bool(asked),  # the purchase was right, so they were chosen
        "back": went_back,
    }
    clauses = [clause for clause in KINDS[kind][1] if shown[clause]]
    return skill(kind, clauses) if clauses else None
