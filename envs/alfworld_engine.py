"""ALFWorld's text games, played exactly as the official engine plays them, some ten thousand times
as fast.

    Game        one parsed game (a `game.tw-pddl` file), shared by all its episodes; only its caches
                grow
    GameState   one episode of it: a handful of immutable values, so that episodes can never disturb
                each other

The official engine (alfworld on textworld) translates the game's PDDL, asks a planner's library
which operators apply, and fills text templates by querying the facts, anew at every step.  But the
PDDL domain and the templates are the same in all games; only the facts, the goal and the task
sentence differ.  So the domain's actions are written out here as plain methods of GameState and its
preconditions as the one method Game.menu.  What is left to do per step is a look-up: the commands
offered depend only on the hand and on the receptacles at the agent's place, so they are cached
under exactly that.

Quirks of the official engine are kept on purpose (marked "sic"): agents are trained and compared on
these very texts.

    task = "json_2.1.1/train/pick_heat_then_place_in_recep-Mug-None-Shelf-20/"
    game = Game.load(task + "trial_.../game.tw-pddl")
    play = game.start()
    print(play.observation, play.admissible())
    print(play.step("go to shelf 1"), play.won)
"""

import json
import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from envs import UserError

# The predicates that a goal is made of tell the task type; a goal of any other make is refused, not
# guessed at.
PLACE = {"and", "exists", "objecttype", "receptacletype", "inreceptacle"}
GOALS = {
    "pick_and_place_simple": PLACE,
    "pick_two_obj_and_place": PLACE | {"not", "="},
    "pick_clean_then_place_in_recep": PLACE | {"cleanable", "isclean"},
    "pick_heat_then_place_in_recep": PLACE | {"heatable", "ishot"},
    "pick_cool_then_place_in_recep": PLACE | {"coolable", "iscool"},
    "look_at_obj_in_light": PLACE - {"receptacletype"}
    | {"toggleable", "istoggled", "receptacleatlocation", "atlocation", "holds"},
}
# what happens to an object held: (flag the object needs, type of the receptacle that does it)
PROCESSES = {
    "clean": ("cleanable", "sinkbasintype"),
    "heat": ("heatable", "microwavetype"),
    "cool": ("coolable", "fridgetype"),
}
OBJECT_FLAGS = (
    "pickupable",
    "cleanable",
    "heatable",
    "coolable",
    "sliceable",
    "toggleable",
    "isreceptacleobject",
)
OBJECT_FACTS = (
    *OBJECT_FLAGS,
    "objecttype",
    "objectatlocation",
    "inreceptacle",
    "inreceptacleobject",
    "iscool",
)
KNIVES = {"knifetype", "butterknifetype"}

HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""


def listing(names, article="a "):
    """`a cup 2, and a cup 1`: the comma stays even between two, and the article is always `a`
    (sic)."""
    items = [article + name for name in names]
    if len(items) > 1:
        items[-1] = "and " + items[-1]
    return ", ".join(items) or "nothing"


def names_of(ids):
    """Names for mangled ids, in the order of the ids: `cup_bar__minus_01...` becomes `cup 2`.

    ids: lowercased and sorted.  Of N ids with one name the first gets number N and the last gets 1.
    A sink's basin shares the part before `_bar_` with the sink, hence the extra `basin`."""
    stems = [id.split("_bar_", 1)[0] + ("basin" if "basin" in id else "") for id in ids]
    left, names = Counter(stems), []
    for stem in stems:
        names.append(f"{stem} {left[stem]}")
        left[stem] -= 1
    return names


@dataclass(eq=False, slots=True)
class View:
    """One receptacle in one condition.  Game.view makes each only once, so views compare and hash
    by identity: fast cache keys."""

    receptacle: int
    opened: bool
    contents: tuple  # object numbers, ascending
    text: str  # the sentence that it shows


