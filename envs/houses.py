"""Generated houses: endless solvable games in ALFWorld's own format, for whoever has no ALFWorld
data (and to pretrain the stand-in on).

A game is a room and a goal.  The room (kind, receptacles, locations, doors) is drawn from a room
seed; the game (things, where they lie, start, goal) from its id.  Two differences from ALFWorld's
own games: its rooms are the 120 floor plans of a simulator, ours are random compositions of the
same furniture; and where things lie is the simulator's choice there, here the common sense of
houses_tables.WHERE.  The format, the rules, the names and the sentences are the same, so whatever
plays the one plays the other.

    train          2000 games in 120 rooms
    valid_seen      140 games in the same rooms, with new placements and goals
    valid_unseen    134 games in 37 rooms of their own
    pretrain        any id pretrain/0000000 .. pretrain/9999999, a room for each; pretrain_check
                    likewise

No room of one split can occur in another: which split may use a composition (how many receptacles
of which type) is decided by its checksum.  Task types take turns (a task's number modulo six), so
that every stretch of ids holds them in equal shares.

    game = make_game("houses/train/00012")                          # in memory, an
                                                                    envs.alfworld_engine.Game
    python -m envs.houses --out DIR --games 100 --seed 0            # files that the official engine
                                                                    plays (needs the alfworld
                                                                    package)
"""

import argparse
import json
import random
import re
import zlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from envs import UserError
from envs import houses_tables as tables
from envs.alfworld_engine import Game, names_of
from envs.arguments import Parser, run_tool, whole

SIZES = {"train": 2000, "valid_seen": 140, "valid_unseen": 134}
ROOM_COUNTS = {"train": 30, "valid_unseen": 10}  # rooms per kind to draw from
# a composition's checksum modulo 4 says whose it is
OWNERS = ("train", "valid_unseen", "pretrain", "pretrain_check")
KINDS = tuple(tables.ROOMS)
# Our guesses, like houses_tables.WHERE: shares of things in a place where they may but do not
# usually lie, on the floor, ...
UNUSUAL, FLOOR, IN_TWO_PLACES, IN_A_VESSEL, COLD = 0.08, 0.04, 0.08, 0.03, 0.08
SHARED_LOCATION = 0.3  # of receptacles, with the one before


def pick(rng, options):
    """One of the options.  Games are built with random() alone, the one draw that Python promises
    never to change."""
    return options[int(rng.random() * len(options))]


def tasks(split):
    """The sorted task ids of a split; UserError for a split that is unknown or (pretrain) too long
    to list."""
    if split not in SIZES:
        raise UserError(
            f"expected a split out of {', '.join(SIZES)}, found {split!r}; "
            "pretrain and pretrain_check are too long to list: make ids such as "
            "pretrain/0000000"
        )
    return [f"houses/{split}/{number:05d}" for number in range(SIZES[split])]


def parse(task_id):
    """The split and the number in a task id; UserError for anything else."""
    match = re.fullmatch(
        r"(?:houses/(train|valid_seen|valid_unseen)/(\d{5})|(pretrain|pretrain_check)/(\d{7}))",
        task_id,
    )
    split, number = (match[1] or match[3], int(match[2] or match[4])) if match else (None, 0)
    if not match or number >= SIZES.get(split, number + 1):
        raise UserError(
            "expected a house such as houses/train/00012 or pretrain/0000012, found "
            f"{task_id!r}; see houses.tasks('train')"
        )
    return split, number


def task_type(task_id):
    """The task type of an id, one of TASK_TYPES, without building the game."""
    return tuple(tables.TASK_TYPES)[parse(task_id)[1] % len(tables.TASK_TYPES)]


def vocabulary():
    """All names that ALFWorld's games use: (object classes, {receptacle class: largest number of
    instances in any room}), lower case."""
    return [name.lower() for name in tables.OBJECTS], {
        name.lower(): most for name, most in tables.LARGEST.items()
    }


# ---- a room --------------------------------------------------------------------------------------


def coordinate(hundredths):
    """-105 becomes `_minus_01_dot_05`: a coordinate as ALFWorld's ids spell it."""
    sign = "_minus_" if hundredths < 0 else "_plus_" if hundredths else ""
    return f"{sign}{abs(hundredths) // 100:02d}_dot_{abs(hundredths) % 100:02d}"


