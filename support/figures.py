"""The figures of an evaluation: success by arm and by task type, and success while a run was training.

Drawing is imported here only, by whoever draws: matplotlib takes a second to load.
"""

from pathlib import Path

import matplotlib
import numpy as np

from support.files import read_jsonl

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PHASES = {"warmup": "after warm-up", "mine": "after mining", "distill": "SIRI"}


def tick(kind):
    """A task type as it stands below a bar: in two lines where it is long, never cut."""
    words = kind.replace("_", " ").removeprefix("pick ").split()
    half = (len(words) + 1) // 2
    return " ".join(words) if len(" ".join(words)) <= 14 else " ".join(words[:half]) + "\n" + " ".join(words[half:])


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
    """Success with intervals by arm: over all games, or by task type.  rows: those of summary.json."""
    splits = list(dict.fromkeys(row["split"] for row in rows))
    width = max(4.0, 1 + (8 if by_type else 3.5) * len(splits))
    figure, axes = plt.subplots(1, len(splits), figsize=(width, 4), sharey=True, squeeze=False)
    for axis, split in zip(axes[0], splits):
        part = [row for row in rows if row["split"] == split]
        names = sorted({name for row in part for name in row["by_type"]}) if by_type else ["all games"]
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
    """Training success of a run's phases against wall-clock, iterations and environment steps; False without any metrics."""
    files = {phase: Path(run) / phase / "metrics.jsonl" for phase in PHASES}
    phases = [(phase, read_jsonl(file)) for phase, file in files.items() if file.exists()]
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
    save(figure, path, columns=5)
    return True
