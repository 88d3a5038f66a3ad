"""What the stand-in for WebShop is taught, by tiny/build.py: vocabulary, examples from scripted
shoppers (tiny/shoppers.py), gates.

Everything comes from GENERATED shops with seeds of their own: a third are further shops of the
kinds that envs/shop.py knows, the others sell things that do not exist (`open_kinds`), put together
from the words below, so that reading and copying are learned instead of a catalogue.  No real
product, title or goal goes in.  Tokens are subwords; a character that the training text lacks falls
back to its bytes, so that any title can be written.
"""

import json
import random
from functools import lru_cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from envs import shop, webshop_prompts
from envs.webshop import WebShop
from envs.webshop_data import Nouns
from envs.webshop_prompts import write_action
from tiny import acting, shoppers
from tiny.shoppers import KINDS, Shopper, describe, fits, skill

MAX_TOKENS = 900
CARELESS = shoppers.CARELESS  # build.py --procedure scales it
VOCABULARY = 2048
PAD, EOS = "[pad]", "\n"
# Seeds of the shops that are trained in, and of those that the gates are played in.  The phases
# play envs/shop.py's own seed.
KNOWN, OPEN, CHECK = range(1000, 1012), range(2000, 2048), 3000

# Words that things, attributes and options are put together from; all a shop could sell, none of it
# any shop's list.
THINGS = """
    lamp table chair sofa shelf desk bed mattress pillow curtain rug mirror clock vase frame
    candle basket box bag backpack wallet belt
    hat cap scarf glove sock shoe sneaker boot sandal slipper loafer oxford pump shirt t-shirt
    polo blouse sweater hoodie jacket coat
    vest dress skirt pants jeans shorts legging tights suit swimsuit bikini bra panty underwear
    pajama robe costume tuxedo jersey watch
    ring necklace bracelet earring charm phone case charger cable adapter battery speaker
    headphone earbud microphone camera lens tripod
    monitor keyboard mouse laptop tablet printer projector television antenna remote controller
    console drone router switch hub drive
    card reader scanner bulb fan heater humidifier purifier vacuum iron kettle toaster blender
    mixer grinder pan pot knife fork spoon
    plate bowl cup mug glass jar bottle tumbler flask tray rack hook hanger organizer container
    bin towel blanket quilt sheet cover
    cushion mat shampoo conditioner soap lotion cream serum oil mask brush comb razor trimmer
    clipper dryer wig extension lipstick
    mascara eyeliner foundation powder polish nail perfume deodorant toothbrush toothpaste floss
    mouthwash sponge wipe diaper vitamin
    protein snack cookie cracker chip candy chocolate gum coffee tea juice soda water sauce spice
    salt sugar honey syrup jam butter
    cheese meat seafood fish rice pasta noodle soup bean nut seed fruit cereal oat granola bread
    cake mix flour topper sticker poster
    wallpaper decal banner card toy puzzle doll game ball bike helmet tent cooler lantern rod
    tool drill screw tape paint ladder lock
    key pen pencil notebook folder""".split()
QUALITIES = """soft hard light heavy thin thick slim wide narrow long short high low round square
flat open closed large small mini portable
    foldable adjustable removable reusable washable waterproof windproof leak-proof dust shock
    scratch slip fire heat cold fast quick
    easy slow auto manual wireless wired digital smart dual double single triple full half fresh
    natural organic gluten sugar dairy soy
    fat free non anti ultra super extra pure real faux vegan eco friendly safe gentle deep clean
    dry wet machine hand wash stainless
    steel solid wood bamboo rattan metal aluminum alloy brass ceramic plastic silicone rubber
    leather suede canvas denim cotton linen
    wool silk satin velvet fleece polyester nylon spandex mesh knit woven lace memory foam gel
    vacuum insulated tempered crystal clear
    blackout stretch elastic loose regular relaxed classic fit sleeve neck collar waist zipper
    button drawstring pocket strap buckle
    closure sole heel toe arch support cushioned breathable cooling warm thermal lined padded
    gold plated rechargeable usb bluetooth
    touch screen hd 4k optical noise power saving charging energy storage space easy install
    assemble carry use travel home kitchen
    office school gym outdoor summer winter spring party wedding holiday birthday gift women men
    women's men's kids girls boys baby teen
    adult pet dog cat skin hair face body dark sensitive dead damaged curly fine keto low-carb
    caffeine artificial color flavor
    preservatives grade quality certified tested old vintage modern rustic style""".split()
