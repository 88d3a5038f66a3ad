"""The ALFWorld environment without any recording: python -m pytest tests/test_alfworld.py

Two worlds are made here: a small kitchen with all the oddities of the official games (its texts
were written down from the rules that the recordings confirm), and a folder of empty game files for
the listing.  The rest is played in generated houses.
"""

import json
import os
import random
import sys
import time
from importlib.util import find_spec

import pytest

from envs import UserError, alfworld
from envs.alfworld import AlfWorld
from envs.alfworld_engine import Game

KITCHEN = """
(receptacleType Cabinet_bar_1 CabinetType) (receptacleType CounterTop_bar_1 CounterTopType)
(receptacleType CounterTop_bar_2 CounterTopType)
(receptacleType Fridge_bar_1 FridgeType) (receptacleType Microwave_bar_1 MicrowaveType)
(receptacleType Sink_bar_1_bar_SinkBasin SinkBasinType)
(receptacleAtLocation Cabinet_bar_1 here) (receptacleAtLocation CounterTop_bar_1 here)
(receptacleAtLocation CounterTop_bar_2 there)
(receptacleAtLocation Fridge_bar_1 fridge) (receptacleAtLocation Microwave_bar_1 oven)
(receptacleAtLocation Sink_bar_1_bar_SinkBasin sink)
(openable Cabinet_bar_1) (openable Fridge_bar_1) (openable Microwave_bar_1)
(atLocation agent1 start)
(objectType Apple_bar_1 AppleType) (objectType Apple_bar_2 AppleType)
(objectType Knife_bar_1 KnifeType) (objectType Pot_bar_1 PotType)
(objectType Sink_bar_1 SinkType) (objectType DeskLamp_bar_1 DeskLampType)
(inReceptacle Apple_bar_1 Cabinet_bar_1) (inReceptacle Apple_bar_1 CounterTop_bar_1)
(inReceptacle Apple_bar_2 Fridge_bar_1)
(inReceptacle Knife_bar_1 CounterTop_bar_1) (inReceptacle Pot_bar_1 CounterTop_bar_2)
(inReceptacle DeskLamp_bar_1 Cabinet_bar_1)
(objectAtLocation Apple_bar_1 here) (objectAtLocation Apple_bar_2 fridge)
(objectAtLocation Knife_bar_1 here)
(objectAtLocation Pot_bar_1 there) (objectAtLocation Sink_bar_1 sink)
(objectAtLocation DeskLamp_bar_1 here)
(inReceptacleObject Pot_bar_1 Pot_bar_1) (inReceptacleObject Apple_bar_1 Pot_bar_1)
(isReceptacleObject Pot_bar_1) (isCool Apple_bar_2)
(pickupable Apple_bar_1) (pickupable Apple_bar_2) (pickupable Apple_bar_1_bar_Cracked)
(pickupable Knife_bar_1) (pickupable Pot_bar_1)
(heatable Apple_bar_1) (heatable Apple_bar_2) (coolable Apple_bar_1) (coolable Apple_bar_2)
(cleanable Apple_bar_1) (cleanable Knife_bar_1)
(sliceable Apple_bar_1) (sliceable Apple_bar_2) (toggleable DeskLamp_bar_1)
(canContain CabinetType AppleType) (canContain CounterTopType AppleType)
(canContain CounterTopType KnifeType)
(canContain FridgeType AppleType)
"""
GOALS = {
    "hot": "(heatable ?o) (isHot ?o)",
    "clean": "(cleanable ?o) (isClean ?o)",
    "cool": "(coolable ?o) (isCool ?o)",
    "": "",
    "two": "(exists (?o2 - object) (and (not (= ?o ?o2)) (objectType ?o2 AppleType) (inReceptacle "
    "?o2 ?r)))",
}


