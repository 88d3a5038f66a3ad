"""How fast the environments are, beside the official packages, in one run on one core.  Prints one
line of JSON.

    python -m envs.bench                                   ALFWorld's games, or generated houses
    python -m envs.bench --games 64 --official-games 0     ours only
    python -m envs.bench --env webshop                     the shop in $WEBSHOP_DATA
    python -m envs.bench --env webshop --large 1180000     as many products as the full catalogue

A step is a random admissible command and the list of what is admissible after it; a load is from
the file to the first observation.
The official engine plays a few of the same games, since it needs seconds for each.
"""

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

from envs.arguments import Parser, run_tool, whole


def play_all(players, steps, rng):
    """Random admissible commands in all players in turn, `steps` each; returns how many were played
    and the seconds taken."""
    draw, begun = rng.random, time.perf_counter()
    for _ in range(steps):
        for player in players:
            commands = player.admissible()
            player.step(commands[int(draw() * len(commands))])
    return steps * len(players), time.perf_counter() - begun


def rate(measured):
    """Per second, of (count, seconds) pairs."""
    counts, seconds = zip(*measured)
    return sum(counts) / sum(seconds)


def alfworld(args):
    """Steps/s and loads/s of both engines, as a dict."""
    from envs.alfworld import AlfWorld, TextWorldState
    from envs.alfworld_engine import Game

    env, rng = AlfWorld(), random.Random(args.seed)
    what = env.describe("train").removeprefix("train: ")
    tasks = rng.sample(env.tasks("train"), min(args.games, len(env.tasks("train"))))
    official = args.official_games > 0
    if official and not (find_spec("textworld") and find_spec("alfworld")):
        print(
            "no official packages (pip install -e '.[alfworld]'): measuring ours only",
            file=sys.stderr,
        )
        official = False
    if official and env.houses:
        env = AlfWorld(
            houses=True, engine="textworld"
        )  # writes the houses to files, for both engines
    # without the official package there are no files of houses: a load then makes the house, too
    load, sources = (
        (env.game, tasks)
        if env.houses and not official
        else (Game.load, [env.path(task_id) for task_id in tasks])
    )

    begun = time.perf_counter()
    games = [load(source) for source in sources]
    plays = [game.start() for game in games]
    result = {"env": "alfworld", "data": what, "games": len(plays), "group": args.group}
    result["loads_per_second"] = len(plays) / (time.perf_counter() - begun)
    # one game after the other, each played by a group whose first visits fill its caches, as in
    # training
    result["steps_per_second"] = rate(
        play_all([game.start() for _ in range(args.group)], args.steps, rng) for game in games
    )
    if official:
        player = TextWorldState(sources[0])  # not counted: the first load also imports the packages
        loads, played = [], []
        for source in sources[: args.official_games]:
            begun = time.perf_counter()
            player = TextWorldState(source, player)
            loads.append((1, time.perf_counter() - begun))
            played.append(play_all([player], args.official_steps, rng))
        result |= {
            "official_games": len(played),
            "official_loads_per_second": rate(loads),
            "official_steps_per_second": rate(played),
        }
        for unit in ("steps", "loads"):
            result[f"{unit}_ratio"] = (
                result[f"{unit}_per_second"] / result[f"official_{unit}_per_second"]
            )
    return result


def in_new_process(function, *args):
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


class Repeated:
    """The title nouns of a catalogue that `enlarge` made, by asin: those of the product that was
    repeated."""

    def __init__(self, nouns):
        self.nouns = nouns  # of the real products, in catalogue order

    def get(self, asin):
        return self.nouns[int(asin[1:]) % len(self.nouns)]

    def __contains__(self, asin):
        return True


def enlarge(env, folder, count, rng):
    """Writes a catalogue of `count` products to a folder: those of env again and again, with fresh
    ids and shuffled titles."""
    titles, rests, asked = [], [], []
    for i in range(min(count, len(env.catalogue))):
        product = env.catalogue.product(i)
        titles.append(product.title.split())
        options = {
            name: [{"value": value} for value in values] for name, values in product.options.items()
        }
        rest = {
            "pricing": product.price_text,
            "customization_options": options,
            "query": product.query,
        }
        rest |= {"full_description": product.description, "small_description": product.bullets}
        rest |= {"category": product.category, "product_category": product.product_category}
        rests.append(json.dumps(rest)[1:])
        instruction = {"attributes": product.attributes}
        if product.instruction:
            instruction["instruction"] = product.instruction
            instruction["instruction_attributes"] = product.instruction_attributes
        asked.append(json.dumps(instruction))
    items, instructions = folder / "items_shuffle.json", folder / "items_ins_v2.json"
    with (
        open(items, "w", encoding="utf-8") as file,
        open(instructions, "w", encoding="utf-8") as second,
    ):
        for i in range(count):
            words, asin, which = titles[i % len(titles)], f"C{i:09d}", i % len(titles)
            rng.shuffle(words)
            file.write(
                f'{"," if i else "["}{{"asin": "{asin}", '
                f'"name": {json.dumps(" ".join(words))}, {rests[which]}\n'
            )
            second.write(f'{"," if i else "{"}"{asin}": {asked[which]}\n')
        file.write("]")
        second.write("}")


