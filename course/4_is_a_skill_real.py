# %% [markdown]
# # 4 · Is a skill real?
#
# **Goal.** Measure an effect in pairs, know its noise, and see why a promoted skill looks better
# than it is.
#
# **Read.** `mine.py`: `paired_groups`, `pair_effects`, `credit`, `effect_interval`.
#
# **Minutes.** 45, of which half a minute is computing.

# %%
import sys
from pathlib import Path

sys.path.insert(
    0, str(next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "warmup.py").exists()))
)
from course.lesson import *

import matplotlib.pyplot as plt
import numpy as np

from common import retrieve, rollout, task_text, train_tasks
from mine import credit, effect_interval, pair_effects, paired_groups

# %% [markdown]
# ## One pair
#
# A *pair* is one game played four times with the skill in the prompt and four times without it,
# from the same start. Its effect D_g (14) is the share of wins with it minus the share without it.
# A skill begins as a *candidate*. Its *utility* u (15) is the running mean of its effects. From
# `n_eval` pairs on (here 3) a candidate with u > 0.05 is *promoted*: it becomes active (16). A
# skill whose u stays below zero is *retired*, and so is one that is still a candidate after three
# times `n_eval`.

# %%
env = world()
policy = policy_after("mine")
skills = sorted(mined_skills(), key=lambda s: -s["n_eval"])
table(
    [
        [s["status"], s["n_eval"], s["utility"], f"when {s['condition']}: {s['strategy']}"]
        for s in skills[:8]
    ],
    head=["status", "pairs", "u", "skill"],
    width=110,
)

# %%
skill = skills[0]
games = [t for t in train_tasks(env) if retrieve([skill], task_text(env, t), env.task_type(t), 1)][
    : budget(16, 4)
]
plays, shown = paired_groups([(t, [skill]) for t in games], 8, seed=7, k=0, phase="fresh")
pairs = pair_effects(rollout(policy, env, plays), shown)
deltas = [pair["delta"] for pair in pairs]
print("the run's own pairs:", skill["deltas"])
print("fresh pairs:        ", deltas)
print(
    f"own mean {np.mean(skill['deltas']):+.3f}, fresh mean {np.mean(deltas):+.3f}, fresh interval "
    f"{effect_interval(deltas)}"
)

# %% [markdown]
# This skill was promoted by its own pairs. Sixteen fresh ones cannot tell it from
# a useless one: zero lies well inside their interval (mean, low, high).
#
# ## How noisy is one pair? (E3)
#
# If a try wins with p = 0.5 whatever the prompt, what is the standard deviation of D_g with 4 + 4
# tries? And that of its running mean u <- 0.8 u + 0.2 D_g? **Compute both before you run.** (One
# try has the variance p (1 - p). Variances of independent things add up.)

# %%
stream = np.random.default_rng(0)
null = (
    stream.binomial(4, 0.5, (200_000, 24)) / 4 - stream.binomial(4, 0.5, (200_000, 24)) / 4
)  # a useless skill's pairs
print(f"of one pair: {null[:, 0].std():.3f}")
u = np.zeros(len(null))
for n in range(24):
    u = 0.8 * u + 0.2 * null[:, n]
print(f"of a running mean with a = 0.2, after many pairs: {u.std():.3f}")

# %% [markdown]
# ## How often is a useless skill promoted? (E4)
#
# The project's own rule on 4,000 useless skills. **Guess first.**


# %%
SKILLS = budget(4000, 200)


def promoted(n_eval, skills=SKILLS):
    """(share that is active at its first decision, share that is ever active) of useless skills."""
    first = ever = 0
    for i in range(skills):
        s = {
            "utility": 0.0,
            "n_eval": 0,
            "neg_streak": 0,
            "deltas": [],
            "plain": [],
            "status": "candidate",
        }
        for k in range(3 * n_eval):
            credit(s, {"delta": float(null[i, k]), "s_base": [0, 1]}, k, n_eval=n_eval)
            first += k + 1 == n_eval and s["status"] == "active"
            if s["status"] != "candidate":
                break
        ever += s["status"] == "active"
    return first / skills, ever / skills


table(
    [[n, *promoted(n)] for n in (2, 4, 8)],
    head=["n_eval", "at its first decision", "over its life"],
)

# %% [markdown]
# Two in five useless skills pass at their first decision, more than half of them in the end. (The
# column is not monotone: a mean of exactly zero, which does not pass, is likeliest with two pairs.)
# To be promoted is weak evidence. So chapter 5 looks at every single pair once more.
#
# ## Regression to the mean
#
# Among many skills with a *true* effect of +.10, those that are promoted show more than +.10 in the
# pairs that promoted them. Nothing is wrong with the pairs; choosing them is what biases the mean.

# %%
true = 0.10
draws = (
    stream.binomial(4, 0.5 + true / 2, (4000, 4)) / 4
    - stream.binomial(4, 0.5 - true / 2, (4000, 4)) / 4
)
means = draws.mean(1)
kept = means > 0.05
figure, axis = plt.subplots(figsize=(7, 3))
axis.hist(
    means, bins=np.arange(-1, 1.01, 1 / 16), color="#bbbbbb", label="all skills, mean of 4 pairs"
)
axis.hist(
    means[kept],
    bins=np.arange(-1, 1.01, 1 / 16),
    color="#0072B2",
    label=f"promoted: {means[kept].mean():+.2f} on average",
)
axis.axvline(true, color="#D55E00", ls="--", label=f"true effect {true:+.2f}")
axis.set(xlabel="mean effect in the pairs that promoted it")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# In the recorded runs the phase's own pairs said +.372 and fresh games +.301 (`results/effects/`):
# the skills are real, and a fifth of what promoted them was luck.
#
# ## Look
#
# Sections 5 and 6 of the report: every pair of a skill's life; own pairs beside fresh games
# (`python recipes/effects.py --run course`).
#
# ## Exercises
#
# * **E3** and **E4**: `python -m course.check E3`, `E4` say what is asked, and check it. Then: what
#   does n_eval = 8 cost, in episodes a skill?
# * Put your own two skills of chapter 3 into `paired_groups` in place of `skill` and measure them.
#   How many pairs until you are sure which is which?
# * Two skills are shown at once and the group wins more. Which one is credited? What would you
#   change in phase 1 to know?
#
# > **What would break it?** Different starts for the two halves: the noise of the game comes on
# > top. Showing a skill on the game it was written from: it only has to remember. Fewer plain than
# > skill tries: cheaper, and the difference is noisier than the larger half.
