"""What an agent reads and writes in WebShop: prompts, response parsing, and the words around
skills.  Text only, no state.

Two styles of the same information:
    chat      instruct models.  One user turn a step, with role, task, [hints], the last two
              (observation, action) pairs, the current observation, the admissible actions and the
              two-tag instruction (method.md sections 2 and 8).  The wording is ours; what is shown,
              and in which form, follows the reference (verl-agent): a page is its parts after the
              instruction, each in quotes, joined by [SEP].
    compact   the stand-in policy of tiny/.  One growing text for the whole episode, so that the KV
              cache stays:
                  task : find me usb port dimmable table lamp with color navy and price lower ...
                  [hint : when ... : ...]
                  start
                  search usb port dimmable table lamp    <- response: in the instruction's words
                  found #1 36 lamo usb port table lamp with dimmable #2 ...
                                                         <- position, price in whole dollars
                                                            (rounded up), title
                  open #1                                <- response: a position, no product id
                  item 36 lamo usb port table lamp ; color : navy , grey ; size : 8 inch , 12 inch
                  choose navy
                  again                                  <- a page that the episode has shown before
                  buy
    compact+note is compact with a note after results and item pages, worked out from the
    instruction and the agent's own history alone:
                  ; best #1 cheap #2        the product, not opened yet, whose title has most of the
                                            instruction's words, and the same among those that are
                                            not above the price
                  ; want navy               asked options that are not chosen yet; then "lacks"
                                            where the page does not offer one that is asked, and
                                            "dear" where the price is above the limit

What compact prompts cut: a results page shows at most 8 words of a title, the second one of an
episode 5, later ones 3; an item page 8 of its title and 4 values per option group; other pages 24
words.  The words that are asked for stay first, and an asked option always stays.  Fifteen random
steps take 570 tokens in the generated shop (median of 120; at most 799), 805 among the real
products (1,118).

Titles and descriptions are other people's text.  In chat prompts line breaks inside a part are
folded and tags were defused on loading; in compact ones only words are left of them, so that no
title can write a line, a `#`, a `:` or a `;`.
"""

import math
import re
import unicodedata
from functools import lru_cache

from envs import (
    FreeText,
    Step,
    action_span,
    check_skill,
    clean_text,
    skill_from_json,
    skill_from_line,
    skill_section,
)

HISTORY = 2  # (observation, action) pairs that a prompt shows
LONGEST = (
    13_000  # characters; a longer prompt is written without history, and then with a shorter page
)
CJK = re.compile("[\u4e00-\u9fff]")
ASIN = re.compile(r"\bb0[0-9a-z]{8}\b")

TITLE_WORDS = (
    8,
    5,
    3,
)  # of a title on the first, second and every later results page of an episode
ITEM_WORDS, PAGE_WORDS, OPTION_WORDS, TASK_WORDS = 8, 24, 8, 80
VALUES = 4  # options of a group that a compact item page shows
QUERY_TOKENS = 64  # a compact query begins no further word after so many
BUTTONS = {"buy now": "buy", "< prev": "back", "back to search": "new search", "next >": "next"}
BUTTONS |= {page: f"read {page}" for page in ("description", "features", "reviews", "attributes")}
WORD = re.compile(r"[^\W_]+(?:[.'-][^\W_]+)*")
PRICE = re.compile(r"\$[\d.]+(?: to \$[\d.]+)?")
CAP = re.compile(r"(?:,? (?:and )?)?price lower than ([\d.]+) dollars")  # how an instruction ends
# What an instruction says around the things that it asks for.
STOP = set(
    "find me i need want am looking for a an the with and or that is are of in to some it my "
    "which has have would like".split()
)


# ---- compact style: reading a page ---------------------------------------------------------------


def words_of(text):
    """Letters and digits only, lower-case: "X-Large (2 pcs)" -> ["x-large", "2", "pcs"]."""
    return WORD.findall(text.lower())


@lru_cache(10_000)
def read_task(task):
    """(key words, asked options, price cap) of an instruction: the kind of thing and its attributes
    as a tuple of words; ((name, value), ...) where options are named as synthetic goals do, "color:
    navy"; dollars, inf without a cap."""
    cap = CAP.search(task)
    rest = task[: cap.start()] if cap else task
    named = [
        (m, m[1].rsplit(" with ", 1)[-1])
        for m in re.finditer(r"(?: with |, and )([^:,]+?): (.*?)(?=, and |$)", rest)
    ]
    if named:
        rest = rest[: named[0][0].end(1) - len(named[0][1])]
    keys = tuple(dict.fromkeys(word for word in words_of(rest) if word not in STOP))
    return (
        keys,
        tuple((name, m[2]) for m, name in named),
        float(cap[1].rstrip(".")) if cap else math.inf,
    )


