"""The tables behind envs/houses.py: what ALFWorld's world consists of, and a common-sense guess at
where things lie.

Facts from the alfworld package (gen/constants.py, gen/goal_library.py, gen/layouts): which
receptacle holds what (CAN_CONTAIN), what can be heated, cooled, cleaned, sliced, opened, the six
task types and the rooms they fit, and roughly what each kind of room contains (ROOMS, THINGS).  The
sliced variants of the food are left out: no text game starts with one.

Not from there: WHERE, the weights with which a thing lies in a kind of place.  They are guesses
about ordinary homes, fitted to no ALFWorld game: no count of where things lie in the games went
into them.  What the game files do give is their format: which things are scenery (SCENERY), and
that some of it is listed in receptacles (a sink on its countertop, a window above one).
"""


def _rows(text):
    """Lines "NAME NAME: rest", as {NAME: rest's words}."""
    rows = (line.split(":") for line in text.strip().splitlines())
    return {name: tuple(rest.split()) for names, rest in rows for name in names.split()}


TABLE_TOP = """AlarmClock Apple BaseballBat BasketBall Book Bowl Box Bread ButterKnife CD Candle \
CellPhone Cloth CreditCard Cup
DishSponge Egg Fork Glassbottle HandTowel Kettle KeyChain Knife Ladle Laptop Lettuce Mug \
Newspaper Pan PaperTowel Pen Pencil
PepperShaker Plate Pot Potato RemoteControl SaltShaker SoapBar SoapBottle Spatula Spoon \
SprayBottle Statue TennisRacket TissueBox
ToiletPaper ToiletPaperRoll Tomato Vase Watch WateringCan WineBottle""".replace("\n", " ")

# receptacle type -> the object types that may be put there (an action's precondition, not a habit)
CAN_CONTAIN = _rows(f"""
CounterTop DiningTable CoffeeTable SideTable: {TABLE_TOP}
Cabinet: Book Bowl Box CD Candle Cloth Cup DishSponge Glassbottle HandTowel Kettle Ladle Mug \
Newspaper Pan PepperShaker Plate Plunger Pot \
SaltShaker SoapBar SoapBottle SprayBottle TissueBox ToiletPaper ToiletPaperRoll Vase WateringCan \
WineBottle
Drawer: Book ButterKnife CD Candle CellPhone Cloth CreditCard DishSponge Fork HandTowel KeyChain \
Knife Ladle Newspaper Pen Pencil \
PepperShaker RemoteControl SaltShaker SoapBar SoapBottle Spatula Spoon SprayBottle TissueBox \
ToiletPaper ToiletPaperRoll Watch WateringCan
Shelf: AlarmClock Book Bowl Box CD Candle CellPhone Cloth CreditCard Cup DishSponge Glassbottle \
HandTowel Kettle KeyChain Mug Newspaper \
PaperTowel Pen Pencil PepperShaker Plate Pot RemoteControl SaltShaker SoapBar SoapBottle \
SprayBottle Statue TissueBox ToiletPaper \
ToiletPaperRoll Vase Watch WateringCan WineBottle
Dresser: AlarmClock BasketBall Book Bowl Box CD Candle CellPhone Cloth CreditCard Cup Glassbottle \
KeyChain Laptop Mug Newspaper Pen Pencil \
Plate RemoteControl SprayBottle Statue TennisRacket TissueBox ToiletPaper ToiletPaperRoll Vase \
Watch WateringCan WineBottle
Desk: AlarmClock BasketBall Book Bowl Box CD Candle CellPhone Cloth CreditCard Cup Glassbottle \
KeyChain Laptop Mug Newspaper Pen Pencil \
Plate RemoteControl SoapBottle SprayBottle Statue TennisRacket TissueBox ToiletPaper \
ToiletPaperRoll Vase Watch WateringCan WineBottle
Sofa ArmChair Ottoman: BasketBall Book Box CellPhone Cloth CreditCard KeyChain Laptop Newspaper \
Pillow RemoteControl
Bed: BaseballBat BasketBall Book CellPhone Laptop Newspaper Pillow TennisRacket
Fridge: Apple Bowl Bread Cup Egg Glassbottle Lettuce Mug Pan Plate Pot Potato Tomato WineBottle
Microwave: Apple Bowl Bread Cup Egg Glassbottle Mug Plate Potato Tomato
SinkBasin: Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Glassbottle HandTowel Kettle \
Knife Ladle Lettuce Mug Pan Plate Pot Potato \
SoapBar Spatula Spoon Tomato
BathtubBasin: Cloth DishSponge HandTowel SoapBar
GarbageCan: Apple Bread CD Cloth DishSponge Egg HandTowel Lettuce Newspaper PaperTowel Pen Pencil \
Potato SoapBar SoapBottle SprayBottle \
TissueBox ToiletPaper ToiletPaperRoll Tomato WineBottle
Toilet: Candle Cloth DishSponge HandTowel Newspaper PaperTowel SoapBar SoapBottle SprayBottle \
TissueBox ToiletPaper ToiletPaperRoll
Cart: Candle Cloth DishSponge HandTowel Mug PaperTowel Plunger SoapBar SoapBottle SprayBottle \
Statue TissueBox ToiletPaper \
ToiletPaperRoll Vase
Safe: CD CellPhone CreditCard KeyChain Statue Vase Watch
StoveBurner: Kettle Pan Pot
CoffeeMachine: Mug
TVStand: TissueBox
LaundryHamper: Cloth
ToiletPaperHanger: ToiletPaper ToiletPaperRoll
TowelHolder: Towel
HandTowelHolder: HandTowel
Toaster PaintingHanger:
""")

