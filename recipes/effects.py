"""Are the mined skills real?  Their paired effect on fresh games, beside the estimate that promoted
them.

    in      runs/NAME/mine/: policy/, skills.jsonl; for the summary of several runs also
            rejected.jsonl and runs/NAME/distill/
    out     per run, beside its skills: effects.jsonl (a line per skill: estimate of the phase,
            fresh effect with its interval, pairs) and effects_by_type.jsonl (a line per task type:
            plain, with the best active skill, paired difference) --summary: OUT/effects.jsonl,
            effects_by_type.jsonl (all runs), table.md, effects.png

    python recipes/effects.py --run siri-0
    python recipes/effects.py --summary siri-0 siri-1 siri-2 --out results/effects

Every skill that was tried is shown on held-out training games that it fits (of its task type, or
that name its object): one skill and one plain episode per game and repetition, the same policy and
temperature as in phase 1.  The phase's own estimate is biased upwards by the choice; this one is
not, and it says which promotion rule would have kept the better skills.  By task type, every game
is played with the skill that retrieval gives it from the active bank; 1,500 pairs of a type in all
(over runs) make its interval about +-3 points.
"""

import json
import math
import sys
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import Play, load_policy, make_env, retrieve, rollout  # noqa: E402
from evaluate import split_tasks  # noqa: E402
from support.cli import base_parser, parse_args, run_name, run_script, text, whole  # noqa: E402
from support.figures import tick  # noqa: E402
from support.files import read_jsonl, skills_file, write_jsonl  # noqa: E402
from support.intervals import half_width  # noqa: E402
from support.phases import finished_phase, policy_folder  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FILES = ("effects.jsonl", "effects_by_type.jsonl")


def fresh_effects(policy, env, skills, tasks, args):
    """{skill_id: list of success differences, skill minus plain, one per game and repetition}."""
    world, sentences = env.fork(), {}
    for task in tasks:
        world.reset(task)
        sentences[task] = world.task
    fits = {
        s["skill_id"]: [t for t in tasks if retrieve([s], sentences[t], env.task_type(t), 1)][
            : args.games
        ]
        for s in skills
    }
    # plain episodes serve all skills
    plays = [Play(t, t, ("effects", t, r)) for t in tasks for r in range(args.repetitions)]
    for s in skills:
        plays += [
            Play(t, t, ("effects", s["skill_id"], t, r), [s])
            for t in fits[s["skill_id"]]
            for r in range(args.repetitions)
        ]
    records = rollout(policy, env, plays, 1.0, args.rollout_batch, args.max_response, args.threads)
    won = {play.key: r["success"] for play, r in zip(plays, records)}
    return {
        name: [
            won["effects", name, t, r] - won["effects", t, r]
            for t in games
            for r in range(args.repetitions)
        ]
        for name, games in fits.items()
    }


def effects_by_type(policy, env, bank, tasks, args):
    """A row per task type: success without a skill and with the active one that fits best, and the
    paired difference. A type's games are played in turns until there are enough pairs: the
    intervals are over pairs of these games, not over games."""
    world, fits, plays = env.fork(), {}, []
    for task in tasks:
        world.reset(task)
        if skills := retrieve(bank, world.task, env.task_type(task), 1):
            fits.setdefault(env.task_type(task), []).append((task, skills))
    for games in fits.values():
        for n in range(args.type_pairs):
            (task, skills), r = games[n % len(games)], n // len(games)
            plays += [
                Play(task, task, ("types", arm, task, r), shown)
                for arm, shown in (("plain", []), ("skill", skills))
            ]
    records = rollout(policy, env, plays, 1.0, args.rollout_batch, args.max_response, args.threads)
    pairs = {}  # type -> one (plain, skill) pair of success per game and repetition
    for plain, skill in zip(records[::2], records[1::2]):
        pairs.setdefault(plain["task_type"], []).append((plain["success"], skill["success"]))
    rows = []
    for kind, both in sorted(pairs.items()):
        plain, skill = np.array(both, dtype=float).T
        d = skill - plain
        rows.append(
            {"task_type": kind, "plain": plain.mean(), "skill": skill.mean(), "effect": d.mean()}
        )
        rows[-1] |= {"half": half_width(d), "pairs": len(d)}
    return rows


TAU_ACT = 0.05  # of (16), as in mine.credit


