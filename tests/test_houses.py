"""Generated houses: solvable, varied, the same everywhere, and truly in ALFWorld's format.

pytest tests/test_houses.py                  # everything, the official engine included where
                                             alfworld is installed
pytest tests/test_houses.py -m "not slow"    # a few seconds
"""

import hashlib
import json
import os
import random
import runpy
import subprocess
import sys
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest

from envs import UserError, houses
from envs import houses_tables as tables
from envs.alfworld_engine import Game

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ("train", "valid_seen", "valid_unseen")
needs_alfworld = pytest.mark.skipif(
    find_spec("alfworld") is None, reason="needs the alfworld package: pip install -e '.[alfworld]'"
)


def pretraining(count, split="pretrain"):
    return [f"{split}/{number:07d}" for number in range(count)]


def contents(data):
    """object id -> the receptacle ids it is in"""
    inside = defaultdict(list)
    for thing, receptacle in data["facts"]["inReceptacle"]:
        inside[thing].append(receptacle)
    return inside


def fingerprint():
    """One number for what generation does, over all splits and task types."""
    ids = (
        [id for split in SPLITS for id in houses.tasks(split)[:6]]
        + pretraining(6)
        + pretraining(6, "pretrain_check")
    )
    text = json.dumps([houses.house(id) for id in ids])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shipped():
    """The folder of the installed alfworld package."""
    return Path(find_spec("alfworld").submodule_search_locations[0])


# ---- ids -----------------------------------------------------------------------------------------


def test_every_split_is_a_sorted_list_with_equal_shares_of_all_six_task_types():
    for split, size in zip(SPLITS, (2000, 140, 134)):
        ids = houses.tasks(split)
        assert len(ids) == len(set(ids)) == size and ids == sorted(ids)
        shares = Counter(map(houses.task_type, ids))
        assert (
            set(shares) == set(tables.TASK_TYPES)
            and max(shares.values()) - min(shares.values()) <= 1
        )


@pytest.mark.parametrize(
    "id",
    [
        "",
        "houses/train/02000",
        "houses/train/1",
        "houses/valid_seen/00140",
        "pretrain/12",
        "houses/pretrain/0000001",
    ],
)
def test_a_wrong_id_is_refused_in_one_line_that_quotes_it(id):
    for use in (houses.make_game, houses.task_type):
        with pytest.raises(UserError) as error:
            use(id)
        assert repr(id) in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_split_is_refused_and_pretraining_is_not_listed():
    for split in ("test", "pretrain"):
        with pytest.raises(UserError, match=f"found '{split}'"):
            houses.tasks(split)


# ---- games ---------------------------------------------------------------------------------------


def test_walkthroughs_are_admissible_throughout_and_win_exactly_at_their_last_step():
    ids = (
        [id for split in SPLITS for id in houses.tasks(split)[:140]]
        + pretraining(300)
        + pretraining(60, "pretrain_check")
    )
    for id in ids:
        game = houses.make_game(id)
        play, won = game.start(), []
        for command in game.walkthrough:
            assert command in play.admissible(), (id, command)
            play.step(command)
            won.append(play.won)
        assert won == [False] * (len(won) - 1) + [True], (id, game.walkthrough)
        assert game.task_type == houses.task_type(id)


def test_goals_come_in_both_wordings_of_every_task_type_and_in_many_combinations():
    games = [houses.house(id) for id in houses.tasks("train")[:600]]
    used = Counter()
    for data in games:
        [wording] = [
            wording
            for wording in tables.SENTENCES[data["task_type"]]
            if wording.format(obj=data["wanted"].lower(), target=data["target"].lower())
            == data["task"]
        ]
        used[wording] += 1
    assert len(used) == 12 and min(used.values()) > 30
    assert len({(data["task_type"], data["wanted"], data["target"]) for data in games}) > 250


def test_facts_keep_to_the_tables():
    for id in pretraining(300):
        data = houses.house(id)
        facts, inside = data["facts"], contents(data)
        receptacle_type, object_type = dict(facts["receptacleType"]), dict(facts["objectType"])
        ids = [*receptacle_type, *object_type]
        assert len(ids) == len(set(map(str.lower, ids)))
        for thing, receptacles in inside.items():
            name = object_type[thing].removesuffix("Type")
            allowed = {kind for kind, holds in tables.CAN_CONTAIN.items() if name in holds}
            if allowed:
                assert {receptacle_type[r].removesuffix("Type") for r in receptacles} <= allowed
        for (receptacle,) in facts["openable"]:
            assert receptacle_type[receptacle].removesuffix("Type") in tables.OPENABLE
        [(_, start)] = facts["atLocation"]
        assert start not in dict(facts["receptacleAtLocation"]).values()
        for name, count in Counter(receptacle_type.values()).items():
            assert count <= tables.LARGEST[name.removesuffix("Type")]


