"""What the stand-in for ALFWorld is taught, by tiny/build.py: vocabulary, examples from scripted
players (tiny/players.py), gates.

Everything comes from GENERATED houses (envs/houses.py), in rooms that no split of the phases ever
plays; nothing about ALFWorld's own games goes in.

Trick worth knowing: "mug 2" is one token, whose embedding is the sum of a vector for mug and one
for 2 while pretraining, so that the model knows every instance from the start.  The sums are
written out when the model is saved, and the phases train them as plain embeddings.
"""

import random
from functools import partial

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs import Step, alfworld_prompts, houses, houses_tables
from envs.alfworld import AlfWorld
from envs.alfworld_prompts import read_task
from tiny import acting, players
from tiny.players import CONDITIONS, Player, clauses_of, describe, general_skill, where_skill

MAX_STEPS, MAX_TOKENS = 50, 900
CARELESS = players.CARELESS  # build.py --procedure scales it
PAD, UNK, EOS = "[pad]", "[unk]", "\n"
# object instances per class that have a token; a receptacle class has as many as any room can have
NUMBERS = 10
OTHER_WORDS = """task hint room : . , ; when you something things two need a an some it them put
look at examine the under with hot cool
clean heat find and in on go open close take from move to use slice inventory help see nothing
closed next none face hold fails
ok normal won search every place once what is its both one then"""


# ---- vocabulary ----------------------------------------------------------------------------------


def vocabulary():
    """Tokens in order, and for each the names of the vectors that its embedding is the sum of."""
    objects, receptacles = houses.vocabulary()
    tokens = {token: [token] for token in (PAD, UNK, EOS, "go to")}
    for word in OTHER_WORDS.split() + list(objects) + list(receptacles):
        tokens.setdefault(word, [word])
    for name, count in [(name, NUMBERS) for name in objects] + list(receptacles.items()):
        for i in range(1, count + 1):
            tokens[f"{name} {i}"] = [name, f"number {i}", "instance"]
    return tokens


def make_tokenizer():
    """The tokenizer of `vocabulary`: a word, an instance or a sign is a token, anything else
    unknown."""
    one = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(vocabulary())}, unk_token=UNK)
    )
    one.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"go to|[a-z]+ \d+|[a-z]+|\n|[^\sa-z]"), behavior="removed", invert=True
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=one,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def parts_of(tokenizer):
    """For each token the names of the vectors that its embedding is the sum of."""
    return list(vocabulary().values())


# ---- examples ------------------------------------------------------------------------------------


def best_places(thing, stream, room=None):
    """Up to three receptacle classes for a class of object, likely ones first: what a well-informed
    skill would name."""
    weights = next((w for name, w in houses_tables.WHERE.items() if name.lower() == thing), {})
    names = sorted(
        ((w, name.lower()) for name, w in weights.items() if room is None or name.lower() in room),
        reverse=True,
    )
    return [name for _, name in names[:3]] or [
        stream.choice([name.lower() for name in houses_tables.RECEPTACLES])
    ]


def random_skills(kind, thing, stream):
    """A prompt's skills while pretraining: mostly fitting and good, sometimes incomplete, wrong or
    about something else."""
    skills = []
    clauses = clauses_of(kind)
    if stream.random() < 0.8:
        some = (
            clauses
            if stream.random() < 0.65
            else [c for c in clauses if stream.random() < 0.6] or [stream.choice(clauses)]
        )
        skills.append(general_skill(kind, some))
    if stream.random() < 0.55:
        places = best_places(thing, stream)[: stream.choice([1, 2, 3, 3])]
        if stream.random() < 0.3:
            places = [
                name.lower()
                for name in stream.sample(houses_tables.RECEPTACLES, stream.choice([1, 2, 3]))
            ]
        skills.append(where_skill(thing, places))
    if stream.random() < 0.25 or not skills:  # one that does not fit must change nothing
        other = stream.choice([k for k in CONDITIONS if k != kind])
        thing2 = stream.choice([name for name in houses.vocabulary()[0] if name != thing])
        skills.append(
            stream.choice([general_skill(other), where_skill(thing2, best_places(thing2, stream))])
        )
    stream.shuffle(skills)
    return skills[:3]


def play(task_id, skills_of, stream):
    """One episode by a scripted player: (task, skills, [(Step, action)], last Step)."""
    game = houses.make_game(task_id)
    running = game.start()
    kind, thing, _ = read_task(game.task)
    skills = skills_of(kind, thing)
    player, history, action = Player(game.task, skills, stream), [], None
    while True:
        step = Step(
            running.observation, [a for a in running.admissible() if a != "help"], won=running.won
        )
        player.observe(step.observation, action)
        if running.won or len(history) == MAX_STEPS:
            return game.task, skills, history, step
        action = player.act(step.admissible)
        history.append((step, action))
        running.step(action)


def writing(task, history, last, stream):
    """A winning transcript and the skill that it shows, general or where; only the skill is to be
    learned."""
    seen = [step for step, _ in history] + [last]
    steps = [
        (step.observation, action, after.observation)
        for (step, action), after in zip(history, seen[1:])
    ]
    skill = describe(task, steps, stream.choice(["general", "where"])) or describe(
        task, steps, "general"
    )
    record = {
        "task": task,
        "steps": [{"observation": before, "action": action} for before, action, _ in steps],
        "final_observation": last.observation,
    }
    prompt = alfworld_prompts.summary_prompt(record, "compact")
    return [(prompt, False), (f" when {skill['condition']} : {skill['strategy']}\n", True)]


def example(stream):
    """One example in pieces (text, whether it is to be learned), or None where the draw gave
    none."""
    task_id = f"pretrain/{stream.randrange(10_000_000):07d}"
    draw = stream.random()
    plain = draw < 0.25
    task, skills, history, last = play(
        task_id,
        (lambda kind, thing: []) if plain else partial(random_skills, stream=stream),
        stream,
    )
    style = "compact" if stream.random() < 0.15 else "compact+note"
    if draw < 0.85:
        if stream.random() < 0.7:  # careless episodes are long and teach little at their end
            history = history[:24]
        return acting(alfworld_prompts, task, skills, history, style)
    return writing(task, history, last, stream) if last.won else None


# ---- gates ---------------------------------------------------------------------------------------


def checks(games):
    """(environment, tasks, arms) of the gates: houses never trained on; arms: name -> the skills
    shown for a task."""
    tasks = [f"pretrain_check/{i:07d}" for i in range(games)]

    def good(task_id):
        kind, thing, _ = read_task(houses.make_game(task_id).task)
        return [general_skill(kind), where_skill(thing, best_places(thing, random.Random(0)))]

    arms = {
        "plain": lambda task: [],
        "skills": good,
        "general": lambda task: good(task)[:1],
        "where": lambda task: good(task)[1:],
    }
    return AlfWorld(houses=True, max_steps=MAX_STEPS), tasks, arms


def attainable(env, tasks):
    """What success with good skills is measured against: every game can be won."""
    return 1.0


def shown(record):
    """The skills that the transcript of a won episode shows."""
    seen = [s["observation"] for s in record["steps"][1:]] + [record["final_observation"]]
    steps = [(s["observation"], s["action"], after) for s, after in zip(record["steps"], seen)]
    return [
        skill
        for skill in (describe(record["task"], steps, which) for which in ("general", "where"))
        if skill
    ]
