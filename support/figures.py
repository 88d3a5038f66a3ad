"""The figures: of an evaluation (success by arm, by task type, while a run was training), and
those of the README.

    hero     unseen games over time, SIRI and its control, band over seeds, the time to a level
             marked
    skills   every skill's effect by its own pairs beside fresh games
    strip    an episode as a comic: one box a step, coloured by its advantage

Drawing is imported here only, by whoever draws: matplotlib takes a second to load.
"""

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from scipy import stats

from support.report import lines_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PHASES = {"warmup": "after warm-up", "mine": "after mining", "distill": "SIRI"}


def tick(kind):
    """A task type as it stands below a bar: in two lines where it is long, never cut."""
    words = kind.replace("_", " ").removeprefix("pick ").split()
    half = (len(words) + 1) // 2
    if len(" ".join(words)) <= 14:
        return " ".join(words)
    return " ".join(words[:half]) + "\n" + " ".join(words[half:])


def in_words(arm):
    """An arm's name as a reader sees it: runs/a/distill is "a: SIRI"."""
    name, _, more = arm.partition(" + ")
    parts = Path(name).parts
    if len(parts) > 2 and parts[0] == "runs":
        name = f"{parts[1]}: {PHASES.get(parts[2], parts[2])}"
    return f"{name}, with {more}" if more else name


