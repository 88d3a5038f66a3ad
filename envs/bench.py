"""How fast the environments are, beside the official packages, in one run on one core.  Prints one line of JSON.

    python -m envs.bench                                   ALFWorld's games (or generated houses where there is no data)
    python -m envs.bench --games 64 --official-games 0     ours only

A step is a random admissible command and the list of what is admissible after it; a load is from the file to the first observation.
The official engine plays a few of the same games, since it needs seconds for each.
"""

import argparse
import json
import random
import sys
import time
from importlib.util import find_spec

from envs import UserError


def play_all(players, steps, rng):
    """Random admissible commands in all players in turn, `steps` each; returns how many were played and the seconds taken."""
    draw, begun = rng.random, time.perf_counter()
    for _ in range(steps):
        for player in players:
            commands = player.admissible()
            player.step(commands[int(draw() * len(commands))])
    return steps * len(players), time.perf_counter() - begun


def alfworld(args):
    """Steps/s and loads/s of both engines, as a dict."""
    from envs.alfworld import AlfWorld, TextWorldPlay
    from envs.alfworld_engine import Game

    env, rng = AlfWorld(), random.Random(args.seed)
    official = args.official_games > 0
    if official and not (find_spec("textworld") and find_spec("alfworld")):
        print("the official packages are not installed (pip install -e '.[alfworld]'): measuring ours only", file=sys.stderr)
        official = False
    if env.houses and official:
        env = AlfWorld(houses=True, engine="textworld")  # both engines read the houses' files
    tasks = env.tasks("train")
    tasks = rng.sample(tasks, min(args.games, len(tasks)))
    from_files = official or not env.houses
    paths = [env.path(task_id) for task_id in tasks] if from_files else tasks

    begun = time.perf_counter()
    games = [Game.load(path) if from_files else env.game(path) for path in paths]
    for game in games:
        game.start()
    result = {"env": "alfworld", "data": env.describe("train").split(": ")[1], "games": len(games), "group": args.group}
    result["loads_per_second"] = len(games) / (time.perf_counter() - begun)
    # games one after the other, as in training: each is played by a group, whose first visits fill its caches
    played = [play_all([game.start() for _ in range(args.group)], args.steps, rng) for game in games]
    result["steps_per_second"] = sum(n for n, _ in played) / sum(seconds for _, seconds in played)
    if official:
        begun = time.perf_counter()
        TextWorldPlay(paths[0])  # the first load also imports the packages: not counted
        result["official_import_seconds"] = time.perf_counter() - begun
        player, loading, played = None, 0.0, []
        for path in paths[: args.official_games]:
            begun = time.perf_counter()
            player = TextWorldPlay(path, player)
            loading += time.perf_counter() - begun
            played.append(play_all([player], args.official_steps, rng))
        result["official_games"] = len(played)
        result["official_loads_per_second"] = len(played) / loading
        result["official_steps_per_second"] = sum(n for n, _ in played) / sum(seconds for _, seconds in played)
        for what in ("steps", "loads"):
            result[f"{what}_ratio"] = result[f"{what}_per_second"] / result[f"official_{what}_per_second"]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", default="alfworld", choices=sorted(ENVS), help="which environment")
    parser.add_argument("--games", type=int, default=256, help="games that ours loads and plays")
    parser.add_argument("--group", type=int, default=8, help="episodes of each game")
    parser.add_argument("--steps", type=int, default=50, help="commands per episode")
    parser.add_argument("--official-games", type=int, default=8, help="games that the official engine plays; 0: none")
    parser.add_argument("--official-steps", type=int, default=20, help="commands per episode on the official engine")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of games and commands")
    args = parser.parse_args()
    result = ENVS[args.env](args)
    print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}))


ENVS = {"alfworld": alfworld}

if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