def new_id(rng, stem, x, y, z, taken, tail=""):
    """A fresh id near a point (hundredths of a metre).  Numbers in names come from the order of
    ids, hence from these coordinates."""
    while True:
        dx, dy, dz = (int(rng.random() * 40) - 20 for _ in range(3))
        at = "_bar_".join(coordinate(part) for part in (x + dx, y + dy, z + dz))
        id = f"{stem}_bar_{at}{tail}"
        if id not in taken:
            taken.add(id)
            return id


def new_location(rng, width, depth):
    """A viewpoint in a room of width x depth grid points, 0.25 m apart: (id, x, z of what it looks
    at in hundredths of a metre)."""
    x, z = int(rng.random() * width) - width // 2, int(rng.random() * depth) - depth // 2
    turn, horizon = int(rng.random() * 4), pick(rng, (-30, 0, 30, 45, 60))
    numbers = (f"_minus_{-n}" if n < 0 else str(n) for n in (x, z, turn, horizon))
    return (
        f"loc_bar_{'_bar_'.join(numbers)}",
        25 * x + (0, 70, 0, -70)[turn],
        25 * z + (70, 0, -70, 0)[turn],
    )


@lru_cache(maxsize=256)
def room(owner, kind, number):
    """One room: (receptacles, start location); a receptacle is (id, type, location, openable, (x,
    y, z))."""
    rng = random.Random(f"room/{owner}/{kind}/{number}")
    # until the composition is this split's own and, where lamps are looked for, there is a place
    # for one
    while True:
        counts = {name: pick(rng, numbers) for name, numbers in tables.ROOMS[kind].items()}
        lamp = kind not in tables.TASK_TYPES["look_at_obj_in_light"] or any(
            counts.get(name) for name in tables.WHERE["DeskLamp"]
        )
        if lamp and OWNERS[zlib.crc32(f"{kind} {counts}".encode()) % len(OWNERS)] == owner:
            break
    width, depth = 8 + int(rng.random() * 16), 8 + int(rng.random() * 16)
    # share of the drawers, cabinets and safes that are closed ones
    doors = pick(rng, (0.6, 0.8, 0.9, 1.0))
    receptacles, taken, location, sharing = [], set(), None, 0
    for name, count in counts.items():
        for _ in range(count):
            sharing = (
                sharing + 1 if location and sharing < 5 and rng.random() < SHARED_LOCATION else 1
            )
            while sharing == 1:  # a location of its own
                location, x, z = new_location(rng, width, depth)
                if location not in taken:
                    taken.add(location)
                    break
            y = int(rng.random() * 200)
            # a basin is named after the thing it is part of: Sink_bar_..._bar_SinkBasin
            stem, tail = (name[:-5], f"_bar_{name}") if name.endswith("Basin") else (name, "")
            openable = name in tables.OPENABLE and (
                name in ("Fridge", "Microwave") or rng.random() < doors
            )
            receptacles.append(
                (new_id(rng, stem, x, y, z, taken, tail), name, location, openable, (x, y, z))
            )
    while location in taken:
        location = new_location(rng, width, depth)[0]
    return receptacles, location


# ---- a game in it --------------------------------------------------------------------------------


def draw_goal(rng, kind, task_type, types):
    """(object type, target type) of a goal that the room allows.  types: receptacle types of the
    room."""
    things = [
        thing
        for share in tables.THINGS[kind].values()
        for thing in share
        if thing in tables.FLAGS["pickupable"]
    ]
    able = tables.PROCESSES[task_type][1] if task_type in tables.PROCESSES else things
    while True:
        wanted = pick(rng, things)
        holders = [name for name in types if wanted in tables.CAN_CONTAIN[name]]
        if task_type == "look_at_obj_in_light" and holders:
            return wanted, "DeskLamp"
        # what is merely to be moved must not lie there already, so there have to be two kinds of
        # places for it
        if wanted in able and len(holders) > (task_type not in tables.PROCESSES):
            return wanted, pick(rng, holders)


def draw_place(rng, thing, by_type, banned):
    """The number of a receptacle for a thing, or None for none.  by_type: receptacle type ->
    numbers; banned: a type to avoid."""
    if thing not in tables.SCENERY and rng.random() < UNUSUAL:
        weights = {name: 1 for name in by_type if thing in tables.CAN_CONTAIN[name]}
    else:
        weights = {
            name: weight
            for name, weight in tables.WHERE.get(thing, {}).items()
            if name in by_type or name == "-"
        }
    weights.pop(banned, None)
    left = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        left -= weight
        if left < 0:
            return None if name == "-" else pick(rng, by_type[name])
    return None


