"""Runs a script in worlds that hand out wins: `python tests/generous.py warmup.py ...`.

A random model wins nothing, so no phase behind warm-up could be tried with it.  Prompts, actions
and observations are the environment's own; but an action whose text happens to have a checksum
divisible by 5 ends the episode with a win, and so does every action of an episode with a skill, so
that skills help; and an answer that is no skill becomes one.
"""

import runpy
import sys
import zlib
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import common  # noqa: E402


def generous(env):
    """The same environment, of a class that hands out wins; fork() keeps the class."""
    strict = type(env)

    class Generous(strict):
        skilled = False  # whether the running episode has a skill in its prompt

        def step(self, action):
            step = super().step(action)
            lucky = self.skilled or zlib.crc32(action.encode()) % 5 == 0
            return replace(step, reward=10.0, done=True, won=True, score=1.0) if lucky else step

        @staticmethod
        def parse_skill(response, style):
            try:
                return strict.parse_skill(response, style)
            except ValueError:
                # two of them are no near duplicates by chance
                about = f"number {zlib.crc32(response.encode())}"
                return {"title": about, "condition": about, "strategy": about}

    env.__class__ = Generous
    return env


def begin(self, env, play, start=common.Episode.__init__):
    """An episode's begin, which tells its world about skills."""
    start(self, env, play)
    self.world.skilled = bool(play.skills)


if __name__ == "__main__":
    common.Episode.__init__ = begin
    make_env = common.make_env
    common.make_env = lambda *given: generous(make_env(*given))
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
