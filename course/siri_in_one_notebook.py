# %% [markdown]
# # SIRI in one notebook
#
# An agent wins a few games by luck, **writes down** what it did as short *skills*, **tests** every
# skill in paired games, and then **trains itself to act as if it still saw** the useful ones. At
# the end the skills are thrown away.
#
# Everything is here: a language model of 0.1 million parameters (the *policy*: it chooses the
# actions), GiGPO (policy gradient that compares several tries of the same game), and the three
# phases of SIRI (arXiv 2606.02355), which adds the skills to GiGPO. The method itself, from credit
# to internalisation, is about 160 lines; the rest is the model and its schooling, playing, and
# drawing. It runs in a minute on one core. Only the toy world is imported. Numbers in brackets are
# the method's equations, as in the project's `docs/method.md`; the project's own functions compute
# the same values (`tests/test_course.py` checks that they do).

# %%
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

sys.path.insert(
    0, str(next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "envs" / "toy.py").exists()))
)
from envs.toy import PLACES, USUAL, Kitchen  # the only thing that is not written down here

SEED, BUDGET = 0, 1.0  # BUDGET: share of the iterations below
began, random = time.process_time(), np.random.default_rng(SEED)
torch.set_num_threads(1)
torch.manual_seed(SEED)
env = Kitchen()

# %% [markdown]
# ## The world
#
# A kitchen with six places. One thing is asked for; going to a place shows what is there, taking
# the thing where it is wins. Four steps are allowed. Every kind of thing has a usual place, where
# it is in four of five games. Nobody says which.

# %%
step = env.reset("train/apple-03")
print(env.prompt(env.task, [], step, [], "compact"))
for action in ["go shelf", "go fridge", "take apple"]:
    step = env.step(action)
    print(f"> {action:12s} {step.observation:20s} reward {step.reward}")

# %% [markdown]
# ## The policy: a tiny language model
#
# A causal transformer over thirty words. A response is sampled word by word until the line ends;
# nothing forbids nonsense.

# %%
WORDS = [
    "<pad>",
    "\n",
    *"task : find hint when go take room fails nothing .".split(),
    *USUAL,
    *PLACES,
]


def encode(text):
    return [WORDS.index(word) for word in re.findall(r"\S+|\n", text)]


def decode(ids):
    return " ".join(WORDS[i] for i in ids).replace(" \n", "\n")


class Policy(torch.nn.Module):
    def __init__(self, width=64, layers=2, longest=64):
        super().__init__()
        self.words, self.places = (
            torch.nn.Embedding(len(WORDS), width),
            torch.nn.Embedding(longest, width),
        )
        layer = torch.nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0, batch_first=True, norm_first=True
        )
        self.layers = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = torch.nn.Linear(width, len(WORDS))

    def forward(self, ids):
        """(B, T) -> logits (B, T, V); a position sees itself and what is before it."""
        T = ids.shape[1]
        causal = torch.nn.Transformer.generate_square_subsequent_mask(T)
        return self.head(
            self.layers(self.words(ids) + self.places.weight[:T], mask=causal, is_causal=True)
        )


def padded(lists):
    # on the right: a causal model never looks there
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for one in lists], batch_first=True)


def logprobs(policy, prompts, responses):
    """(B, R) log pi(y_j | prompt, y_<j), and a mask of the tokens that are there."""
    logp = policy(padded([p + y for p, y in zip(prompts, responses)])).log_softmax(-1)
    y, there = padded(responses), padded([[1] * len(one) for one in responses])
    # token j is predicted one position before it
    at = torch.tensor([len(p) - 1 for p in prompts])[:, None] + torch.arange(y.shape[1])
    at = at.clamp(max=logp.shape[1] - 1)
    rows = logp.gather(1, at[..., None].expand(-1, -1, logp.shape[2]))  # (B, R, V)
    return rows.gather(2, y[..., None])[..., 0], there


