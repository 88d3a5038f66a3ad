# %% [markdown]
# # 3 · Writing skills
#
# **Goal.** See which wins are chosen, what the policy is asked, what it writes, and what is
# refused.
#
# **Read.** `mine.py`: `choose_successes`, `write_skills`, `mine_skills`; `envs/__init__.py`:
# `check_skill`; `common.py`: `retrieve`.
#
# **Minutes.** 30, of which ten seconds are computing.

# %%
import sys
from pathlib import Path

sys.path.insert(
    0, str(next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "warmup.py").exists()))
)
from course.lesson import *

from common import retrieve, task_text
from mine import alike, choose_successes, warm_pool, write_skills

env, policy = world(), policy_after("warmup")
pool = warm_pool(small_run("warmup") / "warmup")
print(f"{len(pool)} episodes in the pool, {sum(r['success'] for r in pool)} of them won")

# %% [markdown]
# ## Which wins?
#
# The *pool* is all tries of the last iterations of warm-up. Of each type of task a few wins are
# chosen, one per game: from groups with mixed outcomes first, then the shortest. Contrast and
# brevity make the cause of success visible.

# %%
chosen = choose_successes(pool, [], [], per_type=4)
table(
    [[r["task_type"], len(r["steps"]), r["task"]] for r in chosen[:12]],
    head=["type", "steps", "task"],
    width=100,
)

# %% [markdown]
# ## What the policy is asked
#
# The prompt is the transcript of its own win, and then the beginning of a hint, which it goes on
# with.

# %%
prompt = env.summary_prompt(chosen[0], policy.style)
print(prompt[-600:])

# %%
new, refused = write_skills(policy, env, chosen, [], 0, 0, temperature=0.2)
for skill in new:
    print(f"{skill['task_type'] or 'any'}: when {skill['condition']}: {skill['strategy']}")
print(f"\n{len(refused)} refused:")
table([[r["reason"], r["answer"].strip()[:70]] for r in refused] or [["-", "-"]])

# %% [markdown]
# Three reasons to refuse an answer. *Names a numbered instance*, such as cabinet 3: that cannot
# help in another house. *For one object only* ("when you need a laptop ..."): too few games are for
# it to prove anything. *Near duplicate*: at least 80 % of its words are those of a skill that is
# there.
#
# **Predict**: what happens to the refused answers if the temperature rises from 0.2 to 1.5?

# %%
for temperature in (0.2, 0.7, 1.5):
    kept, lost = write_skills(policy, env, chosen, [], 0, 0, temperature=temperature)
    reasons = [r["reason"] for r in lost]
    print(
        f"temperature {temperature}: {len(kept)} kept,",
        {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    )

# %% [markdown]
# ## Which skill fits which game?
#
# No embedding model: skills of the task's type, ranked by the words that condition and task share.

# %%
bank = [skill | {"status": "active", "utility": 0.0} for skill in new]
for task_id in env.tasks(env.split_names[1])[: budget(6, 2)]:
    text = task_text(env, task_id)
    found = retrieve(bank, text, env.task_type(task_id), 1)
    hint = f"when {found[0]['condition']}: {found[0]['strategy']}" if found else "nothing"
    print(f"{text:45s} -> {hint}"[:130])
if len(new) > 1:
    print("\nnear duplicates?", alike(new[0], new[0]), alike(new[0], new[1]))

# %% [markdown]
# ## Exercises
#
# 1. Let `choose_successes` take the *longest* wins (`-len(record["steps"])`). What do the skills
#    say now?
# 2. Write a skill yourself that you believe in, and one that sounds as good and is useless. Keep
#    both for chapter 4. (`new[0] | {"condition": "...", "strategy": "..."}`; a stand-in knows only
#    the words that you see above.)
#
# > **What would break it?** Mining from an untrained policy: it wins by luck, and writes luck down
# > (the paper loses 10 points without phase 0). Reading the episodes that were played *with* a
# > skill: the bank would copy itself.