def kitchen(goal="hot", facts=KITCHEN, change=lambda file: None):
    """The content of a game file: put an apple (hot, clean, cool, two of them) on the counter top,
    or look at it under the lamp."""
    if goal == "look":
        goal = (
            "(exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType "
            "?ot DeskLampType) (toggleable ?ot)"
            "(isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot "
            "?r)))"
            "(exists (?o - object ?a - agent) (and (objectType ?o AppleType) (holds ?a ?o)))"
        )
    else:
        goal = (
            "(exists (?r - receptacle) (exists (?o - object) (and (inReceptacle ?o ?r) "
            "(objectType ?o AppleType)"
            f"(receptacleType ?r CounterTopType) {GOALS[goal]})))"
        )
    file = {
        "pddl_problem": f"(define (problem kitchen) (:init {facts}) (:goal (and {goal})))",
        "solvable": True,
        "grammar": '"rhs": "Your task is to: do it."',
        "walkthrough": ["look"],
    }
    change(file)
    return json.dumps(file)


def transcript(play, *commands):
    return [play.step(command) for command in commands]


# ---- the engine ----------------------------------------------------------------------------------


def test_the_first_observation_lists_all_receptacles_and_the_task():
    play = Game.from_text(kitchen()).start()
    assert play.observation == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly "
        "around you, you see a cabinet 1, "
        "a countertop 2, a countertop 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n\nYour "
        "task is to: do it."
    )
    assert play.admissible() == [
        f"go to {name}"
        for name in (
            "cabinet 1",
            "countertop 1",
            "countertop 2",
            "fridge 1",
            "microwave 1",
            "sinkbasin 1",
        )
    ] + ["help", "inventory", "look"]
    # numbers run backwards, and the cracked apple that is nowhere counts
    assert Game.from_text(kitchen()).objects == [
        "apple 3",
        "apple 2",
        "apple 1",
        "desklamp 1",
        "knife 1",
        "pot 1",
        "sink 1",
    ]


def test_what_can_be_done_at_a_place_depends_on_doors_and_the_hand():
    play = Game.from_text(kitchen()).start()
    play.step("go to countertop 2")  # the cabinet, closed, is at the same place
    here = [
        command
        for command in play.admissible()
        if not command.startswith(("go to", "help", "inventory", "look"))
    ]
    assert here == [
        "examine cabinet 1",
        "examine countertop 2",
        "open cabinet 1",
        "take apple 3 from countertop 2",
        "take knife 1 from countertop 2",
        "use desklamp 1",
    ]
    assert transcript(
        play, "open cabinet 1", "take apple 3 from cabinet 1", "examine countertop 2"
    ) == [
        "You open the cabinet 1. The cabinet 1 is open. In it, you see a apple 3, and a desklamp "
        "1.",
        "You pick up the apple 3 from the cabinet 1.",
        "On the countertop 2, you see a apple 3, and a knife 1.",
    ]  # it lay in two places at once
    here = [
        command
        for command in play.admissible()
        if not command.startswith(("go to", "help", "inventory", "look"))
    ]
    assert here == [
        "close cabinet 1",
        "examine apple 3",
        "examine cabinet 1",
        "examine countertop 2",
        "move apple 3 to cabinet 1",
        "move apple 3 to countertop 2",
        "use desklamp 1",
    ]
    assert transcript(play, "look", "move apple 3 to countertop 2", "look", "inventory") == [
        "You are facing the cabinet 1, and countertop 2. Next to it, you see nothing.",
        "You move the apple 3 to the countertop 2.",
        # taken from one, put into the other
        "You are facing the cabinet 1, and countertop 2. Next to it, you see a apple 3.",
        "You are not carrying anything.",
    ]


