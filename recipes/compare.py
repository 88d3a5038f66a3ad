"""Learning curves of several runs with intervals over seeds, and paired differences.

    in      runs/ARM-SEED/: any of warmup/, mine/, distill/, with snapshots and final policies
    out     OUT/points.jsonl (a line per evaluated policy and split: a few hundred bytes),
            table.md, curves.png, types.png

    python recipes/compare.py --arms gigpo siri siri+skills --seeds 0 1 2 --out results/compare
    python recipes/compare.py --final --arms abl-siri abl-useless --seeds 0 1 2     # no curves
    python recipes/compare.py --recorded --out results/default     # again, without the runs

recipes/compare.sh trains the runs.  Every policy plays every game of the splits once, with the same
random stream for all of them (evaluate.py's), under the plain prompt.  An arm NAME+skills plays two
policies of NAME, that at the end of mining and the last one, with the skills of mining in the
prompt: what these add is a table of its own.  The first arm is what the others are compared with:
over seeds, each against the same seed.  Budgets are the time at which the first arm reaches 0.70 on
the FIRST split (held_out, training games set aside: so they are fixed before a validation split is
looked at), and the end of the shortest run.  Clocks count training only, from the warm-up
checkpoint that the arms of a seed share; validating skills is training.

Interrupted?  The same command goes on: points that are in the file are not played again.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import load_policy, make_env  # noqa: E402
from envs import UserError  # noqa: E402
from evaluate import panel_hash, play_panel, split_tasks  # noqa: E402
from support.cli import base_parser, number, parse_args, run_script, text, whole  # noqa: E402
from support.figures import tick  # noqa: E402
from support.files import fingerprint, read_jsonl, skills_file, write_jsonl  # noqa: E402
from support.intervals import half_width  # noqa: E402
from support.report import misfit  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

CLOCKS = {
    "minutes": "minutes after warm-up",
    "iterations": "iterations",
    "env_steps": "environment steps",
    "episodes": "episodes",
}
POINT = {"arm": str, "seed": int, "policy": str, "split": str, "wins": str}
LEVEL = 0.7  # of the control's success: mid-climb


# ---- points ------------------------------------------------------------------------------------


def snapshots(run):
    """Every policy kept of a run from its warm-up checkpoint on, in order: (folder, its clocks)."""
    phases = [p for p in ("warmup", "mine", "distill") if (run / p / "done").exists()]
    if {"warmup", "mine"} <= set(phases):  # the clocks start at the warm-up checkpoint
        yield run / "warmup" / "policy", dict.fromkeys(CLOCKS, 0)
        phases.remove("warmup")
    elif "warmup" in phases:  # a control is a warm-up that started from another run's
        yield (
            Path(json.loads((run / "warmup" / "args.json").read_text())["args"]["model"]),
            dict.fromkeys(CLOCKS, 0),
        )
    offset = dict.fromkeys(CLOCKS, 0)
    for phase in phases:
        lines = read_jsonl(run / phase / "metrics.jsonl")

        def clocks(elapsed, lines=lines, offset=offset):
            past = [line for line in lines if line["elapsed"] <= elapsed + 0.5]
            now = {
                "minutes": elapsed / 60,
                "iterations": len(past),
                "env_steps": sum(line["env_steps"] for line in past),
            }
            now["episodes"] = sum(
                line.get("episodes_plain", 0) + line.get("episodes_skill", 0) for line in past
            )
            return {clock: offset[clock] + now[clock] for clock in CLOCKS}

        for folder in sorted((run / phase / "snapshots").glob("*")):
            yield folder, clocks(int(folder.name))
        yield run / phase / "policy", clocks(lines[-1]["elapsed"])
        offset = clocks(lines[-1]["elapsed"])


def policies(args, arm, seed):
    """What is to be played of one arm and seed: a list of (folder, clocks), and its active
    skills."""
    run = Path("runs") / f"{arm.removesuffix('+skills')}-{seed}"
    if not run.is_dir():
        raise UserError(f"no run {run}: train it first (recipes/compare.sh does)")
    found, skills = list(snapshots(run)), []
    if not found:
        raise UserError(f"no finished phase in {run}: train it to its end first")
    if arm.endswith("+skills"):
        skills = [s for s in skills_file(run / "mine" / "skills.jsonl") if s["status"] == "active"]
        found = [
            (folder, clocks)
            for folder, clocks in found
            if folder in (run / "mine" / "policy", found[-1][0])
        ]
    if args.final:
        return found[-1:], skills
    if args.at:  # those nearest to these minutes, the first one, that which has mined, the last
        near = [min(found, key=lambda f, m=m: abs(f[1]["minutes"] - m)) for m in args.at]
        found = [
            f
            for f in found
            if f in near or f in (found[0], found[-1]) or f[0] == run / "mine" / "policy"
        ]
    return found, skills


def evaluate_all(args, env, splits, path):
    """Plays what points.jsonl lacks; returns all points."""
    points = read_jsonl(path) if path.exists() else []
    panels = {split: panel_hash(env, {split: split_tasks(env, split)}) for split in splits}
    for p in points:  # those of other games, or of another temperature, are no part of the curves
        for key, now in (("panel", panels.get(p["split"])), ("temperature", args.temperature)):
            if now is not None and p.get(key, now) != now:
                found = f"{path} has points of {key} {p[key]}, now it is {now}"
                raise UserError(f"{found}: choose another --out")
    known = {(p["arm"], p["policy"], p["split"]) for p in points}
    weights = {p["policy"]: p["weights"] for p in points if "weights" in p}
    played = {
        (p["policy"], p["split"], p["arm"].endswith("+skills")): p["wins"] for p in points
    }  # arms begin with the same policy
    for seed in args.seeds:
        for arm in args.arms:
            found, skills = policies(args, arm, seed)
            for folder, clocks in found:
                policy, now = None, fingerprint(folder)
                if weights.setdefault(str(folder), now) != now:
                    fix = "choose another --out, or delete its lines"
                    raise UserError(f"{folder} is another policy than {path} has played: {fix}")
                for split in splits:
                    if (arm, str(folder), split) in known:
                        continue
                    panel = str(folder), split, arm.endswith("+skills")
                    if panel not in played:
                        policy = policy or load_policy(folder, args)
                        episodes = play_panel(
                            policy, env, split_tasks(env, split), skills, args, split, arm
                        )
                        played[panel] = "".join(
                            str(int(e["success"])) for e in episodes
                        )  # in the order of the split's sorted games
                    wins = played[panel]
                    about = {
                        "arm": arm,
                        "seed": seed,
                        "policy": str(folder),
                        "split": split,
                    } | clocks
                    about |= {"weights": now, "panel": panels[split]}
                    about["temperature"] = args.temperature
                    points.append(about | {"success": wins.count("1") / len(wins), "wins": wins})
                    write_jsonl(path, points)
                    print(
                        f"{arm}-{seed} {split} {clocks['minutes']:5.1f} min  "
                        f"{points[-1]['success']:.3f}",
                        flush=True,
                    )
    return points


# ---- statistics --------------------------------------------------------------------------------


def curve(points, arm, seed, split, clock, games=slice(None)):
    """(x, y) of one run, sorted by the clock; games: indices of those that count (default: all
    of the split)."""
    part = [p for p in points if (p["arm"], p["seed"], p["split"]) == (arm, seed, split)]
    part.sort(key=lambda p: p[clock])
    return [p[clock] for p in part], [
        float(np.mean(np.array(list(p["wins"]), dtype=int)[games])) for p in part
    ]


def at_budget(points, args, arm, split, clock, budget, games=slice(None)):
    """Success of an arm at a budget, one number per seed, by straight lines between points."""
    return [
        np.interp(budget, *curve(points, arm, seed, split, clock, games)) for seed in args.seeds
    ]


def band(values):
    """(mean, low, high) over seeds: Student's 95 % interval; values: one number per seed."""
    values = np.asarray(values, dtype=float)
    mean = values.mean()
    half = (
        stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        if len(values) > 1
        else float("nan")
    )
    return mean, mean - half, mean + half


