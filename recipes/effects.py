"""Are the mined skills real?  Their paired effect on fresh games, beside the estimate that promoted them.

    in      runs/NAME/mine/: policy/, skills.jsonl
    out     a table; OUT/effects.jsonl (a line per skill: estimate of the phase, fresh effect with its interval, pairs), and
            OUT/effects_by_type.jsonl (a line per task type: plain, with the best active skill, paired difference)

    python recipes/effects.py --run default

Every skill that was tried is shown on held-out training games that it fits (of its task type, or that name its object): one skill and one
plain episode per game and repetition, the same policy and temperature as in phase 1.  The phase's own estimate is biased upwards by the
choice; this one is not, and it says which promotion rule would have kept the better skills.  By task type, every game is played with the
skill that retrieval gives it from the active bank; --type-repetitions 40 makes the intervals about +-3 points (20 minutes of one core).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import (  # noqa: E402
    Play,
    base_parser,
    finished_phase,
    load_policy,
    make_env,
    parse_args,
    policy_folder,
    positive_int,
    promotable,
    retrieve,
    rollout,
    run_script,
    skills_file,
    write_jsonl,
)
from evaluate import split_tasks  # noqa: E402


def half_width(d):
    """Half of the 95 % interval of a mean over pairs; nan for a single one."""
    return 1.96 * d.std(ddof=1) / len(d) ** 0.5 if len(d) > 1 else float("nan")


def fresh_effects(policy, env, skills, tasks, args):
    """{skill_id: list of success differences, skill minus plain, one per game and repetition}."""
    world, sentences = env.fork(), {}
    for task in tasks:
        world.reset(task)
        sentences[task] = world.task
    fits = {s["skill_id"]: [t for t in tasks if retrieve([s], sentences[t], env.task_type(t), 1)][: args.games] for s in skills}
    plays = [Play(t, t, ("effects", t, r)) for t in tasks for r in range(args.repetitions)]  # plain episodes serve all skills
    for s in skills:
        plays += [Play(t, t, ("effects", s["skill_id"], t, r), [s]) for t in fits[s["skill_id"]] for r in range(args.repetitions)]
    records = rollout(policy, env, plays, 1.0, args.rollout_batch, args.max_response, args.threads)
    won = {play.key: r["success"] for play, r in zip(plays, records)}
    return {
        name: [won["effects", name, t, r] - won["effects", t, r] for t in games for r in range(args.repetitions)]
        for name, games in fits.items()
    }


def effects_by_type(policy, env, bank, tasks, args):
    """A row per task type, and one for all: success without a skill and with the active one that fits best, and the paired difference.
    Intervals are over pairs of these games, not over games."""
    world, plays = env.fork(), []
    for task in tasks:
        world.reset(task)
        skills = retrieve(bank, world.task, env.task_type(task), 1)
        for r in range(args.type_repetitions if skills else 0):
            plays += [Play(task, task, ("types", arm, task, r), shown) for arm, shown in (("plain", []), ("skill", skills))]
    records = rollout(policy, env, plays, 1.0, args.rollout_batch, args.max_response, args.threads)
    pairs = {}  # type -> one (plain, skill) pair of success per game and repetition
    for plain, skill in zip(records[::2], records[1::2]):
        for kind in (plain["task_type"], "all"):
            pairs.setdefault(kind, []).append((plain["success"], skill["success"]))
    rows = []
    for kind, both in sorted(pairs.items()):
        plain, skill = np.array(both, dtype=float).T
        d = skill - plain
        rows.append({"task_type": kind, "plain": plain.mean(), "skill": skill.mean(), "effect": d.mean()})
        rows[-1] |= {"half": half_width(d), "pairs": len(d)}
    return rows


def main():
    parser = base_parser(__doc__)
    parser.add_argument("--games", type=positive_int, default=40, help="held-out games per skill, at most")
    parser.add_argument("--repetitions", type=positive_int, default=1, help="pairs per game")
    parser.add_argument("--type-repetitions", type=positive_int, default=4, help="pairs per game of the table by task type")
    parser.add_argument("--out", help="output folder (default: the phase's)")
    args = parse_args(parser)
    phase = finished_phase(Path("runs") / args.run / "mine")
    about = json.loads((phase / "args.json").read_text())["args"]
    skills = [s for s in skills_file(phase / "skills.jsonl") if s["n_eval"] >= 2]
    env = make_env(args)
    tasks = split_tasks(env, "held_out")
    policy = load_policy(policy_folder(phase), args)
    print(f"{env.describe(env.split_names[0])}; {len(tasks)} held-out games, {len(skills)} skills that were tried", flush=True)
    effects = fresh_effects(policy, env, skills, tasks, args)
    rows = []
    for s in sorted(skills, key=lambda s: -s["utility"]):
        d = np.array(effects[s["skill_id"]], dtype=float)
        rules = {}
        for z in (0.0, 1.0):
            rule = argparse.Namespace(tau_act=about["tau_act"], promote_z=z)
            rules[f"z={z:g}"] = bool(len(s["deltas"]) >= about["n_eval"] and promotable(s, rule))
        rows.append({key: s[key] for key in ("skill_id", "status", "condition", "strategy", "utility", "n_eval")})
        rows[-1] |= {"mean_delta": float(np.mean(s["deltas"])), "fresh": float(d.mean()) if len(d) else None}
        rows[-1] |= {"half": half_width(d), "pairs": len(d)} | rules
        if len(d):
            text = f"{s['status']:9s} u {s['utility']:+.2f} mean {np.mean(s['deltas']):+.2f} of {s['n_eval']:2d}   "
            text += f"fresh {d.mean():+.2f} +- {half_width(d):.2f} of {len(d):2d}   when {s['condition']}: {s['strategy']}"
            print(text, flush=True)
    for rule in ("z=0", "z=1"):
        kept = [r for r in rows if r[rule] and r["pairs"]]
        if kept:
            weights = [r["pairs"] for r in kept]
            estimate, fresh = (np.average([r[key] for r in kept], weights=weights) for key in ("mean_delta", "fresh"))
            good = sum(r["fresh"] > about["tau_act"] for r in kept)
            print(f"rule {rule}: keeps {len(kept)}; mean effect {estimate:+.3f} by the phase, {fresh:+.3f} fresh; {good} above tau_act")
    out = Path(args.out or phase)
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "effects.jsonl", rows)
    types = effects_by_type(policy, env, [s for s in skills if s["status"] == "active"], tasks, args)
    for row in types:
        print("{task_type:34s} plain {plain:.3f} with a skill {skill:.3f}  effect {effect:+.3f} +- {half:.3f} of {pairs}".format(**row))
    write_jsonl(out / "effects_by_type.jsonl", types)


if __name__ == "__main__":
    run_script(main)
