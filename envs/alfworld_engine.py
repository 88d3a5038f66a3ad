"""ALFWorld's text games, played exactly as the official engine plays them, some ten thousand times as fast.

    Game    one parsed game (a `game.tw-pddl` file): immutable apart from two caches, shared by all its episodes
    Play    one episode of it: a handful of immutable values, so that episodes can never disturb each other

The official engine (alfworld on textworld) translates the game's PDDL, asks a planner's library which operators apply, and
fills text templates by querying the facts, anew at every step.  But the PDDL domain and the templates are the same in all games;
only the facts, the goal and the task sentence differ.  So the domain's actions are written out here as plain methods of Play and
its preconditions as the one method Game.menu.  What is left to do per step is a look-up: the commands offered depend only on the
hand and on the receptacles at the agent's place, so they are cached under exactly that.

Quirks of the official engine are kept on purpose (marked "sic"): agents are trained and compared on these very texts.

    game = Game.load("json_2.1.1/train/pick_heat_then_place_in_recep-Mug-None-Shelf-20/trial_.../game.tw-pddl")
    play = game.start()
    print(play.observation, play.admissible())
    print(play.step("go to shelf 1"), play.won)
"""

import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

from envs import UserError

# The predicates that a goal is made of tell the task type; a goal of any other make is refused, not guessed at.
PLACE = {"and", "exists", "objecttype", "receptacletype", "inreceptacle"}
GOALS = {
    "pick_and_place_simple": PLACE,
    "pick_two_obj_and_place": PLACE | {"not", "="},
    "pick_clean_then_place_in_recep": PLACE | {"cleanable", "isclean"},
    "pick_heat_then_place_in_recep": PLACE | {"heatable", "ishot"},
    "pick_cool_then_place_in_recep": PLACE | {"coolable", "iscool"},
    "look_at_obj_in_light": PLACE - {"receptacletype"} | {"toggleable", "istoggled", "receptacleatlocation", "atlocation", "holds"},
}
# what happens to an object held: (flag the object needs, type of the receptacle that does it)
PROCESSES = {"clean": ("cleanable", "sinkbasintype"), "heat": ("heatable", "microwavetype"), "cool": ("coolable", "fridgetype")}
OBJECT_FLAGS = ("pickupable", "cleanable", "heatable", "coolable", "sliceable", "toggleable", "isreceptacleobject")
OBJECT_FACTS = (*OBJECT_FLAGS, "objecttype", "objectatlocation", "inreceptacle", "inreceptacleobject", "iscool")
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
    """`a cup 2, and a cup 1`: the comma stays even between two, and the article is always `a` (sic)."""
    items = [article + name for name in names]
    if len(items) > 1:
        items[-1] = "and " + items[-1]
    return ", ".join(items) or "nothing"


def names_of(ids):
    """Names for mangled ids, in the order of the ids: `cup_bar__minus_01...` becomes `cup 2`.

    ids: lowercased and sorted.  Of N ids with one name the first gets number N and the last gets 1.  A sink's basin shares the
    part before `_bar_` with the sink, hence the extra `basin`."""
    stems = [id.split("_bar_", 1)[0] + ("basin" if "basin" in id else "") for id in ids]
    left, names = Counter(stems), []
    for stem in stems:
        names.append(f"{stem} {left[stem]}")
        left[stem] -= 1
    return names


class View:
    """One receptacle in one condition: open or not, its contents (object numbers, ascending), and the sentence it shows.

    Game.view makes each only once, so two views are equal exactly if they are the same object: fast keys for a cache."""

    __slots__ = ("receptacle", "opened", "contents", "text")


