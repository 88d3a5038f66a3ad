"""ALFWorld as an environment of envs/__init__.py: text games in which an agent finds, heats, cools,
cleans and places things.

Which games: those of the folder given, else of $ALFWORLD_DATA (the folder that holds json_2.1.1/),
else those that `alfworld-download` put into ~/.cache/alfworld, else the generated houses of
envs/houses.py, which need no data at all.  `describe` says which.

Which engine: "fast" (envs/alfworld_engine.py) or "textworld", the official packages (pip install -e
'.[alfworld]').  Both show and offer the same, character by character; the official one is about ten
thousand times slower and there for comparison.

    env = AlfWorld()
    step = env.reset(env.tasks("valid_seen")[0])
    while not step.done:
        step = env.step(step.admissible[0])

The training reward is 10 at the step that reaches the goal, else 0.  The command `help` works but
is not offered in Step.admissible, as in the reference implementations' prompts.
"""

import copy
import hashlib
import json
import os
import re
import sys
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from stat import S_ISREG

from envs import Step, UserError, alfworld_prompts
from envs.alfworld_engine import GOALS, Game

SPLITS = ("train", "valid_seen", "valid_unseen")
# parsed games held; each takes 30 kB, after some play 150 kB, after thousands of random episodes
# 1.3 MB
KEPT_GAMES = 512


class AlfWorld:
    """One player; fork() makes more that share the list of games and the parsed games."""

    split_names = SPLITS
    max_prompt = 2048  # tokens, as in the reference
    anchor = staticmethod(lambda observation: observation)
    is_admissible = staticmethod(lambda action, step: action in step.admissible)
    prompt = staticmethod(alfworld_prompts.prompt)
    continuation = staticmethod(alfworld_prompts.continuation)
    responses = staticmethod(alfworld_prompts.responses)
    parse = staticmethod(alfworld_prompts.parse)
    summary_prompt = staticmethod(alfworld_prompts.summary_prompt)
    parse_skill = staticmethod(alfworld_prompts.parse_skill)

    def __init__(self, data=None, engine="fast", max_steps=50, houses=None):
        """data: the folder that holds json_2.1.1/; engine: "fast" or "textworld"; max_steps:
        commands until an episode is cut;
        houses: True plays generated houses whatever data there is, False never does, None does
        where there is no data. UserError where the data named is missing or empty, or an optional
        package is not there."""
        if engine not in ("fast", "textworld"):
            raise UserError(f"expected engine fast or textworld, found {engine!r}")
        if engine == "textworld" and not (find_spec("textworld") and find_spec("alfworld")):
            raise UserError(
                "expected the official packages for engine textworld, found none; run pip install "
                "-e '.[alfworld]'"
            )
        self.engine, self.max_steps, self.play = engine, max_steps, None
        named, downloaded = (
            data or os.environ.get("ALFWORLD_DATA"),
            Path.home() / ".cache" / "alfworld",
        )
        if houses or (houses is None and not named and not (downloaded / "json_2.1.1").is_dir()):
            from envs import houses as generator  # with data at hand nobody needs it

            self.root, self.houses = None, generator
            self.files = (
                tempfile.TemporaryDirectory(prefix="houses-") if engine == "textworld" else None
            )
            load = generator.make_game
        else:
            self.root, self.houses = (
                Path(named or downloaded).expanduser().resolve() / "json_2.1.1",
                None,
            )
            self.games, self.skipped, damaged = find_games(self.root)
            if damaged:
                print(
                    f"alfworld: left out {len(damaged)} damaged games: {some(damaged)}",
                    file=sys.stderr,
                )
            load = self.load

        self.game = lru_cache(KEPT_GAMES)(load)  # task id -> Game

    def tasks(self, split):
        """The sorted ids of a split: TASK/TRIAL folders below json_2.1.1/, or names of houses.
        UserError for a split there is none of."""
        if split not in SPLITS:
            raise UserError(f"expected a split out of {', '.join(SPLITS)}, found {split!r}")
        if self.houses:
            return self.houses.tasks(split)
        if not self.games[split]:
            raise UserError(
                f"expected games in {self.root / split}, found none; run `alfworld-download`, or "
                "choose another split"
            )
        return self.games[split]

    def task_type(self, task_id):
        """One of the six names in alfworld_engine.GOALS."""
        return (
            self.houses.task_type(task_id) if self.houses else task_id.split("/")[1].split("-")[0]
        )

    def describe(self, split):
        """One line: which data, how many games, which split and engine."""
        count = f"{len(self.tasks(split)):,}"
        if self.houses:
            what = f"{count} generated houses (not ALFWorld's own games)"
        else:
            what = f"{count} ALFWorld games in {self.root}"
            what += (
                f" ({self.skipped[split]} more are unsolvable or damaged)"
                if self.skipped[split]
                else ""
            )
        return f"{split}: {what}" + (
            ", on the official engine" if self.engine == "textworld" else ""
        )

    def fork(self):
        """Another player: its own episode, the same games."""
        other = copy.copy(self)
        other.play = None
        return other

    def path(self, task_id):
        """The file of a game; a house (for the official engine only) is written to a temporary
        folder first."""
        return (
            self.houses.write_game(task_id, self.files.name)
            if self.houses
            else self.root / task_id / "game.tw-pddl"
        )

    def load(self, task_id):
        """A game from its file.  UserError where that is damaged; from the next start on it is left
        out."""
        try:
            return Game.load(self.path(task_id))
        except UserError as error:
            index = index_of(self.root)
            stat = stat_of(self.path(task_id))
            if stat:
                write_index(
                    index,
                    read_index(index)
                    | {key_of(task_id, stat): {"damaged": "found when it was played"}},
                )
            raise UserError(
                f"{error}, or give the same command again, which leaves this game out"
            ) from None

    def reset(self, task_id, seed=0):
        """A new episode.  `seed` changes nothing: the games know no chance."""
        game = self.game(
            task_id
        )  # for the official engine too: it tells a damaged file in one line
        self.play = (
            game.start() if self.engine == "fast" else TextWorldState(self.path(task_id), self.play)
        )
        self.task = game.task
        self.steps_left = self.max_steps
        return self.seen()

    def step(self, action):
        """Plays a command; what is not admissible is answered by "Nothing happens." and counts as a
        step."""
        if self.play is None or self.over:
            raise RuntimeError("this episode is over (or none was begun): call reset first")
        self.play.step(action)
        self.steps_left -= 1
        return self.seen()

    def seen(self):
        """The state as a Step, and whether the episode is over."""
        won = self.play.won
        self.over = won or self.steps_left == 0
        admissible = [command for command in self.play.admissible() if command != "help"]
        return Step(self.play.observation, admissible, 10.0 * won, self.over, won, float(won))