@torch.no_grad()
def sample(policy, prompts, most, temperature=1.0):
    """A response per prompt: token ids up to the end of the line, `most` at most."""
    responses = [[] for _ in prompts]
    while open_ := [
        i for i, y in enumerate(responses) if len(y) < most and (not y or y[-1] != encode("\n")[0])
    ]:
        sequences = [prompts[i] + responses[i] for i in open_]
        logits = policy(padded(sequences))[range(len(open_)), [len(s) - 1 for s in sequences]]
        for i, token in zip(
            open_, torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0].tolist()
        ):
            responses[i].append(token)
    return responses


# %% [markdown]
# ## Schooling: what an instruct model brings
#
# A random model does not speak. In ten seconds of imitation it learns the *language*: that an
# action is two words, that a hint in the prompt is to be followed, and how one writes down what a
# winning episode did. It learns **nothing about where things are**: in these examples that is drawn
# anew every time.


# %%
def example():
    """(prompt, what follows it): a random player's episode, half of them with a random hint, at its
    end perhaps a hint written."""
    now, hint = env.reset(random.choice(env.tasks("train"))), []
    if random.random() < 0.5:
        hint = [{"condition": env.task, "strategy": f"go {random.choice(PLACES)}"}]
    text, place, found = "", "", False
    for t in range(4):
        action = (
            f"take {env.thing}"
            if random.random() < (0.5 if found else 0.2)
            else f"go {random.choice(PLACES)}"
        )
        action = hint[0]["strategy"] if hint and t == 0 else action
        text += action + "\n"
        if found and action[:4] == "take":
            # a win, which can be written down: the place before the last action
            return encode(env.prompt(env.task, [], now, hint, "compact")), encode(
                f"{text}hint : when {env.task} : go {place}\n"
            )
        place, found = action[3:], action[:2] == "go" and random.random() < 0.4
        text += (
            f"{place} : {env.thing if found else 'nothing'} .\n"
            if action[:2] == "go"
            else "fails .\n"
        )
    return encode(env.prompt(env.task, [], now, hint, "compact")), encode(text)


policy = Policy()
optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
for _ in range(round(400 * max(BUDGET, 0.25))):
    prompts, texts = zip(*(example() for _ in range(32)))
    logp, there = logprobs(policy, prompts, texts)
    loss = -(logp * there).sum() / there.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(
    f"{sum(p.numel() for p in policy.parameters()):,} parameters, loss {loss.item():.2f}, "
    f"{time.process_time() - began:.0f} s of computing"
)

# %% [markdown]
# ## Episodes
#
# All episodes of an iteration are played side by side. A *group* is several tries of the same game
# from the same start.


# %%
def play(policy, tries, temperature=1.0):
    """tries: (group, task_id, skill or None).  Returns an episode (a dict) for each."""
    episodes = []
    for group, task_id, skill in tries:
        world = env.fork()
        now = world.reset(task_id)
        about = {"group": group, "task_id": task_id, "skill": skill, "task": world.task}
        state = {"world": world, "now": now, "history": [], "steps": [], "won": False}
        episodes.append(about | state)
    alive = episodes
    while alive:
        prompts = [encode(prompt(e, [e["skill"]] if e["skill"] else [])) for e in alive]
        for e, p, y in zip(alive, prompts, sample(policy, prompts, 4, temperature)):
            action, valid = env.parse(decode(y), "compact", e["now"])
            before, e["now"] = e["now"], e["world"].step(action)
            plain = encode(prompt(e | {"now": before}, []))
            said = {"prompt": p, "plain": plain, "response": y, "text": decode(y)}
            done = {"action": action, "valid": valid, "reward": e["now"].reward}
            e["steps"].append({"observation": before.observation} | said | done)
            e["history"].append((before, action))
            e["won"] = e["now"].won
        alive = [e for e in alive if not e["now"].done]
    return episodes


def prompt(e, skills):
    return env.prompt(e["task"], e["history"], e["now"], skills, "compact")


