"""Recordings of the official software, replayed: the environments have to answer character by character, the method to the last digit.

    ALFWORLD_DATA=... GOLDEN=../shared/golden python -m pytest tests/test_golden.py

The recordings are not part of this repository.  They are looked for in $GOLDEN (default: ../shared/golden beside the repository);
what is missing is skipped, with the reason.
"""

import json
import lzma
import os
from pathlib import Path

import pytest

from envs.alfworld import AlfWorld
from envs.alfworld_engine import Game


def recording(name):
    """The content of a recording; skips the test where there is none."""
    path = Path(os.environ.get("GOLDEN") or Path(__file__).parents[2] / "shared" / "golden") / name
    if not path.exists():
        pytest.skip(f"no recording {path} (set GOLDEN to the folder that has {name})")
    return json.loads(lzma.open(path).read() if path.suffix == ".xz" else path.read_bytes())


# ---- ALFWorld ----------------------------------------------------------------------------------------------------------------------


def alfworld():
    """The environment on the official games; skips the test where there are none."""
    if not os.environ.get("ALFWORLD_DATA"):
        pytest.skip("no ALFWorld games (set ALFWORLD_DATA to the folder that holds json_2.1.1/)")
    return AlfWorld()


def alfworld_episodes(stack):
    """(environment, id, recorded episode) for every episode recorded with one stack of the official wrappers."""
    env, count = alfworld(), 0
    for game in recording("alfworld.json.xz")["games"]:
        for episode in game["episodes"]:
            if episode["stack"] == stack:
                count += 1
                yield env, game["game"].removesuffix("/game.tw-pddl"), episode
    assert count, f"the recording has no episode of stack {stack}"


def test_alfworld_texts_and_commands_are_those_of_the_official_engine():
    for env, task_id, episode in alfworld_episodes("raw"):  # no step limit, and the game goes on after it is won
        play = env.game(task_id).start()
        assert (play.observation, play.won, play.admissible()) == (episode["obs"], episode["won"], episode["adm"]), task_id
        for command, observation, won, score, done, admissible in episode["steps"]:
            assert play.step(command) == play.observation == observation, f"{task_id}: {command!r}"
            assert (play.won, play.won, play.won) == (won, bool(score), done), f"{task_id}: {command!r}"
            assert play.admissible() == admissible, f"{task_id}: {command!r}"


def test_alfworld_episodes_end_where_the_official_ones_do():
    for env, task_id, episode in alfworld_episodes("batch"):  # ends at the goal or the 50th step; the recording then repeats itself
        step = env.reset(task_id)
        assert (step.observation, step.won, step.done) == (episode["obs"], False, False)
        for command, observation, won, score, done, admissible in episode["steps"]:
            if step.done:
                with pytest.raises(RuntimeError):
                    env.step(command)
            else:
                step = env.step(command)
            seen = step.observation, step.won, step.score, step.done, step.admissible
            assert seen == (observation, won, score, done, [name for name in admissible if name != "help"]), f"{task_id}: {command!r}"
            assert step.reward == 10 * won


def test_alfworld_walkthroughs_in_the_recording_are_those_of_the_games():
    env = alfworld()
    for game in recording("alfworld.json.xz")["games"]:
        assert env.game(game["game"].removesuffix("/game.tw-pddl")).walkthrough == game["walkthrough"]


@pytest.mark.slow
def test_every_official_alfworld_walkthrough_wins_exactly_at_its_last_step():
    env = alfworld()
    for split in env.split_names:
        for task_id in env.tasks(split):
            game = Game.load(env.path(task_id))
            assert game.task_type == env.task_type(task_id)
            play, won = game.start(), []
            for command in game.walkthrough:
                assert command in play.admissible(), f"{task_id}: {command}"
                play.step(command)
                won.append(play.won)
            assert won == [False] * (len(won) - 1) + [True], task_id