class TextWorldState:
    """An episode on the official engine, with the members of alfworld_engine.GameState."""

    def __init__(self, path, former=None):
        """path: of a game.tw-pddl file; former: a finished TextWorldState whose engine can be used
        again."""
        # The packages overwrite both of these: the data folder when imported, the arguments
        # whenever they translate a game.
        arguments, environment = sys.argv, dict(os.environ)
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
        from textworld.envs.pddl import textgen

        def derive(self, context=None):
            variables = (context or self.context)["variables"]
            return [textgen.TerminalSymbol(eval(self.expression, {**vars(textgen), **variables}))]

        # Its own one writes into locals(), which has no effect from Python 3.13 on: NameError
        # (textworld 1.7.0).
        textgen.EvalSymbol.derive = derive

        if former is None:
            wrappers = [AlfredDemangler(shuffle=False), AlfredInfos]
            self.env = textworld.start(
                str(path), textworld.EnvInfos(won=True, admissible_commands=True), wrappers
            )
        else:  # each engine loads its own copy of a planner's library and never lets go of it
            self.env = former.env
            self.env.load(str(path))
        self.state = self.env.reset()
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)

    observation = property(lambda self: self.state["feedback"])
    won = property(lambda self: self.state["won"])

    def admissible(self):
        return self.state["admissible_commands"]

    def step(self, command):
        self.state, _, _ = self.env.step(command)
        return self.observation


# ---- finding the games ---------------------------------------------------------------------------


# bytes; the official games have 138,334 at most.  A larger file is parsed before it is believed
LARGEST = 200_000


