# %% [markdown]
# # 5 · Internalisation
#
# **Goal.** Teach the policy to act without the skill as it acted with it. Which tokens are taught
# (gate and mask), how strongly (weight), and what one update does to the plain prompt.
#
# **Read.** `distill.py`: `action_token_mask`, `token_weights`, `plain_twins`, `siri_loss`.
#
# **Minutes.** 45, of which half a minute is computing.

# %%
import sys
from pathlib import Path

sys.path.insert(
    0, str(next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "warmup.py").exists()))
)
from course.lesson import *

from functools import partial

import torch

from common import assign_advantages, rollout, rows_of, train_tasks, update
from distill import (
    action_token_mask,
    best_skills,
    plain_twins,
    prompts_of,
    siri_loss,
    token_weights,
)
from mine import pair_effects, paired_groups
from support.files import rng
from support.packing import merge_prefixes

# %% [markdown]
# ## Paired groups with the best skills
#
# As in chapter 4: half of each group plays with the best active skills in the prompt, half without.

# %%
env, policy = world(), policy_after("mine")
bank = mined_skills()
plan = [(t, best_skills(env, bank, t)) for t in train_tasks(env)[:: budget(60, 4)]]
plan = [one for one in plan if one[1]][: budget(10, 4)]
plays, shown = paired_groups(plan, 8, seed=3, k=0, phase="course")
records = rollout(policy, env, plays)
assign_advantages(records, env, mode="mean_norm")
deltas = {pair["group_id"]: pair["delta"] for pair in pair_effects(records, shown)}
print(
    f"{len(deltas)} pairs, gate open (D_g > 0) in {sum(d > 0 for d in deltas.values())}:",
    [round(d, 2) for d in deltas.values()],
)

# %% [markdown]
# ## Gate, weight, mask
#
# A *twin* of a row is the same response under the plain prompt: the hint is taken out, all else
# stays. Twins are made of the skill episodes of groups with an *open gate*: the skill helped, D_g >
# 0.
#
# * (17) M = 1 for the twin's action tokens, 0 for all others.
# * (18) w = clip(A, 0, 2), the row's own advantage in units of a win (`unit=10.0`: here a win is
#   10).
#
# **Predict** before running: what does a step with A = -3 weigh? One with A = +31?

# %%
for A in (9.0, -3.0, 31.0):
    print(f"A = {A:+.0f}:", token_weights(gate=1, advantage=A, mask=[1, 1, 0], unit=10.0))
twins, metrics = plain_twins(policy, env, records, deltas, unit=10.0)
print(f"{len(twins)} twins of {sum(len(r['steps']) for r in records)} rows,", metrics)

# %%
example = next((r for r in records if r["steps"][0].get("gate") and r["success"]), records[0])
print(example["task"], "·", example["condition"], "· won" if example["success"] else "· lost")
for s in example["steps"][:6]:
    pieces = [policy.decode([i]).strip() or "⏎" for i in s["response_ids"]]
    print(
        f"  A {s['advantage']:+6.2f}  w {s.get('weight', 0):.2f}  "
        + " ".join(f"[{x}]" if m else x for x, m in zip(pieces, action_token_mask(policy, s)))
    )

# %% [markdown]
# `token_weights` returns M per token and w. In brackets: the tokens that are taught (M = 1), with
# the row's w. The end of the line is no action. A useless step of a won episode is taught a little,
# too.
#
# ## Before and after, under the plain prompt
#
# (19) L_int is minus the mean of w log pi over the taught tokens, under the plain prompt. (20) The
# whole loss is that of GiGPO plus lambda L_int. The log-prob of the taught tokens is the number
# that shows internalisation. One update without L_int (lambda = 0) and one with it, from the same
# weights. **Predict**: does GiGPO alone raise it, too?


# %%
def taught_logprob(policy):
    """Mean log-prob of the taught tokens under the plain prompt, weighted by w."""
    total = weight = 0.0
    with torch.no_grad():
        for sequence in merge_prefixes(twins):
            if any(sequence.weights):
                logp, _ = policy.logprobs([sequence])
                w = torch.tensor(sequence.weights)
                total, weight = total + (w * logp).sum().item(), weight + w.sum().item()
    return total / max(weight, 1e-9)


def one_update(lam):
    student = policy_after("mine")
    before = taught_logprob(student)
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=5e-4)
    loss = partial(siri_loss, lam=lam)
    losses = update(
        student,
        optimizer,
        rows_of(records) + twins,
        rng(0, "course"),
        loss,
        mini_batch_rows=24 * env.max_steps,
    )
    return student, before, taught_logprob(student), losses


for lam in (0.0, 5.0):
    student, before, after, losses = one_update(lam)
    print(
        f"lambda {lam}: log-prob per taught token {before:.3f} -> {after:.3f}, L_int "
        f"{losses['l_int']:.3f}"
    )

# %% [markdown]
# GiGPO alone hardly moves it, or lowers it: skill episodes are rows of L_GiGPO, too, but under
# *their* prompt. Sharing weights is not enough; L_int is the part that reaches the plain prompt.
#
# ## One game
#
# The first action of the episode above: how likely is it, without the skill and with it?

# %%
plain, skilled = (
    prompts_of(policy, env, example),
    prompts_of(policy, env, example, shown[example["group_id"]]),
)


def first_action(model, prompts):
    from support.packing import Row

    s = example["steps"][0]
    row = Row(prompts[0], s["response_ids"], s["logprobs"], s["allowed"])
    with torch.no_grad():
        return model.logprobs(merge_prefixes([row]))[0].sum().exp().item()


table(
    [
        ["before", first_action(policy, plain), first_action(policy, skilled)],
        ["after one update", first_action(student, plain), first_action(student, skilled)],
    ],
    head=[f"probability of {example['steps'][0]['action']!r}", "plain prompt", "with the skill"],
)

# %% [markdown]
# ## Look
#
# Section 4 of the report (tokens coloured by M w, and by log-prob after - before) and section 7
# (over the whole phase).
#
# ## Exercises
#
# * **E5** Predict, then compare: success without L_int; with useless skills; with winners that had
#   no skill taught instead, as many tokens. `python -m course.check E5` (The README of the project
#   tells one of them: do not look.)
# * **E9** Which tokens of a response have M = 1? Capitals in tags, a one-letter action, an action
#   that is split inside a token. `python -m course.check E9`
# * **E6** Write the gate by *utility* (u > 0 instead of D_g > 0) as a patch of `plain_twins`.
#   `python -m course.check E6`
# * **E8** Four silent bugs: `course/bugs/README.md`. Begin with its second table.
#
# > **What would break it?** Twins under the *skill* prompt: L_int falls beautifully and nothing is
# > internalised, since the student never sees what it will be asked. A gate on success instead of
# > on D_g: games that are won anyway are taught, with skills that did nothing.