def promotable(skill, z, tau_act=TAU_ACT):
    """(16) u > tau_act and, with z above 0, a lower bound of the mean effect above it, too:
    mean - z * standard error (beyond the paper)."""
    deltas = np.array(skill["deltas"])
    error = deltas.std(ddof=1) / math.sqrt(len(deltas)) if len(deltas) > 1 else 0.0
    bound = deltas.mean() - z * error
    return skill["utility"] > tau_act and (z == 0 or bound > tau_act)


def one_run(args):
    """Plays one run's skills on fresh games and writes both files beside them."""
    phase = finished_phase(Path("runs") / args.run / "mine")
    about = json.loads((phase / "args.json").read_text())["args"]
    skills = [s for s in skills_file(phase / "skills.jsonl") if s["n_eval"] >= 2]
    env = make_env(args.env, args.simulator, args.max_steps)
    tasks = split_tasks(env, "held_out")
    policy = load_policy(policy_folder(phase), args)
    print(
        f"{env.describe(env.split_names[0])}; {len(tasks)} held-out games, {len(skills)} skills "
        "that were tried",
        flush=True,
    )
    effects = fresh_effects(policy, env, skills, tasks, args)
    rows = []
    for s in sorted(skills, key=lambda s: -s["utility"]):
        d = np.array(effects[s["skill_id"]], dtype=float)
        rules = {}
        for z in (0.0, 1.0):
            rules[f"z={z:g}"] = bool(len(s["deltas"]) >= about["n_eval"] and promotable(s, z))
        rows.append(
            {
                key: s[key]
                for key in ("skill_id", "status", "condition", "strategy", "utility", "n_eval")
            }
        )
        rows[-1] |= {
            "mean_delta": float(np.mean(s["deltas"])),
            "fresh": float(d.mean()) if len(d) else None,
        }
        rows[-1] |= {"half": half_width(d), "pairs": len(d)} | rules
        if len(d):
            text = (
                f"{s['status']:9s} u {s['utility']:+.2f} mean "
                f"{np.mean(s['deltas']):+.2f} of {s['n_eval']:2d}   "
            )
            text += (
                f"fresh {d.mean():+.2f} +- {half_width(d):.2f} of {len(d):2d}   when "
                f"{s['condition']}: {s['strategy']}"
            )
            print(text, flush=True)
    write_jsonl(phase / "effects.jsonl", rows)
    for rule in ("z=0", "z=1"):
        kept = [r for r in rows if r[rule] and r["pairs"]]
        if kept:
            weights = [r["pairs"] for r in kept]
            estimate, fresh = (
                np.average([r[key] for r in kept], weights=weights)
                for key in ("mean_delta", "fresh")
            )
            good = sum(r["fresh"] > TAU_ACT for r in kept)
            print(
                f"rule {rule}: keeps {len(kept)}; mean effect {estimate:+.3f} by the phase, "
                f"{fresh:+.3f} fresh; {good} above tau_act"
            )
    types = effects_by_type(
        policy, env, [s for s in skills if s["status"] == "active"], tasks, args
    )
    for row in types:
        print(
            "{task_type:34s} plain {plain:.3f} with a skill {skill:.3f}  effect {effect:+.3f} +- "
            "{half:.3f} of {pairs}".format(**row)
        )
    write_jsonl(phase / "effects_by_type.jsonl", types)


# ---- several runs --------------------------------------------------------------------------------


def pooled(rows):
    """One row of several runs' rows for the same task type: means weighted by pairs, and the
    half-width of all pairs together."""
    n = np.array([row["pairs"] for row in rows])
    row = {
        key: float(np.average([r[key] for r in rows], weights=n))
        for key in ("plain", "skill", "effect")
    }
    # runs are independent samples
    half = np.sqrt(np.sum((n * [r["half"] for r in rows]) ** 2)) / n.sum()
    return {"task_type": rows[0]["task_type"]} | row | {"half": float(half), "pairs": int(n.sum())}


def life(run):
    """What became of a run's skills: counts by what happened to them, and the minute of
    distillation at which the last one was retired."""
    mine, distill = Path("runs") / run / "mine", Path("runs") / run / "distill"
    skills, rejected = skills_file(mine / "skills.jsonl"), read_jsonl(mine / "rejected.jsonl")
    reasons = Counter(r["reason"] for r in rejected)
    row = {
        "run": run,
        "written": len(skills) + len(rejected),
        "rejected": ", ".join(f"{n} {why}" for why, n in reasons.items()) or "0",
    }
    row |= {
        "tried": sum(s["n_eval"] > 0 for s in skills),
        "promoted": sum(s["status"] == "active" for s in skills),
    }
    retired = sum(
        s["status"] == "retired" and s["n_eval"] > 0 for s in skills_file(distill / "skills.jsonl")
    )
    metrics = read_jsonl(distill / "metrics.jsonl")
    gone = next((line["elapsed"] / 60 for line in metrics if not line["bank"].get("active")), None)
    return row | {
        "retired": retired,
        "last": f"{gone:.1f}" if gone else f"after {metrics[-1]['elapsed'] / 60:.1f}",
    }