def test_usual_places_are_possible_places():
    for thing, places in tables.WHERE.items():
        assert (
            thing in tables.OBJECTS
            and set(places) - {"-"} <= set(tables.RECEPTACLES)
            and all(places.values())
        )
        # a bear lies on beds in ALFWorld too, though it may not be put there
        if thing not in tables.SCENERY | {"TeddyBear"}:
            assert all(thing in tables.CAN_CONTAIN[place] for place in places if place != "-"), (
                thing
            )


def test_houses_have_the_oddities_of_real_ones():
    seen, sizes = Counter(), defaultdict(list)
    for id in pretraining(600):
        data = houses.house(id)
        facts, inside, types = data["facts"], contents(data), dict(data["facts"]["objectType"])
        openable = {receptacle for (receptacle,) in facts["openable"]}
        goal_things = [
            inside[thing]
            for thing, type in types.items()
            if type == f"{data['wanted']}Type" and inside[thing]
        ]
        assert 1 <= len(goal_things) <= 4
        seen[f"{len(goal_things)} goal things"] += 1
        seen["all goal things behind doors"] += all(
            set(places) <= openable for places in goal_things
        )
        seen["a goal thing behind a door"] += any(set(places) <= openable for places in goal_things)
        seen["a thing in two places"] += any(len(places) > 1 for places in inside.values())
        seen["a thing in no place"] += any(not inside[thing] for (thing,) in facts["pickupable"])
        seen["a thing in a vessel"] += bool(facts["inReceptacleObject"])
        seen["a cool thing"] += bool(facts["isCool"])
        seen["shared location"] += len({where for _, where in facts["receptacleAtLocation"]}) < len(
            facts["receptacleAtLocation"]
        )
        seen["a drawer without a door"] += any(
            type == "DrawerType" and id not in openable for id, type in facts["receptacleType"]
        )
        if data["task_type"] == "pick_cool_then_place_in_recep":
            assert not [
                thing for (thing,) in facts["isCool"] if types[thing] == f"{data['wanted']}Type"
            ]
        kitchen = "FridgeType" in dict(facts["receptacleType"]).values()
        sizes["kitchen" if kitchen else "other"].append(len(facts["receptacleType"]))
    for what in (
        "all goal things behind doors",
        "a thing in two places",
        "a thing in a vessel",
        "a cool thing",
    ):
        assert 12 <= seen[what] <= 420, (what, seen)  # neither missing nor everywhere
    for what in (
        "a goal thing behind a door",
        "a thing in no place",
        "shared location",
        "a drawer without a door",
        *(f"{n} goal things" for n in range(1, 5)),
    ):
        assert seen[what] >= 60, (what, seen)
    means = {kind: sum(counts) / len(counts) for kind, counts in sizes.items()}
    # receptacles per room, as many as ALFWorld's rooms have
    assert 29 < means["kitchen"] < 36 and 13 < means["other"] < 18


def test_looking_in_likely_places_finds_things_sooner_than_looking_in_possible_ones():
    """Receptacles visited until a goal thing is found, in three orders: any; those that can hold
    it, rarest type first (without habits that would be the best order); by the weights of WHERE,
    shared out over the instances of a type."""
    visits = Counter()
    for id in pretraining(600, "pretrain_check"):
        data = houses.house(id)
        inside, wanted = contents(data), data["wanted"]
        kind = {
            receptacle: type.removesuffix("Type")
            for receptacle, type in data["facts"]["receptacleType"]
        }
        found = {
            r
            for thing, type in data["facts"]["objectType"]
            if type == f"{wanted}Type"
            for r in inside[thing]
        }
        many, anyhow = Counter(kind.values()), sorted(kind)
        random.Random(id).shuffle(anyhow)
        possible = sorted(
            anyhow, key=lambda r: -(wanted in tables.CAN_CONTAIN[kind[r]]) / many[kind[r]]
        )
        likely = sorted(anyhow, key=lambda r: -tables.WHERE[wanted].get(kind[r], 0) / many[kind[r]])
        for how, order in (("any", anyhow), ("possible", possible), ("likely", likely)):
            visits[how] += 1 + next(n for n, r in enumerate(order) if r in found)
    assert (
        visits["likely"] < 0.9 * visits["possible"] and visits["possible"] < 0.5 * visits["any"]
    ), visits