def cell(ours, theirs=None):
    """Mean and interval over seeds, and in brackets those of the difference paired by seed."""
    text = "{:.3f} [{:.3f}, {:.3f}]".format(*band(ours))
    return (
        text
        if theirs is None
        else text + " ({:+.3f} [{:+.3f}, {:+.3f}])".format(*band(np.subtract(ours, theirs)))
    )


def first_time(x, y, level=LEVEL):
    """The clock at which a curve first reaches a level, by straight lines between its points;
    inf where it never does."""
    for (x0, y0), (x1, y1) in zip(zip(x, y), zip(x[1:], y[1:])):
        if y0 < level <= y1:
            return x0 + (x1 - x0) * (level - y0) / (y1 - y0)
    return x[0] if y and y[0] >= level else float("inf")


def first_times(points, args, arm, split, clock):
    return np.array([first_time(*curve(points, arm, seed, split, clock)) for seed in args.seeds])


def time_cell(ours, theirs=None):
    """Median over seeds, and in brackets the geometric mean of the ratio paired by seed, with
    its interval."""
    text = f"{np.median(ours):.4g}"
    if theirs is None or not np.isfinite([*ours, *theirs]).all() or min(*ours, *theirs) <= 0:
        return text  # a run that never gets there has no ratio
    return text + " (x {:.2f} [{:.2f}, {:.2f}])".format(*np.exp(band(np.log(ours / theirs))))