def test_an_object_tells_what_was_done_to_it():
    play = Game.from_text(kitchen("two")).start()
    play.step("go to countertop 2")
    assert transcript(
        play,
        "take knife 1 from countertop 2",
        "slice apple 3 with knife 1",
        "move knife 1 to countertop 2",
        "take apple 3 from countertop 2",
        "examine apple 3",
    ) == [
        "You pick up the knife 1 from the countertop 2.",
        "You sliced the apple 3 with the knife 1.",
        "You move the knife 1 to the countertop 2.",
        "You pick up the apple 3 from the countertop 2.",
        "This is a sliced apple 3.",
    ]
    play.step("go to fridge 1")
    play.step("cool apple 3 with fridge 1")  # through the closed door
    assert play.step("examine apple 3") == "This is a cool sliced apple 3."
    play.step("go to sinkbasin 1")
    play.step("clean apple 3 with sinkbasin 1")
    assert play.step("examine apple 3") == "This is a cool and clean sliced apple 3."
    play.step("go to microwave 1")
    assert (
        play.step("heat apple 3 with microwave 1") == "You heat the apple 3 using the microwave 1."
    )
    assert play.step("examine apple 3") == "This is a hot and clean sliced apple 3."
    play = Game.from_text(kitchen("two")).start()
    transcript(play, "go to fridge 1", "open fridge 1", "take apple 1 from fridge 1")
    assert play.step("examine apple 1") == "This is a cold apple 1."
    transcript(
        play, "move apple 1 to fridge 1", "go to countertop 1", "take pot 1 from countertop 1"
    )
    # and not itself
    assert play.step("examine pot 1") == "This is a normal pot 1. In it, you see a apple 3."
    more = "".join(
        f"(objectType Egg_bar_{n} EggType) (inReceptacleObject Egg_bar_{n} Pot_bar_1)"
        for n in (3, 1, 2)
    )
    play = Game.from_text(kitchen(facts=KITCHEN + more)).start()
    transcript(play, "go to countertop 1", "take pot 1 from countertop 1")
    assert play.step("examine pot 1").endswith("you see a apple 3, a egg 3, a egg 2, and a egg 1.")


def test_a_door_can_be_closed_again_and_a_knife_slices_through_it():
    play = Game.from_text(kitchen()).start()
    assert (
        play.step("look")
        == "You are in the middle of a room. Looking quickly around you, you see nothing."
    )
    transcript(play, "go to countertop 2", "open cabinet 1", "take knife 1 from countertop 2")
    # a cabinet holds no knives in this kitchen
    assert "move knife 1 to cabinet 1" not in play.admissible()
    assert play.step("close cabinet 1") == "You close the cabinet 1."
    assert play.step("examine cabinet 1") == "The cabinet 1 is closed."
    here = [
        command
        for command in play.admissible()
        if not command.startswith(("go to", "help", "inventory", "look"))
    ]
    assert here == [
        "examine cabinet 1",
        "examine countertop 2",
        "examine knife 1",
        "move knife 1 to countertop 2",
        "open cabinet 1",
        "slice apple 3 with knife 1",
        "use desklamp 1",
    ]
    assert transcript(play, "go to fridge 1", "slice apple 1 with knife 1") == [
        "You arrive at fridge 1. The fridge 1 is closed.",
        "You sliced the apple 1 with the knife 1.",
    ]