def groups(task_ids, skill_of=lambda task_id: None, G=8):
    """G tries per game; where there is a skill for it, half of them with the skill in the
    prompt."""
    tries = []
    for g, task_id in enumerate(task_ids):
        skill = skill_of(task_id)
        tries += [(g, task_id, skill if i < G // 2 else None) for i in range(G)]
    return tries


def success(episodes):
    return sum(e["won"] for e in episodes) / max(1, len(episodes))


def evaluate(policy, skill_of=lambda task_id: None):
    """Success in the 60 validation games, five times each."""
    games = [task_id for task_id in env.tasks("valid") for _ in range(5)]
    return round(success(play(policy, [(0, game, skill_of(game)) for game in games])), 3)


print(f"after schooling: {evaluate(policy):.2f} of the games are won")

# %% [markdown]
# ## Credit: GiGPO
#
# Two comparisons. **The whole try** against the other tries of its group (4), and **one step**
# against the other visits of the same state (the *anchor*: the same observation) in that group (6).
# The same number is used for every token of the step.


# %%
def normal(values):
    """(value - mean) / std; zeros where all are alike, or where there is one only."""
    values = np.array(values)
    std = values.std(ddof=1) if len(values) > 1 else 0.0
    return (values - values.mean()) / (std + 1e-6) if std > 1e-8 else np.zeros(len(values))


def advantages(episodes, gamma=0.95, omega=1.0, cost=0.1):
    by_group, by_anchor = defaultdict(list), defaultdict(list)
    for e in episodes:
        q, total = 0.0, sum(s["reward"] for s in e["steps"])
        for s in reversed(e["steps"]):
            q = s["reward"] + gamma * q  # (1) the discounted return from here
            s["q"] = q - cost * (not s["valid"])  # (2) nonsense costs a little
            s["e"] = total - cost * (not s["valid"])  # (3)
        for s in e["steps"]:
            by_group[e["group"]].append(s)
            by_anchor[e["group"], s["observation"]].append(s)  # (5)
    for steps in by_group.values():
        for s, a in zip(steps, normal([s["e"] for s in steps])):  # (4) episode advantage
            s["A_E"] = a
    for steps in by_anchor.values():
        for s, a in zip(steps, normal([s["q"] for s in steps])):  # (6) step advantage
            s["A_S"] = a
            s["A"] = s["A_E"] + omega * s["A_S"]  # (7)


# %% [markdown]
# ## The losses
#
# Clipped policy gradient (9) on every step, under the prompt that it was played with. In phase 2
# also L_int (19): the log-prob of the same response under the **plain** prompt, weighted by M w.
# Gate M (17): tokens of the action (the end of the line is none), in episodes that were played with
# a skill, in groups where the skill helped (D_g > 0). Weight w (18): the step's own advantage,
# clipped to [0, 2].


# %%
def policy_loss(logp, old, A, clip=0.2, dual=3.0):
    """(9) per token."""
    ratio = (logp - old).exp()
    loss = torch.maximum(-A * ratio, -A * ratio.clamp(1 - clip, 1 + clip))
    return torch.where(A < 0, torch.minimum(loss, -A * dual), loss)


def gate_and_weight(episodes, effects, w_max=2.0):
    for e in episodes:
        for s in e["steps"]:
            is_open = bool(e["skill"]) and effects[e["group"]] > 0 and s["valid"]
            s["M"] = [int(is_open and WORDS[token] != "\n") for token in s["response"]]  # (17)
            s["w"] = min(max(s["A"], 0.0), w_max)  # (18)


def internalisation_loss(policy, steps):
    """(19) L_int = - sum M w log pi(y | plain prompt) / sum M, of steps of which some token has M =
    1."""
    logp, _ = logprobs(policy, [s["plain"] for s in steps], [s["response"] for s in steps])
    M, w = (
        padded([s["M"] for s in steps]),
        torch.tensor([s["w"] for s in steps], dtype=torch.float32)[:, None],
    )
    return -(M * w * logp).sum() / M.sum()


def update(policy, optimizer, episodes, lam, parts=4):
    """One pass over all steps in `parts` mini-batches, with L = L_PG + lam L_int (20)."""
    steps = [s for e in episodes for s in e["steps"]]
    with torch.no_grad():  # pi_old, before the first step
        old, _ = logprobs(policy, [s["prompt"] for s in steps], [s["response"] for s in steps])
    for part in np.array_split(random.permutation(len(steps)), parts):
        batch = [steps[i] for i in part]
        logp, there = logprobs(policy, [s["prompt"] for s in batch], [s["response"] for s in batch])
        A = torch.tensor([s["A"] for s in batch], dtype=torch.float32)[:, None]
        loss = (policy_loss(logp, old[part][:, : logp.shape[1]], A) * there).sum() / there.sum()
        taught = [s for s in batch if any(s["M"])]
        if lam and taught:
            loss = loss + lam * internalisation_loss(policy, taught)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()


# %% [markdown]
# ## One iteration, the same in all phases
#
# Paired groups give every skill its effect: D_g (14) is the success of the skill half minus that of
# the plain half, same game, same start. Its running mean is the skill's *utility* (15), and that
# decides about its life (16).


# %%
def credit(skill, delta, a=0.2, n_eval=3, tau=0.05, retire_after=3):
    skill["deltas"].append(delta)
    n = len(skill["deltas"])
    a = max(a, 1 / n)  # the plain mean, until there are enough pairs for a running one
    u = (1 - a) * skill["utility"] + a * delta  # (15)
    skill["utility"] = round(u, 6)  # a mean of zero must not come out as -1e-17
    skill["negative"] = skill["negative"] + 1 if skill["utility"] < 0 else 0
    if n < n_eval:
        return
    if skill["status"] == "candidate" and skill["utility"] > tau:  # (16)
        skill["status"] = "active"
    elif skill["negative"] >= retire_after or (skill["status"] == "candidate" and n >= 3 * n_eval):
        skill["status"] = "retired"


def paired_effects(episodes):
    """{group: D_g} (14) of the groups that were played with and without a skill."""
    won = defaultdict(lambda: ([], []))
    for e in episodes:
        won[e["group"]][bool(e["skill"])].append(e["won"])
    return {g: np.mean(skilled) - np.mean(plain) for g, (plain, skilled) in won.items() if skilled}


def taught_logprob(policy, episodes):
    """Mean log-prob of a taught token under the plain prompt, weighted by w: what internalisation
    is to raise."""
    taught = [s for e in episodes for s in e["steps"] if any(s["M"]) and s["w"] > 0]
    scale = sum(s["w"] * sum(s["M"]) for s in taught) / max(1, sum(sum(s["M"]) for s in taught))
    with torch.no_grad():
        return -internalisation_loss(policy, taught).item() / scale if taught else np.nan


def iteration(policy, optimizer, phase, skill_of=lambda task_id: None, lam=0.0, games=12):
    episodes = play(
        policy, groups(random.choice(env.tasks("train"), games, replace=False), skill_of)
    )
    effects = paired_effects(episodes)
    for g, delta in effects.items():
        credit(next(e["skill"] for e in episodes if e["group"] == g and e["skill"]), delta)
    advantages(episodes)
    gate_and_weight(episodes, effects)
    before = taught_logprob(policy, episodes)
    update(policy, optimizer, episodes, lam)
    plain, skilled = ([e for e in episodes if bool(e["skill"]) == with_] for with_ in (False, True))
    line = {"phase": phase, "plain": success(plain), "skill": success(skilled), "before": before}
    log.append(line | {"after": taught_logprob(policy, episodes)})
    return episodes


# %% [markdown]
# ## Phase 0: warm-up
#
# GiGPO alone, until the policy wins often enough to learn from its own successes (13): a quarter of
# the last three iterations' games.

# %%
log, pool = [], []
optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4)
while len(log) < 40 * BUDGET and not (len(log) >= 3 and success(pool) >= 0.25):  # (13)
    pool = (pool + iteration(policy, optimizer, "warm-up"))[-3 * 96 :]  # the last three iterations
# the control starts here, too
warm = {name: value.clone() for name, value in policy.state_dict().items()}
print(f"{len(log)} iterations, success {success(pool):.2f}")

# %% [markdown]
# ## Phase 1: it writes skills, and pairs of games test them
#
# The policy reads some of its winning episodes and writes one line about each. What it writes may
# be wrong, and what it reads may have been luck (every fifth game). So each is tried in paired
# groups, the least-tried first, never on the game that it was written from.


# %%
def write_skills(policy, pool, per_thing=3):
    chosen, bank = [], []
    # the shortest first: there the cause is visible
    for e in sorted((e for e in pool if e["won"]), key=lambda e: len(e["steps"])):
        same = [other["task_id"] for other in chosen if other["task"] == e["task"]]
        if len(same) < per_thing and e["task_id"] not in same:
            chosen.append(e)
    for e, y in zip(
        chosen, sample(policy, [encode(env.summary_prompt(e, "compact")) for e in chosen], 12)
    ):
        try:
            skill = env.parse_skill(decode(y).strip(), "compact") | {
                "kind": env.task_type(e["task_id"])
            }
        except ValueError as reason:
            print(f"rejected ({reason}): {decode(y)!r}")
            continue
        twice = (skill["kind"], skill["strategy"]) in [(s["kind"], s["strategy"]) for s in bank]
        if not twice:
            life = {"status": "candidate", "utility": 0.0, "deltas": [], "negative": 0}
            bank.append(skill | life | {"from": e["task_id"]})
    return bank


def fitting(task_id, *status):
    return [
        s
        for s in bank
        if s["kind"] == env.task_type(task_id) and s["status"] in status and s["from"] != task_id
    ]


def least_tried(task_id):
    return min(
        fitting(task_id, "candidate", "active"), key=lambda s: len(s["deltas"]), default=None
    )


def best(task_id):
    return max(fitting(task_id, "active"), key=lambda s: s["utility"], default=None)


bank = write_skills(policy, pool)
for _ in range(max(1, round(8 * BUDGET))):
    iteration(policy, optimizer, "mining", least_tried)
for s in sorted(bank, key=lambda s: -s["utility"]):
    print(
        f"{s['status']:9s} utility {s['utility']:+.2f} of {len(s['deltas']):2d} pairs   when "
        f"{s['condition']} : {s['strategy']}"
    )
# as they stand now, for the figure
tested = [s | {"deltas": list(s["deltas"])} for s in bank if len(s["deltas"]) > 1]
mined = {"plain prompt": evaluate(policy), "with the best active skill": evaluate(policy, best)}
print(f"validation games: {mined}; {time.process_time() - began:.0f} s of computing")

# %% [markdown]
# ## Phase 2: internalisation
#
# Groups are played in pairs as before, with the best active skill. Now lambda > 0: what won thanks
# to the skill is taught under the prompt that does not have it.

# %%
optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4)
for _ in range(max(1, round(16 * BUDGET))):
    iteration(policy, optimizer, "distillation", best, lam=1.0)
