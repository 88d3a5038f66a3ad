"""Are the mined skills real?  Their paired effect on fresh games, beside the estimate that promoted them.

    in      runs/NAME/mine/: policy/, skills.jsonl
    out     a table; OUT/effects.jsonl (a line per skill: estimate of the phase, fresh effect with its interval, pairs)

    python recipes/effects.py --run default

Every skill that was tried is shown on held-out training games that it fits (of its task type, or that name its object): one skill and one
plain episode per game and repetition, the same policy and temperature as in phase 1.  The phase's own estimate is biased upwards by the
choice; this one is not, and it says which promotion rule would have kept the better skills.
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


def main():
    parser = base_parser(__doc__)
    parser.add_argument("--games", type=positive_int, default=40, help="held-out games per skill, at most")
    parser.add_argument("--repetitions", type=positive_int, default=1, help="pairs per game")
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
        half = 1.96 * d.std(ddof=1) / len(d) ** 0.5 if len(d) > 1 else float("nan")
        rules = {}
        for z in (0.0, 1.0):
            rule = argparse.Namespace(tau_act=about["tau_act"], promote_z=z)
            rules[f"z={z:g}"] = bool(len(s["deltas"]) >= about["n_eval"] and promotable(s, rule))
        rows.append({key: s[key] for key in ("skill_id", "status", "condition", "strategy", "utility", "n_eval")})
        rows[-1] |= {"mean_delta": float(np.mean(s["deltas"])), "fresh": float(d.mean()) if len(d) else None, "half": half, "pairs": len(d)}
        rows[-1] |= rules
        if len(d):
            text = f"{s['status']:9s} u {s['utility']:+.2f} mean {np.mean(s['deltas']):+.2f} of {s['n_eval']:2d}   "
            text += f"fresh {d.mean():+.2f} +- {half:.2f} of {len(d):2d}   when {s['condition']}: {s['strategy']}"
            print(text, flush=True)
    for rule in ("z=0", "z=1"):
        kept = [r for r in rows if r[rule] and r["pairs"]]
        if kept:
            weights = [r["pairs"] for r in kept]
            estimate, fresh = (np.average([r[key] for r in kept], weights=weights) for key in ("mean_delta", "fresh"))
            good = sum(r["fresh"] > about["tau_act"] for r in kept)
            print(f"rule {rule}: keeps {len(kept)}; mean effect {estimate:+.3f} by the phase, {fresh:+.3f} fresh; {good} above tau_act")
    write_jsonl(Path(args.out or phase) / "effects.jsonl", rows)


if __name__ == "__main__":
    run_script(main)