COLOURS = """
    black white grey gray silver gold bronze copper brown beige ivory cream tan khaki olive green
    mint teal aqua turquoise blue navy
    royal purple violet lavender pink rose coral peach orange yellow mustard red wine burgundy
    maroon charcoal heather leopard camo
    floral striped plaid multicolor clear natural walnut oak espresso""".split()
SIZES = """
    small medium large x-small x-large xx-large 3x-large 4x-large one size twin full queen king
    small-medium wide narrow regular 2t 3t
    4t youth adult men women""".split()
UNITS = (
    "inch ounce pack count piece pieces feet ft cm mm ml pound gallon watt gb pairs sheets x"
).split()
GROUPS = """color size style pattern|name flavor|name scent material fit|type item|shape capacity
set team|name special|size|type
    number|of|items product|packaging|quantity configuration length width""".split()


# ---- shops ---------------------------------------------------------------------------------------


def made_up(rng):
    """A word that no list holds: what brands are called."""
    syllables = (
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou")
        for _ in range(rng.choice([1, 2, 2, 3]))
    )
    return "".join(syllables) + rng.choice(["", "", "n", "x"])


def varied(words, rng):
    """One shop's own forms of some words: half as they are, others in another form or made up: a
    copy must not need to know its word."""
    return [
        rng.choice(
            [word, word, word, word + rng.choice(["s", "ed", "y", "er", "ing"]), made_up(rng)]
        )
        for word in words
    ]


def an_option(group, rng):
    if group == "color":
        before = rng.choice(["", "", "", f"{made_up(rng)}-", f"{rng.randrange(1, 3000)}"])
        after = rng.choice(
            [
                "",
                "",
                "",
                f" {rng.randrange(1, 100)}",
                f"-{rng.randrange(1, 3000)}",
                f"{rng.randrange(1, 3000)}",
            ]
        )
        return before + " ".join(rng.sample(COLOURS, rng.choice([1, 1, 2]))) + after
    if group in ("flavor name", "scent", "pattern name", "team name", "material"):
        return " ".join(rng.sample(THINGS + QUALITIES + COLOURS, rng.choice([1, 2, 2, 3])))
    if rng.random() < 0.4:
        return rng.choice(SIZES)
    number = f"{rng.randrange(1, 100)}" + rng.choice(
        ["", "", f".{rng.randrange(1, 100)}", f" x {rng.randrange(2, 90)}"]
    )
    return f"{number} {rng.choice(UNITS)}" + rng.choice(
        ["", "", f" (pack of {rng.randrange(2, 13)})"]
    )


def open_kinds(rng):
    """A table like envs/shop.py's KINDS, of twelve kinds of things that do not exist."""
    kinds, things, qualities = {}, varied(THINGS, rng), varied(QUALITIES, rng)
    # few words, so that kinds share them and the kind alone finds too much
    words = rng.sample(things, 8)
    for _ in range(12):
        name = rng.sample([*words, *rng.sample(qualities, 2)], rng.choice([1, 2, 2, 3]))
        name = rng.choice([" ", " ", " ", " & ", ", "]).join(
            [rng.choice(["", "", "", "men's ", "women's "]) + name[0], *name[1:]]
        )
        attributes = [
            " ".join(rng.sample(qualities + things[:60], rng.choice([1, 2, 2, 2, 3])))
            for _ in range(16)
        ]
        groups = [
            group.replace("|", " ") for group in rng.sample(GROUPS, rng.choice([0, 1, 1, 2, 2, 3]))
        ]
        groups = {
            group: list(dict.fromkeys(an_option(group, rng) for _ in range(rng.randrange(3, 9))))
            for group in groups
        }
        kinds[name] = (
            "garden",
            f"Home › {name} › Things",
            rng.choice([8, 12, 20, 35, 60, 110, 200]),
            attributes,
            groups,
        )
    return kinds