class Game:
    """One parsed game.

    Objects and receptacles are numbered in the order of their mangled ids.  That is the order in
    which every text lists them, so ascending numbers are all the ordering there is.  A place is a
    location with receptacles, numbered too; None is where episodes start, which is never at a
    receptacle.

    name, task_type, task ("put a hot mug in shelf."), intro (the first observation), walkthrough
    (commands that win)
    objects, receptacles                   number -> name ("mug 2")
    object_types, receptacle_types         number -> type ("mugtype")
    places                                 receptacle -> place
    here                                   place -> receptacles
    flags, openable, cool_at_start         the numbers for which the fact holds; flags has one set
                                           per OBJECT_FLAGS
    holdable                               receptacle type -> object types that may be put there
    inside                                 sorted (outer, inner) objects
    at_start                               (object, place)
    process, wanted, targets, lamps        the goal: see GameState.goal_holds
    views, menus, actions                  the caches: see view() and menu()"""

    @classmethod
    def load(cls, path):
        """The game of a `game.tw-pddl` file; UserError if the file is missing or damaged."""
        try:
            if Path(path).exists() and not Path(path).is_file():
                raise OSError("no regular file")  # to open a fifo would wait for ever
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"expected an ALFWorld game in {path}, found: {error}; run `alfworld-download` "
                "again"
            ) from error
        return cls.from_text(text, name=str(path))

    @classmethod
    def from_text(cls, text, name=""):
        """The game written in `text`, the content of a `game.tw-pddl` file; UserError, naming it,
        if it cannot be played."""
        try:
            file = json.loads(text)
            problem = file["pddl_problem"].lower()
            init, goal = problem.index("(:init"), problem.index("(:goal")
            facts = defaultdict(list)
            for predicate, *arguments in map(
                str.split, re.findall(r"\(([^()]+)\)", problem[init:goal])
            ):
                facts[predicate].append(tuple(arguments))
            goal = problem[goal:]
            made_of = set(re.findall(r"\((\w+|=)", goal))
            [task_type] = [
                task_type for task_type, predicates in GOALS.items() if predicates == made_of
            ]
            objects = re.findall(r"\(objecttype \?\w+ (\w+)\)", goal)
            receptacles = re.findall(r"\(receptacletype \?\w+ (\w+)\)", goal)
            if task_type == "look_at_obj_in_light":
                target, wanted = objects  # the lamp is named first
            else:
                target, wanted = receptacles[0], objects[0]
            task = re.search(r'"Your task is to: (.*?)"', file["grammar"])[1]
            return cls.from_facts(facts, task_type, wanted, target, task, file["walkthrough"], name)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"expected a whole ALFWorld game in {name or 'this text'}, found a damaged or "
                "foreign one "
                f"({type(error).__name__}: {error}); run `alfworld-download` again"
            ) from error

    @classmethod
    def from_facts(cls, facts, task_type, wanted, target, task, walkthrough=(), name=""):
        """The game of structured facts, all in the lowercased ids of the PDDL.

        facts: predicate -> argument tuples, e.g. {"inreceptacle": [("mug_bar_1", "shelf_bar_3")]};
        the predicates are those of the files.  wanted: the object type of the goal ("mugtype");
        target: its receptacle type ("shelftype"), or the lamp's type for look_at_obj_in_light.
        ValueError or KeyError where the facts do not fit together."""
        game = cls()
        game.name, game.task_type, game.task, game.walkthrough = (
            name,
            task_type,
            task,
            list(walkthrough),
        )
        object_type, receptacle_type = dict(facts["objecttype"]), dict(facts["receptacletype"])
        location = dict(facts["receptacleatlocation"])
        # two games have a cracked egg that is pickupable and nothing else: it is nowhere, but
        # counts in the numbering of eggs
        objects = sorted(
            {fact[0] for predicate in OBJECT_FACTS for fact in facts.get(predicate, ())}
        )
        receptacles = sorted(receptacle_type)
        number = {id: n for ids in (objects, receptacles) for n, id in enumerate(ids)}
        # thousands of games may be held at once, so their many equal strings are interned
        game.objects, game.receptacles = names_of(objects), names_of(receptacles)
        game.object_types = [sys.intern(object_type.get(id, "")) for id in objects]
        game.receptacle_types = [sys.intern(receptacle_type[id]) for id in receptacles]

        place = {
            id: n for n, id in enumerate(dict.fromkeys(location[id] for id in receptacles))
        }  # several may share one
        game.places = [place[location[id]] for id in receptacles]
        game.here = {
            n: [r for r, p in enumerate(game.places) if p == n] for n in place.values()
        } | {None: []}
        [(_, start)] = facts["atlocation"]
        if start in place:
            raise ValueError("the agent starts at a receptacle")
        game.at_start = frozenset(
            (number[o], place.get(where)) for o, where in facts["objectatlocation"]
        )

        def flagged(predicate):
            return frozenset(number[id] for (id,) in facts.get(predicate, ()))

        game.flags = {flag: flagged(flag) for flag in OBJECT_FLAGS}
        game.openable, game.cool_at_start = flagged("openable"), flagged("iscool")
        holdable = defaultdict(set)
        for kind, thing in facts["cancontain"]:
            holdable[kind].add(sys.intern(thing))
        game.holdable = {kind: tuple(things) for kind, things in holdable.items()}
        inside = {
            (number[outer], number[inner]) for inner, outer in facts.get("inreceptacleobject", ())
        }
        game.inside = sorted(
            (outer, inner) for outer, inner in inside if outer != inner
        )  # one pot lies inside itself

        game.process = task_type.split("_")[1]  # clean, heat or cool; anything else is no process
        flag, _ = PROCESSES.get(
            game.process, (None, None)
        )  # part of the goal, as things that are not coolable may be cool
        game.wanted = frozenset(
            o
            for o, kind in enumerate(game.object_types)
            if kind == wanted and (not flag or o in game.flags[flag])
        )
        game.targets = [r for r, kind in enumerate(game.receptacle_types) if kind == target]
        game.lamps = [
            o
            for o, kind in enumerate(game.object_types)
            if kind == target and o in game.flags["toggleable"]
        ]
        if not game.wanted or not game.targets + game.lamps:
            raise ValueError("nothing in it fits the goal")

        game.intro = (
            f"-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking "
            "quickly around you, "
            f"you see {listing(game.receptacles)}.\n\nYour task is to: {task}"
        )
        game.views, game.menus = {}, {}
        game.actions = {
            sys.intern(f"go to {name}"): (GameState.go, (r,))
            for r, name in enumerate(game.receptacles)
        }
        game.roads = sorted((command, r) for command, (_, (r,)) in game.actions.items())
        game.actions |= {
            "help": (GameState.help, ()),
            "inventory": (GameState.inventory, ()),
            "look": (GameState.look, ()),
        }
        contents = defaultdict(set)
        for o, r in facts["inreceptacle"]:
            contents[number[r]].add(number[o])
        game.first_views = [
            game.view(r, False, tuple(sorted(contents[r]))) for r in range(len(receptacles))
        ]
        return game

    def start(self):
        """A new episode."""
        return GameState(self)

    def view(self, receptacle, opened, contents):
        """The one View of this receptacle in this condition."""
        key = receptacle, opened, contents
        if key not in self.views:
            name, things = self.receptacles[receptacle], listing(self.objects[o] for o in contents)
            if receptacle not in self.openable:
                text = f"On the {name}, you see {things}."
            else:
                text = (
                    f"The {name} is open. In it, you see {things}."
                    if opened
                    else f"The {name} is closed."
                )
            self.views[key] = View(*key, text)
        return self.views[key]

    def menu(self, held, sliceable, views):
        """The sorted admissible commands: the preconditions of the domain's actions, all in one
        place.  Cached.

        held: the object in the agent's hand or None; sliceable: objects it can slice with that;
        views: of the receptacles at its place.  Puts into self.actions what the commands do:
        command -> (method of GameState, arguments)."""
        key = held, sliceable, *views
        if key in self.menus:
            return self.menus[key]
        can = {}
        if held is not None:
            thing = self.objects[held]
            can[f"examine {thing}"] = (
                GameState.examine,
                (held,),
            )  # sic: nothing but what is held can be examined
            for o in sliceable:
                can[f"slice {self.objects[o]} with {thing}"] = GameState.slice, (o, held)
        for view in views:
            r, name, kind = (
                view.receptacle,
                self.receptacles[view.receptacle],
                self.receptacle_types[view.receptacle],
            )
            can[f"examine {name}"] = GameState.examine_receptacle, (r,)
            if r in self.openable:
                can[f"close {name}" if view.opened else f"open {name}"] = (
                    GameState.close if view.opened else GameState.open,
                    (r,),
                )
            for o in self.flags["toggleable"].intersection(view.contents):
                can[f"use {self.objects[o]}"] = (
                    GameState.use,
                    (o,),
                )  # sic: even in a closed receptacle
            if held is not None:
                for verb, (flag, tool) in PROCESSES.items():
                    if kind == tool and held in self.flags[flag]:
                        can[f"{verb} {thing} with {name}"] = (
                            getattr(GameState, verb),
                            (held, r),
                        )  # sic: with its door closed, too
            if view.opened or r not in self.openable:
                if held is None:
                    for o in self.flags["pickupable"].intersection(view.contents):
                        can[f"take {self.objects[o]} from {name}"] = GameState.take, (o, r)
                elif self.object_types[held] in self.holdable.get(kind, ()):
                    can[f"move {thing} to {name}"] = GameState.move, (held, r)
        self.actions.update(can)
        here = {view.receptacle for view in views}
        roads = [command for command, r in self.roads if r not in here]
        menu = self.menus[key] = sorted(
            [*roads, "help", "inventory", "look", *map(sys.intern, can)]
        )
        return menu


