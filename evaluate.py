"""Evaluation: every game of the validation splits under the plain prompt, no skills, no training.

Every task of a split is played --repetitions times with its own random stream, the same for all policies, so that policies are compared
in pairs and the result depends neither on the batch nor on the order.

    in          any finished or unfinished phases of a run, or any policies: --policy A B C (folders or hub names)
    out         runs/NAME/evaluate/: results.jsonl (a line per episode), summary.json, success.png, types.png, curves.png

    laptop      python evaluate.py
    any         python evaluate.py --policy runs/a/distill runs/b/warmup --temperature 1.0 --out runs/compare
    skills      python evaluate.py --policy runs/a/mine --with-skills runs/a/mine/skills.jsonl

Intervals: Wilson's for a success rate, paired bootstrap over tasks for a difference, both 95 %.  "All" is the share of won episodes.
"""

import json
import shutil
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from scipy import stats

from common import Play, is_held_out, load_policy, make_env, retrieve, rollout
from envs import UserError
from support import parallel
from support.cli import base_parser, number, parse_args, run_script, text, whole
from support.files import read_jsonl, skills_file, write_atomically, write_jsonl
from support.models import check_model
from support.runs import policy_folder

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# ---- what is evaluated ---------------------------------------------------------------------------------------------------------


def default_arms(args):
    """The arms of a whole run: base, after warm-up, skills in the prompt, SIRI; each (name, policy, skills file or None)."""
    run = Path("runs") / args.run
    if not run.is_dir():
        raise UserError(f"no run {run}: run `python warmup.py --run {args.run}` first, or name policies with --policy")
    arms = []
    if (run / "warmup" / "args.json").exists():
        arms.append(("base", json.loads((run / "warmup" / "args.json").read_text())["args"]["model"], None))
        arms.append(("after warm-up", policy_folder(run / "warmup"), None))
    skills = run / "mine" / "skills.jsonl"
    if skills.exists():
        arms.append(("skills in the prompt", policy_folder(run / "mine"), skills))
    if (run / "distill").is_dir():
        arms.append(("SIRI, plain prompt", policy_folder(run / "distill"), None))
        if skills.exists():
            arms.append(("SIRI, with skills", policy_folder(run / "distill"), skills))
    if not arms:
        raise UserError(f"nothing to evaluate in {run}: run `python warmup.py --run {args.run}` first, or name policies with --policy")
    return arms


def named_arms(args):
    arms = []
    for name in args.policy:
        folder = Path(name)
        phase = (folder / "policy").is_dir() or (folder / "checkpoints").is_dir()
        arms.append((name, policy_folder(folder) if phase else name, None))
    if args.with_skills:
        arms += [(f"{name} + skills", policy, args.with_skills) for name, policy, _ in arms]
    return arms


def split_tasks(env, split):
    if split == "held_out":  # training games that are never trained on: tune recipes here, not on the validation splits
        return [t for t in env.tasks(env.split_names[0]) if is_held_out(t)]
    return env.tasks(split)


def play_panel(policy, env, tasks, bank, args, split, arm):
    """All tasks x repetitions; a dict per episode, as in results.jsonl."""
    active = [s for s in bank if s["status"] == "active"]
    world, plays = env.fork(), []
    for task_id in tasks:
        skills = []
        if active:
            world.reset(task_id)
            skills = retrieve(active, world.task, env.task_type(task_id), args.show)
        for repetition in range(args.repetitions):
            plays.append(Play(task_id, task_id, ("evaluate", args.seed, task_id, repetition), skills))
    records = rollout(policy, env, plays, args.temperature, args.rollout_batch, args.max_response, args.threads, f"{arm}, {split}")
    return [
        {
            "arm": arm,
            "split": split,
            "repetition": play.key[-1],
            "temperature": args.temperature,
            **{key: r[key] for key in ("task_id", "task_type", "task", "success", "score", "skill_ids")},
            "n_steps": len(r["steps"]),
            "valid_rate": float(np.mean([s["valid"] for s in r["steps"]])),
            "inadmissible_rate": float(np.mean([s["fails"] for s in r["steps"]])),
            "prompt_tokens": float(np.mean([len(s["prompt_ids"]) for s in r["steps"]])),
        }
        for play, r in zip(plays, records)
    ]


# ---- statistics ----------------------------------------------------------------------------------------------------------------


def wilson(wins):
    """(rate, low, high): Wilson's 95 % interval of a list of 0/1."""
    interval = stats.binomtest(int(sum(wins)), len(wins)).proportion_ci(0.95, method="wilson")
    return sum(wins) / len(wins), interval.low, interval.high


def half_width(d):
    """Half of the 95 % interval of a mean over pairs (an array of differences); nan for a single one."""
    return 1.96 * d.std(ddof=1) / len(d) ** 0.5 if len(d) > 1 else float("nan")


def per_task(results):
    """{task_id: mean success over repetitions}."""
    tasks = {}
    for r in results:
        tasks.setdefault(r["task_id"], []).append(r["success"])
    return {task: float(np.mean(wins)) for task, wins in tasks.items()}


