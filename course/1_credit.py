# %% [markdown]
# # 1 · Credit
#
# **Goal.** Compute by hand what GiGPO thinks of every step: returns (1), episode advantage (4),
# step advantage (6), their sum (7).
#
# **Words.** An *advantage* says how much better a step went than others that it can be compared
# with. A *row* is one step as training data (chapter 0). A *group* is all tries of one game.
#
# **Read.** `common.py`: `discounted_returns`, `normalise`, `anchor_groups`, `gigpo_advantages`.
# Forty lines, two ideas.
#
# **Minutes.** 40, of which ten seconds are computing (a minute more where the small run of the
# course is not there yet). E1 and E2 come first, on paper: this page shows their answers.

# %%
import sys
from pathlib import Path

sys.path.insert(
    0, str(next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "warmup.py").exists()))
)
from course.lesson import *

import matplotlib.pyplot as plt
import numpy as np

from common import anchor_groups, discounted_returns, gigpo_advantages

# %% [markdown]
# ## The arithmetic
#
# * (1) The return of a step: its reward plus gamma times the next step's return, gamma = 0.95. A
#   win soon is worth more than a win late.
# * (3) The score e of a row: the rewards of its whole try. An ill-formed response costs 0.1 in its
#   own row (2), (3).
# * (4) The *episode advantage* A^E = (e - mean) / std over **all rows of the group**: was this try
#   better than the others? (A long try has more rows, so it counts more in mean and std.)
# * (6) The *step advantage* A^S: the same with the returns, over the rows of the group that were in
#   the **same state**: was this step better than other visits? A state that was seen once gives 0.
# * (7) A = A^E + omega A^S, with omega = 1.
#
# std is that of a sample (n - 1). With `mean_norm` (8), which a laptop uses, there is no division
# by it: A stays in rewards, of which a win has 10.
#
# ## Two tries of one game
#
# One try wins in two steps: states `s`, `a`. The other loses in one: state `s`. What is each step
# worth? **Write your guess down first** (that is E1). In the table, row `0.1` is step 1 of try 0.

# %%
win = {"group": "g", "rewards": [0, 10], "valid": [True, True], "anchors": ["s", "a"]}
loss = {"group": "g", "rewards": [0], "valid": [True], "anchors": ["s"]}
print("returns of the win (1):", discounted_returns(win["rewards"], gamma=0.95))
keys = ("step_return", "row_score", "episode_advantage", "step_advantage", "advantage")
for mode in ("mean_std_norm", "mean_norm"):
    print("\n" + mode)
    rows = gigpo_advantages([win, loss], mode=mode)
    table([[f"{r['episode']}.{r['t']}"] + [r[k] for k in keys] for r in rows], head=["row", *keys])

# %% [markdown]
# The scores of the three rows are 10, 10 and 0: mean 6.67, std 5.77, so A^E of a winning row is
# 0.577 and not 0.707 as for two tries of equal weight. The first step of the win is better than the
# second: it is compared with *another visit of the same state* that led to a loss. The second state
# was seen once, so nothing is known about the step (A^S = 0), only about the try (A^E). The loser's
# one step pays for both.
#
# ## A real group
#
# Eight tries of one game, from the warm-up of a small run (made now, if it is not there).

# %%
from support.files import read_jsonl

trajectories = read_jsonl(small_run("warmup") / "warmup" / "trajectories.jsonl")
groups = {}
for r in trajectories:
    groups.setdefault(r["group_id"], []).append(r)
group = next(
    (g for g in groups.values() if 2 <= sum(r["success"] for r in g) <= 6),
    list(groups.values())[-1],
)
print(
    group[0]["task"],
    "·",
    "".join("✓" if r["success"] else "✗" for r in group),
    "·",
    [len(r["steps"]) for r in group],
    "steps",
)


# %%
def as_episode(r):
    steps = r["steps"]
    return {
        "group": "g",
        "rewards": [s["reward"] for s in steps],
        "valid": [s["valid"] for s in steps],
        "anchors": [s["observation"] for s in steps],
    }


rows = gigpo_advantages([as_episode(r) for r in group], mode="mean_norm")
stored = [s["advantage"] for r in group for s in r["steps"]]
print(
    "computed here and by the run, largest difference:",
    max(abs(r["advantage"] - a) for r, a in zip(rows, stored)),
)
labels = anchor_groups([s["observation"] for r in group for s in r["steps"]])
sizes = np.bincount(labels)
print(f"{len(rows)} steps, {len(sizes)} states, {sum(sizes > 1)} of them seen more than once")

# %%
most = max(len(r["steps"]) for r in group)
grid = np.full((len(group), most), np.nan)
for r in rows:
    grid[r["episode"], r["t"]] = r["advantage"]
figure, axis = plt.subplots(figsize=(11, 3))
largest = np.nanmax(np.abs(grid))
image = axis.imshow(grid, cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto")
axis.set_yticks(range(len(group)), ["won" if r["success"] else "lost" for r in group])
axis.set(xlabel="step", title="A: orange below zero, violet above")
figure.colorbar(image)
plt.show()

# %% [markdown]
# Every row of the figure is a try. All steps of a won try are violet, but not equally: where they
# differ along a row, A^S has a say. Darkest is a step in a state from which the other tries lost,
# or came to the win later.
#
# ## Look
#
# `python evaluate.py --run course --report` writes `runs/course/report.html`. Section 3 is this
# group: click a step, and the arithmetic stands below.
#
# ## Exercises
#
# * **E1** (by hand, with the std): A^E, A^S and A of the three rows above. `python -m course.check
#   E1`
# * **E2** the same without the std. `python -m course.check E2`
# * All eight tries lose, and one response was ill-formed. What do the advantages look like with and
#   without the std? Which of the two would you want?

# %%
all_lost = [
    {"group": "g", "rewards": [0, 0], "valid": [True, i > 0], "anchors": ["s", f"{i}"]}
    for i in range(8)
]
for mode in ("mean_std_norm", "mean_norm"):
    print(mode, [round(r["advantage"], 2) for r in gigpo_advantages(all_lost, mode=mode)])

# %% [markdown]
# With the std one ill-formed response among sixteen equal rows gets -3.75, twice what the loss
# above got, and all others +0.25 for nothing. Without it, it gets what it cost.
#
# > **What would break it?** Groups keyed by task *type* instead of by task: a win in an easy game
# > makes every loss in a hard one look bad. Anchors compared across groups: the same corridor in
# > another house. A std over tries that are all alike: noise divided by noise (`normalise` treats a
# > std below 1e-8 as zero).