# ---- splits --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_splits_share_no_room_except_that_seen_rooms_are_training_rooms():
    rooms, furniture = {}, {}
    ids_of = {split: houses.tasks(split) for split in SPLITS}
    ids_of |= {split: pretraining(1000, split) for split in ("pretrain", "pretrain_check")}
    for name, ids in ids_of.items():
        games = [houses.house(id)["facts"]["receptacleType"] for id in ids]
        rooms[name] = {tuple(sorted(id for id, _ in receptacles)) for receptacles in games}
        furniture[name] = {tuple(sorted(type for _, type in receptacles)) for receptacles in games}
    assert (
        rooms["valid_seen"] <= rooms["train"]
        and len(rooms["train"]) == 120
        and len(rooms["valid_unseen"]) == 37
    )
    for one in rooms:
        for other in set(rooms) - {one}:
            if {one, other} != {"train", "valid_seen"}:
                assert not rooms[one] & rooms[other] and not furniture[one] & furniture[other], (
                    one,
                    other,
                )


def test_seen_games_are_not_training_games():
    train = {json.dumps(houses.house(id)["facts"]["inReceptacle"]) for id in houses.tasks("train")}
    assert len(train) == 2000
    assert not train & {
        json.dumps(houses.house(id)["facts"]["inReceptacle"]) for id in houses.tasks("valid_seen")
    }


# ---- determinism ---------------------------------------------------------------------------------


def test_generation_is_what_it_was():
    """Results on houses can only be compared while this number stays; whoever changes the generator
    on purpose changes it here."""
    assert fingerprint() == "8d6cbc969fbe8934"