def paired_difference(a, b, seed=0):
    """(mean, low, high) of success(a) - success(b) over the tasks that both played; 95 % bootstrap over tasks."""
    a, b = per_task(a), per_task(b)
    d = np.array([a[task] - b[task] for task in sorted(a) if task in b])
    if len(d) < 2 or np.all(d == d[0]):
        return float(d.mean()), float(d.mean()), float(d.mean())
    low, high = stats.bootstrap((d,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(seed)).confidence_interval
    return float(d.mean()), float(low), float(high)


def summarise(results, arms, splits, baseline):
    """One dict per arm and split."""
    rows = []
    for split in splits:
        for arm in arms:
            part = [r for r in results if r["arm"] == arm and r["split"] == split]
            base = [r for r in results if r["arm"] == baseline and r["split"] == split]
            rate, low, high = wilson([r["success"] for r in part])
            row = {"arm": arm, "split": split, "episodes": len(part), "success": rate, "low": low, "high": high}
            row["by_type"] = {
                kind: wilson([r["success"] for r in part if r["task_type"] == kind]) for kind in sorted({r["task_type"] for r in part})
            }
            row |= {key: float(np.mean([r[key] for r in part])) for key in ("score", "n_steps", "prompt_tokens", "inadmissible_rate")}
            if arm != baseline and base:
                row["difference"] = paired_difference(part, base)
            rows.append(row)
    return rows


def print_table(rows, baseline):
    kinds = sorted({kind for row in rows for kind in row["by_type"]})
    short = {kind: kind.replace("pick_", "").split("_")[0] for kind in kinds}
    width = max(len(row["arm"]) for row in rows)
    for split in dict.fromkeys(row["split"] for row in rows):
        head = f"{split:{width}s}  success [95 %]        " + " ".join(f"{short[k][:7]:>7s}" for k in kinds)
        scored = any(row["score"] != row["success"] for row in rows)  # a world with a score of its own
        print(f"\n{head}{'  score' * scored}  steps  prompt tokens  minus {baseline}")
        for row in (r for r in rows if r["split"] == split):
            line = f"{row['arm']:{width}s}  {row['success']:.3f} [{row['low']:.3f}, {row['high']:.3f}] "
            line += " ".join(f"{row['by_type'][k][0]:7.2f}" if k in row["by_type"] else f"{'-':>7s}" for k in kinds)
            line += f"  {row['score']:5.3f}" * scored
            line += f"  {row['n_steps']:5.1f}  {row['prompt_tokens']:13.0f}"
            if "difference" in row:
                line += "  {:+.3f} [{:+.3f}, {:+.3f}]".format(*row["difference"])
            print(line)
    print(f"\n{rows[0]['episodes']} episodes per row of the first split; success is the share of won episodes", flush=True)


# ---- figures -------------------------------------------------------------------------------------------------------------------


def tick(kind):
    """A task type as it stands below a bar."""
    return kind.replace("_", " ").replace("pick ", "")[:18]


def bars(rows, path, by_type):
    """Success with intervals by arm: over all games, or by task type."""
    splits = list(dict.fromkeys(row["split"] for row in rows))
    figure, axes = plt.subplots(1, len(splits), figsize=(1 + (6 if by_type else 4) * len(splits), 4), sharey=True, squeeze=False)
    for axis, split in zip(axes[0], splits):
        part = [row for row in rows if row["split"] == split]
        names = sorted(part[0]["by_type"]) if by_type else ["all"]
        for i, row in enumerate(part):
            values = [row["by_type"].get(n, (0, 0, 0)) for n in names] if by_type else [(row["success"], row["low"], row["high"])]
            x = np.arange(len(names)) + (i - (len(part) - 1) / 2) * 0.8 / len(part)
            rate, low, high = map(np.array, zip(*values))
            axis.bar(x, rate, 0.75 / len(part), yerr=[np.maximum(rate - low, 0), np.maximum(high - rate, 0)], label=row["arm"], capsize=2)
        axis.set_xticks(np.arange(len(names)), [tick(n) for n in names], rotation=20, ha="right")
        axis.set_title(split)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("success, 95 % interval")
    axes[0][0].set_ylim(0, 1)
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def curves(run, path):
    """Training success of a run's phases against wall-clock, iterations and environment steps; False without any metrics."""
    phases = [(p, read_jsonl(run / p / "metrics.jsonl")) for p in ("warmup", "mine", "distill") if (run / p / "metrics.jsonl").exists()]
    phases = [(phase, lines) for phase, lines in phases if lines]
    if not phases:
        return False
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
    offset = np.zeros(3)
    for phase, lines in phases:
        steps = np.cumsum([line["env_steps"] for line in lines])
        x = np.array([[line["elapsed"] / 60, k + 1, s / 1000] for k, (line, s) in enumerate(zip(lines, steps))]) + offset
        for axis, column in zip(axes, x.T):
            axis.plot(column, [line["success_plain"] for line in lines], label=f"{phase}, plain prompt")
            if any("success_skill" in line for line in lines):
                axis.plot(column, [line.get("success_skill", np.nan) for line in lines], "--", label=f"{phase}, with skills")
            axis.axvline(column[-1], color="grey", lw=0.5)
        offset = x[-1]
    for axis, name in zip(axes, ("minutes", "iterations", "thousand environment steps")):
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("success while training")
    axes[0].set_ylim(0, 1)
    axes[-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


# ---- main ----------------------------------------------------------------------------------------------------------------------


def fingerprint(arm):
    """What identifies an arm's weights and skills, so that an interrupted evaluation goes on only with the same ones."""
    _, policy, skills = arm
    files = [*Path(policy).glob("*.safetensors"), *([Path(skills)] if skills else [])]
    return [str(policy), str(skills), *(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in sorted(files))]


def main():
    parser = base_parser(__doc__)
    group = parser.add_argument_group("evaluation")
    group.add_argument("--policy", type=text, nargs="+", help="policies to compare (default: the phases of --run)")
    group.add_argument("--with-skills", type=text, help="skills.jsonl: adds an arm with skills in the prompt for every policy of --policy")
    group.add_argument("--show", type=whole(1), default=3, help="active skills in a skill prompt")
    group.add_argument("--split", nargs="+", help="splits (default: all but the training split; held_out: training games set aside)")
    group.add_argument("--repetitions", type=whole(1), default=2, help="episodes per task")
    group.add_argument("--games", type=whole(1), help="only so many tasks of each split, evenly spread")
    group.add_argument("--temperature", type=number(above=0, most=100), default=0.4, help="of sampling")
    group.add_argument("--baseline", help="arm that differences refer to (default: after warm-up, else the first)")
    group.add_argument("--out", type=text, help="output folder (default: runs/NAME/evaluate)")
    args = parse_args(parser)
    arms = named_arms(args) if args.policy else default_arms(args)
    banks = {skills: skills_file(skills) if skills else [] for _, _, skills in arms}
    for _, policy, _ in arms:
        check_model(str(policy), args)
    env = make_env(args.env, args.simulator, args.max_steps)
    splits = args.split or env.split_names[1:]
    panels = {split: split_tasks(env, split) for split in splits}
    if args.games:
        panels = {s: [t[i * len(t) // args.games] for i in range(min(args.games, len(t)))] for s, t in panels.items()}
    names = [name for name, _, _ in arms]
    baseline = args.baseline or ("after warm-up" if "after warm-up" in names else names[0])
    if baseline not in names:
        raise UserError(f"--baseline {baseline}: expected one of {', '.join(names)}")

    out = Path(args.out or f"runs/{args.run}/evaluate")
    path = out / "results.jsonl"
    same = json.dumps({"args": {k: v for k, v in vars(args).items() if k != "overwrite"}, "arms": [[a[0], *fingerprint(a)] for a in arms]})

    def earlier():
        """What an interrupted evaluation has answered already."""
        if out.exists() and ((out / "args.json").exists() and (out / "args.json").read_text() != same or args.overwrite):
            shutil.rmtree(out)  # other weights or other questions: old answers do not count
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / "args.json", same)
        except OSError as error:
            raise UserError(f"cannot write to {out} ({error.strerror}): choose another --out") from None
        return read_jsonl(path) if path.exists() else []

    results = parallel.first(earlier)
    for split in splits:
        what = env.describe(env.split_names[0] if split == "held_out" else split)
        if hasattr(env, "ceiling") and split != "held_out":
            what += f", of which {env.ceiling(split):.1%} can be won"
        print(f"{what}; {split} {len(panels[split])} x {args.repetitions} episodes, temperature {args.temperature}", flush=True)
    for name, folder, skills in arms:
        policy = None
        for split in splits:
            if any(r["arm"] == name and r["split"] == split for r in results):
                continue  # finished before an interruption
            policy = policy or load_policy(folder, args)
            results += play_panel(policy, env, panels[split], banks[skills], args, split, name)
            write_jsonl(path, results)
            wins = [r["success"] for r in results if r["arm"] == name and r["split"] == split]
            print(f"  {name}, {split}: {sum(wins)} of {len(wins)}", flush=True)
    if parallel.rank():
        return

    rows = summarise(results, names, splits, baseline)
    about = {"hardware": f"{torch.get_num_threads()} threads, {args.device}", "command": " ".join(sys.argv), "baseline": baseline}
    write_atomically(out / "summary.json", json.dumps(about | {"temperature": args.temperature, "rows": rows}, indent=1) + "\n")
    bars(rows, out / "success.png", by_type=False)
    bars(rows, out / "types.png", by_type=True)
    drawn = not args.policy and curves(Path("runs") / args.run, out / "curves.png")
    print_table(rows, baseline)
    print(f"written: {path}, summary.json, success.png, types.png{', curves.png' if drawn else ''}")


if __name__ == "__main__":
    run_script(main)