def draw(skills, types, path):
    """Left: every tried skill's effect by the phase's own estimate and on fresh games.  Right:
    success by task type, plain and shown."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5))
    for status, colour in (
        ("active", "tab:green"),
        ("candidate", "tab:grey"),
        ("retired", "tab:red"),
    ):
        part = [s for s in skills if s["status"] == status and s["pairs"] > 1]
        x, y, half = ([s[key] for s in part] for key in ("mean_delta", "fresh", "half"))
        left.errorbar(
            x,
            y,
            half,
            fmt="o",
            ms=4,
            lw=0.8,
            color=colour,
            label={"active": "promoted"}.get(status, status),
        )
    left.plot([-0.5, 1], [-0.5, 1], "k:", lw=0.8)
    left.set(
        xlabel="effect by the phase's own pairs",
        ylabel="effect on fresh games, 95 %",
        title="skills that were tried",
    )
    x = np.arange(len(types))
    for k, key in enumerate(("plain", "skill")):
        half = [t["half"] if key == "skill" else 0 for t in types]
        right.bar(
            x + 0.4 * k - 0.2,
            [t[key] for t in types],
            0.38,
            yerr=half,
            capsize=2,
            label={"skill": "with the skill"}.get(key, key),
        )
    right.set_xticks(x, [tick(t["task_type"]) for t in types], rotation=20, ha="right")
    right.set(
        ylabel="success (95 % of the paired difference)",
        title="the policy that mined them, by task type",
        ylim=(0, 1),
    )
    for axis in (left, right):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def summary(args):
    """Tables and a figure of several runs' effects, from the files that single runs have
    written."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    folders = [Path("runs") / run / "mine" for run in args.summary]
    skills, types = (
        [
            {"run": folder.parent.name} | row
            for folder in folders
            for row in read_jsonl(folder / name)
        ]
        for name in FILES
    )
    rows = [
        pooled([row for row in types if row["task_type"] == kind])
        for kind in sorted({row["task_type"] for row in types})
    ]
    lines = ["| task type | plain | with the skill | effect, 95 % | pairs |", "|---" * 5 + "|"]
    lines += [
        "| {task_type} | {plain:.3f} | {skill:.3f} | {effect:+.3f} +- {half:.3f} | {pairs} "
        "|".format(**row)
        for row in rows
    ]
    lives = [life(run) for run in args.summary]
    lines += [
        "",
        "| " + " | ".join(lives[0]) + " | by the phase | fresh |",
        "|---" * (len(lives[0]) + 2) + "|",
    ]
    for row in lives:
        kept = [
            s for s in skills if s["run"] == row["run"] and s["status"] == "active" and s["pairs"]
        ]
        estimates = [
            np.average([s[key] for s in kept], weights=[s["pairs"] for s in kept])
            for key in ("mean_delta", "fresh")
        ]
        lines.append(
            "| " + " | ".join(map(str, row.values())) + " | {:+.3f} | {:+.3f} |".format(*estimates)
        )
    text = "\n".join(lines) + "\n"
    for name, part in zip(FILES, (skills, types)):
        write_jsonl(out / name, part)
    (out / "table.md").write_text(text)
    draw(skills, rows, out / "effects.png")
    print(text)


def main():
    parser = base_parser(__doc__)
    parser.add_argument(
        "--games", type=whole(1), default=40, help="held-out games per skill, at most"
    )
    parser.add_argument("--repetitions", type=whole(1), default=1, help="pairs per game")
    parser.add_argument(
        "--type-pairs",
        type=whole(1),
        default=300,
        help="pairs per task type of the table by task type",
    )
    parser.add_argument(
        "--summary",
        nargs="+",
        type=run_name,
        metavar="RUN",
        help="only sum up what these runs' effects have been measured to be",
    )
    parser.add_argument(
        "--out", type=text, default="results/effects", help="output folder of --summary"
    )
    args = parse_args(parser)
    summary(args) if args.summary else one_run(args)


if __name__ == "__main__":
    run_script(main)