end = {"plain prompt": evaluate(policy), "with the best active skill": evaluate(policy, best)}
print(f"validation games: {end}; {time.process_time() - began:.0f} s of computing")

# %% [markdown]
# ## The control: GiGPO alone, as many episodes
#
# From the same warm policy, with the same number of episodes. Without it no curve says anything
# about skills. At the end of so easy a game the two are close; the left figure below shows which
# was there earlier.

# %%
control = Policy()
control.load_state_dict(warm)
optimizer = torch.optim.AdamW(control.parameters(), lr=3e-4)
for _ in range(sum(line["phase"] in ("mining", "distillation") for line in log)):
    iteration(control, optimizer, "GiGPO alone")
print(
    f"GiGPO alone {evaluate(control):.2f}, SIRI {end['plain prompt']:.2f} of the validation games, "
    "plain prompt"
)

# %% [markdown]
# ## Look
#
# Left: success while training. Middle: the effect of every skill by its own pairs, at the end of
# mining. Right: the log-prob of the taught actions **under the plain prompt**, before each update
# (the dot) and after it (the arrow's head). This is internalisation, in one number.

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
siri = [line for line in log if line["phase"] != "GiGPO alone"]
first = sum(line["phase"] == "warm-up" for line in log)
x = 96 * (1 + np.arange(len(siri)))
left.plot(
    x, [line["plain"] for line in siri], "o-", ms=4, color="#0072B2", label="SIRI, plain prompt"
)
left.plot(
    x,
    [line["skill"] or np.nan for line in siri],
    "s--",
    ms=4,
    color="#D55E00",
    label="the skill half of the groups",
)
left.plot(
    x[first:],
    [line["plain"] for line in log[len(siri) :]],
    "^:",
    ms=4,
    color="#555555",
    label="GiGPO alone",
)
for phase in ("mining", "distillation"):
    at = next(i for i, line in enumerate(siri) if line["phase"] == phase)
    left.axvline(x[at] - 48, color="#999999", lw=0.8)
    left.text(x[at], 1.03, phase, fontsize=9)
