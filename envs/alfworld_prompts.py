"""What an agent reads and writes in ALFWorld: prompts, response parsing, and the words around
skills.  Text only, no state.

Two styles of the same information:
    chat      instruct models.  One user turn a step: role, task, [hints], the last two
              (observation, action) pairs, the current observation, the admissible actions, and the
              two-tag instruction (method.md sections 2 and 8).
    compact   the stand-in policy of tiny/.  One growing text for the whole episode, of which a step
              adds a few words, so that the KV cache stays and an episode is one sequence in the
              update:
                  task : put a hot mug in shelf .
                  [hint : when ... : ...]
                  room : cabinet 6 countertop 2 ...       each class with its largest number
                  go to cabinet 1                         <- response
                  closed next cabinet 2 countertop 1 ; mug shelf
                                                          <- observation, note, what it is about
              Chat prompts repeat the task in every step, too; here its two nouns are repeated, as
              instances where some are in sight.
    compact+note is compact with a note after each `go to`: the next place of this class, and the
    next place in list order, that the agent has not been to.  The agent's own actions determine it;
    it says nothing about the state of the game.
"""

import re
from functools import lru_cache

from envs import (
    action_span,
    check_skill,
    clean_text,
    skill_from_json,
    skill_from_line,
    skill_section,
)

HISTORY = 2  # (observation, action) pairs that a chat prompt shows (method.md section 2)
TASK_PREFIX = "Your task is to: "
ENTITY = re.compile(r"[a-z]+ \d+")
CJK = re.compile("[\u4e00-\u9fff]")


def is_compact(style):
    return style.startswith("compact")


# ---- compact style -------------------------------------------------------------------------------


@lru_cache(1_000)  # asked for at every step of an episode; shared, never modified
def room_list(intro):
    """Receptacle classes of a reset observation with their counts, in the observation's order:
    {"cabinet": 6, ...}.

    Numbers of a class run from N down to 1 in the text, so the first one seen is the count."""
    room = {}
    for entity in ENTITY.findall(intro.split("\n\n")[1]):
        name, number = entity.rsplit(" ", 1)
        room.setdefault(name, int(number))
    return room


def compact_observation(observation):
    """The words of an observation that an agent needs, e.g. "see mug 2 plate 1" or "closed"."""
    if "you see" in observation and not observation.startswith("You are facing"):
        # what lies there comes after the last "you see"; the place itself was named in the action
        return "see " + (" ".join(ENTITY.findall(observation.rsplit("you see", 1)[1])) or "nothing")
    if observation.endswith("is closed."):
        return "closed"
    if observation.startswith("You are facing"):
        return "face " + " ".join(ENTITY.findall(observation.split("Next to it")[0]))
    if observation.startswith("You are carrying"):
        return "hold " + " ".join(ENTITY.findall(observation))
    if observation.startswith("Nothing happens"):
        return "fails"
    return "ok" if observation.startswith("You ") else "normal"


def visit_note(history):
    """The note after a `go to`: two places the agent has not been to, read off its own actions;
    "none" where there is none."""
    room = room_list(history[0][0].observation)
    been = {action.split(" ", 2)[2] for _, action in history if action.startswith("go to ")}
    here = history[-1][1].split(" ")[2]

    def first_unvisited(names):
        return next(
            (
                f"{name} {i}"
                for name in names
                for i in range(1, room[name] + 1)
                if f"{name} {i}" not in been
            ),
            "none",
        )

    return f" next {first_unvisited([here])} {first_unvisited(room)}"


# the task sentences (alfworld.md section 9): what is to be done (None: the word itself), with which
# class of object and which place
SENTENCES = [
    (re.compile(r"put a (?P<kind>hot|cool|clean) (?P<thing>\w+) in (?P<place>\w+)"), None),
    (
        re.compile(r"(?P<kind>heat|cool|clean) some (?P<thing>\w+) and put it in (?P<place>\w+)"),
        None,
    ),
    (
        re.compile(r"(?:look at|examine the) (?P<thing>\w+) (?:under|with) the (?P<place>\w+)"),
        "examine",
    ),
    (re.compile(r"put two (?P<thing>\w+) in (?P<place>\w+)"), "two"),
    (re.compile(r"find two (?P<thing>\w+) and put them in (?P<place>\w+)"), "two"),
    (re.compile(r"put (?:a|some) (?P<thing>\w+) (?:in|on) (?P<place>\w+)"), "put"),
]


@lru_cache(10_000)
def read_task(task):
    """(kind, object class, place class) of a task sentence; kind is heat, cool, clean, examine, two
    or put.  ValueError for others."""
    for pattern, kind in SENTENCES:
        if match := pattern.match(task):
            return kind or match["kind"].replace("hot", "heat"), match["thing"], match["place"]
    raise ValueError(f"not a task sentence of ALFWorld: {task!r}")


def task_of(history):
    """The goal sentence, which the first observation ends with."""
    return history[0][0].observation.rsplit(TASK_PREFIX, 1)[1]


def compact_header(task, intro, skills):
    room = " ".join(f"{name} {count}" for name, count in room_list(intro).items())
    return f"task : {task}\n{skill_section(skills, 'compact')}room : {room}\n"


