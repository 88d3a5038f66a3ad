"""Scripted players on generated houses, and the small language of skills: what the stand-in policy
of tiny/ is pretrained to imitate.

A player sees what an agent sees (observations, admissible actions) and nothing else.  It is
careless at everything that no skill in its prompt asks of it, and careful at what a fitting skill
says, clause by clause, so that what a skill *says* matters:

    general skill   "you heat something : search every place once , open what is closed , take it ,
                    heat it with microwave ,
                     move it to its place"
    where skill     "you need a mug : look in countertop , cabinet"

`describe` is the way back, from a winning transcript to the skill it shows; the policy learns to
write that too.
"""

import json
import re

from envs.alfworld_prompts import read_task, room_list
from envs.arguments import Parser, run_tool

VERBS = {"heat": "microwave", "cool": "fridge", "clean": "sinkbasin"}
CONDITIONS = {
    "put": "you put something",
    "examine": "you examine something",
    "two": "you put two things",
}
CONDITIONS |= {verb: f"you {verb} something" for verb in VERBS}
CLAUSES = ("once", "open", "take", "process", "put")
# Chance that a player does the right thing at one decision when no skill asks for it.  Set once, on
# generated houses, so that a
# careless player wins 5-25 % and no task type is beyond it (see docs/lab.md).
CARELESS = {"once": 0.11, "open": 0.16, "take": 0.32, "process": 0.2, "put": 0.28}
CAREFUL = 0.985  # the same chance where a skill asks for it
IDLE = 0.15  # chance of a pointless action when careless
BACK = 0.7  # chance that careless search returns to a place where the player has been


def clause_text(clause, kind):
    return {
        "once": "search every place once",
        "open": "open what is closed",
        "take": "take it",
        "process": "use desklamp" if kind == "examine" else f"{kind} it with {VERBS.get(kind)}",
        "put": "move both to one place" if kind == "two" else "move it to its place",
    }[clause]


def clauses_of(kind):
    """The clauses that a complete general skill for this kind of task has."""
    without = {"put": ["process"], "two": ["process"], "examine": ["put"]}.get(kind, [])
    return [clause for clause in CLAUSES if clause not in without]


def general_skill(kind, clauses=None):
    """{"condition", "strategy"}: the procedure for one kind of task, complete unless clauses are
    given."""
    strategy = " , ".join(
        clause_text(c, kind) for c in (clauses_of(kind) if clauses is None else clauses)
    )
    return {"condition": CONDITIONS[kind], "strategy": strategy}


def where_skill(thing, places):
    """{"condition", "strategy"}: where to look for one class of object; places are receptacle
    classes, best first."""
    return {"condition": f"you need a {thing}", "strategy": "look in " + " , ".join(places)}