class Game:
    """One parsed game.  Objects and receptacles are numbers 0, 1, ... in the order of their mangled ids, which is the order in
    which every text lists them; so sorted numbers are all the ordering there is."""

    @classmethod
    def load(cls, path):
        """The game of a `game.tw-pddl` file; UserError if the file is missing or damaged."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"expected an ALFWorld game at {path}, found: {error}; run `alfworld-download` again") from error
        return cls.from_text(text, name=str(path))

    @classmethod
    def from_text(cls, text, name=""):
        """The game written in `text`, the content of a `game.tw-pddl` file; UserError, naming it, if it cannot be played."""
        try:
            file = json.loads(text)
            problem = file["pddl_problem"].lower()
            start, goal = problem.index("(:init"), problem.index("(:goal")
            facts = defaultdict(list)  # predicate -> argument tuples
            for predicate, *arguments in map(str.split, re.findall(r"\(([^()]+)\)", problem[start:goal])):
                facts[predicate].append(tuple(arguments))
            task = re.search(r'"Your task is to: (.*?)"', file["grammar"])[1]
            goal = problem[goal:]
            made_of = set(re.findall(r"\((\w+|=)", goal))
            [task_type] = [task_type for task_type, predicates in GOALS.items() if predicates == made_of]
            # the lamp is named before the object; (type of the goal's objects, type of the lamp or receptacle)
            types = re.findall(r"\(objecttype \?\w+ (\w+)\)", goal), re.findall(r"\(receptacletype \?\w+ (\w+)\)", goal)
            wanted, target = types[0][::-1] if task_type == "look_at_obj_in_light" else (types[0][0], types[1][0])
            return cls.from_facts(facts, task_type, wanted, target, task, file["walkthrough"], name)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{name or 'this text'} is not a whole ALFWorld game ({type(error).__name__}: {error}); "
                            "run `alfworld-download` again") from error

    @classmethod
    def from_facts(cls, facts, task_type, wanted, target, task, walkthrough=(), name=""):
        """The game of structured facts, all in the lowercased ids of the PDDL.

        facts: predicate -> collection of argument tuples, e.g. {"inreceptacle": [("mug_bar_1", "shelf_bar_3")]}; the predicates
        are those of the files.  wanted: the object type of the goal (`mugtype`); target: its receptacle type, or for
        look_at_obj_in_light the lamp's type; task: the sentence without "Your task is to: ".  Objects need an `objecttype` fact,
        receptacles a `receptacletype` and a `receptacleatlocation`.  ValueError or KeyError where facts do not fit together."""
        game = cls()
        game.name, game.task_type, game.task, game.walkthrough = name, task_type, task, list(walkthrough)
        object_type, receptacle_type = dict(facts["objecttype"]), dict(facts["receptacletype"])
        location = dict(facts["receptacleatlocation"])
        # two games have a cracked egg that is pickupable and nothing else: it is nowhere, but it counts for the eggs' numbers
        objects = sorted({fact[0] for predicate in OBJECT_FACTS for fact in facts.get(predicate, ())})
        receptacles = sorted(receptacle_type)
        number = {id: n for ids in (objects, receptacles) for n, id in enumerate(ids)}
        game.objects, game.receptacles = names_of(objects), names_of(receptacles)
        game.object_types = [sys.intern(object_type.get(id, "")) for id in objects]
        game.receptacle_types = [sys.intern(receptacle_type[id]) for id in receptacles]

        # Places are the numbers of locations with receptacles (several may share one); None is where every episode starts.
        place = {name: n for n, name in enumerate(dict.fromkeys(location[id] for id in receptacles))}
        game.places = [place[location[id]] for id in receptacles]
        game.here = {n: tuple(r for r, p in enumerate(game.places) if p == n) for n in place.values()} | {None: ()}
        [(_, start)] = facts["atlocation"]
        if start in place:
            raise ValueError("the agent starts at a receptacle")

        def flagged(predicate):
            return frozenset(number[id] for (id,) in facts.get(predicate, ()))

        game.flags = {flag: flagged(flag) for flag in OBJECT_FLAGS}
        game.openable, game.cool_at_start = flagged("openable"), flagged("iscool")
        game.holdable = defaultdict(list)  # receptacle type -> object types that may be put there
        for receptacle, object in facts["cancontain"]:
            game.holdable[receptacle].append(object)
        game.inside = sorted((number[outer], number[inner]) for inner, outer in facts.get("inreceptacleobject", ()) if inner != outer)
        game.at_start = frozenset((number[o], place.get(where)) for o, where in facts["objectatlocation"])

        # The goal: objects that count, and the receptacles or lamps they have to be brought to.  isCool may hold from the start,
        # even for something not coolable, so that the flag is part of the goal.
        game.process = task_type.split("_")[1]  # clean, heat or cool; other words stand for no process
        flag = PROCESSES[game.process][0] if game.process in PROCESSES else None
        game.wanted = frozenset(o for o, kind in enumerate(game.object_types) if kind == wanted and (not flag or o in game.flags[flag]))
        game.targets = [r for r, type in enumerate(game.receptacle_types) if type == target]
        game.lamps = [o for o, type in enumerate(game.object_types) if type == target and o in game.flags["toggleable"]]

        game.intro = (f"-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, "
                      f"you see {listing(game.receptacles)}.\n\nYour task is to: {task}")
        game.views, game.menus, game.actions = {}, {}, {}
        contents = defaultdict(list)
        for o, r in facts["inreceptacle"]:
            contents[number[r]].append(number[o])
        game.first_views = [game.view(r, False, tuple(sorted(contents[r]))) for r in range(len(receptacles))]
        return game

    def start(self):
        """A new episode."""
        return Play(self)

    def view(self, receptacle, opened, contents):
        """The one View of this receptacle in this condition."""
        key = receptacle, opened, contents
        view = self.views.get(key)
        if view is None:
            view = self.views[key] = View()
            view.receptacle, view.opened, view.contents = key
            name, things = self.receptacles[receptacle], listing(self.objects[o] for o in contents)
            if receptacle not in self.openable:
                view.text = f"On the {name}, you see {things}."
            else:
                view.text = f"The {name} is open. In it, you see {things}." if opened else f"The {name} is closed."
        return view

    def menu(self, held, sliceable, views):
        """The sorted list of admissible commands, cached: the preconditions of all the domain's actions, in one place.

        held: the object in the agent's hand or None; sliceable: objects it could slice if that is a knife; views: of the
        receptacles where the agent is.  For every command, self.actions gets (method of Play, its arguments)."""
        key = held, sliceable, *views
        menu = self.menus.get(key)
        if menu is not None:
            return menu
        can = {"look": (Play.look,), "inventory": (Play.inventory,), "help": (Play.help,)}
        here = [view.receptacle for view in views]
        for r, name in enumerate(self.receptacles):
            if r not in here:
                can[f"go to {name}"] = Play.go, r
        if held is not None:
            thing, flags = self.objects[held], self.flags
            can[f"examine {thing}"] = Play.examine, held
            for o in sliceable:
                can[f"slice {self.objects[o]} with {thing}"] = Play.slice, o, held
        for view in views:
            r, name, kind = view.receptacle, self.receptacles[view.receptacle], self.receptacle_types[view.receptacle]
            can[f"examine {name}"] = Play.examine_receptacle, r
            if r in self.openable:
                can[f"close {name}" if view.opened else f"open {name}"] = Play.turn, r, not view.opened
            for o in view.contents:
                if o in self.flags["toggleable"]:
                    can[f"use {self.objects[o]}"] = Play.use, o  # sic: even in a closed receptacle
            if held is not None:
                for verb, (flag, place) in PROCESSES.items():  # sic: a closed microwave heats, a closed fridge cools
                    if kind == place and held in flags[flag]:
                        can[f"{verb} {thing} with {name}"] = getattr(Play, verb), held, r
            if view.opened or r not in self.openable:
                if held is None:
                    for o in view.contents:
                        if o in self.flags["pickupable"]:
                            can[f"take {self.objects[o]} from {name}"] = Play.take, o, r
                elif self.object_types[held] in self.holdable[kind]:
                    can[f"move {thing} to {name}"] = Play.move, held, r
        self.actions.update(can)
        menu = self.menus[key] = sorted(map(sys.intern, can))
        return menu


class Play:
    """One episode.  Every value in it is replaced, never modified, so plays of one game share what they have in common.

    observation: the last text; won: whether the goal holds now (it can be undone again)."""

    __slots__ = ("game", "observation", "won", "place", "held", "views", "at", "taken", "cleaned", "hot", "cold", "sliced", "used", "menu")

    def __init__(self, game):
        self.game, self.observation = game, game.intro
        self.won = False  # no game is won at its start
        self.place = self.held = None  # a place's number, an object's number
        self.views = game.first_views  # per receptacle
        self.at = game.at_start  # (object, place): where an object counts as being, which is not where it is listed
        self.taken = frozenset()  # (object, receptacle) it was taken from and not put back to
        self.cleaned = self.hot = self.sliced = self.used = frozenset()
        self.cold = game.cool_at_start
        self.menu = game.menu(None, (), ())

    def admissible(self):
        """The commands that do something now, sorted as strings, `help` included.  A shared list: do not modify it."""
        return self.menu

    def step(self, command):
        """Plays one command, which must be one of admissible() up to outer whitespace, and returns the observation."""
        command = command.strip()
        if command in self.menu:
            action, *arguments = self.game.actions[command]
            self.observation = action(self, *arguments)
        else:
            self.observation = "Nothing happens."
        return self.observation

    def update(self):
        """After a change: the new menu, and whether the goal holds."""
        game, held = self.game, self.held
        views = [self.views[r] for r in game.here[self.place]]
        sliceable = ()
        if held is not None and game.object_types[held] in KNIVES:
            sliceable = tuple(sorted(o for o, place in self.at if place == self.place and o in game.flags["sliceable"]))
        self.menu = game.menu(held, sliceable, views)
        if game.task_type == "look_at_obj_in_light":
            self.won = held in game.wanted and any(lamp in self.used and lamp in view.contents for lamp in game.lamps for view in views)
        else:
            good = {"clean": self.cleaned, "heat": self.hot, "cool": self.cold}.get(game.process, game.wanted) & game.wanted
            enough = 2 if game.task_type == "pick_two_obj_and_place" else 1
            self.won = len(good) >= enough and any(len(good.intersection(self.views[r].contents)) >= enough for r in game.targets)

    def show(self, receptacle, opened, contents):
        """Puts a receptacle into another condition."""
        self.views = self.views.copy()
        self.views[receptacle] = self.game.view(receptacle, opened, contents)

    # The actions: each changes the state (the PDDL's effect) and returns the observation (the grammar's text).

    def go(self, r):
        self.place = self.game.places[r]
        self.update()
        return f"You arrive at {self.game.receptacles[r]}. {self.views[r].text}"

    def turn(self, r, opened):
        self.show(r, opened, self.views[r].contents)
        self.update()
        name = self.game.receptacles[r]
        return f"You open the {name}. {self.views[r].text}" if opened else f"You close the {name}."

    def take(self, o, r):
        view = self.views[r]
        self.show(r, view.opened, tuple(other for other in view.contents if other != o))
        self.held = o
        self.at -= {(o, self.place)}
        self.taken |= {(o, r)}
        self.update()
        return f"You pick up the {self.game.objects[o]} from the {self.game.receptacles[r]}."

    def move(self, o, r):
        view = self.views[r]
        self.show(r, view.opened, tuple(sorted({*view.contents, o})))  # a set: it may be listed here although held
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
        return f"You turn on the {self.game.objects[o]}."  # sic: always on

    def examine(self, o):
        name = self.game.objects[o]
        if o in self.game.flags["isreceptacleobject"]:
            return f"This is a normal {name}. In it, you see {listing(self.game.objects[i] for outer, i in self.game.inside if outer == o)}."
        state = ["hot"] if o in self.hot else ["cool"] if o in self.cold else []
        state = " and ".join(state + ["clean"] * (o in self.cleaned))
        state = " ".join([state] * bool(state) + ["sliced"] * (o in self.sliced))
        if not state:
            return f"There's nothing special about {name}."
        return f"This is a {'cold' if state == 'cool' else state} {name}."

    def examine_receptacle(self, r):
        return self.views[r].text

    def inventory(self):
        return "You are not carrying anything." if self.held is None else f"You are carrying: a {self.game.objects[self.held]}."

    def look(self):
        game = self.game
        if self.place is None:
            return "You are in the middle of a room. Looking quickly around you, you see nothing."  # sic: the intro lists all
        # sic: what counts as being at this place while explicitly not in a receptacle of it, though it may lie in another
        beside = [game.objects[o] for o, r in sorted(self.taken) if game.places[r] == self.place and (o, self.place) in self.at]
        facing = listing((game.receptacles[r] for r in game.here[self.place]), article="")
        return f"You are facing the {facing}. Next to it, you see {listing(beside)}."

    def help(self):
        return HELP