def place_things(rng, counts, receptacles, by_type, needed, banned, target):
    """The things of a game: [(id, type, location, numbers of the receptacles it is in)], one per
    instance.

    counts: type -> instances; needed: type -> instances that must be in a receptacle; banned:
    {object type: receptacle type} never to be combined, as that would win the game at its start;
    target: the goal's receptacle type."""
    things, taken = [], {id for id, *_ in receptacles}
    for thing, count in counts.items():
        for copy in range(count):
            must = copy < needed.get(thing, 0)
            r = (
                draw_place(rng, thing, by_type, banned.get(thing))
                if must or rng.random() > FLOOR
                else None
            )
            while must and r is None:
                r = draw_place(rng, thing, by_type, banned.get(thing))
            _, _, location, _, point = receptacles[r] if r is not None else pick(rng, receptacles)
            inside = [] if r is None else [r]
            if inside and rng.random() < IN_TWO_PLACES:
                # also counts as being in a neighbour, except in a target of the goal: taken from
                # the one place it would still be there
                near = [
                    other
                    for other, (_, name, there, *_) in enumerate(receptacles)
                    if there == location
                    and other != r
                    and thing in tables.CAN_CONTAIN[name]
                    and not (thing in needed and name == target)
                ]
                inside += [pick(rng, near)] if near else []
            things.append((new_id(rng, thing, *point, taken), thing, location, inside))
    return things


def house(task_id):
    """A game as plain data: what its file holds, the facts as {predicate: [argument tuples]} in the
    files' spelling."""
    split, number = parse(task_id)
    rng, goal_type = random.Random(f"game/{task_id}"), task_type(task_id)
    kind = pick(rng, tables.TASK_TYPES[goal_type])
    owner = "train" if split == "valid_seen" else split
    if owner in ROOM_COUNTS:
        number = int(rng.random() * ROOM_COUNTS[owner])
    receptacles, start = room(owner, kind, number)
    by_type = {}  # receptacle type -> numbers
    for r, (_, name, *_) in enumerate(receptacles):
        by_type.setdefault(name, []).append(r)

    wanted, target = draw_goal(rng, kind, goal_type, tuple(by_type))
    needed = {wanted: 2 if goal_type == "pick_two_obj_and_place" else 1}
    # The goal's things 1 to 4 times and others up to 3 times, as ALFWorld's own generator has it.
    counts = {
        thing: 1 if thing in tables.SCENERY else pick(rng, (1, 1, 1, 2, 2, 3))
        for share, things in tables.THINGS[kind].items()
        for thing in things
        if rng.random() < share
    }
    counts[wanted] = max(needed[wanted], 1 + int(rng.random() * 4))
    if target == "DeskLamp":
        needed[target] = 1
        counts[target] = pick(rng, (1, 1, 1, 2))
    banned = {} if target == "DeskLamp" or goal_type in tables.PROCESSES else {wanted: target}
    things = place_things(rng, counts, receptacles, by_type, needed, banned, target)

    facts = {
        "receptacleType": [(id, f"{name}Type") for id, name, *_ in receptacles],
        "objectType": [(id, f"{thing}Type") for id, thing, *_ in things],
        "canContain": [
            (f"{name}Type", f"{thing}Type")
            for name in by_type
            for thing in tables.CAN_CONTAIN[name]
            if thing in counts
        ],
        **{
            flag: [(id,) for id, thing, *_ in things if thing in able]
            for flag, able in tables.FLAGS.items()
        },
        "openable": [(id,) for id, _, _, openable, _ in receptacles if openable],
        "atLocation": [("agent1", start)],
        "receptacleAtLocation": [(id, location) for id, _, location, *_ in receptacles],
        "objectAtLocation": [(id, location) for id, _, location, _ in things],
        "inReceptacle": [(id, receptacles[r][0]) for id, _, _, inside in things for r in inside],
    }
    # some things in there are cold already, but never what is to be cooled
    fridges = by_type.get("Fridge", ())
    uncooled = wanted if goal_type == "pick_cool_then_place_in_recep" else None
    facts["isCool"] = [
        (id,)
        for id, thing, _, inside in things
        if inside
        and inside[0] in fridges
        and thing in tables.FLAGS["coolable"]
        and thing != uncooled
        and rng.random() < COLD
    ]
    vessels = [
        (inside[0], id, tables.VESSELS[thing])
        for id, thing, _, inside in things
        if thing in tables.VESSELS and inside
    ]
    facts["inReceptacleObject"] = [
        (id, vessel)
        for r, vessel, holds in vessels
        for id, thing, _, inside in things
        if inside and inside[0] == r and thing in holds and rng.random() < IN_A_VESSEL
    ]

    return {
        "task_type": goal_type,
        "wanted": wanted,
        "target": target,
        "facts": facts,
        "task": pick(rng, tables.SENTENCES[goal_type]).format(
            obj=wanted.lower(), target=target.lower()
        ),
        "walkthrough": walkthrough(
            rng, goal_type, receptacles, things, wanted, target, needed[wanted]
        ),
        "folder": f"{split}/{goal_type}-{wanted}-None-{target}-{1 + KINDS.index(kind)}"
        f"{number + 500 * (owner == 'valid_unseen'):03d}",
    }