RECEPTACLES = tuple(sorted(CAN_CONTAIN))
# every object type that a game may name
OBJECTS = tuple(
    sorted(
        set(TABLE_TOP.split())
        | set(
            """Bathtub Blinds Boots Chair Curtains DeskLamp Faucet FloorLamp Footstool HousePlant
Lamp LaundryHamperLid LightSwitch Mirror Painting PaperTowelRoll Pillow Plunger Poster ScrubBrush \
ShowerCurtain ShowerDoor ShowerGlass
ShowerHead Sink StoveKnob TeddyBear Television Towel Window""".split()
        )
    )
)
SCENERY = frozenset(
    """Bathtub Blinds Chair Curtains DeskLamp Faucet FloorLamp HousePlant Lamp LaundryHamperLid \
LightSwitch Mirror Painting
Poster ShowerCurtain ShowerDoor ShowerGlass ShowerHead Sink StoveKnob Television Window""".split()
)  # listed, never taken
# vessel -> what may lie inside it at the start; only the text of `examine VESSEL` shows it
VESSELS = _rows("""
Pan Pot: Apple ButterKnife DishSponge Egg Fork Knife Ladle Lettuce Potato Spatula Spoon Tomato
Bowl: Apple ButterKnife CD Candle CellPhone Cloth CreditCard DishSponge Egg Fork KeyChain Knife \
Ladle Lettuce Mug PaperTowel Pen Pencil \
Potato RemoteControl Spatula Spoon Tomato Watch
Cup: ButterKnife Fork Spoon
Mug: ButterKnife Fork KeyChain Knife Pen Pencil Spoon Watch
Plate: AlarmClock Apple Book ButterKnife CD Candle CellPhone Cloth CreditCard DishSponge Egg Fork \
Glassbottle KeyChain Knife Ladle Lettuce \
Mug PaperTowel Pen Pencil Potato Spatula Spoon TissueBox Tomato Watch
Box: AlarmClock Book CD Candle CellPhone Cloth CreditCard DishSponge Glassbottle KeyChain Mug \
PaperTowel Pen Pencil RemoteControl Statue \
TissueBox Vase Watch
""")
HEATABLE = frozenset("Apple Bread Cup Egg Mug Plate Potato Tomato".split())
COOLABLE = HEATABLE | frozenset("Bowl Lettuce Pan Pot WineBottle".split())
CLEANABLE = frozenset(
    """Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Kettle Knife Ladle Lettuce Mug Pan \
Plate Pot Potato SoapBar
Spatula Spoon Tomato""".split()
)
SLICEABLE = frozenset("Apple Bread Egg Lettuce Potato Tomato".split())
TOGGLEABLE = frozenset("DeskLamp FloorLamp".split())
FLAGS = {
    "cleanable": CLEANABLE,
    "heatable": HEATABLE,
    "coolable": COOLABLE,
    "sliceable": SLICEABLE,
    "toggleable": TOGGLEABLE,
    "isReceptacleObject": frozenset(VESSELS),
    "pickupable": frozenset(OBJECTS) - SCENERY,
}
OPENABLE = frozenset(
    "Cabinet Drawer Fridge Microwave Safe".split()
)  # the types with doors; single cabinets, drawers, safes may have none

