"""What a mining phase has proven, a row per run (runs/RUN/mine):

    python results/mining-default/summarise.py OUT.json RUN [RUN ...]

Writes OUT.json and OUT.md: promoted skills and their pairs by task type, groups that were played
plain though a living skill fitted, shares of the task types among the games, seconds and
environment steps."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from common import retrieve  # noqa: E402
from support.files import read_jsonl  # noqa: E402


def text(skill):
    return f"when {skill['condition']}: {skill['strategy']}"


def of_run(name):
    folder = Path("runs") / name / "mine"
    names = ("skills", "pairs", "metrics")
    bank, pairs, metrics = (read_jsonl(folder / f"{name}.jsonl") for name in names)
    records = read_jsonl(folder / "trajectories.jsonl")
    types = sorted({r["task_type"] for r in records})
    promoted = [s for s in bank if s["status"] == "active" or "effect" in s]
    covered = {s["task_type"] for s in promoted} - {None}
    groups = {(r["iteration"], r["group_id"]): r for r in records}
    paired = {(p["iteration"], p["group_id"]) for p in pairs}

    def missed(k, record):  # a plain group for which a skill was alive all iteration long
        alive = [s for s in bank if s["created_iter"] <= k]
        alive = [s for s in alive if s["retired_iter"] is None or s["retired_iter"] > k]
        alive = [s for s in alive if record["task_id"] not in s["source_task_ids"]]
        return bool(retrieve(alive, record["task"], record["task_type"], 1))

    share = Counter(r["task_type"] for r in groups.values())
    return {
        "run": name,
        "written": len(bank),
        "places for one object": sum(s["task_type"] is None for s in bank),
        "promoted": len(promoted),
        "promoted places": sum(s["task_type"] is None for s in promoted),
        "types": len(covered),
        "types missing": [t for t in types if t not in covered],
        "pairs of promoted": sorted(s["n_eval"] for s in promoted),
        "pairs of others": sorted(s["n_eval"] for s in bank if s not in promoted),
        "groups": len(groups),
        "pairs": len(pairs),
        "plain though a skill fitted": sum(
            missed(k, r) for (k, g), r in groups.items() if (k, g) not in paired
        ),
        "least and largest share of a type": [
            round(one(share.values()) / len(groups), 3) for one in (min, max)
        ],
        "mean effect of promoted": round(
            float(np.mean([d for s in promoted for d in s["deltas"]] or [0])), 3
        ),
        "success plain": [round(m["success_plain"], 2) for m in metrics],
        "success skill": [round(m.get("success_skill", 0), 2) for m in metrics],
        "iterations": len(metrics),
        "env steps": sum(m["env_steps"] for m in metrics),
        "seconds": round(metrics[-1]["elapsed"], 0),
        "seconds an iteration": round(metrics[-1]["elapsed"] / len(metrics), 1),
        "skills": [
            [s["status"], s["task_type"], round(s["utility"], 2), s["n_eval"], s["deltas"], text(s)]
            for s in bank
        ],
    }


out, *runs = sys.argv[1:]
rows = [of_run(run) for run in runs]
Path(out).write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
shown = [
    "run", "written", "promoted", "types", "pairs of promoted", "pairs of others", "pairs",
    "groups", "plain though a skill fitted", "mean effect of promoted", "env steps", "seconds",
]  # fmt: skip
lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
for row in rows:
    lines.append("| " + " | ".join(str(row[key]).strip("[]") for key in shown) + " |")
Path(out).with_suffix(".md").write_text("\n".join(lines) + "\n")
print("\n".join(lines))