def walkthrough(rng, goal_type, receptacles, things, wanted, target, needed):
    """The commands that win, straight from the goal: fetch the first `needed` things wanted,
    process them, bring them to a target."""
    name_of = {}
    for ids in ([id for id, *_ in things], [id for id, *_ in receptacles]):
        ids = sorted(ids, key=str.lower)
        name_of |= zip(ids, names_of([id.lower() for id in ids]), strict=True)
    commands, opened, at = [], set(), None

    def visit(r, hands=True):
        """Goes to a receptacle and, if something is to be put there or taken, opens it; returns its
        name."""
        nonlocal at
        id, _, location, openable, _ = receptacles[r]
        if at != location:
            commands.append(f"go to {name_of[id]}")
            at = location
        if hands and openable and r not in opened:
            commands.append(f"open {name_of[id]}")
            opened.add(r)
        return name_of[id]

    def one(name):
        """Some receptacle of a type, the same for all things of a walkthrough."""
        return pick(rng, [r for r, (_, other, *_) in enumerate(receptacles) if other == name])

    verb, _, tool = tables.PROCESSES.get(goal_type, (None, None, None))
    tool, goal = verb and one(tool), None if target == "DeskLamp" else one(target)
    for id, _, _, inside in [thing for thing in things if thing[1] == wanted and thing[3]][:needed]:
        commands.append(f"take {name_of[id]} from {visit(inside[0])}")
        if verb:
            # the door may stay closed
            commands.append(f"{verb} {name_of[id]} with {visit(tool, hands=False)}")
        if goal is not None:
            commands.append(f"move {name_of[id]} to {visit(goal)}")
    if goal is None:
        lamp, r = pick(
            rng, [(id, inside[0]) for id, thing, _, inside in things if thing == target and inside]
        )
        visit(r, hands=False)
        commands.append(f"use {name_of[lamp]}")
    return commands


def make_game(task_id):
    """The Game of a task id, in memory, the same on every machine; UserError for an id that is
    none."""
    data = house(task_id)
    facts = {
        predicate.lower(): [tuple(map(str.lower, arguments)) for arguments in rows]
        for predicate, rows in data["facts"].items()
    }
    wanted, target = f"{data['wanted']}Type".lower(), f"{data['target']}Type".lower()
    return Game.from_facts(
        facts, data["task_type"], wanted, target, f"{data['task']}.", data["walkthrough"], task_id
    )


# ---- files for the official engine ---------------------------------------------------------------


def goal_pddl(task_type, wanted, target):
    """The PDDL of a goal; wanted and target are type names without `Type`."""
    if task_type == "look_at_obj_in_light":
        return f"""
            (exists (?lamp - object ?r - receptacle ?a - agent ?l - location)
                (and (objectType ?lamp {target}Type) (toggleable ?lamp) (isToggled ?lamp)
                     (inReceptacle ?lamp ?r) (receptacleAtLocation ?r ?l) (atLocation ?a ?l)))
            (exists (?o - object ?a - agent) (and (objectType ?o {wanted}Type) (holds ?a ?o)))"""
    also = {
        "pick_and_place_simple": "",
        "pick_clean_then_place_in_recep": "(cleanable ?o) (isClean ?o)",
        "pick_heat_then_place_in_recep": "(heatable ?o) (isHot ?o)",
        "pick_cool_then_place_in_recep": "(coolable ?o) (isCool ?o)",
        "pick_two_obj_and_place": "(exists (?p - object) (and (not (= ?o ?p)) (objectType ?p "
        f"{wanted}Type) (inReceptacle ?p ?r)))",
    }[task_type]
    return f"""
            (exists (?r - receptacle)
                (exists (?o - object)
                    (and (objectType ?o {wanted}Type) (receptacleType ?r {target}Type)
                    (inReceptacle ?o ?r) {also})))"""