# task type -> the kinds of room it fits; one is drawn, so `clean` is mostly a kitchen task (a
# bathroom has little to clean)
TASK_TYPES = {
    "look_at_obj_in_light": ("living", "bedroom"),
    "pick_and_place_simple": ("kitchen", "living", "bedroom", "bathroom"),
    "pick_clean_then_place_in_recep": ("kitchen", "kitchen", "kitchen", "bathroom"),
    "pick_cool_then_place_in_recep": ("kitchen",),
    "pick_heat_then_place_in_recep": ("kitchen",),
    "pick_two_obj_and_place": ("kitchen", "living", "bedroom", "bathroom"),
}

# task type -> (verb, objects that it works on, receptacle type that it needs)
PROCESSES = {
    "pick_clean_then_place_in_recep": ("clean", CLEANABLE, "SinkBasin"),
    "pick_cool_then_place_in_recep": ("cool", COOLABLE, "Fridge"),
    "pick_heat_then_place_in_recep": ("heat", HEATABLE, "Microwave"),
}

# task type -> the two wordings of its goal; {obj} and {target} are lower-case type names
SENTENCES = {
    "look_at_obj_in_light": (
        "look at {obj} under the {target}",
        "examine the {obj} with the {target}",
    ),
    "pick_and_place_simple": ("put a {obj} in {target}", "put some {obj} on {target}"),
    "pick_clean_then_place_in_recep": (
        "put a clean {obj} in {target}",
        "clean some {obj} and put it in {target}",
    ),
    "pick_cool_then_place_in_recep": (
        "put a cool {obj} in {target}",
        "cool some {obj} and put it in {target}",
    ),
    "pick_heat_then_place_in_recep": (
        "put a hot {obj} in {target}",
        "heat some {obj} and put it in {target}",
    ),
    "pick_two_obj_and_place": (
        "put two {obj} in {target}",
        "find two {obj} and put them in {target}",
    ),
}