def continuation(history, step, style):
    """What a compact prompt adds after the last response; None for chat prompts, which are written
    anew each step."""
    if not is_compact(style):
        return None
    arrived = history[-1][1].startswith("go to ") and step.observation.startswith("You arrive")
    note = visit_note(history) if style == "compact+note" and arrived else ""
    seen = compact_observation(step.observation)
    # what the task is about, as an instance where one is in sight: "; mug shelf" or "; mug 2 shelf"
    about = " ".join(
        (re.findall(rf"\b{name} \d+", seen) or [name])[-1]
        for name in read_task(task_of(history))[1:]
    )
    return f"{seen}{note} ; {about}\n"


# ---- both styles ---------------------------------------------------------------------------------


def prompt(task, history, step, skills, style, shown=HISTORY):
    """The whole prompt.  task: goal sentence; history: list of (Step, action) so far; step: the
    current Step; skills: list of dicts;
    shown: pairs of the history that a chat prompt shows at most."""
    if is_compact(style):
        text = compact_header(
            task, history[0][0].observation if history else step.observation, skills
        )
        for t, (_, action) in enumerate(history):
            after = history[t + 1][0] if t + 1 < len(history) else step
            text += action + "\n" + continuation(history[: t + 1], after, style)
        return text
    hints, task, observation = (
        skill_section(skills),
        clean_text(task),
        clean_text(step.observation, lines=True),
    )
    actions = ",\n".join(f"'{clean_text(action)}'" for action in step.admissible)
    ask = (
        f"Your admissible actions in this situation are:\n[{actions}]\n\n"
        "Now it is your turn. First reason step by step about the situation inside <think> "
        "</think> tags. "
        "Then choose one admissible action and give it inside <action> </action> tags."
    )
    role = "You are an expert agent who acts in the ALFRED embodied environment.\n"
    if not history:
        return f"{role}{hints}Your observation is: {observation}\n{ask}"
    first = max(0, len(history) - shown)
    past = "\n".join(
        f"[observation {t}: '{clean_text(seen.observation, lines=True)}', action {t}: "
        f"'{clean_text(action)}']"
        for t, (seen, action) in enumerate(history[first:], first + 1)
    )
    past = f" The latest observations and the actions you took are:\n{past}" if past else ""
    return (
        f"{role}Your task is to: {task}\n{hints}"
        f"You have taken {len(history)} steps so far.{past}\n"
        f"You are at step {len(history) + 1} and your observation is: {observation}\n{ask}"
    )


def responses(step, style):
    """What may be answered where decoding is constrained: the admissible actions."""
    return step.admissible


def parse(response, style, step=None):
    """(action, valid) of a response.  valid means well-formed (method.md section 2), not
    admissible: the first closing tag of an action stands after the first opening one, so
    `</action><action>look</action>` is ill-formed.  Of an ill-formed response the last 30
    characters are the action, which the world answers by "Nothing happens."."""
    if is_compact(style):
        action, newline, rest = response.partition("\n")
        return action.strip(), bool(newline and action.strip() and not rest)
    first, last = action_span(response.lower())
    action = response.lower()[first:last]
    if not last:
        return response.lower()[
            -30:
        ], False  # the environment answers that nothing happens; the step still counts
    return action, "<think>" in response and "</think>" in response and not CJK.search(response)


# ---- skills: asking for one, and reading the answer (method.md section 8) ------------------------


def summary_prompt(record, style):
    """Asks for one skill from a winning plain episode.  record: a line of trajectories.jsonl."""
    steps = record["steps"]
    if is_compact(style):
        text = compact_header(record["task"], steps[0]["observation"], [])
        for t, step in enumerate(steps):
            seen = (
                steps[t + 1]["observation"] if t + 1 < len(steps) else record["final_observation"]
            )
            text += f"{step['action']}\n{compact_observation(seen)}\n"
        return text + "won\nhint :"
    lines = "\n".join(
        clean_text(
            f"{t + 1}. observation: {s['observation'][:200]!r} action: {s['action']!r}", lines=True
        )
        for t, s in enumerate(steps)
    )
    return (
        f"The following episode in the ALFWorld household environment was successful. Type of "
        f"task: {record['task_type']}. "
        f"Task: {clean_text(record['task'])}\n{lines}\n\n"
        "Write one reusable skill that would help with similar tasks, as a single JSON object "
        "with three keys: "
        '"title" (at most 6 words), "condition" (when it applies, one sentence) and "strategy" '
        "(what to do, 1 to 3 sentences). "
        "Do not use names or numbers that are specific to this episode. Answer with the JSON "
        "object only."
    )


def parse_skill(response, style):
    """{"title", "condition", "strategy"} of a written skill.  ValueError with the reason where it
    is not a usable one."""
    if is_compact(style):
        skill = skill_from_line(response)
        if skill["condition"].startswith("you need "):
            skill["task_type"] = (
                None  # where a thing is does not depend on what is to be done with it
            )
    else:
        skill = skill_from_json(response)
    check_skill(skill)
    if ENTITY.search(skill["strategy"].lower()) or ENTITY.search(skill["condition"].lower()):
        raise ValueError("names a numbered instance")
    return skill
