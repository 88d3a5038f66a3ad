"""What an agent reads and writes in WebShop: prompts, response parsing, and the words around skills.  Text only, no state.

Chat style only: one user turn a step, with role, task, [hints], the last two (observation, action) pairs, the current observation,
the admissible actions and the two-tag instruction (method.md sections 2 and 8).  The wording is ours; what is shown, and in which
form, follows the reference (verl-agent): a page is its parts after the instruction, each in quotes, joined by [SEP].

Titles and descriptions are other people's text.  Line breaks inside a part are folded here, and tags were defused on loading, so a
prompt always keeps its lines.
"""

import re

from envs import UserError, action_span, check_skill, skill_from_json, skill_section

HISTORY = 2  # (observation, action) pairs that a prompt shows
LONGEST = 13_000  # characters; a longer prompt is written without history, and then with a shorter page
CJK = re.compile("[\u4e00-\u9fff]")
ASIN = re.compile(r"\bb0[0-9a-z]{8}\b")


def _chat_only(style):
    if style != "chat":
        raise UserError(f"WebShop has no stand-in policy yet, so no {style!r} prompts; choose an instruct model with --model")


def anchor(observation):
    """The page without the instruction: 'part' [SEP] 'part' ...; also the state's key for GiGPO's anchor groups."""
    parts = observation.split(" [SEP] ")
    if "Instruction:" in parts[:2]:  # a purchase's page has none
        parts = parts[parts.index("Instruction:") + 2 :]
    return " [SEP] ".join(f"'{' '.join(part.split())}'" for part in parts)


def prompt(task, history, step, skills, style, shown=HISTORY):
    """The whole prompt.  task: instruction; history: list of (Step, action) so far; step: the current Step; skills: list of dicts;
    shown: pairs of the history that are shown at most."""
    _chat_only(style)
    task, page = " ".join(task.split()), anchor(step.observation)
    actions = "".join(f"'{action}',\n" for action in step.admissible)

    def write(past, page):
        progress = f"You have taken {len(history)} steps so far. {past}You are at step {len(history) + 1}. " if history else ""
        return (
            "You are an expert agent who shops for others in the WebShop e-commerce environment.\n"
            f"Your task is to: {task}\n{skill_section(skills)}"
            f"{progress}Your observation is: {page}\n"
            f"Your admissible actions in this situation are:\n[\n{actions}]\n\n"
            "Now it is your turn. First reason step by step inside <think> </think> tags about the situation, and about which action "
            "brings you closest to the right purchase. Then choose one admissible action and give it inside <action> </action> tags."
        )

    first = max(0, len(history) - shown)
    past = "".join(
        f"[Observation {t + 1}: {anchor(seen.observation)}, Action {t + 1}: '{' '.join(action.split())}']\n"
        for t, (seen, action) in enumerate(history[first:], first)
    )
    text = write(f"The latest observations and the actions you took are:\n{past}" if past else "", page)
    if len(text) > LONGEST:
        text = write("", page)
    if len(text) > LONGEST:  # a description of many thousand characters
        text = write("", page[: len(page) - (len(text) - LONGEST) - 4] + " ...")
    return text


def continuation(history, step, style):
    """None: chat prompts are written anew each step."""
    _chat_only(style)


def parse(response, style):
    """(action, valid) of a response.  valid means well-formed (method.md section 2), not admissible."""
    _chat_only(style)
    lower = response.lower()
    first, last = action_span(lower)
    if not last:
        return lower[-20:], False  # the shop does nothing with it; the step still counts
    return lower[first:last], "<think>" in response and "</think>" in response and not CJK.search(response)


def summary_prompt(record, style):
    """Asks for one skill from a winning plain episode.  record: a line of trajectories.jsonl."""
    _chat_only(style)
    lines = "\n".join(
        f"{t + 1}. observation: {anchor(s['observation'])[:200]} action: {s['action']!r}" for t, s in enumerate(record["steps"])
    )
    return (
        f"The following episode in the WebShop e-commerce environment was successful: exactly the wanted product was bought. "
        f"Task: {' '.join(record['task'].split())}\n{lines}\n\n"
        "Write one reusable skill that would help with similar tasks, as a single JSON object with three keys: "
        '"title" (at most 6 words), "condition" (when it applies, one sentence) and "strategy" (what to do, 1 to 3 sentences). '
        "Do not use names, prices or numbers that are specific to this episode. Answer with the JSON object only."
    )


def parse_skill(response, style):
    """{"title", "condition", "strategy"} of a written skill.  ValueError with the reason where it is not a usable one."""
    _chat_only(style)
    skill = skill_from_json(response)
    check_skill(skill)
    if ASIN.search(f"{skill['condition']} {skill['strategy']}".lower()):
        raise ValueError("names a product")
    return skill