# kind -> receptacle type -> numbers of instances, one is drawn (repeats and zeros are the odds).
# Neighbours in the list may come to share
# a location.  Every kind keeps what its task types need: something to heat, cool and clean with,
# and a place for a lamp.
ROOMS = {
    "kitchen": {
        "CounterTop": (1, 2, 2, 3, 3, 4),
        "CoffeeMachine": (0,) + (1,) * 9,
        "Toaster": (0,) + (1,) * 9,
        "Microwave": (1,),
        "StoveBurner": (2, 4, 4, 4, 4, 6),
        "SinkBasin": (1,),
        "Drawer": (0, 1, 2, 3, 3, 4, 5, 5, 6, 8, 8, 11, 12, 27),
        "Cabinet": (2, 4, 4, 5, 6, 8, 8, 9, 9, 11, 13, 13, 15, 18, 20, 21, 28),
        "Shelf": (0, 0, 0, 0, 0, 3),
        "Fridge": (1,),
        "GarbageCan": (1,),
        "DiningTable": (0, 0, 0, 1, 1, 1, 2),
        "SideTable": (0,) * 9 + (1,),
        "Safe": (0,) * 29 + (1,),
    },
    "living": {
        "Sofa": (1, 1, 1, 1, 2),
        "ArmChair": (0, 1, 1, 1, 1, 1, 2, 2, 3),
        "Ottoman": (0,) * 9 + (1,),
        "CoffeeTable": (0, 1, 1, 1, 1, 2),
        "SideTable": (1, 1, 1, 2, 2, 3, 5),
        "TVStand": (0, 0, 0, 1, 1, 2),
        "Dresser": (0, 0, 1),
        "DiningTable": (0, 0, 0, 1, 1, 2),
        "Drawer": (0, 0, 0, 1, 1, 2, 4, 4, 5, 6, 7, 12),
        "Cabinet": (0,) * 9 + (4, 8),
        "Desk": (0,) * 19 + (1,),
        "Shelf": (0, 0, 0, 0, 0, 1, 2, 4, 8, 13),
        "Safe": (0,) * 14 + (1,),
        "GarbageCan": (0, 1, 1, 1),
    },
    "bedroom": {
        "Bed": (1, 1, 1, 1, 1, 1, 2),
        "SideTable": (0, 0, 1, 1, 1, 2),
        "Desk": (0, 0, 1, 1, 1, 2),
        "DiningTable": (0,) * 5 + (1,),
        "Drawer": (0, 1, 2, 2, 2, 3, 3, 5, 6, 7, 10, 11, 14),
        "Dresser": (0, 0, 1, 1, 2),
        "Shelf": (0, 0, 0, 1, 1, 2, 2, 3, 5, 6, 8, 14),
        "Cabinet": (0, 0, 0, 0, 0, 1, 4),
        "ArmChair": (0, 0, 0, 0, 1, 2),
        "CoffeeTable": (0,) * 19 + (1,),
        "CounterTop": (0,) * 19 + (1,),
        "LaundryHamper": (0, 0, 0, 1),
        "Safe": (0, 0, 0, 0, 0, 1),
        "GarbageCan": (0, 1, 1, 1, 1),
    },
    "bathroom": {
        "SinkBasin": (1, 2),
        "CounterTop": (0, 1, 1, 1, 1, 2),
        "Toilet": (1,),
        "ToiletPaperHanger": (1,),
        "BathtubBasin": (0, 1, 1),
        "HandTowelHolder": (1, 1, 1, 2, 4),
        "TowelHolder": (1, 1, 1, 2),
        "Cabinet": (0, 0, 0, 1, 2, 4, 4, 5, 9),
        "Drawer": (0, 0, 0, 0, 0, 1, 2, 4, 6, 8),
        "Shelf": (0, 0, 0, 1, 2, 3, 4),
        "Cart": (0,) * 14 + (1,),
        "Dresser": (0,) * 14 + (1,),
        "SideTable": (0,) * 14 + (1,),
        "GarbageCan": (1,),
    },
}

# the largest number of instances that a room of any kind may have, ALFWorld's own rooms included,
# with room to spare
LARGEST = (
    {name: 4 for name in RECEPTACLES}
    | {"Cabinet": 36, "Drawer": 36, "Shelf": 20, "StoveBurner": 8}
    | {
        name: 6
        for name in (
            "ArmChair",
            "CounterTop",
            "DiningTable",
            "HandTowelHolder",
            "SideTable",
            "TowelHolder",
        )
    }
)

