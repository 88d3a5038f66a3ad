"""The one page between the method and its worlds.

An environment is text in, text out.  It knows no policy and no method; the phases know no
environment.  Any class with the members below will do (duck typing, no base class): --env
MODULE:CLASS plays it; tests/toy.py is a complete one.  `make_env` in common.py is the only place
of the method that lists environments by name.

    split_names                        the splits it offers, the training split first
    tasks(split) -> list[str]          stable, sorted ids; splits are disjoint; the same list on
                                       every machine
    task_type(task_id) -> str          for tables and for the skills' retrieval
    describe(split) -> str             one line for the console: which data, how many tasks, which
                                       split
    fork() -> environment              another player that shares the parsed games, for episodes in
                                       lockstep
    reset(task_id, seed=0) -> Step     a new episode
    step(action) -> Step               one action; an unknown action is an observation, never an
                                       exception
    task                               the goal sentence of the running episode
    is_admissible(action, step)        whether the world knows the action in that state (metrics
                                       only)
    max_steps                          an episode is cut after that many steps
    max_prompt                         tokens of a chat prompt without skills, at most (4096 where a
                                       world does not say)

    ceiling(split) -> float            optional: the share of a split's tasks that can be won at all

and, because only the environment speaks its language, the words of the agent's prompts:

    anchor(observation) -> str         the state's key for GiGPO's anchor groups (method equation 5)
    prompt(task, history, step, skills, style) -> str
                                       the whole prompt; history is a list of (Step, action)
    prompt(..., shown=n)               the same with at most n pairs of the history (chat models),
                                       for long ones
    continuation(history, step, style) -> str | None
                                       what an append-only prompt adds after the last response; None
                                       where prompts are not append-only (chat models)
    responses(step, style) -> list     what may be answered at a step where decoding is constrained:
                                       strings, or a FreeText; for most worlds step.admissible
    parse(response, style, step) -> (action, valid)
                                       the action inside a response to a step; valid means
                                       well-formed
    summary_prompt(record, style) -> str
                                       asks a policy for a skill from a winning episode's record
    parse_skill(response, style) -> dict
                                       title, condition, strategy; ValueError(reason) when it is not
                                       one

Texts that models, products or files have written pass `clean_text` before they enter a prompt.

`style` is "chat" for instruct models and "compact" for the stand-in policies of tiny/.
"""

import json
import math
import re
from dataclasses import dataclass, field


class UserError(Exception):
    """Something the user can mend.  The scripts print it as one line and exit with code 2."""


@dataclass(slots=True)
class Step:
    """What the agent sees after a reset or an action."""

    observation: str  # raw text of the world
    # action strings, in the world's order; shared, never modified
    admissible: list = field(default_factory=list)
    reward: float = 0.0  # training reward of the action that led here (10 on success, else 0)
    done: bool = False  # success, the world's end, or the step limit
    won: bool = False
    score: float = 0.0  # the world's own score in [0, 1]; reported, never trained on


@dataclass(frozen=True)
class FreeText:
    """A response that the policy words itself: `start`, then one or more of `words` in any order,
    then the end of the line.  No further word is begun after `most` tokens.  words: as they stand
    in a text, with the space before them."""

    start: str
    words: tuple
    most: int


MEMBERS = (
    "split_names", "max_steps", "tasks", "task_type", "describe", "fork", "reset", "step", "anchor",
    "is_admissible", "prompt", "continuation", "responses", "parse", "summary_prompt",
    "parse_skill",
)  # fmt: skip


def check_world(env):
    """The world itself, where it has what a world must have and its first game can be begun.
    TypeError says what is not as at the top of this file; whatever else it raises is its own."""
    if lost := [name for name in MEMBERS if not hasattr(env, name)]:
        raise TypeError(f"it lacks {', '.join(lost)}; envs/__init__.py says what a world must have")
    splits = env.split_names
    if isinstance(splits, str) or not len(splits):
        raise TypeError(f"expected names, the training split first, found {splits!r}")
    for split in splits:
        tasks = env.tasks(split)
        if not tasks or not all(isinstance(task, str) for task in tasks):
            raise TypeError(f"expected texts as tasks({split!r}), found {tasks!r:.60}")
    if not isinstance(env.max_steps, int) or env.max_steps < 1:
        raise TypeError(f"expected a whole number as max_steps, found {env.max_steps!r}")
    world, task = env.fork(), env.tasks(splits[0])[0]
    step = world.reset(task)
    texts = [env.task_type(task), world.task, step.observation, *step.admissible]
    texts.append(env.anchor(step.observation))
    if odd := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"expected texts as what reset({task!r}) tells, found {odd[0]!r:.60}")
    after = world.step(step.admissible[0] if step.admissible else "look")
    numbers = [after.reward, after.score]
    if not isinstance(after.observation, str) or not all(map(is_finite, numbers)):
        raise TypeError(f"expected a text and finite numbers of step(), found {after!r:.60}")
    return env