@lru_cache(10_000)
def read_page(observation):
    """(kind, instruction, rest): kind is start, results, item, text or done.  rest: [(asin, title,
    dollars)] of results; (title, dollars, nodes before the title) of an item; the text of other
    pages.  dollars: whole, rounded up, the upper end of a range."""
    nodes = observation.split(" [SEP] ")
    if "Instruction:" not in nodes[:2]:
        return "done", "", ""
    first = nodes.index("Instruction:") + 1
    task, nodes = nodes[first], nodes[first + 1 :]
    if nodes == ["Search"]:
        return "start", task, ""
    if nodes[1].startswith("Page ") and "Next >" in nodes[2:4]:
        products, nodes = [], nodes[nodes.index("Next >") + 1 :]
        while nodes:
            size = (
                3 if len(nodes) > 2 and PRICE.fullmatch(nodes[2]) else 2
            )  # an empty title has no node
            products.append(
                (nodes[0].lower(), nodes[1] if size == 3 else "", dollars(nodes[size - 1]))
            )
            nodes = nodes[size:]
        return "results", task, products
    if nodes[-1] == "Buy Now" and "Rating: N.A." in nodes:
        at = len(nodes) - 1 - nodes[::-1].index("Rating: N.A.")
        return "item", task, (nodes[at - 2], dollars(nodes[at - 1]), nodes[2 : at - 1])
    return "text", task, " ".join(nodes[2:])


def dollars(price):
    return math.ceil(max(map(float, re.findall(r"\d+\.?\d*", price)), default=0))


def option_groups(step):
    """name -> values of an item page, in the page's order.  Only the clickables tell a value from a
    group's name."""
    groups, values = {}, None
    for node in read_page(step.observation)[2][2]:
        if f"click[{node}]" in step.admissible and values is not None:
            values.append(node)
        else:
            values = groups.setdefault(node, [])
    return {name: values for name, values in groups.items() if values}


def cut(text, task, most):
    """The first words of a text, at most that many and each once, what the instruction asks for
    before others, in the text's order."""
    words, asked = list(dict.fromkeys(words_of(text))), set(words_of(task)) - STOP
    kept = sorted(range(len(words)), key=lambda i: (words[i] not in asked, i))[:most]
    return " ".join(words[i] for i in sorted(kept))


def wanted(step):
    """(values on this item page that the instruction asks for, whether it asks for one that is not
    there)."""
    task, groups = read_page(step.observation)[1], option_groups(step)
    _, asked, _ = read_task(task)
    if asked:
        found = [(name, value) for name, value in asked if value in groups.get(name, ())]
        return [value for _, value in found], len(found) < len(asked)
    text, found = f" {' '.join(words_of(task))} ", []
    for values in (
        groups.values()
    ):  # in free text a value counts where all of it is said; of several the longest
        said = [
            value
            for value in values
            if words_of(value) and f" {' '.join(words_of(value))} " in text
        ]
        found += [max(said, key=len)] if said else []
    return found, False


def shown_values(step):
    """name -> the values that the compact page shows, and that can be chosen there: the first ones,
    and any that is asked for."""
    want = set(wanted(step)[0])
    groups = {}
    for name, values in option_groups(step).items():
        kept = sorted(range(len(values)), key=lambda i: (values[i] not in want, i))[:VALUES]
        groups[name] = [values[i] for i in sorted(kept)]
    return groups


# ---- compact style: writing ----------------------------------------------------------------------


def write_option(value, most=OPTION_WORDS):
    """The words of an option; signs are called by their names, "★" a black star."""
    names = (unicodedata.name(sign, "sign") for sign in value[:most])
    return " ".join((words_of(value) or words_of(" ".join(names)) or ["nothing"])[:most])


def write_action(action, observation):
    """The compact response that means an action on a page: "click[b012345678]" -> "open #3"."""
    name, _, argument = action.partition("[")
    argument = argument.removesuffix("]")
    if name != "click":
        return f"search {' '.join(words_of(argument))}"
    kind, _, rest = read_page(observation)
    if kind == "results":
        for place, (asin, _, _) in enumerate(rest, 1):
            if asin == argument:
                return f"open #{place}"
    return BUTTONS.get(argument) or f"choose {write_option(argument)}"


def moves(step):
    """{compact response: action} of everything but searching that the compact page offers.  Of
    equal responses the first one counts."""
    kind, _, _ = read_page(step.observation)
    actions = step.admissible
    if kind == "start":
        return {}
    if kind == "item":
        groups = option_groups(step)
        every, shown = (
            {f"click[{value}]" for values in g.values() for value in values}
            for g in (groups, shown_values(step))
        )
        actions = [action for action in actions if action in shown or action not in every]
    means = {}
    for action in actions:
        means.setdefault(write_action(action, step.observation), action)
    return means