class Player:
    """Plays one episode.  observe(...) with every Step, then act(admissible) -> action."""

    def __init__(self, task, skills, rng):
        self.kind, self.thing, self.target = read_task(task)
        self.rng = rng
        # clauses that a fitting skill asks for; receptacle classes it names
        self.asked, self.where = set(), []
        for skill in skills:
            parts = skill["strategy"].removeprefix("look in ").split(" , ")
            if skill["condition"] == CONDITIONS[self.kind]:
                self.asked |= {
                    clause for clause in CLAUSES if clause_text(clause, self.kind) in parts
                }
            if skill["condition"] == f"you need a {self.thing}":
                self.where += [place for place in parts if place not in self.where]
        self.room, self.here, self.holding = None, None, None
        self.been, self.seen, self.ready, self.placed = set(), {}, set(), []

    def observe(self, observation, action=None):
        """Keeps what the text says: place, hand, what lies where."""
        if self.room is None:
            self.room = room_list(observation)
            return
        if observation == "Nothing happens.":
            return
        if action.startswith("go to "):
            self.here = action[6:]
            self.been.add(self.here)
        if "you see" in observation and self.here and not observation.startswith("You are"):
            place = action.removeprefix("examine ") if action.startswith("examine ") else self.here
            self.seen[place] = re.findall(r"[a-z]+ \d+", observation.rsplit("you see", 1)[1])
        words = re.match(r"(take|move|heat|cool|clean) (\w+ \d+) \w+ (\w+ \d+)", action)
        if words and words[1] == "take":
            self.holding = words[2]
            self.seen[words[3]] = [
                thing for thing in self.seen.get(words[3], []) if thing != self.holding
            ]
            self.placed = [(o, r) for o, r in self.placed if o != self.holding]
        elif words and words[1] == "move":
            self.holding = None
            if words[3].startswith(self.target + " "):
                self.placed.append((words[2], words[3]))
            else:
                self.seen.setdefault(words[3], []).append(words[2])
        elif words and words[1] == self.kind:
            self.ready.add(words[2])

    def careful(self, clause):
        return self.rng.random() < (CAREFUL if clause in self.asked else CARELESS[clause])

    def act(self, admissible):
        if self.rng.random() < (IDLE if len(self.asked) < 3 else 0.02):
            return self.rng.choice(
                [a for a in admissible if not a.startswith("go to")] or admissible
            )
        action = (
            self.with_object(admissible)
            if self.is_thing(self.holding)
            else self.without_object(admissible)
        )
        return action if action in admissible else self.search(admissible)

    def is_thing(self, name):
        return name is not None and name.rsplit(" ", 1)[0] == self.thing

    def with_object(self, admissible):
        if self.kind == "examine":
            lamp = next((a for a in admissible if a.startswith("use ")), None)
            if lamp and self.careful("process"):
                return lamp
            spot = next(
                (
                    p
                    for p, things in self.seen.items()
                    if p != self.here and any(t.startswith(self.target) for t in things)
                ),
                None,
            )
            return (
                f"go to {spot}"
                if spot and self.careful("process")
                else self.closed_or_search(admissible)
            )
        if self.kind in VERBS and self.holding not in self.ready and self.careful("process"):
            process = next(
                (a for a in admissible if a.startswith(f"{self.kind} {self.holding} ")), None
            )
            return process or self.go(VERBS[self.kind], admissible)
        if not self.careful("put"):
            return self.search(admissible)
        # both things must lie in the same place
        goal = self.placed[0][1] if self.kind == "two" and self.placed else None
        if self.here and (
            self.here == goal or (goal is None and self.here.startswith(self.target + " "))
        ):
            return (
                f"open {self.here}"
                if f"open {self.here}" in admissible
                else f"move {self.holding} to {self.here}"
            )
        return f"go to {goal}" if goal else self.go(self.target, admissible)

    def without_object(self, admissible):
        if self.holding:  # took something useless: put it down here or elsewhere
            return next((a for a in admissible if a.startswith(f"move {self.holding} ")), "")
        done = {thing for thing, _ in self.placed if self.kind not in VERBS or thing in self.ready}
        takes = [
            a
            for a in admissible
            if a.startswith(f"take {self.thing} ") and a.split(" from ")[0][5:] not in done
        ]
        if takes and self.careful("take"):
            return takes[0]
        return self.closed_or_search(admissible, recall=done)

    def closed_or_search(self, admissible, recall=None):
        if self.here and f"open {self.here}" in admissible and self.careful("open"):
            return f"open {self.here}"
        if recall is not None:
            spots = [
                p
                for p, things in self.seen.items()
                if p != self.here and any(self.is_thing(t) and t not in recall for t in things)
            ]
            if spots and self.careful("take"):
                return f"go to {spots[0]}"
        return self.search(admissible)

    def go(self, name, admissible):
        """To a place of a class: the first one that can be gone to."""
        return next(
            (
                f"go to {name} {i}"
                for i in range(1, self.room.get(name, 0) + 1)
                if f"go to {name} {i}" in admissible
            ),
            "",
        )

    def search(self, admissible):
        """The next place to look: the classes that a skill names first, then list order, each place
        once; careless: anywhere."""
        names = [name for name in self.where if name in self.room]
        if self.careful("once"):
            names += [name for name in self.room if name not in names]
        for name in names:
            for i in range(1, self.room[name] + 1):
                if f"{name} {i}" not in self.been and f"go to {name} {i}" in admissible:
                    return f"go to {name} {i}"
        options = [a for a in admissible if a.startswith("go to")] or admissible
        if self.rng.random() < BACK:
            options = [a for a in options if a[6:] in self.been] or options
        return self.rng.choice(options)


def describe(task, steps, which):
    """The skill that a winning transcript shows.  steps: list of (observation before, action,
    observation after); which: "general" or "where".  None when the transcript shows no place for a
    where skill."""
    kind, thing, _ = read_task(task)
    actions = [action for _, action, _ in steps]
    if which == "where":
        places, here = [], None
        for _, action, after in steps:
            here = action[6:] if action.startswith("go to ") else here
            place = action[8:] if action.startswith("examine ") else here
            shown = (
                re.findall(r"([a-z]+) \d+", after.rsplit("you see", 1)[1])
                if "you see" in after
                else []
            )
            name = place.rsplit(" ", 1)[0] if place else None
            if name and thing in shown and not after.startswith("You are") and name not in places:
                places.append(name)
        return where_skill(thing, places[:3]) if places else None
    first_take = next(
        (t for t, action in enumerate(actions) if action.startswith(f"take {thing} ")), len(actions)
    )
    gone = [action for action in actions[:first_take] if action.startswith("go to ")]
    shown = [c for c in clauses_of(kind) if c not in ("once", "open")]
    if any(action.startswith("open ") for action in actions):
        shown.insert(0, "open")
    if len(set(gone)) == len(gone):
        shown.insert(0, "once")
    return general_skill(kind, shown)


def main():
    """Prints a skills.jsonl of active general skills, one for each kind of task: an oracle's, or
    useless ones for comparison."""
    parser = Parser(description=main.__doc__)
    parser.add_argument("--useless", action="store_true", help="skills that help nobody")
    useless = parser.parse_args().useless
    types = ("pick_and_place_simple", "look_at_obj_in_light", "pick_two_obj_and_place")
    task_types = dict(zip(("put", "examine", "two"), types)) | {
        verb: f"pick_{verb}_then_place_in_recep" for verb in VERBS
    }
    for kind, task_type in task_types.items():
        skill = general_skill(kind)
        if useless:  # words of the same language that no scripted player acts on
            skill["strategy"] = "look at it , examine it , look at it"
        about = {
            "skill_id": f"oracle-{kind}",
            "env": "alfworld",
            "task_type": task_type,
            "title": kind,
        }
        life = {"status": "active", "utility": 0.5, "n_eval": 0, "neg_streak": 0, "deltas": []}
        print(
            json.dumps(
                about
                | skill
                | life
                | {"source_traj_ids": [], "source_task_ids": [], "retired_iter": None}
            )
        )


if __name__ == "__main__":
    run_tool(main)