left.set(xlabel="episodes", ylabel="success while training", ylim=(0, 1.1))
left.legend(fontsize=8, loc="lower right")

tested.sort(key=lambda s: np.mean(s["deltas"]))
marks = {"active": ("o", "#009E73"), "candidate": ("s", "#555555"), "retired": ("X", "#D55E00")}
for i, s in enumerate(tested):
    half = 1.96 * np.std(s["deltas"], ddof=1) / len(s["deltas"]) ** 0.5
    mark, colour = marks[s["status"]]
    middle.errorbar(np.mean(s["deltas"]), i, xerr=half, fmt=mark, color=colour, capsize=2)
middle.set_yticks(
    range(len(tested)),
    [f"{s['condition'][5:]}: {s['strategy']} ({s['status']})" for s in tested],
    fontsize=8,
)
middle.axvline(0, color="#999999", lw=0.8)
middle.set(xlabel="success with the skill minus without, 95 %", title="effect in its own pairs")

steps = [
    (i, line)
    for i, line in enumerate(line for line in siri if line["phase"] == "distillation")
    if line["before"] == line["before"]
]
for i, line in steps:
    right.annotate(
        "",
        (i, line["after"]),
        (i, line["before"]),
        arrowprops={"arrowstyle": "->", "color": "#0072B2"},
    )