def is_finite(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


# Line breaks of any kind, as str.splitlines knows them.
_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Left out: control characters, marks that turn a terminal line's direction, halves of surrogate
# pairs.
HIDDEN = re.compile("[\0-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Defused: what prompts and chat templates give a meaning to, such as </think>, <action>,
# <|im_end|>, <｜User｜>, <end_of_turn>, </s>, [INST] and <<SYS>>.
_NAMES = r"think|action|tool_\w+|s|bos|eos|pad|unk|\w+_of_\w+"
_CONTROL = re.compile(
    rf"<(?=\s*/?\s*(?:{_NAMES})\b[^>]*>|[|｜]|</?SYS>>)|(?<=[|｜])>"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|[A-Z]+_TOOLS|TOOL_[A-Z]+)\])",
    re.IGNORECASE,
)
_HARMLESS = {"<": "‹", ">": "›", "[": "("}


def clean_text(text, lines=False):
    """Text of a model, a product or a file as it may stand in a prompt, a JSON line and a terminal.

    It ends no turn and no block of the prompt, is valid UTF-8, and is one line unless lines=True.
    Texts of the official worlds stay as they are, character by character.  Control tokens of other
    tokenizers are defused where a prompt is tokenised (support/models.py)."""
    text = HIDDEN.sub("", _BREAKS.sub("\n", text))
    text = text if lines else " ".join(text.split())
    return _CONTROL.sub(lambda found: _HARMLESS[found[0]], text)


def skill_section(skills, style="chat"):
    """The skill section of a prompt, the same for every environment; empty without skills, so that
    plain prompts stay plain.

    skills: dicts with `condition` and `strategy`.  Their text was written by a model, and is
    cleaned: no skill can add lines, let alone another section or turn, to a prompt."""
    lines = []
    for skill in skills:
        condition, strategy = (clean_text(str(skill[key])) for key in ("condition", "strategy"))
        head, colon = ("hint : when", " :") if style == "compact" else ("- When", ":")
        lines.append(f"{head} {condition}{colon} {strategy}\n")
    if not lines or style == "compact":
        return "".join(lines)
    return "Hints from earlier experience (ignore a hint that does not fit):\n" + "".join(lines)


def action_span(response, style="chat"):
    """(first, last) character positions of the action in a response: the stripped text between the
    action tags, or the whole line of a compact response.  Tags may have capitals.  An empty span
    where there is none."""
    first, last = 0, len(response)
    if not style.startswith("compact"):
        opened, closed = (
            re.search(tag, response, re.IGNORECASE | re.ASCII) for tag in ("<action>", "</action>")
        )
        if not opened or not closed or closed.start() < opened.end():
            return 0, 0
        first, last = opened.end(), closed.start()
    inside = response[first:last]
    return first + len(inside) - len(inside.lstrip()), last - len(inside) + len(inside.rstrip())


def skill_from_json(response):
    """{"title", "condition", "strategy"} of the first JSON object in an answer, after its <think>
    block where it has one.  ValueError with the reason where there is none."""
    thought, closed, rest = response.partition("</think>")
    if not closed and "<think>" in response:
        raise ValueError("unfinished thought")
    answer = rest if closed else thought
    start = answer.find("{")
    if start < 0:
        raise ValueError("no JSON object")
    try:
        found, _ = json.JSONDecoder().raw_decode(answer, start)
    # no JSON; a number of 5,000 digits; nested a thousand deep
    except (ValueError, RecursionError):
        raise ValueError("broken JSON") from None
    if any(not isinstance(found.get(key), str) for key in ("title", "condition", "strategy")):
        raise ValueError("missing field")
    return {key: clean_text(found[key]) for key in ("title", "condition", "strategy")}


def skill_from_line(response):
    """{"title", "condition", "strategy"} of a compact answer, "when CONDITION : STRATEGY".
    ValueError where it is none."""
    line = clean_text(response.partition("\n")[0]).removeprefix("when ")
    condition, colon, strategy = (part.strip() for part in line.partition(" : "))
    if not colon:
        raise ValueError("no condition")
    return {"title": condition, "condition": condition, "strategy": strategy}


def check_skill(skill):
    """Refuses a skill that is empty or too long (method section 5), whatever wrote it; no more than
    20 characters a word on average.  ValueError with the reason."""
    if not skill["condition"] or not skill["strategy"]:
        raise ValueError("empty field")
    for part, most in ("condition", 40), ("strategy", 80):
        if len(skill[part].split()) > most or len(skill[part]) > 20 * most:
            raise ValueError(f"{part} too long")