def ask_for_more(files, kinds, rng):
    """Lengthens what products of open kinds are asked for, in place, until it is as long as in a
    real shop: up to eight attributes before and after the kind of thing, most of which no title
    names.  A careless reader has then seen neither the end of the instruction nor the place of the
    product."""
    items, instructions, _ = files
    for item in items:
        entry, kind = instructions[item["asin"]], item["query"]
        more = [attribute for attribute in kinds[kind][3] if attribute not in entry["attributes"]]
        more = rng.sample(more, rng.choice([0, 0, 1, 2, 4, 6]))
        # not in place: a product and its dearer copy share the list
        entry["attributes"] = entry["attributes"] + more
        item["small_description"] += [f"{attribute.capitalize()}: yes" for attribute in more]
        if rng.random() < 0.4:
            item["full_description"] += f" It has {', '.join(more)}."
        words = [word for word in item["name"].split() if rng.random() < 0.8]
        for _ in range(rng.choice([0, 0, 2, 4, 8, 16])):
            word = rng.choice(
                [rng.choice(QUALITIES), rng.choice(THINGS), made_up(rng), str(rng.randrange(2000))]
            )
            words.insert(rng.randrange(len(words) + 1), word)
        item["name"] = " ".join(words)
        if "instruction" in entry:
            asked = entry["instruction_attributes"] + [
                attribute for attribute in more if rng.random() < 0.8
            ]
            rng.shuffle(asked)
            before = asked[: rng.randrange(len(asked) + 1)]
            rest = asked[len(before) :]
            after = [part for part in (rest[: len(rest) // 2], rest[len(rest) // 2 :]) if part]
            joints = [" with ", " for "] if rng.random() < 0.6 else [" for ", " with "]
            text = "".join(joint + ", ".join(part) for joint, part in zip(joints, after))
            head = " ".join(filter(None, [", ".join(before), kind]))
            entry |= {"instruction": f"Find me {head}{text}", "instruction_attributes": asked}


@lru_cache(128)
def world(seed):
    """The generated shop of a seed: envs/shop.py's kinds below seed 2000, open kinds, longer wishes
    and noisier titles from there on."""
    if seed < OPEN[0] or seed == CHECK:
        files = shop.files(seed)
        return WebShop(files=files, nouns=Nouns(shop.title_nouns(files[0])))
    rng = random.Random(f"open {seed}")
    kinds = open_kinds(rng)
    files = shop.files(seed, kinds)
    ask_for_more(files, kinds, rng)
    return WebShop(
        files=files,
        nouns=Nouns({item["asin"]: webshop_prompts.words_of(item["name"]) for item in files[0]}),
    )


# ---- vocabulary ----------------------------------------------------------------------------------


def make_tokenizer():
    """Subwords with the space in front of them, learned from scripted episodes and the words above;
    bytes for what these lack."""
    stream = random.Random("words")
    texts = ["".join(text for text, _ in example(stream) or []) for _ in range(600)]
    every = [
        *THINGS,
        *QUALITIES,
        *COLOURS,
        *SIZES,
        *UNITS,
        *map(str, range(100)),
        *(f"#{i}" for i in range(1, 11)),
    ]
    texts += [" " + " ".join(stream.sample(every, len(every))) for _ in range(60)]
    split = pre_tokenizers.Split(
        Regex(r" ?#\d+| ?\d{1,3}| ?[^\W\d_]+| ?[^\s\w]+|\n"), behavior="isolated"
    )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = split
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    size = VOCABULARY - len(fallback)
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, EOS], show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    vocabulary = learned["vocab"] | {
        byte: len(learned["vocab"]) + i for i, byte in enumerate(fallback)
    }
    one = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=[tuple(pair) for pair in learned["merges"]], byte_fallback=True
        )
    )
    one.pre_tokenizer = split
    one.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=one, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def parts_of(tokenizer):
    """Every token has a vector of its own."""
    return [[token] for token in range(len(tokenizer))]