def test_all_six_kinds_of_goals_are_reached_and_can_be_undone():
    fetch = ["go to fridge 1", "open fridge 1", "take apple 1 from fridge 1"]
    put = ["go to countertop 2", "move apple 1 to countertop 2"]
    ways = {
        "hot": [*fetch, "go to microwave 1", "heat apple 1 with microwave 1", *put],
        "cool": [*fetch, *put],  # it is cold from the start
        "clean": [
            "go to countertop 2",
            "take apple 3 from countertop 2",
            "go to sinkbasin 1",
            "clean apple 3 with sinkbasin 1",
            "go to countertop 2",
            "move apple 3 to countertop 2",
        ],
        "two": [*fetch, *put],  # one lies there already
        "look": [*fetch, "go to cabinet 1", "use desklamp 1"],
    }
    for goal, way in ways.items():
        play = Game.from_text(kitchen(goal)).start()
        won = []
        for command in way:
            assert command in play.admissible(), (goal, command)
            play.step(command)
            won.append(play.won)
        assert won == [False] * (len(way) - 1) + [True], goal
        play.step(
            "go to sinkbasin 1"
            if goal == "look"
            else next(c for c in play.admissible() if c.startswith(f"take {way[-1][5:12]}"))
        )
        assert not play.won, goal
    # an apple in two places at once is processed while it still lies on the counter top
    for goal, tool in (("hot", "microwave 1"), ("clean", "sinkbasin 1"), ("cool", "fridge 1")):
        verb = {"hot": "heat"}.get(goal, goal)
        play = Game.from_text(kitchen(goal)).start()
        transcript(
            play,
            "go to cabinet 1",
            "open cabinet 1",
            "take apple 3 from cabinet 1",
            f"go to {tool}",
        )
        assert not play.won
        play.step(f"{verb} apple 3 with {tool}")
        assert play.won, goal
    # another lamp than the goal's does not count
    lamp = (
        "(objectType FloorLamp_bar_1 FloorLampType) (inReceptacle FloorLamp_bar_1 "
        "Fridge_bar_1) (toggleable FloorLamp_bar_1)"
    )
    play = Game.from_text(kitchen("look", KITCHEN + lamp)).start()
    transcript(play, *fetch)
    assert play.step("use floorlamp 1") == "You turn on the floorlamp 1." and not play.won
    assert Game.from_text(kitchen("")).task_type == "pick_and_place_simple"
    assert Game.from_text(kitchen("look")).task_type == "look_at_obj_in_light"


def test_whatever_is_not_admissible_changes_nothing():
    play = Game.from_text(kitchen()).start()
    play.step("go to fridge 1")
    menu = play.admissible()
    for nonsense in (
        "",
        "dance",
        "GO TO cabinet 1",
        "go  to cabinet 1",
        "go to fridge 1",
        "take apple 1 from fridge 1",
        "help me",
        "\n",
    ):
        assert play.step(nonsense) == play.observation == "Nothing happens."
        assert play.admissible() == menu
    assert play.step("  go to cabinet 1\n") == "You arrive at cabinet 1. The cabinet 1 is closed."
    assert play.step("help").startswith("Available commands:\n  look: ")


def test_a_damaged_or_foreign_game_is_refused_by_name(tmp_path):
    cases = {
        "cut": kitchen()[:1000],
        "list": "[]",
        "no problem": kitchen(change=lambda file: file.pop("pddl_problem")),
        "no task": kitchen(change=lambda file: file.update(grammar="")),
        "no facts": kitchen(facts=""),
        "unknown object": kitchen(facts=KITCHEN + "(inReceptacle Apple_bar_1 Shelf_bar_9)"),
        "nothing to heat": kitchen(facts=KITCHEN.replace("heatable", "moveable")),
        "start at a receptacle": kitchen(facts=KITCHEN.replace("agent1 start", "agent1 sink")),
        "other goal": kitchen(
            change=lambda file: file.update(
                pddl_problem=file["pddl_problem"].replace("isHot", "isSliced")
            )
        ),
    }
    for name, text in cases.items():
        path = tmp_path / f"{name}.tw-pddl"
        path.write_text(text)
        with pytest.raises(UserError, match=f"{name}.tw-pddl") as error:
            Game.load(path)
        assert "\n" not in str(error.value) and "alfworld-download" in str(error.value)
    with pytest.raises(UserError, match="absent.tw-pddl"):
        Game.load(tmp_path / "absent.tw-pddl")


# ---- the environment, in generated houses --------------------------------------------------------


