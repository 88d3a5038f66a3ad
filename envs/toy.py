"""A kitchen small enough to think through: --env envs.toy:Kitchen plays it, and
course/siri_in_one_notebook.ipynb is built on it.

One thing is asked for, six places may hold it, four steps are allowed: going to a place shows what
is there, taking the thing there wins. Every kind of thing has a usual place, where it is in four of
five games.  Nobody says so: that is the rule which a skill can put into words ("when find apple :
go fridge"), and the fifth game is why a skill written from one lucky win may be worthless."""

import copy
import zlib

from envs import Step, check_skill, skill_from_line, skill_section

USUAL = {
    "apple": "fridge",
    "mug": "cabinet",
    "book": "shelf",
    "pen": "drawer",
    "pan": "stoveburner",
    "cloth": "sinkbasin",
}
PLACES = list(USUAL.values())


class Kitchen:
    split_names, max_steps = ("train", "valid"), 4

    def tasks(self, split):
        return [
            f"{split}/{thing}-{i:02d}"
            for thing in USUAL
            for i in range(40 if split == "train" else 10)
        ]

    def task_type(self, task_id):
        return task_id.split("/")[1].split("-")[0]  # the thing

    def describe(self, split):
        return f"{split}: {len(self.tasks(split))} games in a kitchen of six places"

    def fork(self):
        return copy.copy(self)

    def reset(self, task_id, seed=0):
        self.thing, self.here, self.taken = self.task_type(task_id), None, 0
        chance = zlib.crc32(task_id.encode())  # the same kitchen on every machine
        others = [place for place in PLACES if place != USUAL[self.thing]]
        self.place = USUAL[self.thing] if chance % 5 else others[chance // 5 % 5]
        self.task, self.actions = (
            f"find {self.thing}",
            [f"go {place}" for place in PLACES] + [f"take {self.thing}"],
        )
        return Step("room .", self.actions)

    def step(self, action):
        self.taken += 1
        verb, _, what = action.partition(" ")
        won = action == f"take {self.thing}" and self.here == self.place
        seen = f"{self.thing} ." if won else "fails ."
        if verb == "go" and what in PLACES:
            self.here, seen = what, f"{what} : {self.thing if what == self.place else 'nothing'} ."
        return Step(
            seen, self.actions, 10.0 * won, won or self.taken == self.max_steps, won, float(won)
        )

    # the words of the prompts

    def anchor(self, observation):
        return observation

    def is_admissible(self, action, step):
        return action in step.admissible

    def responses(self, step, style):
        return step.admissible

    def prompt(self, task, history, step, skills, style):
        past = "".join(f"{before.observation}\n{action}\n" for before, action in history)
        return f"task : {task}\n{skill_section(skills, 'compact')}{past}{step.observation}\n"

    def continuation(self, history, step, style):
        return step.observation + "\n"

    def parse(self, response, style, step):
        return " ".join(response.split()), response.endswith("\n")

    def summary_prompt(self, record, style):
        past = "".join(f"{step['observation']}\n{step['action']}\n" for step in record["steps"])
        return f"task : {record['task']}\n{past}hint :"

    def parse_skill(self, response, style):
        skill = skill_from_line(response)
        check_skill(skill)
        return skill