class GameState:
    """One episode.

    observation: the last text; won: whether the goal holds now (it can be undone again).  All
    values but `views` are immutable and shared with other plays; they are replaced, never
    modified."""

    def __init__(self, game):
        self.game, self.observation = game, game.intro
        self.place = None
        self.held = None  # the object in the agent's hand
        self.views = game.first_views.copy()  # the receptacles' conditions
        # (object, place) by which the engine goes in `slice` and `look`, not where things are
        # listed
        self.at = game.at_start
        self.taken = frozenset()  # (object, receptacle): taken from there and not put back there
        self.cleaned = self.hot = self.sliced = self.used = frozenset()
        self.cold = game.cool_at_start
        self.update()

    def admissible(self):
        """The commands that can be played now, sorted as strings, `help` included.  A shared list:
        do not modify it."""
        return self.menu

    def step(self, command):
        """Plays one of the admissible commands (outer whitespace is ignored, nothing else) and
        returns the observation."""
        command = command.strip()
        if command in self.menu:
            action, arguments = self.game.actions[command]
            self.observation = action(self, *arguments)
        else:
            self.observation = "Nothing happens."
        return self.observation

    def update(self):
        """What follows from a changed state: the menu, and whether the goal holds."""
        game, sliceable = self.game, frozenset()
        if self.held is not None and game.object_types[self.held] in KNIVES:
            sliceable = frozenset(
                o for o, place in self.at if place == self.place and o in game.flags["sliceable"]
            )
        self.menu = game.menu(self.held, sliceable, [self.views[r] for r in game.here[self.place]])
        self.won = self.goal_holds()

    def goal_holds(self):
        """Whether the goal holds now, by any of the objects wanted."""
        game = self.game
        if (
            game.task_type == "look_at_obj_in_light"
        ):  # one in the hand, at a lamp that was ever switched on
            contents = [self.views[r].contents for r in game.here[self.place]]
            return self.held in game.wanted and any(
                lamp in self.used and lamp in things for lamp in game.lamps for things in contents
            )
        # one (or two) in the right state in one receptacle of the right type
        good = game.wanted & {"clean": self.cleaned, "heat": self.hot, "cool": self.cold}.get(
            game.process, game.wanted
        )
        enough = 2 if game.task_type == "pick_two_obj_and_place" else 1
        return len(good) >= enough and any(
            len(good.intersection(self.views[r].contents)) >= enough for r in game.targets
        )

    # The actions of the domain: each changes the state (the effect) and returns the observation
    # (the grammar's feedback).

    def go(self, r):
        self.place = self.game.places[r]
        self.update()
        return f"You arrive at {self.game.receptacles[r]}. {self.views[r].text}"

    def open(self, r):
        self.views[r] = self.game.view(r, True, self.views[r].contents)
        self.update()
        return f"You open the {self.game.receptacles[r]}. {self.views[r].text}"

    def close(self, r):
        self.views[r] = self.game.view(r, False, self.views[r].contents)
        self.update()
        return f"You close the {self.game.receptacles[r]}."

    def take(self, o, r):
        view = self.views[r]
        self.views[r] = self.game.view(
            r, view.opened, tuple(other for other in view.contents if other != o)
        )
        self.held = o  # sic: if it also lies in a second receptacle, it stays listed there
        self.at -= {(o, self.place)}
        self.taken |= {(o, r)}
        self.update()
        return f"You pick up the {self.game.objects[o]} from the {self.game.receptacles[r]}."

    def move(self, o, r):
        view = self.views[r]
        self.views[r] = self.game.view(r, view.opened, tuple(sorted({*view.contents, o})))
        self.held = None
        self.at |= {(o, self.place)}
        self.taken -= {(o, r)}
        self.update()
        return f"You move the {self.game.objects[o]} to the {self.game.receptacles[r]}."

    def clean(self, o, r):
        self.cleaned |= {o}
        self.update()
        return f"You clean the {self.game.objects[o]} using the {self.game.receptacles[r]}."

    def heat(self, o, r):
        self.hot |= {o}
        self.cold -= {o}
        self.update()
        return f"You heat the {self.game.objects[o]} using the {self.game.receptacles[r]}."

    def cool(self, o, r):
        self.cold |= {o}
        self.hot -= {o}
        self.update()
        return f"You cool the {self.game.objects[o]} using the {self.game.receptacles[r]}."

    def slice(self, o, knife):
        self.sliced |= {o}
        return f"You sliced the {self.game.objects[o]} with the {self.game.objects[knife]}."

    def use(self, o):
        self.used |= {o}
        self.update()
        return f"You turn on the {self.game.objects[o]}."  # sic: also when it was on

    def examine(self, o):
        name = self.game.objects[o]
        if o in self.game.flags["isreceptacleobject"]:
            within = listing(
                self.game.objects[inner] for outer, inner in self.game.inside if outer == o
            )
            return f"This is a normal {name}. In it, you see {within}."
        state = " and ".join(
            word
            for word, those in (("hot", self.hot), ("cool", self.cold), ("clean", self.cleaned))
            if o in those
        )
        if o in self.sliced:
            state = f"{state} sliced".strip()
        return (
            f"This is a {'cold' if state == 'cool' else state} {name}."
            if state
            else f"There's nothing special about {name}."
        )

    def examine_receptacle(self, r):
        return self.views[r].text

    def inventory(self):
        return (
            "You are not carrying anything."
            if self.held is None
            else f"You are carrying: a {self.game.objects[self.held]}."
        )

    def look(self):
        game = self.game
        if self.place is None:
            # sic: the intro lists all
            return "You are in the middle of a room. Looking quickly around you, you see nothing."
        facing = listing([game.receptacles[r] for r in game.here[self.place]], article="")
        # sic: listed are things that were once taken from a receptacle here and are here again, in
        # another one
        beside = [
            game.objects[o]
            for o, r in sorted(self.taken)
            if game.places[r] == self.place and (o, self.place) in self.at
        ]
        return f"You are facing the {facing}. Next to it, you see {listing(beside)}."

    def help(self):
        return HELP