def responses(step, style):
    """What may be written on a page, where decoding is constrained: strings, and on the start page
    a query in the instruction's words."""
    if style == "chat":
        return step.admissible
    kind, task, _ = read_page(step.observation)
    if kind == "start":
        return [
            FreeText(
                "search", tuple(f" {word}" for word in dict.fromkeys(words_of(task))), QUERY_TOKENS
            )
        ]
    return list(moves(step))


def page_text(step, before):
    """The compact text of a page.  before: observations of the episode's earlier steps;
    step.admissible None: without options."""
    kind, task, rest = read_page(step.observation)
    if kind in ("start", "done"):
        return "start" if kind == "start" else "bought"
    if step.observation in before:
        return "again"
    if kind == "results":
        earlier = len({o for o in before if read_page(o)[0] == "results"})
        most = TITLE_WORDS[min(earlier, len(TITLE_WORDS) - 1)]
        return "found" + (
            "".join(
                f" #{i} {price} {cut(title, task, most)}"
                for i, (_, title, price) in enumerate(rest, 1)
            )
            or " nothing"
        )
    if kind == "item":
        groups = shown_values(step) if step.admissible else {}
        title, price, _ = rest
        text = f"item {price} {cut(title, task, ITEM_WORDS)}"
        return text + "".join(
            f" ; {write_option(name, 3)} : {' , '.join(map(write_option, values))}"
            for name, values in groups.items()
        )
    return f"page {cut(rest, task, PAGE_WORDS)}"


def note(history, step):
    """What the note says on a page; nothing on pages other than results and items."""
    kind, task, rest = read_page(step.observation)
    if kind == "results":
        best, cheap = (f"#{place}" if place else "none" for place in best_places(history, step))
        return f" ; best {best} cheap {cheap}"
    if kind != "item":
        return ""
    left, lacks, dear = still_to_do(history, step)
    want = (
        f" ; want {' , '.join(map(write_option, left)) or 'none'}"
        if step.admissible
        else " ;" * dear
    )
    return want + " lacks" * lacks + " dear" * dear


def best_places(history, step):
    """(best, cheap): positions on a results page, from 1, or None.  best: the first of the products
    not opened yet whose title has most of the instruction's key words; once the episode has listed
    a title with all of them, no lesser one will do.  cheap: the same among the products that are
    not above the price."""
    _, task, products = read_page(step.observation)
    keys, _, cap = read_task(task)
    opened = {action[6:-1] for _, action in history}
    pages = {step.observation, *(seen.observation for seen, _ in history)}
    listed = [
        product
        for page in pages
        if read_page(page)[0] == "results"
        for product in read_page(page)[2]
    ]
    places = []
    for limit in (math.inf, cap):
        full = any(
            covered(task, title) == len(keys) for _, title, price in listed if price <= limit
        )
        fit = {
            i: covered(task, title)
            for i, (asin, title, price) in enumerate(products, 1)
            if price <= limit and asin not in opened
        }
        best = max(fit, key=fit.get, default=None)
        places.append(best if best and (fit[best] == len(keys) or not full) else None)
    return tuple(places)


@lru_cache(100_000)
def covered(task, title):
    """How many of the instruction's key words a title has."""
    return len(set(read_task(task)[0]) & set(words_of(title)))


def still_to_do(history, step):
    """Of an item page: (asked option values not chosen yet, whether it lacks one that is asked,
    whether its price is above the cap)."""
    _, task, (_, price, _) = read_page(step.observation)
    want, lacks = wanted(step) if step.admissible else ([], False)
    chosen = set(chosen_values(history))
    return [value for value in want if value not in chosen], lacks, price > read_task(task)[2]


def chosen_values(history):
    """Option values chosen on the item page that the agent is on: what it clicked since it last
    opened a product."""
    chosen = []
    for step, action in reversed(history):
        if read_page(step.observation)[0] in ("results", "start"):
            break
        chosen.append(action[6:-1])
    return chosen


def compact_header(task, skills):
    return (
        f"task : {' '.join(words_of(task)[:TASK_WORDS])}\n{skill_section(skills, 'compact')}start\n"
    )


# ---- chat style ----------------------------------------------------------------------------------


def anchor(observation):
    """The page without the instruction: 'part' [SEP] 'part' ...; also the state's key for GiGPO's
    anchor groups."""
    parts = observation.split(" [SEP] ")
    if "Instruction:" in parts[:2]:  # a purchase's page has none
        parts = parts[parts.index("Instruction:") + 2 :]
    return " [SEP] ".join(f"'{' '.join(part.split())}'" for part in parts)