def test_interleaved_episodes_of_one_game_do_not_disturb_each_other():
    env = AlfWorld(houses=True)
    for task_id in env.tasks("train")[:12]:
        alone = []
        for seed in range(4):
            rng, player = random.Random(seed), env.fork()
            steps = [player.reset(task_id)]
            while not steps[-1].done:
                steps.append(player.step(rng.choice(steps[-1].admissible)))
            alone.append(steps)
        rngs, players = [random.Random(seed) for seed in range(4)], [env.fork() for _ in range(4)]
        together = [[player.reset(task_id)] for player in players]
        while not all(steps[-1].done for steps in together):
            for rng, player, steps in zip(rngs, players, together):
                if not steps[-1].done:
                    steps.append(player.step(rng.choice(steps[-1].admissible)))
        assert together == alone


def test_an_episode_ends_at_the_goal_with_a_reward_of_ten():
    env = AlfWorld(houses=True)
    for task_id in env.tasks("valid_unseen")[:12]:
        step = env.reset(task_id)
        assert env.task == env.game(task_id).task and step.observation.endswith(
            f"Your task is to: {env.task}"
        )
        walkthrough = env.game(task_id).walkthrough
        for number, command in enumerate(walkthrough, 1):
            last = number == len(walkthrough)
            assert command in step.admissible
            step = env.step(command)
            assert (step.reward, step.done, step.won, step.score) == (
                (10, True, True, 1) if last else (0, False, False, 0)
            )
        with pytest.raises(RuntimeError, match="reset"):
            env.step("look")
        assert not env.reset(task_id).done


def test_an_episode_is_cut_at_the_step_limit_and_every_command_counts():
    env = AlfWorld(houses=True, max_steps=3)
    with pytest.raises(RuntimeError, match="reset"):
        env.step("look")
    env.reset(env.tasks("train")[0])
    steps = [env.step(command) for command in ("look", "dance", "inventory")]
    assert [(step.done, step.won, step.reward) for step in steps] == [
        (False, False, 0),
        (False, False, 0),
        (True, False, 0),
    ]
    with pytest.raises(RuntimeError, match="reset"):
        env.step("look")


def test_help_is_not_offered_but_played():
    env = AlfWorld(houses=True)
    step = env.reset(env.tasks("train")[0])
    assert (
        "help" not in step.admissible
        and "help" in env.play.admissible()
        and step.admissible == sorted(step.admissible)
    )
    assert env.is_admissible("look", step) and not env.is_admissible("help", step)
    assert env.step("help").observation.startswith("Available commands:")
    assert env.anchor("The fridge 1 is closed.") == "The fridge 1 is closed."


def test_forks_share_parsed_games():
    env = AlfWorld(houses=True)
    one, other = env.fork(), env.fork()
    task_id = env.tasks("train")[7]
    one.reset(task_id)
    other.reset(task_id)
    assert one.play.game is other.play.game and one.play is not other.play and env.play is None


@pytest.mark.slow  # the official engine makes about 12 steps and 0.4 loads a second
@pytest.mark.skipif(
    not (find_spec("alfworld") and find_spec("textworld")),
    reason="no official packages: pip install -e '.[alfworld]'",
)
def test_both_engines_play_generated_houses_alike():
    arguments, variables = list(sys.argv), dict(os.environ)
    fast, rng = AlfWorld(houses=True, max_steps=25), random.Random(0)
    official = AlfWorld(houses=True, max_steps=25, engine="textworld")
    assert "official engine" in official.describe("train")
    nonsense = [
        "",
        "dance",
        "look ",
        "Look",
        "go to",
        "put it down",
        "inventory",
        "help",
        "look",
        "take all",
    ]
    kinds = set()
    for task_id in fast.tasks("valid_unseen")[6:12]:
        kinds.add(fast.task_type(task_id))
        step = fast.reset(task_id)
        assert official.reset(task_id) == step and official.task == fast.task
        for command in fast.game(task_id).walkthrough:
            # what does not spoil the walkthrough
            idle = nonsense + [name for name in step.admissible if name.startswith("examine")]
            for action in (rng.choice(idle), command):
                step = fast.step(action)
                assert official.step(action) == step, (task_id, action)
        assert step.won
    assert len(kinds) == 6
    task_id = fast.tasks("train")[0]
    step = fast.reset(task_id)
    assert official.reset(task_id) == step
    while not step.done:  # at random, but travelling less than doing
        verbs = {
            command.split()[0]: [c for c in step.admissible if c.split()[0] == command.split()[0]]
            for command in step.admissible
        }
        command = rng.choice(verbs[rng.choice(sorted(verbs))])
        step = fast.step(command)
        assert official.step(command) == step, (task_id, command)
    # the official packages would have changed both
    assert (sys.argv, dict(os.environ)) == (arguments, variables)