# kind -> share of games in which the thing is about -> the things
THINGS = {
    "kitchen": {
        1.0: "Apple Bowl Bread ButterKnife Cup DishSponge Egg Fork Knife Lettuce Mug Pan "
        "PepperShaker Plate Pot Potato SaltShaker "
        "SoapBottle Spatula Spoon Tomato Sink LightSwitch StoveKnob".split(),
        0.8: "Window Chair".split(),
        0.5: "Kettle".split(),
        0.35: "HousePlant Ladle PaperTowelRoll WineBottle".split(),
        0.2: "Blinds CellPhone CreditCard Glassbottle Statue Vase".split(),
        0.1: "Book Curtains Mirror Newspaper Pen Pencil SprayBottle".split(),
    },
    "living": {
        1.0: "Box CreditCard FloorLamp HousePlant KeyChain Laptop LightSwitch Painting Pillow "
        "RemoteControl Statue Television "
        "Window".split(),
        0.6: "Chair Newspaper Vase Watch".split(),
        0.4: "Curtains Plate TissueBox WateringCan".split(),
        0.25: "Book CellPhone DeskLamp".split(),
        0.15: "Boots Bowl Pen Pencil".split(),
        0.1: "Blinds Candle Cup Mirror Mug TeddyBear".split(),
    },
    "bedroom": {
        1.0: "AlarmClock Book CD CellPhone CreditCard KeyChain Laptop LightSwitch Mirror Pen "
        "Pencil Pillow Window".split(),
        0.8: "Blinds Chair".split(),
        0.65: "DeskLamp".split(),
        0.45: "BaseballBat BasketBall Bowl Box Mug Painting".split(),
        0.3: "HousePlant LaundryHamperLid Poster TeddyBear TennisRacket".split(),
        0.15: "Boots Cloth RemoteControl Statue Television TissueBox Vase Watch".split(),
        0.05: "Cup Footstool Newspaper".split(),
    },
    "bathroom": {
        1.0: "Candle Cloth HandTowel LightSwitch Mirror Plunger ScrubBrush Sink SoapBar SoapBottle "
        "SprayBottle ToiletPaper Towel".split(),
        0.6: "Bathtub ShowerDoor Window".split(),
        0.4: "ShowerGlass TissueBox".split(),
        0.2: "DishSponge PaperTowelRoll ToiletPaperRoll".split(),
        0.05: "Book FloorLamp Footstool HousePlant Newspaper Painting".split(),
    },
}