def prompt(task, history, step, skills, style, shown=HISTORY):
    """The whole prompt.  task: instruction; history: list of (Step, action) so far; step: the
    current Step; skills: list of dicts;
    shown: pairs of the history that are shown at most."""
    if style != "chat":
        text = compact_header(task, skills)
        for t, (_, action) in enumerate(history):
            after = history[t + 1][0] if t + 1 < len(history) else step
            text += (
                write_action(action, history[t][0].observation)
                + "\n"
                + continuation(history[: t + 1], after, style)
            )
        return text
    task, page = clean_text(task), clean_text(anchor(step.observation))
    actions = "".join(f"'{clean_text(action)}',\n" for action in step.admissible)

    def write(past, page):
        progress = (
            f"You have taken {len(history)} steps so far. {past}You are at step "
            f"{len(history) + 1}. "
            if history
            else ""
        )
        return (
            "You are an expert agent who shops for others in the WebShop e-commerce environment.\n"
            f"Your task is to: {task}\n{skill_section(skills)}"
            f"{progress}Your observation is: {page}\n"
            f"Your admissible actions in this situation are:\n[\n{actions}]\n\n"
            "Now it is your turn. First reason step by step inside <think> </think> tags about "
            "the situation, and about which action "
            "brings you closest to the right purchase. Then choose one admissible action and give "
            "it inside <action> </action> tags."
        )

    first = max(0, len(history) - shown)
    past = "".join(
        f"[Observation {t + 1}: {clean_text(anchor(seen.observation))}, Action {t + 1}: "
        f"'{clean_text(action)}']\n"
        for t, (seen, action) in enumerate(history[first:], first)
    )
    text = write(
        f"The latest observations and the actions you took are:\n{past}" if past else "", page
    )
    if len(text) > LONGEST:
        text = write("", page)
    if len(text) > LONGEST:  # a description of many thousand characters
        text = write("", page[: len(page) - (len(text) - LONGEST) - 4] + " ...")
    return text


def continuation(history, step, style):
    """What a compact prompt adds after the last response; None for chat prompts, which are written
    anew each step."""
    if style == "chat":
        return None
    more = note(history, step) if style == "compact+note" else ""
    return page_text(step, [seen.observation for seen, _ in history]) + more + "\n"


def parse(response, style, step=None):
    """(action, valid) of a response.  valid means well-formed (method.md section 2), not
    admissible: the first closing tag of an action stands after the first opening one.  step: the
    page that the response answers, which says what a compact one means; what the page does not
    offer stays as it is, and the shop does nothing with it.  Of an ill-formed response the last 20
    characters are the action."""
    if style != "chat":
        line, newline, rest = response.partition("\n")
        line = " ".join(line.split())
        action = (
            f"search[{line[7:]}]"
            if line.startswith("search ")
            else moves(step).get(line, f"click[{line}]")
        )
        return action, bool(newline and line and not rest)
    lower = response.lower()
    first, last = action_span(lower)
    if not last:
        return lower[-20:], False  # the shop does nothing with it; the step still counts
    return lower[first:last], "<think>" in response and "</think>" in response and not CJK.search(
        response
    )


def summary_prompt(record, style):
    """Asks for one skill from a winning plain episode.  record: a line of trajectories.jsonl."""
    if style != "chat":
        text, seen = (
            compact_header(record["task"], []),
            [s["observation"] for s in record["steps"]] + [record["final_observation"]],
        )
        history = []
        for t, s in enumerate(record["steps"]):
            history.append((Step(seen[t]), s["action"]))
            after = Step(
                seen[t + 1]
            )  # the record does not hold what was clickable, so item pages show no options
            text += f"{write_action(s['action'], seen[t])}\n{continuation(history, after, style)}"
        return text + "won\nhint :"
    lines = "\n".join(
        clean_text(
            f"{t + 1}. observation: {anchor(s['observation'])[:200]} action: {s['action']!r}"
        )
        for t, s in enumerate(record["steps"])
    )
    return (
        f"The following episode in the WebShop e-commerce environment was successful: exactly the "
        "wanted product was bought. "
        f"Task: {clean_text(record['task'])}\n{lines}\n\n"
        "Write one reusable skill that would help with similar tasks, as a single JSON object "
        "with three keys: "
        '"title" (at most 6 words), "condition" (when it applies, one sentence) and "strategy" '
        "(what to do, 1 to 3 sentences). "
        "Do not use names, prices or numbers that are specific to this episode. Answer with the "
        "JSON object only."
    )


def parse_skill(response, style):
    """{"title", "condition", "strategy"} of a written skill.  ValueError with the reason where it
    is not a usable one."""
    skill = skill_from_json(response) if style == "chat" else skill_from_line(response)
    check_skill(skill)
    if ASIN.search(f"{skill['condition']} {skill['strategy']}".lower()):
        raise ValueError("names a product")
    return skill
