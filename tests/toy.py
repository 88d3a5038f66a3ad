"""A complete environment in one file: a hall with four doors, one of which the task names.

--env tests.toy:Doors plays it."""

import copy

from envs import Step, skill_section

PLACES = ("shelf", "drawer", "cabinet", "fridge")
DOORS = [f"go to {place} 1" for place in PLACES]


class Doors:
    split_names, max_steps = ("train", "valid"), 3

    def tasks(self, split):
        return [f"{split}/{i:02d}" for i in range(40 if split == "train" else 12)]

    def task_type(self, task_id):
        return "doors"

    def describe(self, split):
        return f"{split}: {len(self.tasks(split))} halls with four doors"

    def fork(self):
        return copy.copy(self)

    def reset(self, task_id, seed=0):
        self.goal, self.taken = PLACES[int(task_id[-2:]) % 4], 0
        self.task = f"find a {self.goal} ."
        return Step(f"a hall. {self.task}", DOORS)

    def step(self, action):
        self.taken += 1
        won = action == f"go to {self.goal} 1"
        seen = "see nothing" if action in DOORS else "fails"
        return Step(seen, DOORS, 10.0 * won, won or self.taken == self.max_steps, won, float(won))

    def anchor(self, observation):
        return observation

    def is_admissible(self, action, step):
        return action in step.admissible

    def responses(self, step, style):
        return step.admissible

    def prompt(self, task, history, step, skills, style):
        seen = [after.observation for after, _ in history[1:]] + [step.observation]
        past = "".join(f"{action}\n{after}\n" for (_, action), after in zip(history, seen))
        return f"task : {task}\n{skill_section(skills, 'compact')}{past}"

    def continuation(self, history, step, style):
        return step.observation + "\n"

    def parse(self, response, style, step):
        return response.strip(), response.endswith("\n")

    def summary_prompt(self, record, style):
        return f"task : {record['task']}\nhint :"

    def parse_skill(self, response, style):
        words = response.split()[:3]
        if not words:  # the policy is free to write anything; this is what becomes of it
            raise ValueError("empty")
        return {"title": "a door", "condition": "find something", "strategy": " ".join(words)}