def save(figure, path, columns):
    """The legend stands below the axes, where it hides nothing."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    for axis in figure.axes[1:]:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            if label not in labels:
                handles, labels = [*handles, handle], [*labels, label]
    rows = -(-len(labels) // columns)
    figure.tight_layout(rect=(0, 0.07 * rows, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=columns, fontsize=8, frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def bars(rows, path, by_type):
    """Success with intervals by arm: over all games, or by task type.  rows: those of
    summary.json."""
    splits = list(dict.fromkeys(row["split"] for row in rows))
    width = max(4.0, 1 + (8 if by_type else 3.5) * len(splits))
    figure, axes = plt.subplots(1, len(splits), figsize=(width, 4), sharey=True, squeeze=False)
    for axis, split in zip(axes[0], splits):
        part = [row for row in rows if row["split"] == split]
        names = sorted({name for row in part for name in row["by_type"]})
        names = names if by_type else ["all games"]
        for i, row in enumerate(part):
            whole = (row["success"], row["low"], row["high"])
            values = [row["by_type"].get(name, (0, 0, 0)) for name in names] if by_type else [whole]
            x = np.arange(len(names)) + (i - (len(part) - 1) / 2) * 0.8 / len(part)
            rate, low, high = map(np.array, zip(*values))
            height = [np.maximum(rate - low, 0), np.maximum(high - rate, 0)]
            axis.bar(x, rate, 0.75 / len(part), yerr=height, label=in_words(row["arm"]), capsize=2)
        axis.set_xticks(np.arange(len(names)), [tick(name) for name in names], fontsize=8)
        axis.set_title(split)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("success, 95 % interval")
    axes[0][0].set_ylim(0, 1)
    save(figure, path, columns=min(4, max(1, int(width / 2.2))))


def curves(run, path):
    """Training success of a run's phases against wall-clock, iterations and environment steps;
    False without any metrics."""
    files = {phase: Path(run) / phase / "metrics.jsonl" for phase in PHASES}
    # a running phase may be writing its last line
    phases = [(phase, list(lines_of(file, []))) for phase, file in files.items()]
    phases = [(phase, lines) for phase, lines in phases if lines]
    if not phases:
        return False
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
    offset = np.zeros(3)
    for phase, lines in phases:
        steps = np.cumsum([line["env_steps"] for line in lines])
        minutes = [line["elapsed"] / 60 for line in lines]
        x = np.array([minutes, range(1, len(lines) + 1), steps / 1000]).T + offset
        for axis, column in zip(axes, x.T):
            plain = [line["success_plain"] for line in lines]
            axis.plot(column, plain, label=f"{phase}, plain prompt")
            if any("success_skill" in line for line in lines):
                shown = [line.get("success_skill", np.nan) for line in lines]
                axis.plot(column, shown, "--", label=f"{phase}, with skills")
            axis.axvline(column[-1], color="grey", lw=0.5)
        offset = x[-1]
    for axis, name in zip(axes, ("minutes", "iterations", "thousand environment steps")):
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("success while training")
    axes[0].set_ylim(0, 1)
    save(figure, path, columns=5)
    return True


# ---- figures of the README: colours of Okabe and Ito, and a second sign beside every colour ------

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def hero(points, path, arms, split="valid_unseen", clock="minutes", level=0.7):
    """Success over time: mean and Student's 95 % interval over seeds, and when the mean first
    reaches `level`.

    points: those of recipes/compare.py (arm, seed, split, success, and clocks); arms: arm -> its
    name in words, the method first. The axis is a square root, since most of a climb is in the
    first tenth of a run.  Returns {arm: time to the level}."""
    figure, axis = plt.subplots(figsize=(8, 4.5))
    times = {}
    styles = zip((BLUE, GREY, ORANGE, GREEN), ("-", "--", ":", "-."))
    for (arm, name), (colour, line) in zip(arms.items(), styles):
        part = [p for p in points if p["arm"] == arm and p["split"] == split]
        seeds = sorted({p["seed"] for p in part})
        runs = []
        for seed in seeds:
            points_of_seed = [(p[clock], p["success"]) for p in part if p["seed"] == seed]
            runs.append(np.array(sorted(points_of_seed)).T)
        x = np.linspace(max(run[0][0] for run in runs), min(run[0][-1] for run in runs), 400)
        y = np.array([np.interp(x, *run) for run in runs])  # (seeds, 400)
        mean = y.mean(0)
        axis.plot(x, mean, line, color=colour, lw=2.5, label=name)
        if len(seeds) > 1:
            half = stats.t.ppf(0.975, len(seeds) - 1) * y.std(0, ddof=1) / len(seeds) ** 0.5
            high = np.minimum(mean + half, 1)
            axis.fill_between(x, mean - half, high, color=colour, alpha=0.18, lw=0)
        if (reached := mean >= level).any():
            times[arm] = at = float(x[reached.argmax()])
            axis.plot([at, at], [0, level], line, color=colour, lw=1)
            axis.plot(at, level, "o", color=colour)
            told = f"{level:.2f} after {at:.1f} {clock}"
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            left = at < x[-1] / 2  # there is room to its right
            axis.annotate(
                told, (at, 0.03 + 0.08 * len(times)), (6 if left else -6, 0),
                ha="left" if left else "right", textcoords="offset points", fontsize=10,
                color=colour, bbox=box,
            )  # fmt: skip
    axis.axhline(level, color="#aaaaaa", lw=0.8, zorder=0)
    axis.set(xlim=(0, None), ylim=(0, 1), xlabel=f"{clock} after warm-up (square root)")
    axis.set_ylabel(f"success, {split.replace('_', ' ')} games")
    axis.set_xscale("function", functions=(np.sqrt, np.square))
    ticks = (0, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50)
    axis.set_xticks([t for t in ticks if t <= axis.get_xlim()[1]])
    axis.xaxis.set_major_formatter(lambda t, _: f"{t:g}")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper left", frameon=False, title=f"mean and 95 % over {len(seeds)} seeds")
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return times


def skills(rows, path, most=16):
    """Forest plot: what promoted a skill (its own pairs) and what it is worth (fresh games), 95 %.

    rows: effects.jsonl of recipes/effects.py: condition, strategy, status, mean_delta, fresh,
    half, pairs, n_eval."""
    rows = [row for row in rows if row.get("pairs")]
    rows = sorted(sorted(rows, key=lambda row: -row["n_eval"])[:most], key=lambda row: row["fresh"])
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.2))
    for i, row in enumerate(rows):
        axis.plot([row["mean_delta"], row["fresh"]], [i, i], color="#cccccc", lw=1.5, zorder=0)
        label = "fresh games, 95 %" if i == 0 else None
        how = dict(fmt="s", color=BLUE, capsize=2, label=label)
        axis.errorbar(row["fresh"], i, xerr=row["half"], **how)
        own = {"label": "its own pairs" if i == 0 else None}
        axis.plot(row["mean_delta"], i, "o", mfc="white", mec=ORANGE, mew=2, ms=8, **own)
    axis.axvline(0, color="black", lw=0.8)
    texts = [f"when {row['condition']}: {row['strategy']} ({row['status']})" for row in rows]
    axis.set_yticks(range(len(rows)), [textwrap.fill(text, 52) for text in texts], fontsize=8)
    low, high = axis.get_xlim()
    what = "success with the skill minus success without"
    axis.set(xlabel=what, xlim=(max(-1, low), min(1, high)))
    axis.spines[["top", "right"]].set_visible(False)
    where = dict(loc="lower right", bbox_to_anchor=(1, 1), bbox_transform=axis.transAxes)
    figure.legend(*axis.get_legend_handles_labels(), ncols=2, frameon=False, **where)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def strip(episodes, path, most=10):
    """Episodes as rows of boxes, one a step: the action in words, the advantage as colour and
    number.

    episodes: lines of trajectories.jsonl, of one group; those with more than `most` steps say how
    many are left out."""
    figure, axis = plt.subplots(figsize=(1.35 * most + 1.6, 0.95 * len(episodes) + 0.4))
    largest = max(abs(s["advantage"]) for r in episodes for s in r["steps"]) or 1.0
    # orange below zero, violet above: told apart by the colour-blind, too
    colours = plt.get_cmap("PuOr")
    for i, r in enumerate(episodes):
        mark = "won" if r["success"] else "lost"
        prompt = "with a skill" if r["condition"] == "skill" else "plain"
        axis.text(-0.1, -i, f"{prompt}\n{mark}", ha="right", va="center", fontsize=9)
        for t, s in enumerate(r["steps"][:most]):
            share = s["advantage"] / largest
            face = colours(0.5 + 0.27 * share)
            corner, edge = (t + 0.03, -i - 0.42), dict(ec="#888888", lw=0.8)
            axis.add_patch(plt.Rectangle(corner, 0.94, 0.84, fc=face, **edge))
            text = textwrap.fill(s["action"], 14, break_long_words=True)
            axis.text(t + 0.5, -i + 0.08, text, ha="center", va="center", fontsize=7.5)
            advantage, how = f"A {s['advantage']:+.1f}", dict(ha="center", va="bottom", fontsize=7)
            axis.text(t + 0.5, -i - 0.36, advantage, **how)
        if len(r["steps"]) > most:
            axis.text(most + 0.1, -i, f"+ {len(r['steps']) - most}\nmore", va="center", fontsize=8)
    axis.set(xlim=(-1.1, most + 0.7), ylim=(-len(episodes) + 0.45, 0.6))
    axis.set_title(episodes[0]["task"], fontsize=11, loc="left")
    axis.axis("off")
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