@pytest.mark.parametrize("seed", ["1", "4242"])
def test_other_processes_with_other_hash_seeds_make_the_same_houses(seed):
    code = (
        "import sys; sys.path[:0] = ['.', 'tests']; from test_houses import "
        "fingerprint; print(fingerprint())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == fingerprint()


# ---- names and facts of the real thing -----------------------------------------------------------


def test_the_vocabulary_names_everything_a_house_names():
    objects, receptacles = houses.vocabulary()
    for id in pretraining(200):
        game = houses.make_game(id)
        assert {name.split()[0] for name in game.objects} <= set(objects)
        assert all(
            int(number) <= receptacles[name] for name, number in map(str.split, game.receptacles)
        )


def test_the_vocabulary_names_everything_that_real_games_name():
    if "ALFWORLD_DATA" not in os.environ:
        pytest.skip("needs the real games: set ALFWORLD_DATA")
    paths = sorted(Path(os.environ["ALFWORLD_DATA"]).glob("json_2.1.1/*/*/*/game.tw-pddl"))[::25]
    assert paths, "ALFWORLD_DATA has no games"
    objects, receptacles = houses.vocabulary()
    for path in paths:
        game = Game.load(path)
        assert {name.split()[0] for name in game.objects} <= set(objects)
        assert all(
            int(number) <= receptacles[name] for name, number in map(str.split, game.receptacles)
        )


@needs_alfworld
def test_the_tables_say_what_the_alfworld_package_says():
    theirs = runpy.run_path(str(shipped() / "gen" / "constants.py"))
    vessels = set(theirs["MOVABLE_RECEPTACLES"])
    holds = {
        name: {thing for thing in things if not thing.endswith("Sliced")}
        for name, things in theirs["VAL_RECEPTACLE_OBJECTS"].items()
    }
    assert {
        name: set(things) for name, things in tables.CAN_CONTAIN.items() if name != "PaintingHanger"
    } == {name: things for name, things in holds.items() if name not in vessels}
    assert {name: set(things) for name, things in tables.VESSELS.items()} == {
        name: holds[name] for name in vessels
    }
    for flag in ("Heatable", "Coolable", "Cleanable", "Toggleable", "Sliceable"):
        things = {
            thing for thing in theirs["VAL_ACTION_OBJECTS"][flag] if not thing.endswith("Sliced")
        }
        assert tables.FLAGS[flag.lower()] == things
    assert tables.OPENABLE == set(theirs["OPENABLE_CLASS_LIST"]) - vessels
    assert set(theirs["OBJECTS"]) | theirs["RECEPTACLES"] <= set(tables.OBJECTS) | set(
        tables.RECEPTACLES
    )
    kinds = {
        "Kitchen": "kitchen",
        "LivingRoom": "living",
        "Bedroom": "bedroom",
        "Bathroom": "bathroom",
    }
    for type, rooms in tables.TASK_TYPES.items():
        assert set(rooms) == {kinds[kind] for kind in theirs["GOALS_VALID"][type]}
    for layout in (shipped() / "gen" / "layouts").glob("*-openable.json"):
        names = (
            id.split("|")[-1 if id.endswith("Basin") else 0]
            for id in json.loads(layout.read_text())
        )
        assert all(count < tables.LARGEST[name] for name, count in Counter(names).items())


# ---- files ---------------------------------------------------------------------------------------


@needs_alfworld
def test_a_written_game_loads_as_the_same_game(tmp_path):
    for id in pretraining(12):
        made, read = houses.make_game(id), Game.load(houses.write_game(id, tmp_path))
        assert (made.task_type, made.task, made.walkthrough, made.intro) == (
            read.task_type,
            read.task,
            read.walkthrough,
            read.intro,
        )
        plays, rng = (made.start(), read.start()), random.Random(id)
        for _ in range(60):
            assert plays[0].admissible() == plays[1].admissible()
            command = rng.choice(plays[0].admissible())
            assert plays[0].step(command) == plays[1].step(command) and plays[0].won == plays[1].won


@needs_alfworld
def test_the_command_line_writes_alfworlds_folders(tmp_path):
    command = [
        sys.executable,
        "-m",
        "envs.houses",
        "--out",
        str(tmp_path),
        "--games",
        "8",
        "--split",
        "valid_unseen",
    ]
    for seed in "0", "0", "1":
        subprocess.run([*command, "--seed", seed], cwd=ROOT, check=True, capture_output=True)
    games = list(tmp_path.glob("json_2.1.1/valid_unseen/*/trial_*/game.tw-pddl"))
    assert 8 < len(games) <= 16  # the same seed writes the same games again, another seed others
    for path in games:
        type, wanted, movable, target, _ = path.parts[-3].split("-")
        game = Game.load(path)
        assert (
            (game.task_type, movable) == (type, "None")
            and wanted.lower() in game.task
            and target.lower() in game.task
        )


def test_a_user_mistake_on_the_command_line_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "envs.houses", "--out", str(tmp_path), "--games", "2001"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (
        run.returncode == 2
        and run.stderr.count("\n") == 1
        and "between 1 and 2000" in run.stderr
        and "2001" in run.stderr
    )


def test_writing_without_the_alfworld_package_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(houses, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '.\[alfworld\]'"):
        houses.write_game("houses/train/00000", tmp_path)


@pytest.mark.slow
@needs_alfworld
def test_the_official_engine_plays_written_games_exactly_like_ours_and_its_loader_takes_them(
    tmp_path,
):
    textworld = pytest.importorskip("textworld")
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredTWEnv

    ids = houses.tasks("train")[:6]  # one of each task type
    paths = [houses.write_game(id, tmp_path) for id in ids]
    config = {
        "env": {"goal_desc_human_anns_prob": 0, "task_types": [1, 2, 3, 4, 5, 6]},
        "dataset": {"data_path": str(tmp_path / "json_2.1.1" / "train"), "num_train_games": -1},
    }
    assert sorted(AlfredTWEnv(config).game_files) == sorted(map(str, paths))

    for id, path in zip(ids, paths):
        official = textworld.start(
            str(path),
            textworld.EnvInfos(won=True, admissible_commands=True),
            wrappers=[AlfredDemangler()],
        )
        state, game, rng = official.reset(), houses.make_game(id), random.Random(id)
        play = game.start()
        assert state.feedback == play.observation
        for n in range(len(game.walkthrough) + 8):  # the walkthrough, then a few random steps
            assert sorted(state.admissible_commands) == play.admissible()
            command = (
                game.walkthrough[n] if n < len(game.walkthrough) else rng.choice(play.admissible())
            )
            state, _, _ = official.step(command)
            assert state.feedback == play.step(command) and state.won == play.won
            if n < len(game.walkthrough):
                assert state.won == (n == len(game.walkthrough) - 1)