def budgets(points, args, splits, clock):
    """{name: clock}: where the first arm reaches LEVEL on the first split (median over seeds),
    --budgets in minutes, and the end of the shortest run."""
    ends = [
        max(curve(points, arm, seed, splits[0], clock)[0])
        for arm in args.arms
        for seed in args.seeds
    ]
    middle = float(np.median(first_times(points, args, args.arms[0], splits[0], clock)))
    more = {f"budget {n}": m for n, m in enumerate(args.budgets, 1)} if clock == "minutes" else {}
    return {"mid-climb": min(middle, min(ends))} | more | {"end": min(ends)}


def table(points, args, splits, clock="minutes"):
    """Markdown: success of every arm at the budgets, and the paired differences from the first
    arm, over seeds."""
    control, lines, found = args.arms[0], [], budgets(points, args, splits, clock)
    heads = [f"{name}: {at:.4g}" for name, at in found.items()]
    for split in splits:
        head = ["arm", *heads, f"to {LEVEL:.2f}"]
        lines += [
            f"\n**{split}**, by {clock}\n",
            "| " + " | ".join(head) + " |",
            "|---" * len(head) + "|",
        ]
        for arm in args.arms:
            other = arm != control
            cells = []
            for at in found.values():
                ours, theirs = (
                    at_budget(points, args, a, split, clock, at) for a in (arm, control)
                )
                cells.append(cell(ours, theirs if other else None))
            ours, theirs = (first_times(points, args, a, split, clock) for a in (arm, control))
            lines.append(
                f"| {arm} | "
                + " | ".join([*cells, time_cell(ours, theirs if other else None)])
                + " |"
            )
    return "\n".join(lines) + "\n"


def final_table(points, args, splits):
    """Markdown: success of every arm's last policy, and its paired difference from the first
    arm, over seeds.  Last: all games together."""
    parts = [[split] for split in splits] + [splits] * (len(splits) > 1)
    lines = [
        "| arm | " + " | ".join(" + ".join(part) for part in parts) + " |",
        "|---" * (len(parts) + 1) + "|",
    ]
    wins = {
        (p["arm"], p["seed"], p["split"]): p["wins"]
        for p in sorted(points, key=lambda p: p["minutes"])
    }  # the last one stays
    for arm in args.arms:
        cells = []
        for part in parts:
            games = [
                ["".join(wins[a, seed, split] for split in part) for seed in args.seeds]
                for a in (arm, args.arms[0])
            ]
            ours, theirs = ([g.count("1") / len(g) for g in one] for one in games)
            cells.append(cell(ours, theirs if arm != args.arms[0] else None))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def skills_table(points, env, splits):
    """Markdown: what the mined skills add in the prompt, by task type and policy: all games of
    the splits, paired by game and seed. The interval is over pairs (these skills, other games),
    the range over seeds."""
    wins = {
        (p["arm"], p["seed"], p["split"], p["iterations"]): p["wins"] for p in points
    }  # an iteration has one policy
    pairs = {}  # (phase whose last policy it is, task type) -> (seed, plain, with skills, game)
    for shown in (p for p in points if p["arm"].endswith("+skills") and p["split"] in splits):
        plain = wins[
            shown["arm"].removesuffix("+skills"), shown["seed"], shown["split"], shown["iterations"]
        ]
        for task, without, using in zip(split_tasks(env, shown["split"]), plain, shown["wins"]):
            for kind in (env.task_type(task), "all"):
                pairs.setdefault((Path(shown["policy"]).parent.name, kind), []).append(
                    (shown["seed"], int(without), int(using), task)
                )
    head = "| policy after | task type | plain | with skills | effect | by seed | pairs |"
    lines = ["\n**skills in the prompt**\n", head, "|---" * 7 + "|"]
    for (phase, kind), rows in sorted(
        pairs.items(), key=lambda item: (item[0][0] != "mine", item[0][1])
    ):
        seed, plain, shown = np.array([row[:3] for row in rows]).T
        games = [row[3] for row in rows]  # the same games in every seed
        d = shown - plain
        means = [d[seed == one].mean() for one in sorted(set(seed))]
        row = f"| {phase} | {kind} | {plain.mean():.3f} | {shown.mean():.3f} "
        row += f"| {d.mean():+.3f} +- {half_width(d, games):.3f} "
        lines.append(row + f"| {min(means):+.2f} to {max(means):+.2f} | {len(d)} |")
    return "\n".join(lines) + "\n"


