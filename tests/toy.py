"""A complete environment in one small file: a hall with four doors, one of which the task names.  The tests train on it in seconds."""

import copy

from envs import Step, skill_section

PLACES = ("shelf", "drawer", "cabinet", "fridge")


class Doors:
    split_names = ("train", "valid")
    max_steps = 3

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
        return Step(f"a hall. {self.task}", [f"go to {place} 1" for place in PLACES])

    def step(self, action):
        self.taken += 1
        won = action == f"go to {self.goal} 1"
        seen = "see nothing" if action.startswith("go to") else "fails"
        admissible = [f"go to {place} 1" for place in PLACES]
        return Step(seen, admissible, 10.0 * won, won or self.taken == self.max_steps, won, float(won))

    @staticmethod
    def anchor(observation):
        return observation

    @staticmethod
    def is_admissible(action, step):
        return action in step.admissible

    @staticmethod
    def prompt(task, history, step, skills, style):
        text = f"task : {task}\n{skill_section(skills, 'compact')}"
        return text + "".join(f"{action}\n{after}\n" for (_, action), after in zip(history, ["see nothing"] * len(history)))

    @staticmethod
    def continuation(history, step, style):
        return step.observation + "\n"

    @staticmethod
    def responses(step, style):
        return step.admissible

    @staticmethod
    def parse(response, style, step=None):
        return response.strip(), response.endswith("\n")

    @staticmethod
    def summary_prompt(record, style):
        return f"task : {record['task']}\nhint :"

    @staticmethod
    def parse_skill(response, style):
        if not response.strip():
            raise ValueError("empty")
        return {"title": "a door", "condition": "find something", "strategy": " ".join(response.split()[:3])}