# ---- examples ------------------------------------------------------------------------------------


def random_skills(task, stream):
    """A prompt's skills while pretraining: mostly fitting and good, sometimes incomplete or about
    another kind of goal."""
    skills = []
    for kind, chance in (("any", 0.7), ("options", 0.25), ("limit", 0.25), ("free", 0.2)):
        if stream.random() < chance:
            every = KINDS[kind][1]
            some = (
                every
                if stream.random() < 0.6
                else [c for c in every if stream.random() < 0.6] or [stream.choice(every)]
            )
            skills.append(skill(kind, some))
    stream.shuffle(skills)
    return skills[:3]


def play(env, task_id, skills, stream):
    """One episode by a scripted shopper: (history, last Step)."""
    step, history = env.reset(task_id), []
    shopper = Shopper(env.task, skills, stream)
    while not step.done:
        action = shopper.act(history, step)
        history.append((step, action))
        step = env.step(action)
    return history, step


def writing(task, history, last, stream, style):
    """A winning transcript and a skill that it shows; only the skill is to be learned."""
    record = {
        "task": task,
        "steps": [{"observation": step.observation, "action": action} for step, action in history],
        "final_observation": last.observation,
    }
    found = stream.choice(shown(record))
    return [
        (webshop_prompts.summary_prompt(record, style), False),
        (f" when {found['condition']} : {found['strategy']}\n", True),
    ]


def example(stream):
    """One example in pieces (text, whether it is to be learned), or None where the draw gave
    none."""
    env = world(stream.choice(KNOWN if stream.random() < 0.35 else OPEN))
    task_id = f"goal-{stream.randrange(len(env.goals)):07d}"
    task = env.goals[int(task_id[5:])]["instruction_text"]
    draw = stream.random()
    skills = [] if draw < 0.25 else random_skills(task, stream)
    history, last = play(env, task_id, skills, stream)
    style = "compact" if stream.random() < 0.15 else "compact+note"
    if draw < 0.85:
        return acting(
            webshop_prompts,
            task,
            skills,
            history,
            style,
            lambda action, step: write_action(action, step.observation),
        )
    return writing(task, history, last, stream, style) if last.won else None


# ---- gates ---------------------------------------------------------------------------------------


def good_skills(task):
    return [skill("any")]


def checks(games):
    """(environment, tasks, arms) of the gates: a shop never trained in; arms: name -> the skills
    shown for a task."""
    env = world(CHECK)
    tasks = random.Random(CHECK).sample(
        [task for split in env.split_names for task in env.tasks(split)], games
    )
    arms = {"plain": lambda task: [], "skills": good_skills}
    arms |= {kind: lambda task, kind=kind: [skill(kind)] for kind in ("options", "limit")}
    return env, tasks, arms


def attainable(env, tasks):
    """What success with good skills is measured against: that of the scripted shopper with the same
    skills."""
    return sum(
        play(env, task, good_skills(task), random.Random(task))[1].won for task in tasks
    ) / len(tasks)


def shown(record):
    """The skills that the transcript of a won episode shows."""
    steps = [(s["observation"], s["action"]) for s in record["steps"]]
    found = [describe(record["task"], steps, kind) for kind in KINDS if fits(kind, record["task"])]
    return [one for one in found if one]
