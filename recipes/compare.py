"""Learning curves of several runs with intervals over seeds, and paired differences at fixed budgets.     bash recipes/compare.sh

    in      runs/ARM-SEED/: any of warmup/, mine/, distill/, with snapshots (--snapshots) and final policies
    out     OUT/points.jsonl (a line per evaluated policy and split: a few hundred bytes), table.md, curves.png

    python recipes/compare.py --arms gigpo siri --seeds 0 1 2 --out results/compare
    python recipes/compare.py --final --arms abl-siri abl-useless --seeds 0 1 2     # final policies only, no curves

Every policy plays every game of the validation splits once, under the plain prompt, with the same random stream for all of them.
Interrupted?  The same command goes on: points that are in the file are not played again.  Clocks count training only, from the
warm-up checkpoint that the arms of a seed share; validating skills is training.  The first arm is what the others are compared with.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import Play, UserError, base_parser, load_policy, make_env, parse_args, read_jsonl, rollout, run_script, write_jsonl  # noqa: E402
from evaluate import split_tasks  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

CLOCKS = {"minutes": "minutes after warm-up", "iterations": "iterations", "env_steps": "environment steps", "episodes": "episodes"}


def snapshots(run):
    """Every policy kept of a run after its warm-up, in order: (folder, its clocks).  A control run is a warm-up that started from one."""
    phases = [p for p in ("warmup", "mine", "distill") if (run / p / "done").exists()]
    if "mine" in phases:  # the warm-up checkpoint is where the clocks start
        yield run / "warmup" / "policy", dict.fromkeys(CLOCKS, 0)
        phases.remove("warmup")
    offset = dict.fromkeys(CLOCKS, 0)
    for phase in phases:
        lines = read_jsonl(run / phase / "metrics.jsonl")

        def clocks(elapsed, lines=lines, offset=offset):
            past = [line for line in lines if line["elapsed"] <= elapsed + 0.5]
            now = {"minutes": elapsed / 60, "iterations": len(past), "env_steps": sum(line["env_steps"] for line in past)}
            now["episodes"] = sum(line.get("episodes_plain", 0) + line.get("episodes_skill", 0) for line in past)
            return {clock: offset[clock] + now[clock] for clock in CLOCKS}

        for folder in sorted((run / phase / "snapshots").glob("*")):
            yield folder, clocks(int(folder.name))
        yield run / phase / "policy", clocks(lines[-1]["elapsed"])
        offset = clocks(lines[-1]["elapsed"])


def evaluate_all(args, env, splits, path):
    """Plays what points.jsonl lacks; returns all points."""
    points = read_jsonl(path) if path.exists() else []
    known = {(p["policy"], p["split"]) for p in points}
    for seed in args.seeds:
        for arm in args.arms:
            run = Path("runs") / f"{arm}-{seed}"
            if not run.is_dir():
                raise UserError(f"no run {run}: train it first (recipes/compare.sh does)")
            for folder, clocks in list(snapshots(run))[-1 if args.final else 0 :]:
                policy = None
                for split in splits:
                    if (str(folder), split) in known:
                        continue
                    policy = policy or load_policy(folder, args)
                    plays = [Play(task, task, ("compare", task)) for task in split_tasks(env, split)]
                    records = rollout(policy, env, plays, args.temperature, args.rollout_batch, args.max_response, args.threads)
                    wins = "".join(str(int(r["success"])) for r in records)  # in the order of the split's sorted games
                    about = {"arm": arm, "seed": seed, "policy": str(folder), "split": split} | clocks
                    points.append(about | {"success": wins.count("1") / len(wins), "wins": wins})
                    write_jsonl(path, points)
                    print(f"{arm}-{seed} {split} {clocks['minutes']:5.1f} min  {points[-1]['success']:.3f}", flush=True)
    return points


def curve(points, arm, seed, split, clock):
    """(x, y) of one run, sorted by the clock."""
    part = [p for p in points if (p["arm"], p["seed"], p["split"]) == (arm, seed, split)]
    part.sort(key=lambda p: p[clock])
    return [p[clock] for p in part], [p["success"] for p in part]


def band(values):
    """(mean, low, high) over seeds: Student's 95 % interval; values: one number per seed."""
    values = np.asarray(values, dtype=float)
    mean = values.mean()
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return mean, mean - half, mean + half