# ---- figures -----------------------------------------------------------------------------------


def draw_curves(points, args, splits, path):
    """Mean and interval over seeds against every clock.  The axes are square roots: most of the
    climb is in the first tenth of a run."""
    clocks = [clock for clock in CLOCKS if clock != "episodes"]
    figure, axes = plt.subplots(
        len(splits), len(clocks), figsize=(13, 3.6 * len(splits)), sharey=True, squeeze=False
    )
    for row, split in zip(axes, splits):
        for axis, clock in zip(row, clocks):
            for arm in args.arms:
                runs = [curve(points, arm, seed, split, clock) for seed in args.seeds]
                known = np.concatenate([run[0] for run in runs])
                x = np.unique(
                    known.clip(max(run[0][0] for run in runs), min(run[0][-1] for run in runs))
                )
                mean, low, high = np.array(
                    [band([np.interp(at, *run) for run in runs]) for at in x]
                ).T
                axis.plot(x, mean, label=arm)
                axis.fill_between(x, low, high, alpha=0.2)
            axis.set_xlim(left=0)  # before the scale: a root has no place for the margin below zero
            axis.set_xscale("function", functions=(np.sqrt, np.square))
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k, not 50000
            axis.set_xlabel(CLOCKS[clock])
            axis.grid(alpha=0.3)
        row[0].set_ylabel(f"success, {split}")
        row[0].set_ylim(0, 1)
    axes[0][-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_types(points, args, env, splits, path):
    """Success by task type at the budgets, with intervals over seeds."""
    found = budgets(points, args, splits, "minutes")
    figure, axes = plt.subplots(
        len(splits),
        len(found),
        figsize=(6.5 * len(found), 3.4 * len(splits)),
        sharey=True,
        squeeze=False,
    )
    for row, split in zip(axes, splits):
        games = {}
        for i, task in enumerate(split_tasks(env, split)):
            games.setdefault(env.task_type(task), []).append(i)
        for axis, (name, at) in zip(row, found.items()):
            for k, arm in enumerate(args.arms):
                bands = [
                    band(at_budget(points, args, arm, split, "minutes", at, games[kind]))
                    for kind in sorted(games)
                ]
                mean, low, high = np.array(bands).T
                x = np.arange(len(games)) + (k - (len(args.arms) - 1) / 2) * 0.8 / len(args.arms)
                axis.bar(
                    x,
                    mean,
                    0.75 / len(args.arms),
                    yerr=[mean - low, high - mean],
                    capsize=2,
                    label=arm,
                )
            axis.set_xticks(
                range(len(games)), [tick(kind) for kind in sorted(games)], rotation=20, ha="right"
            )
            axis.set_title(f"{split}, {name} ({at:.1f} minutes)")
            axis.grid(axis="y", alpha=0.3)
            axis.set_ylim(0, 1)
        row[0].set_ylabel("success, 95 % over seeds")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def show_recorded(args):
    """Prints the tables of a folder's points and draws its curves anew.  Arms, seeds and splits:
    those of the points, in their order, unless they are named.  table.md and types.png stay:
    task types need the games."""
    path = Path(args.out) / "points.jsonl"
    if not path.exists():
        raise UserError(
            f"no {path}: name a folder that compare.py has written with --out "
            "(results/README.md lists those of the project)"
        )
    points = read_jsonl(path)
    for n, point in enumerate(points, 1):
        if lack := misfit(point, POINT):
            fix = "put the file back, or delete that line"
            raise UserError(f"{path}, point {n}: expected a point, found no {lack}; {fix}")
    args.arms = args.arms or [
        arm for arm in dict.fromkeys(p["arm"] for p in points) if not arm.endswith("+skills")
    ]
    args.seeds = args.seeds or sorted({p["seed"] for p in points})
    known = list(dict.fromkeys(p["split"] for p in points))
    splits = args.split or known
    if unknown := [split for split in splits if split not in known]:
        raise UserError(f"--split {unknown[0]}: {path} has {', '.join(known)}")
    runs = [(arm, seed) for arm in args.arms for seed in args.seeds]
    absent = [run for run in runs if not any((p["arm"], p["seed"]) == run for p in points)]
    if absent:
        raise UserError(
            f"{path} has no points of {absent}: leave out --arms and --seeds to see all that it has"
        )
    if args.final or all(
        sum((p["arm"], p["seed"]) == run for p in points) <= len(splits) for run in runs
    ):
        print(final_table(points, args, splits))
        return
    print(table(points, args, splits) + table(points, args, splits, "episodes"))
    draw_curves(points, args, splits, path.with_name("curves.png"))


def arguments():
    """The command line."""
    parser = base_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--arms",
        nargs="+",
        help="names of runs before -SEED; the first one is the control (default: gigpo siri)",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=whole(0), help="seeds of the runs (default: 0 1 2)"
    )
    parser.add_argument(
        "--split",
        nargs="+",
        help="splits (default: held_out, unless --final, and those of validation)",
    )
    parser.add_argument(
        "--at",
        nargs="+",
        type=number(least=0),
        help="minutes whose nearest snapshots are played (default: all)",
    )
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=number(above=0),
        default=[],
        help="more budgets for the table, in minutes",
    )
    parser.add_argument(
        "--temperature", type=number(above=0, most=100), default=0.4, help="of sampling"
    )
    parser.add_argument(
        "--final", action="store_true", help="only the last policy of every run, and no curves"
    )
    parser.add_argument(
        "--recorded",
        action="store_true",
        help="print the tables and draw the curves of OUT/points.jsonl; no runs needed",
    )
    parser.add_argument("--out", type=text, default="results/compare", help="output folder")
    parser.set_defaults(repetitions=1, show=3)  # of evaluate.play_panel
    args = parse_args(parser)
    if not args.recorded:
        args.arms, args.seeds = args.arms or ["gigpo", "siri"], args.seeds or [0, 1, 2]
        for split in args.split or []:
            split_tasks(make_env(args.env, args.simulator), split)  # UserError: no such split
    return args


def main():
    args = arguments()
    if args.recorded:
        return show_recorded(args)
    env = make_env(args.env, args.simulator, args.max_steps)
    splits = args.split or ["held_out"][args.final :] + list(env.split_names[1:])
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    points = evaluate_all(args, env, splits, out / "points.jsonl")
    shown = [arm for arm in args.arms if arm.endswith("+skills")]
    args.arms = [arm for arm in args.arms if arm not in shown]
    tables = (
        final_table(points, args, splits)
        if args.final
        else table(points, args, splits) + table(points, args, splits, "episodes")
    )
    tables += skills_table(points, env, splits) if shown else ""
    what = env.describe(
        splits[-1] if splits[-1] in env.split_names else env.split_names[0]
    )  # held_out is a part of the first
    what = what.partition(" in /")[0]  # no path of this machine
    (out / "table.md").write_text(
        f"{what}; seeds {args.seeds}, temperature {args.temperature}\n{tables}"
    )
    if not args.final:
        draw_curves(points, args, splits, out / "curves.png")
        draw_types(points, args, env, splits, out / "types.png")
    print(tables + json.dumps({"written": str(out)}))


if __name__ == "__main__":
    run_script(main)