def webshop_player(data, nouns, games, steps, seed):
    """Start from the cache, resets, searches and clicks, as a dict.  For a process of its own:
    memory
    is that of all it ever did.  nouns: of the products of an enlarged catalogue, or None."""
    begun = time.perf_counter()
    from envs.webshop import WebShop
    from envs.webshop_data import Nouns

    env, rng = WebShop(data, nouns=nouns and Nouns(Repeated(nouns))), random.Random(seed)
    result = {
        "start_seconds": time.perf_counter() - begun,
        "start_cpu_seconds": time.process_time(),  # the same where others keep the cores busy
        "products": len(env.catalogue),
        "goals": len(env.goals),
    }
    tasks = rng.sample(env.tasks("train"), min(games, len(env.splits["train"])))
    resets, searches, busy, clicks = [], [], [], []
    for task in tasks:
        begun = time.perf_counter()
        step = env.reset(task)
        searched, cpu = time.perf_counter(), time.process_time()
        step = env.step(f"search[{env.task}]")  # every instruction is another query
        clicked, cpu = time.perf_counter(), time.process_time() - cpu
        count = 0
        while count < steps and not step.done:
            # anything but leaving for the start page, where only a search goes on
            step = env.step(
                rng.choice(
                    [action for action in step.admissible if action != "click[back to search]"]
                )
            )
            count += 1
        resets.append((1, searched - begun))
        searches.append((1, clicked - searched))
        busy.append((1, cpu))
        clicks.append((count, time.perf_counter() - clicked))
    result |= {"resets_per_second": rate(resets), "search_milliseconds": 1000 / rate(searches)}
    result["search_cpu_milliseconds"] = 1000 / rate(busy)
    result |= {
        "search_milliseconds_median": 1000 * statistics.median(seconds for _, seconds in searches)
    }
    result |= {
        "steps_per_second_without_search": rate(clicks),
        "steps_per_second": rate(clicks + searches),
    }
    unit = 1 if sys.platform == "darwin" else 1024
    return result | {
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20
    }


def webshop(args):
    """WebShop's start, speed and memory as a dict; --large: for many products made of the real
    ones."""
    from envs.webshop import WebShop

    env = WebShop()
    name, data, nouns = env.name, os.environ.get("WEBSHOP_DATA"), None
    with tempfile.TemporaryDirectory() as folder:
        if args.large:  # the large catalogue and its cache go when the measurement is over
            data, os.environ["WEBSHOP_CACHE"] = folder, folder
            enlarge(env, Path(folder), args.large, random.Random(args.seed))
            nouns = [
                env.nouns(env.catalogue.product(i))
                for i in range(min(args.large, len(env.catalogue)))
            ]
            name += ", repeated"
        del env
        first, second = (
            in_new_process(webshop_player, data, nouns, games, args.steps, args.seed)
            for games in (1, args.games)
        )
    build = {
        "first_start_seconds": first["start_seconds"],
        "first_start_memory_mib": first["memory_mib"],
    }
    return {"env": "webshop", "data": name} | build | second


def main():
    parser = Parser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--env", default="alfworld", choices=sorted(ENVS), help="which environment")
    parser.add_argument(
        "--games", type=whole(1), default=256, help="games that ours loads and plays"
    )
    parser.add_argument("--group", type=whole(1), default=8, help="episodes of each game")
    parser.add_argument("--steps", type=whole(1), default=50, help="commands per episode")
    parser.add_argument(
        "--official-games",
        type=whole(0),
        default=8,
        help="games that the official engine plays; 0: none",
    )
    parser.add_argument(
        "--official-steps",
        type=whole(1),
        default=20,
        help="commands per episode on the official engine",
    )
    large = dict(type=whole(1), nargs="?", const=100_000, metavar="COUNT")
    parser.add_argument(
        "--large",
        **large,
        help="WebShop: so many products (alone: 100,000) made of the real ones",
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, help="of the choice of games and commands"
    )
    args = parser.parse_args()
    result = ENVS[args.env](args)
    print(
        json.dumps(
            {
                key: round(value, 3) if isinstance(value, float) else value
                for key, value in result.items()
            }
        )
    )


ENVS = {"alfworld": alfworld, "webshop": webshop}

if __name__ == "__main__":
    run_tool(main)