def cell(ours, theirs=None):
    """Mean and interval over seeds, and in brackets those of the difference paired by seed."""
    text = "{:.3f} [{:.3f}, {:.3f}]".format(*band(ours))
    return text if theirs is None else text + " ({:+.3f} [{:+.3f}, {:+.3f}])".format(*band(np.subtract(ours, theirs)))


def first_time(x, y, level):
    """The clock at which a curve first reaches a level, by straight lines between its points; inf where it never does."""
    for (x0, y0), (x1, y1) in zip(zip(x, y), zip(x[1:], y[1:])):
        if y0 < level <= y1:
            return x0 + (x1 - x0) * (level - y0) / (y1 - y0)
    return x[0] if y and y[0] >= level else float("inf")


def table(points, args, splits, clock="minutes"):
    """Markdown: success of every arm at the budgets, and the paired differences from the first arm, over seeds."""
    control, lines = args.arms[0], []
    for split in splits:
        ends = [curve(points, arm, seed, split, clock)[0][-1] for arm in args.arms for seed in args.seeds]
        reach = [first_time(*curve(points, control, seed, split, clock), 0.7) for seed in args.seeds]
        budgets = {"mid-climb": float(np.median(reach)), "end": min(ends)}
        heads = [f"{name}: {at:.4g}" for name, at in budgets.items()]
        lines += [f"\n**{split}**, by {clock}\n", "| " + " | ".join(["arm", *heads, "to 0.70"]) + " |", "|---" * (len(heads) + 2) + "|"]
        for arm in args.arms:
            cells = []
            for at in budgets.values():
                ours, theirs = ([np.interp(at, *curve(points, a, s, split, clock)) for s in args.seeds] for a in (arm, control))
                cells.append(cell(ours, theirs if arm != control else None))
            times = [first_time(*curve(points, arm, seed, split, clock), 0.7) for seed in args.seeds]
            lines.append(f"| {arm} | " + " | ".join(cells) + f" | {np.median(times):.4g} |")
    return "\n".join(lines) + "\n"


def final_table(points, args, splits):
    """Markdown: success of every arm's last policy, and its paired difference from the first arm, over seeds."""
    lines = ["| arm | " + " | ".join(splits) + " |", "|---" * (len(splits) + 1) + "|"]
    for arm in args.arms:
        cells = []
        for split in splits:
            ours, theirs = ([curve(points, a, seed, split, "minutes")[1][-1] for seed in args.seeds] for a in (arm, args.arms[0]))
            cells.append(cell(ours, theirs if arm != args.arms[0] else None))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(points, args, splits, path):
    clocks = [clock for clock in CLOCKS if clock != "episodes"]
    figure, axes = plt.subplots(len(splits), len(clocks), figsize=(13, 3.6 * len(splits)), sharey=True, squeeze=False)
    for row, split in zip(axes, splits):
        for axis, clock in zip(row, clocks):
            for arm in args.arms:
                runs = [curve(points, arm, seed, split, clock) for seed in args.seeds]
                x = np.linspace(0, min(run[0][-1] for run in runs), 60)
                mean, low, high = np.array([band([np.interp(at, *run) for run in runs]) for at in x]).T
                axis.plot(x, mean, label=arm)
                axis.fill_between(x, low, high, alpha=0.2)
            axis.set_xlabel(CLOCKS[clock])
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"success, {split}")
        row[0].set_ylim(0, 1)
    axes[0][-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = base_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--arms", nargs="+", default=["gigpo", "siri"], help="names of runs before -SEED; the first one is the control")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--split", nargs="+", help="splits (default: both validation splits; held_out while tuning)")
    parser.add_argument("--temperature", type=float, default=0.4, help="of sampling")
    parser.add_argument("--final", action="store_true", help="only the last policy of every run, and no curves")
    parser.add_argument("--out", default="results/compare", help="output folder")
    args = parse_args(parser)
    env = make_env(args)
    splits = args.split or env.split_names[1:]
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    points = evaluate_all(args, env, splits, out / "points.jsonl")
    text = final_table(points, args, splits) if args.final else table(points, args, splits) + table(points, args, splits, "episodes")
    what = env.describe(splits[0] if splits[0] in env.split_names else env.split_names[0])  # held_out is a part of the first
    (out / "table.md").write_text(f"{what}; seeds {args.seeds}, temperature {args.temperature}\n{text}")
    if not args.final:
        draw(points, args, splits, out / "curves.png")
    print(text + json.dumps({"written": str(out)}))


if __name__ == "__main__":
    run_script(main)