# ---- finding games -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with two listed games of train, one of valid_seen, and a fresh place for the
    index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    for task in (
        "train/pick_two_obj_and_place-Pen-None-Desk-301/trial_2",
        "train/pick_heat_then_place_in_recep-Mug-None-Shelf-20/trial_1",
        "valid_seen/look_at_obj_in_light-Mug-None-DeskLamp-301/trial_3",
    ):
        add_game(tmp_path / "data", task)
    return tmp_path / "data"


def add_game(folder, task, text='{"solvable": true, "walkthrough": []}'):
    path = folder / "json_2.1.1" / task / "game.tw-pddl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def reads(monkeypatch):
    """The paths of the game files that were opened since."""
    paths, real = [], alfworld.is_solvable
    monkeypatch.setattr(alfworld, "is_solvable", lambda path: paths.append(path) or real(path))
    return paths


def test_tasks_are_sorted_folders_and_splits_are_kept_apart(folder):
    env = AlfWorld(folder)
    assert env.tasks("train") == [
        "train/pick_heat_then_place_in_recep-Mug-None-Shelf-20/trial_1",
        "train/pick_two_obj_and_place-Pen-None-Desk-301/trial_2",
    ]
    assert env.tasks("valid_seen") == [
        "valid_seen/look_at_obj_in_light-Mug-None-DeskLamp-301/trial_3"
    ]
    for number in range(20):  # folders come in any order
        add_game(
            folder,
            f"valid_unseen/pick_and_place_simple-Pen-None-Desk-30{number % 7}/trial_{number}",
        )
    unseen = AlfWorld(folder).tasks("valid_unseen")
    assert len(unseen) == 20 and unseen == sorted(unseen)
    assert env.task_type(env.tasks("train")[0]) == "pick_heat_then_place_in_recep"
    assert env.describe("train") == f"train: 2 ALFWorld games in {folder / 'json_2.1.1'}"


def test_games_are_skipped_by_the_official_rules(folder):
    place = "train/pick_and_place_simple-Pen-None-Desk-301"
    add_game(folder, "train/pick_and_place_with_movable_recep-Pen-Bowl-Desk-301/trial_1")
    add_game(folder, "train/pick_and_place_simple-AppleSliced-None-Fridge-1/trial_1")
    add_game(folder, "train/tidy_up-Apple-None-Fridge-1/trial_1")
    add_game(folder, f"{place}/trial_1", '{"solvable": false}')
    add_game(folder, f"{place}/trial_2", '{"walkthrough": []}')
    add_game(folder, f"{place}/trial_3").unlink()
    # not within the last bytes of the file
    add_game(folder, f"{place}/trial_4", '{"solvable": true, "long": "' + "x" * 10_000 + '"}')
    env = AlfWorld(folder)
    assert len(env.tasks("train")) == 3 and f"{place}/trial_4" in env.tasks("train")
    assert env.describe("train").endswith("(2 more are unsolvable or damaged)")


