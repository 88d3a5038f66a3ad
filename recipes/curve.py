"""The pictures of README and docs, from recorded results, into docs/img/.

    python recipes/curve.py     curve-light.svg, curve-dark.svg: SIRI and GiGPO after warm-up, over
                                seeds; hero.png: unseen games alone, with the time to .70;
                                skills.png: what promoted a skill and what it is worth
    python recipes/curve.py --run NAME --group distill-2-0       also strip.png: tries of one game

recipes/compare.py draws all splits against all clocks; these are the pictures for a first look.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from envs import UserError  # noqa: E402
from envs.arguments import Parser, run_tool, text  # noqa: E402
from recipes.compare import band, curve  # noqa: E402
from support import figures  # noqa: E402
from support.cli import run_name  # noqa: E402
from support.files import read_jsonl  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

POINTS = ROOT / "results" / "houses-five" / "points.jsonl"
EFFECTS = ROOT / "results" / "effects" / "effects.jsonl"
SPLITS = {"valid_seen": "rooms that training knows", "valid_unseen": "rooms never seen"}
COLOURS = {  # of text, GiGPO, SIRI: on a white page and on a dark one
    "light": ("#1f2328", "#8250df", "#0969da"),
    "dark": ("#e6edf3", "#bc8cff", "#4493f8"),
}


def draw(points, arms, path, text, *colours):
    """Mean and Student's 95 % interval over seeds; the axis is a root, for the climb."""
    seeds = sorted({p["seed"] for p in points})
    kinds = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    plt.rcParams.update(dict.fromkeys(kinds, text) | {"font.size": 11})
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.1), sharey=True)
    for axis, (split, title) in zip(axes, SPLITS.items()):
        for arm, name, colour in zip(arms, ("GiGPO alone", "SIRI"), colours):
            runs = [curve(points, arm, seed, split, "minutes") for seed in seeds]
            # only where all seeds have points on both sides: nothing is extrapolated
            known = np.concatenate([x for x, _ in runs])
            x = np.unique(known.clip(max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs)))
            levels = [band([np.interp(at, *run) for run in runs]) for at in x]
            mean, low, high = np.array(levels).T
            axis.plot(x, mean, color=colour, label=name, linewidth=2)
            axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set_xlim(left=0)  # before the scale: a root has no place for the margin below zero
        axis.set_xscale("function", functions=(np.sqrt, np.square))
        ticks = [t for t in (0, 0.5, 1, 2, 4, 6, 8, 10) if t <= known.max()]
        axis.set_xticks(ticks, [f"{t:g}".replace("0.5", ".5") for t in ticks])
        axis.set_xlabel("minutes after warm-up, one core")
        axis.set_title(title, fontsize=11)
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("games won, plain prompt")
    axes[1].legend(loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None})  # the same file every time
    plt.close(figure)


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--points", type=text, default=str(POINTS))
    parser.add_argument("--arms", nargs=2, default=["gigpo-houses", "siri-houses"])
    about = "a run, and one of its groups, for strip.png"
    parser.add_argument("--run", type=run_name, help=about)
    parser.add_argument("--group", type=text, default="distill-0-0", help="its group_id")
    about = "folder of the figures"
    parser.add_argument("--out", type=text, default=str(ROOT / "docs" / "img"), help=about)
    args = parser.parse_args()
    points = read_jsonl(args.points)
    absent = [arm for arm in args.arms if arm not in {point.get("arm") for point in points}]
    if absent or not Path(args.out).is_dir():
        found = f"no points of {absent[0]} in {args.points}" if absent else f"no folder {args.out}"
        raise UserError(f"{found}: name others with --points, --arms and --out")
    plt.rcParams["svg.hashsalt"] = "siri"  # ids of shapes: the same every time
    for theme, colours in COLOURS.items():
        path = Path(args.out) / f"curve-{theme}.svg"
        with plt.rc_context():  # or the other pictures have the dark page's text
            draw(points, args.arms, path, *colours)
        print(path)
    gigpo, siri = args.arms
    figures.hero(points, Path(args.out) / "hero.png", {siri: "SIRI", gigpo: "GiGPO alone"})
    figures.skills(read_jsonl(EFFECTS), Path(args.out) / "skills.png")
    if args.run:
        phase = Path("runs") / args.run / args.group.split("-")[0]
        played = read_jsonl(phase / "trajectories.jsonl")
        group = [record for record in played if record["group_id"] == args.group]
        if not group:
            raise UserError(f"no group {args.group} in {phase}: give another one with --group")
        figures.strip(group, Path(args.out) / "strip.png")


if __name__ == "__main__":
    run_tool(main)