# object type -> where it usually lies: receptacle types with weights (only those that the room has
# count); - is in no receptacle at all,
# as is every type without a line
WHERE = {
    name: {words[i]: int(words[i + 1]) for i in range(0, len(words), 2)}
    for name, words in _rows("""
AlarmClock: SideTable 5 Desk 3 Dresser 3 Shelf 2
Apple: CounterTop 4 DiningTable 4 Fridge 4 SinkBasin 1 GarbageCan 1 SideTable 1
BaseballBat: - 3 Bed 3 CounterTop 1 SideTable 1
BasketBall: - 3 Bed 2 ArmChair 2 Dresser 1 Desk 1 Sofa 1
Bathtub: - 2 BathtubBasin 1
Book: Shelf 5 Desk 4 Bed 3 SideTable 3 Sofa 2 CoffeeTable 3 Drawer 2 Dresser 1 ArmChair 1 \
DiningTable 1
Bowl: Cabinet 5 CounterTop 3 DiningTable 3 SinkBasin 2 Fridge 2 Shelf 2 Microwave 1 Desk 2 \
CoffeeTable 2 Dresser 1 SideTable 1
Box: CoffeeTable 3 Sofa 2 Shelf 3 DiningTable 2 Desk 2 Dresser 3 SideTable 2 ArmChair 1 Cabinet 1
Bread: CounterTop 6 DiningTable 4 Fridge 2 Microwave 1 GarbageCan 1
ButterKnife: Drawer 5 CounterTop 4 DiningTable 3 SinkBasin 2
CD: Desk 3 Shelf 4 Drawer 4 Dresser 2 SideTable 1 Safe 1 CoffeeTable 2
Candle: Shelf 3 SideTable 2 CounterTop 3 Drawer 2 Cabinet 2 Toilet 2 CoffeeTable 2 DiningTable 2 \
Dresser 1
CellPhone: Desk 4 SideTable 4 Bed 2 Sofa 2 CoffeeTable 3 CounterTop 2 Dresser 2 DiningTable 1 \
Drawer 1 ArmChair 1
Cloth: Cabinet 3 Drawer 3 SinkBasin 3 CounterTop 3 BathtubBasin 2 LaundryHamper 4 Shelf 1 Cart 2 \
Desk 1 Dresser 1 GarbageCan 1
CreditCard: Desk 3 Drawer 3 SideTable 3 CoffeeTable 2 Dresser 2 CounterTop 2 Shelf 1 Sofa 1 Safe \
2 DiningTable 1 ArmChair 1
Cup: Cabinet 5 CounterTop 4 SinkBasin 3 DiningTable 3 Fridge 1 Microwave 1 Shelf 2 Desk 2 \
SideTable 1 CoffeeTable 2
DeskLamp: Desk 6 SideTable 5 Dresser 2 Shelf 1 CoffeeTable 1 DiningTable 1
DishSponge: SinkBasin 6 CounterTop 5 Cabinet 2 Drawer 2 Cart 2 BathtubBasin 2 GarbageCan 1
Egg: Fridge 7 CounterTop 3 DiningTable 1 Microwave 1 SinkBasin 1 GarbageCan 1
Fork: Drawer 6 DiningTable 3 CounterTop 3 SinkBasin 3
Glassbottle: Fridge 3 CounterTop 4 DiningTable 2 Cabinet 2 Shelf 2 SinkBasin 1
HandTowel: HandTowelHolder 9 CounterTop 1 Cabinet 1 Drawer 1
HousePlant: - 4 CounterTop 2 DiningTable 2 CoffeeTable 2 SideTable 2 Shelf 2 Desk 1 Dresser 2 \
TVStand 1
Kettle: StoveBurner 5 CounterTop 4 Cabinet 2 Shelf 1 SinkBasin 1 DiningTable 1
KeyChain: SideTable 4 Desk 2 Drawer 3 Dresser 2 CoffeeTable 3 Shelf 2 CounterTop 1 Sofa 1 Safe 2 \
ArmChair 1 DiningTable 1
Knife: Drawer 5 CounterTop 5 DiningTable 2 SinkBasin 2
Ladle: Drawer 5 CounterTop 4 Cabinet 2 SinkBasin 2 DiningTable 1
Laptop: Desk 6 Bed 3 Sofa 3 CoffeeTable 3 DiningTable 2 ArmChair 1 Dresser 1 Ottoman 1 SideTable 1
Lettuce: Fridge 6 CounterTop 4 DiningTable 2 SinkBasin 2 GarbageCan 1
Mirror: - 6 Dresser 2 CounterTop 1 Desk 1 Shelf 1
Mug: CounterTop 4 Cabinet 4 CoffeeMachine 3 SinkBasin 3 DiningTable 2 Desk 4 Shelf 2 SideTable 2 \
Microwave 1 Dresser 1 CoffeeTable 2
Newspaper: CoffeeTable 5 Sofa 3 ArmChair 2 SideTable 2 DiningTable 3 Toilet 1 GarbageCan 2 \
CounterTop 1 Drawer 1 Desk 1 Ottoman 1
Pan: StoveBurner 6 Cabinet 4 CounterTop 3 SinkBasin 2 Fridge 1 DiningTable 1
PaperTowel: CounterTop 4 DiningTable 2 Shelf 1 Toilet 1
Pen: Desk 6 Drawer 3 Shelf 2 SideTable 2 Dresser 2 CoffeeTable 2 CounterTop 1 GarbageCan 1 \
DiningTable 1
Pencil: Desk 6 Drawer 4 Shelf 2 SideTable 1 Dresser 1 CoffeeTable 1 CounterTop 1 GarbageCan 1 \
DiningTable 1
PepperShaker: CounterTop 4 DiningTable 4 Cabinet 3 Drawer 1 Shelf 2 SideTable 1
Pillow: Bed 6 Sofa 6 ArmChair 3 Ottoman 1
Plate: Cabinet 6 CounterTop 3 DiningTable 4 SinkBasin 3 Shelf 2 Fridge 1 Microwave 1 CoffeeTable \
2 SideTable 1
Plunger: - 3 Cabinet 2 Cart 1
Pot: StoveBurner 5 Cabinet 5 CounterTop 2 SinkBasin 2 Fridge 2 Shelf 1 DiningTable 1
Potato: CounterTop 4 Fridge 3 SinkBasin 2 DiningTable 2 Microwave 1 GarbageCan 1
RemoteControl: Sofa 4 CoffeeTable 5 ArmChair 2 SideTable 2 Drawer 1 Shelf 1 Ottoman 1 Dresser 2 \
Desk 1
SaltShaker: CounterTop 4 DiningTable 4 Cabinet 3 Drawer 1 Shelf 2 SideTable 1
Sink: - 1 CounterTop 1
SoapBar: SinkBasin 4 BathtubBasin 4 CounterTop 3 Cabinet 2 Drawer 1 Toilet 1 Shelf 1 Cart 1 \
GarbageCan 1
SoapBottle: CounterTop 5 Cabinet 3 Shelf 2 Drawer 1 Toilet 1 Cart 2 GarbageCan 1
Spatula: Drawer 4 CounterTop 5 DiningTable 2 SinkBasin 2
Spoon: Drawer 6 CounterTop 3 DiningTable 3 SinkBasin 3
SprayBottle: Cabinet 4 CounterTop 3 Toilet 2 Shelf 2 Drawer 1 Cart 2 GarbageCan 1 SideTable 1
Statue: Shelf 4 SideTable 2 CoffeeTable 2 Dresser 3 Desk 1 DiningTable 1 CounterTop 1 Safe 1
TeddyBear: Bed 5 Sofa 2
Television: - 3 TVStand 6 Dresser 3 CoffeeTable 1 SideTable 1 Desk 1 Shelf 1
TennisRacket: - 2 Bed 2 Desk 1 Dresser 1 SideTable 1
TissueBox: CoffeeTable 2 SideTable 3 Toilet 2 CounterTop 3 Shelf 2 Desk 2 Dresser 1 TVStand 1 \
Drawer 1 Cabinet 2 Cart 1
ToiletPaper: ToiletPaperHanger 3 Toilet 3 Cabinet 4 Shelf 2 CounterTop 2 Drawer 2 Cart 1 \
GarbageCan 1
ToiletPaperRoll: ToiletPaperHanger 2 GarbageCan 3 Toilet 2 Cabinet 1 CounterTop 1
Tomato: Fridge 4 CounterTop 4 DiningTable 3 SinkBasin 2 GarbageCan 1 Microwave 1
Towel: TowelHolder 1
Vase: Shelf 3 DiningTable 3 CoffeeTable 3 SideTable 2 Dresser 3 CounterTop 1 Cabinet 1 Desk 1 Safe 1
Watch: SideTable 3 Dresser 4 Drawer 3 Desk 2 Shelf 1 Safe 2 CoffeeTable 2
WateringCan: SideTable 2 Shelf 2 CoffeeTable 1 Drawer 1 DiningTable 1 CounterTop 1 Cabinet 2 \
Dresser 1
WineBottle: Cabinet 4 Fridge 3 CounterTop 4 DiningTable 3 Shelf 1 GarbageCan 1 SideTable 1
Window: - 9 CounterTop 1 Shelf 1
""").items()
}