def test_the_index_saves_reading_and_follows_every_change(folder, reads):
    tasks = AlfWorld(folder).tasks("train")
    assert len(reads) == 3
    reads.clear()
    assert AlfWorld(folder).tasks("train") == tasks and not reads  # warm
    added = add_game(folder, "train/pick_and_place_simple-Pen-None-Desk-301/trial_9")
    assert len(AlfWorld(folder).tasks("train")) == 3 and len(reads) == 1  # only the new one is read
    added.write_text('{"solvable": false}')
    assert AlfWorld(folder).tasks("train") == tasks  # the file changed
    added.unlink()
    assert AlfWorld(folder).tasks("train") == tasks and "more" not in AlfWorld(folder).describe(
        "train"
    )


@pytest.mark.parametrize("damage", ["", "{", "[]", "3", '{"x": 1}', "\x00"])
def test_a_damaged_index_is_made_anew(folder, reads, damage):
    tasks = AlfWorld(folder).tasks("train")
    [index] = (folder.parent / "cache" / "siri").iterdir()
    whole = index.read_text()
    index.write_text(damage)
    reads.clear()
    assert AlfWorld(folder).tasks("train") == tasks and len(reads) == 3
    assert index.read_text() == whole
    index.write_text(whole.replace("true", '"yes"', 1))
    reads.clear()
    assert AlfWorld(folder).tasks("train") == tasks and len(reads) == 1


def test_an_unwritable_cache_folder_stops_nothing(folder, monkeypatch):
    (folder / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    assert len(AlfWorld(folder).tasks("train")) == 2


def test_missing_data_is_reported_in_one_line(folder, tmp_path, monkeypatch):
    (tmp_path / "empty" / "json_2.1.1" / "train").mkdir(parents=True)
    for data in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(UserError, match=f"{data}.*alfworld-download") as error:
            AlfWorld(data)
        assert "\n" not in str(error.value)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="absent.*ALFWORLD_DATA"):
        AlfWorld()
    with pytest.raises(UserError, match="valid_unseen.*found none"):
        AlfWorld(folder).tasks("valid_unseen")
    with pytest.raises(UserError, match="train, valid_seen, valid_unseen, found 'test'"):
        AlfWorld(folder).tasks("test")
    with pytest.raises(UserError, match="fast or textworld, found 'quick'"):
        AlfWorld(folder, engine="quick")
    with pytest.raises(UserError, match="trial_2"):
        # an empty file, as it turns out
        AlfWorld(folder).reset("train/pick_two_obj_and_place-Pen-None-Desk-301/trial_2")


def test_the_official_engine_without_its_packages_names_the_install_line(monkeypatch):
    monkeypatch.setattr(alfworld, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[alfworld\]'"):
        AlfWorld(houses=True, engine="textworld")
    assert AlfWorld(houses=True).reset("houses/train/00000").admissible  # ours needs none of them


def test_which_data_is_played_follows_argument_environment_download_and_houses_in_this_order(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert "2,000 generated houses" in AlfWorld().describe("train")
    add_game(
        tmp_path / "home" / ".cache" / "alfworld",
        "train/pick_and_place_simple-Pen-None-Desk-301/trial_1",
    )
    assert AlfWorld().describe("train").startswith("train: 1 ALFWorld games")
    monkeypatch.setenv("ALFWORLD_DATA", str(folder))
    assert AlfWorld().describe("train").startswith("train: 2 ALFWorld games")
    assert (
        AlfWorld(tmp_path / "home" / ".cache" / "alfworld")
        .describe("train")
        .startswith("train: 1 ALFWorld games")
    )
    assert "generated houses" in AlfWorld(houses=True).describe("train")


@pytest.mark.skipif(
    not os.environ.get("ALFWORLD_DATA"), reason="no ALFWorld games (set ALFWORLD_DATA)"
)
def test_the_official_games_are_listed_quickly(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seconds = []
    for _ in range(4):
        begun = time.process_time()  # not the wall clock: other jobs on the machine must not count
        env = AlfWorld()
        seconds.append(time.process_time() - begun)
    assert [len(env.tasks(split)) for split in env.split_names] == [3553, 140, 134]
    assert seconds[0] < 2 and min(seconds[1:]) < 0.2, seconds