def find_games(root):
    """The playable games below json_2.1.1/: ({split: sorted ids}, {split: how many were skipped for
    what their file says}, {id: what is wrong with its file}).

    The rules are the official loader's: no movable receptacles, no sliced goals, one of the six
    task types, `solvable` is true. Whether a game is solvable stands in its file only; it is kept
    in an index, for as long as the file's time and size stay the same."""
    index = index_of(root)
    known, found, damaged = read_index(index), {}, {}
    games, skipped = {split: [] for split in SPLITS}, dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        for task in folders(root / split):
            if (
                "movable" in task.name
                or "Sliced" in task.name
                or task.name.split("-")[0] not in GOALS
            ):
                continue
            for trial in folders(task.path):
                path = f"{trial.path}/game.tw-pddl"
                stat = stat_of(path)
                if not stat:
                    continue  # the official loader passes over trials without a game, too
                id = f"{split}/{task.name}/{trial.name}"
                key = key_of(id, stat)
                found[key] = known[key] if is_entry(known.get(key)) else entry_of(path, stat)
                if found[key] is True:
                    games[split].append(id)
                else:
                    skipped[split] += 1
                if isinstance(found[key], dict):
                    damaged[id] = found[key]["damaged"]
    if not any(games.values()):
        raise UserError(
            f"expected ALFWorld games in {root}, found none; run `alfworld-download`, point "
            "ALFWORLD_DATA at the folder that "
            "holds json_2.1.1/, or unset it to play generated houses"
        )
    if found != known:
        write_index(index, found)
    return {split: sorted(ids) for split, ids in games.items()}, skipped, damaged


def folders(path):
    """The folders in a folder; whatever else lies there (.DS_Store, a fifo) is none of ours."""
    try:
        return [entry for entry in os.scandir(path) if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"expected an ALFWorld folder in {path}, cannot read it ({error.strerror}): mend its "
            "rights"
        ) from None


def stat_of(path):
    try:
        return os.stat(path)
    except OSError:
        return None


def some(faults):
    """The first three of {name: reason} as a part of a line."""
    shown = [f"{name} ({reason})" for name, reason in list(faults.items())[:3]]
    return ", ".join(shown) + ", ..." * (len(faults) > 3)


# ---- the index: key of a file -> True (playable), False (unsolvable), or {"damaged": reason}


def index_of(root):
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "siri"
    return folder / f"alfworld-{hashlib.sha256(str(root).encode()).hexdigest()[:16]}.json"


def key_of(task_id, stat):
    return f"{task_id} {stat.st_mtime_ns} {stat.st_size}"


def is_entry(value):
    return isinstance(value, bool) or (
        isinstance(value, dict) and isinstance(value.get("damaged"), str)
    )


def read_index(index):
    try:
        known = json.loads(index.read_text())
    except (OSError, ValueError, RecursionError):
        return {}  # there is none yet, or it is damaged: it can always be made anew
    return known if isinstance(known, dict) else {}


def write_index(index, entries):
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        part = index.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(entries))
        part.replace(index)  # in one go, as several programs may be starting
    except OSError:
        pass  # nowhere to keep it: the next start scans again


def entry_of(path, stat):
    if not S_ISREG(stat.st_mode):
        return {"damaged": "no regular file"}  # to open a fifo would wait for ever
    try:
        return is_solvable(path)
    except (OSError, ValueError, RecursionError) as error:
        return {"damaged": str(error).split(":")[0]}


def is_solvable(path):
    """Whether a game file says `"solvable": true`.  ValueError where it does not say it, or is no
    whole JSON object.  That stands near the file's end, so usually 4 kB of 75 are read: other
    damage shows when the game is played (`AlfWorld.load`)."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4096))
        text = file.read()
        if b'"solvable"' not in text or size > LARGEST:
            file.seek(0)
            text = file.read()
    if size > LARGEST:
        json.loads(text)
    said = re.search(rb'"solvable"\s*:\s*(true|false)', text)
    if not said:
        raise ValueError("it does not say whether it is solvable")
    if not text.rstrip().endswith(b"}"):
        raise ValueError("it is cut off")
    return said[1] == b"true"