def problem(data):
    """The PDDL problem of a house."""
    facts = data["facts"]
    locations = {
        location
        for name in ("receptacleAtLocation", "objectAtLocation", "atLocation")
        for _, location in facts[name]
    }
    declared = {"agent": ["agent1"], "location": sorted(locations)}
    for word in ("object", "receptacle"):
        declared[word] = [id for id, _ in facts[f"{word}Type"]]
        declared[f"{word[0]}type"] = sorted({type for _, type in facts[f"{word}Type"]})
    objects = "\n".join(
        f"        {name} - {type}" for type, names in declared.items() for name in names
    )
    init = "\n".join(
        f"        ({' '.join((predicate, *arguments))})"
        for predicate, rows in facts.items()
        for arguments in rows
    )
    return f"""(define (problem house)
    (:domain alfred)
    (:objects
{objects})
    (:init
{init})
    (:goal
        (and{goal_pddl(data["task_type"], data["wanted"], data["target"])})))
"""


def write_game(task_id, folder):
    """Writes a house as folder/json_2.1.1/SPLIT/TASK/TRIAL/game.tw-pddl, with the traj_data.json
    that official loaders look for; returns the game's path.  The files carry ALFWorld's domain and
    text templates, which come from the installed alfworld package (UserError if there is none)."""
    package = find_spec("alfworld")
    if package is None:
        raise UserError(
            "expected the alfworld package, whose PDDL domain goes into the game "
            "files, found none; "
            "run pip install -e '.[alfworld]'"
        )
    shipped = Path(package.submodule_search_locations[0]) / "data"
    data = house(task_id)
    trial = Path(folder) / "json_2.1.1" / data["folder"] / f"trial_{task_id.replace('/', '_')}"
    trial.mkdir(parents=True, exist_ok=True)
    look = data["task_type"] == "look_at_obj_in_light"
    (trial / "traj_data.json").write_text(
        json.dumps(
            {
                "task_type": data["task_type"],
                "pddl_params": {
                    "object_target": data["wanted"],
                    "parent_target": "" if look else data["target"],
                    "toggle_target": data["target"] if look else "",
                    "mrecep_target": "",
                    "object_sliced": False,
                },
            }
        )
    )
    (trial / "game.tw-pddl").write_text(
        json.dumps(
            {
                "pddl_domain": (shipped / "alfred.pddl").read_text(),
                "grammar": (shipped / "alfred.twl2")
                .read_text()
                .replace("UNKNOWN GOAL", data["task"]),
                "pddl_problem": problem(data),
                "solvable": True,
                "walkthrough": data["walkthrough"],
            }
        )
    )
    return trial / "game.tw-pddl"


def main():
    parser = Parser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--out",
        required=True,
        help="folder for json_2.1.1/; point ALFWORLD_DATA at it to play its games",
    )
    parser.add_argument("--games", type=whole(1), default=100, help="how many games to write")
    parser.add_argument(
        "--split",
        default="train",
        choices=(*SIZES, "pretrain", "pretrain_check"),
        help="which houses",
    )
    parser.add_argument("--seed", type=whole(0), default=0, help="which of them: a random choice")
    args = parser.parse_args()
    ids = tasks(args.split) if args.split in SIZES else range(10**7)
    if not 0 < args.games <= len(ids):
        raise UserError(
            f"expected --games between 1 and {len(ids)} for --split {args.split}, "
            f"found {args.games}; "
            "give fewer, or --split pretrain"
        )
    chosen = random.Random(args.seed).sample(ids, args.games)
    for task_id in sorted(
        f"{args.split}/{id:07d}" if args.split not in SIZES else id for id in chosen
    ):
        write_game(task_id, args.out)
    print(f"{args.games} games in {Path(args.out) / 'json_2.1.1' / args.split}")


if __name__ == "__main__":
    run_tool(main)