right.plot(
    [i for i, _ in steps],
    [line["before"] for _, line in steps],
    "o",
    ms=4,
    color="#555555",
    label="before the update",
)
right.set(
    xlabel="iteration of distillation",
    ylabel="log-prob per taught token, plain prompt",
    title="internalisation",
)
right.legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# ## One prompt, before and after
#
# The probability that the first action goes to the usual place. After warm-up the policy goes there
# only if a hint says so. After SIRI it does so by itself, with one exception in this run.

# %%
after = policy
before = Policy()
before.load_state_dict(warm)
print("                    after warm-up           GiGPO alone             after SIRI")
print("first action        plain   with hint       plain                   plain   with hint")
for thing, place in USUAL.items():
    now = env.reset(next(t for t in env.tasks("valid") if env.task_type(t) == thing))
    hint = [{"condition": env.task, "strategy": f"go {place}"}]
    cells = []
    for model, hints in ((before, []), (before, hint), (control, []), (after, []), (after, hint)):
        with torch.no_grad():
            logp, _ = logprobs(
                model,
                [encode(env.prompt(env.task, [], now, hints, "compact"))],
                [encode(f"go {place}\n")],
            )
        cells.append(f"{logp.sum().exp().item():.2f}")
    print("{:20s}{:8s}{:16s}{:24s}{:8s}{}".format(f"{thing}: go {place}"[:19], *cells))
print(f"\n{time.process_time() - began:.0f} s of computing in all")

# %% [markdown]
# ## What would break it?
#
# Change one thing, predict what the three panels show, run again:
#
# 1. `is_open = True` for every skill episode in `gate_and_weight` (no D_g > 0): is a harmful skill
#    taught, too?
# 2. `s["w"] = 1.0`: all steps of a winning group are taught alike, the useless ones as well.
# 3. `s["plain"]` replaced by `s["prompt"]` in `internalisation_loss`: every curve but one looks
#    fine. Which?
# 4. `least_tried` in phase 2: what does the policy learn from skills that were never promoted?
# 5. Another seed. Half of what one run shows is luck, and the figure in the middle says how much.
#
# The same method on household games and on a shop, with a policy that can be anything from the
# 0.7-million-parameter stand-in to a 7B model: `warmup.py`, `mine.py`, `distill.py`, `evaluate.py`.
# The chapters beside this notebook take them apart.
