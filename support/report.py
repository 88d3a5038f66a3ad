"""The report of a run: one HTML page that needs no server, no network and no other file.

    write_report(run_folder) -> path    runs/NAME/report.html, of what has been written so far

    gather      everything that the page says, from the phases' files, traces and evaluate/
    dissect     equations (1)-(7) of one group in numbers, from the rewards once more
    glossary    each metric in a sentence, with the line that computes it, found in the source
    page        the data as escaped JSON and gzip + base64 in support/report.html.j2, whose script
                draws

A page holds whole groups of a few iterations (those with traces, and some evenly spread), not all
episodes: it stays below 5 MB whatever the run's length.  Half-written lines are counted and named
on the page, and never stop it.  Model and product texts are data all the way: the page sets them
with textContent only."""

import ast
import base64
import gzip
import json
import math
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from jinja2 import Environment

from envs import UserError
from support.files import load_json, write_atomically
from support.records import NUMBER, lacking

ROOT = Path(__file__).parents[1]
PHASES = ("warmup", "mine", "distill")
EVALUATED = (
    40  # games of the evaluation that it holds, those first that one policy wins and another loses
)
GROUPS = 8  # whole groups per phase that the page holds, traced ones first
GAMMA, COST, EPS = (
    0.95,
    0.1,
    1e-6,
)  # of (1)-(6); `dissect` says where its numbers are not the file's


# ---- reading -------------------------------------------------------------------------------------


PAIR = {0: str, 1: str}  # of observation and action
TOKENS = {"w": NUMBER, "M": [NUMBER], "sampled": [NUMBER], "before": [NUMBER], "after": [NUMBER]}
NEEDED = {  # what the page reads of a line, by file; "key?" may be absent
    "args.json": {"args?": {"omega?": NUMBER, "adv_mode?": str}},
    "metrics.jsonl": {
        "iteration": int, "no_signal": NUMBER, "inadmissible_rate": NUMBER, "env_steps": int,
        "elapsed": NUMBER, "success_plain": NUMBER,
    },
    "traces.jsonl": {"iteration": int, "group_id": str, "traj_id": str, "steps": [TOKENS]},
    "pairs.jsonl": {
        "iteration": int, "group_id": str, "delta": NUMBER, "s_skill": [NUMBER],
        "s_base": [NUMBER], "skill_ids": [str],
    },
    "skills.jsonl": {
        "skill_id": str, "condition": str, "strategy": str, "status": str, "deltas?": [NUMBER],
        "source_traj_ids?": [str], "effect?": {0: NUMBER, 1: NUMBER, 2: NUMBER},
    },
    "results.jsonl": {
        "arm": str, "split": str, "task_id": str, "task_type": str, "task": str,
        "success": NUMBER, "score": NUMBER, "skill_ids": [str], "steps?": [PAIR],
    },
    "effects.jsonl": {"skill_id": str},
}  # fmt: skip


def misfit(value, shape):
    """Where a value is not as a shape of NEEDED says: a key, "" for the value itself; None where it
    is."""
    if isinstance(shape, list):
        found = [misfit(one, shape[0]) for one in value] if isinstance(value, list) else [""]
        return next((one for one in found if one is not None), None)
    if not isinstance(shape, dict):
        return None if isinstance(value, shape) else ""
    if 0 in shape:  # a list of that length
        fits = isinstance(value, list) and len(value) == len(shape)
        fits = fits and all(misfit(one, shape[i]) is None for i, one in enumerate(value))
        return None if fits else ""
    if not isinstance(value, dict):
        return ""
    for key, one in shape.items():
        name = key.removesuffix("?")
        if (name in value or name == key) and misfit(value.get(name), one) is not None:
            return name
    return None


def lack_of(path, row):
    """What a line is not, or lacks, in words; None where it can be read."""
    if not isinstance(row, dict):
        return "is not a JSON object"
    shape = NEEDED.get(path.name, {})
    lack = lacking(row) if path.name == "trajectories.jsonl" else misfit(row, shape)
    return f"has no {lack} as it should be" if lack else None


def lines_of(path, problems):
    """The objects of a JSON-lines file, one by one; lines that are none, or lack what the page
    reads, are named in `problems` (a running phase may be writing)."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                row = load_json(line)
            except ValueError:
                row = None
            if lack := lack_of(path, row):
                where = f"{path.parent.name}/{path.name}, line {number}"
                problems.append(f"{where} {lack}: left out ({line[:60].strip()!r})")
            else:
                yield row


def object_of(path, problems):
    """A JSON object from a file; {} where there is none."""
    if not path.exists():
        return {}
    try:
        found = load_json(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if lack := lack_of(path, found):
        problems.append(f"{path.parent.name}/{path.name} {lack}: left out")
    return {} if lack else found


# ---- one group in numbers ------------------------------------------------------------------------


def dissect(group, mode, omega):
    """(1)-(7) of the episodes of one group; writes Q, q, score, anchor, mean_e, std_e, mean_q,
    std_q into their steps.

    group: trajectories of one group_id.  Returns the largest absolute difference to the advantages
    in the file."""
    rows, anchors, seen = [], defaultdict(list), {}
    for episode in group:
        total, q = sum(s["reward"] for s in episode["steps"]), 0.0
        for s in reversed(episode["steps"]):
            q = s["reward"] + GAMMA * q
            penalty = COST * (not s["valid"])
            s |= {"Q": q, "q": q - penalty, "score": total - penalty}
        for s in episode["steps"]:
            s["anchor"] = seen.setdefault(s["observation"], len(seen))
            anchors[s["anchor"]].append(s)
            rows.append(s)
    measures = [("score", "e", "A_E", [rows]), ("q", "q", "A_S", anchors.values())]
    for value, name, out, sets in measures:
        for same in sets:
            values = np.array([s[value] for s in same])
            mean, std = values.mean(), values.std(ddof=1) if len(values) > 1 else 0.0
            for s, x in zip(same, values):
                s |= {f"mean_{name}": float(mean), f"std_{name}": float(std)}
                alone = len(same) == 1
                if mode == "mean_norm" or alone:
                    s[out] = float(x) if alone and out == "A_E" else float(x - mean)
                else:
                    s[out] = float((x - mean) / (std + EPS)) if std > 1e-8 else 0.0
    return max((abs(s["A_E"] + omega * s["A_S"] - s["advantage"]) for s in rows), default=0.0)


def short(step):
    """A step as the page holds it."""
    keep = (
        "t",
        "observation",
        "action",
        "response",
        "valid",
        "inadmissible",
        "reward",
        "anchor",
        "anchor_size",
        "gate",
    )
    line = {key: step[key] for key in keep if key in step}
    numbers = (
        "Q",
        "q",
        "score",
        "mean_e",
        "std_e",
        "mean_q",
        "std_q",
        "episode_advantage",
        "step_advantage",
        "advantage",
        "weight",
    )
    return line | {key: round(step[key], 4) for key in numbers if key in step}


# ---- gathering -----------------------------------------------------------------------------------


def wanted_iterations(metrics, traces):
    """Iterations of which the page holds whole groups: the traced ones, the first, the last, and
    some between."""
    n = len(metrics)
    spread = {round(i * (n - 1) / (GROUPS - 1)) for i in range(GROUPS)} if n else set()
    return {metrics[i]["iteration"] for i in spread} | {line["iteration"] for line in traces}


def choose_groups(groups, traced):
    """At most GROUPS groups: traced ones, then one per iteration, where a skill was shown and tries
    differed first."""

    def worth(item):
        name, group = item
        outcomes = {r["success"] for r in group}
        shown = any(r["condition"] == "skill" for r in group)
        return name in traced, len(outcomes) > 1, shown

    first, later, iterations = [], [], set()
    for name, group in sorted(groups.items(), key=worth, reverse=True):
        iteration = group[0]["iteration"]
        (first if name in traced or iteration not in iterations else later).append(name)
        iterations.add(iteration)
    return sorted((first + later)[:GROUPS], key=lambda name: (groups[name][0]["iteration"], name))


def phase_data(folder, problems, keep_ids):
    """(data for the page, groups: name -> trajectories, single episodes that a skill was written
    from)."""
    about = object_of(folder / "args.json", problems)
    metrics = list(lines_of(folder / "metrics.jsonl", problems))
    traces = list(lines_of(folder / "traces.jsonl", problems))
    wanted, groups, singles, taught, starts = (
        wanted_iterations(metrics, traces),
        defaultdict(list),
        [],
        Counter(),
        Counter(),
    )
    for r in lines_of(folder / "trajectories.jsonl", problems):
        if r["iteration"] in wanted:
            groups[r["group_id"]].append(r)
        elif r["traj_id"] in keep_ids:
            singles.append(r)
        starts[r["task_type"]] += 1
        for s in r["steps"]:
            if s.get("weight"):
                taught[r["task_type"], s["action"]] += s["weight"]
    names = choose_groups(groups, {line["group_id"] for line in traces})
    singles += [
        r
        for name, group in groups.items()
        if name not in names
        for r in group
        if r["traj_id"] in keep_ids
    ]
    args = about.get("args", {})
    data = {
        "phase": folder.name, "args": args, "command": about.get("command", ""),
        "versions": about.get("versions", {}), "done": object_of(folder / "done", problems),
        "metrics": metrics, "task_types": dict(starts.most_common()),
        "taught": [[kind, action, round(w, 2)] for (kind, action), w in taught.most_common(15)],
    }  # fmt: skip
    return data, {name: groups[name] for name in names}, singles, traces


def group_payload(name, group, args, traces, evidence):
    """What the page unpacks when a group is looked at."""
    gap = dissect(group, args.get("adv_mode", "mean_norm"), args.get("omega", 1.0))
    first = group[0]
    about = {key: first[key] for key in ("phase", "iteration", "task_id", "task_type", "task")} | {
        "id": name,
        "gap": gap,
    }
    about |= {"mode": args.get("adv_mode", "mean_norm"), "omega": args.get("omega", 1.0)} | evidence
    return about | {"episodes": [episode_payload(r, traces) for r in group]}


def episode_payload(r, traces):
    about = {
        key: r[key] for key in ("traj_id", "condition", "skill_ids", "success", "score", "reward")
    }
    trace = traces.get(r["traj_id"])
    return (
        about
        | {"steps": [short(s) for s in r["steps"]]}
        | ({"trace": trace["steps"]} if trace else {})
    )


def before_after(traces):
    """Per iteration of distillation: mean log-prob of the traced tokens with M = 1, weighted by w,
    before and after the update."""
    lines = []
    for k in sorted({line["iteration"] for line in traces}):
        steps = [
            s for line in traces if line["iteration"] == k for s in line["steps"] if s["w"] > 0
        ]
        total = sum(s["w"] * m for s in steps for m in s["M"])
        if total:
            means = {
                key: sum(s["w"] * m * x for s in steps for m, x in zip(s["M"], s[key])) / total
                for key in ("sampled", "before", "after")
            }
            lines.append({"iteration": k, "tokens": sum(m for s in steps for m in s["M"])} | means)
    return lines


def lives(skills, pairs, phases):
    """Every skill with its pairs in order of time: [phase, iteration, D_g, utility after it];
    utility by (15), as credit computes it."""
    first = {
        phase: sum(len(p["metrics"]) for p in phases[:i])
        for i, phase in enumerate(p["phase"] for p in phases)
    }
    history = defaultdict(list)
    for phase, pair in pairs:
        for name in pair["skill_ids"]:
            a = max(0.2, 1 / (len(history[name]) + 1))
            u = (1 - a) * (history[name][-1][3] if history[name] else 0.0) + a * pair["delta"]
            history[name].append(
                [
                    phase,
                    first.get(phase, 0) + pair["iteration"],
                    pair["delta"],
                    round(u, 4),
                    pair["group_id"],
                ]
            )
    rows = []
    for skill in skills:
        keep = (
            "skill_id",
            "task_type",
            "title",
            "condition",
            "strategy",
            "status",
            "utility",
            "n_eval",
            "source_traj_ids",
            "retired_iter",
        )
        rows.append(
            {key: skill.get(key) for key in keep}
            | {"pairs": history[skill["skill_id"]], "why": why(skill)}
        )
    order = ("active", "retired", "candidate")
    return sorted(
        rows,
        key=lambda row: (
            order.index(row["status"]) if row["status"] in order else 3,
            -len(row["pairs"]),
            row["skill_id"],
        ),
    )


ENDS = {
    "hurts": "retired: with it success was lower",
    "absorbed": "retired: the plain prompt has caught up, what it said is in the weights",
    "no effect shown": "retired: no effect could be shown",
}


def why(skill):
    if skill["status"] == "active":
        effect = skill.get("effect")
        return "promoted: it helps" + (
            "" if not effect else " {:+.2f} [{:+.2f}, {:+.2f}]".format(*effect)
        )
    if skill["status"] == "candidate":
        return "not tried by enough pairs yet"
    return ENDS.get(
        skill.get("reason"), f"retired: {skill.get('reason') or 'its utility stayed below zero'}"
    )


def own_and_fresh(skills, fresh):
    """Rows of the forest plot: mean of a skill's own pairs, and on fresh games where
    recipes/effects.py has played them."""
    rows, fresh = [], {row["skill_id"]: row for row in fresh}
    for skill in skills:
        d = np.array(skill.get("deltas") or [])
        if not len(d):
            continue
        half = 1.96 * d.std(ddof=1) / math.sqrt(len(d)) if len(d) > 1 else None
        row = {
            "skill_id": skill["skill_id"],
            "label": f"when {skill['condition']}: {skill['strategy']}",
            "status": skill["status"],
        }
        row |= {"own": float(d.mean()), "own_half": half, "pairs": len(d)}
        other = fresh.get(skill["skill_id"])
        if other and other.get("pairs"):
            row |= {
                "fresh": other["fresh"],
                "fresh_half": other["half"],
                "fresh_pairs": other["pairs"],
            }
        rows.append(row)
    return sorted(rows, key=lambda row: row["own"])


def discordant(results):
    """Games of a split that one of the last two plain arms won every time and the other lost every
    time."""
    wins = defaultdict(lambda: defaultdict(list))
    for r in results:
        wins[r["split"], r["task_id"], r["task_type"], r["task"]][r["arm"]].append(r["success"])
    arms = [arm for arm in dict.fromkeys(r["arm"] for r in results) if "kills" not in arm]
    if len(arms) < 2:
        return {"arms": arms, "games": []}
    a, b = arms[-2:]
    games = []
    for (split, task_id, kind, task), by_arm in wins.items():
        rates = [np.mean(by_arm[arm]) if by_arm[arm] else None for arm in (a, b)]
        if None not in rates and rates[0] != rates[1]:
            games.append(
                {
                    "split": split,
                    "task_id": task_id,
                    "task_type": kind,
                    "task": task,
                    "rates": [float(x) for x in rates],
                }
            )
    return {
        "arms": [a, b],
        "games": sorted(games, key=lambda g: (g["rates"][1] - g["rates"][0], g["task_id"])),
    }


def checks(phases, skills, problems):
    """What a careful reader would look at first: (what, fine or not, in words)."""
    rows = [
        [
            "files",
            not problems,
            f"{len(problems)} lines could not be read" if problems else "every line could be read",
        ]
    ]
    metrics = [line for p in phases for line in p["metrics"]]
    if not metrics:
        return rows + [["metrics", False, "no iteration has been finished yet"]]
    silent = float(np.mean([line["no_signal"] for line in metrics[-20:]]))
    rows.append(
        [
            "signal",
            silent < 0.8,
            f"{silent:.0%} of the last groups were won by all or by none: they teach nothing by "
            "(4)",
        ]
    )
    cut = sum(line.get("truncated", 0) for line in metrics)
    rows.append(
        [
            "prompts",
            cut == 0,
            f"{cut} prompts had to lose history to fit" if cut else "no prompt was too long",
        ]
    )
    gaps = [line["sampler_gap"] for line in metrics if "sampler_gap" in line]
    if gaps:
        rows.append(
            [
                "sampler",
                max(gaps) < 0.05,
                f"sampler and trainer differ by {max(gaps):.4f} nats per token at most",
            ]
        )
    bad = float(np.mean([line["inadmissible_rate"] for line in metrics[-20:]]))
    rows.append(["actions", bad < 0.2, f"{bad:.1%} of the last actions were unknown to the world"])
    if skills:
        untried = sum(not s.get("n_eval") for s in skills)
        rows.append(
            [
                "skills",
                untried == 0,
                f"{untried} of {len(skills)} skills never got a pair"
                if untried
                else "every skill got its pairs",
            ]
        )
    if any(p["phase"] == "mine" for p in phases) and not any(
        s["status"] != "candidate" for s in skills
    ):
        rows.append(["promotion", False, "no skill was promoted or retired: too few pairs"])
    return rows


def gather(run):
    """All data of the page: (data, payloads: id -> object that is unpacked when it is looked
    at)."""
    problems, payloads, index = [], {}, []
    folders = [run / phase for phase in PHASES if (run / phase / "args.json").exists()]
    if not folders:
        raise UserError(
            f"nothing to report in {run}: run `python warmup.py --run {run.name}` first"
        )
    banks = [
        list(lines_of(run / phase / "skills.jsonl", problems)) for phase in ("mine", "distill")
    ]
    skills = banks[1] or banks[0]
    skills = [s for s in skills if {"skill_id", "condition", "strategy", "status"} <= set(s)]
    sources = {name for skill in skills for name in skill.get("source_traj_ids", [])}
    phases, pairs, taught = [], [], []
    for folder in folders:
        data, groups, singles, traces = phase_data(folder, problems, sources)
        here = list(lines_of(folder / "pairs.jsonl", problems))
        pairs += [(folder.name, pair) for pair in here]
        evidence = {
            pair["group_id"]: {
                key: pair[key] for key in ("delta", "s_skill", "s_base", "skill_ids")
            }
            for pair in here
        }
        by_id = {line["traj_id"]: line for line in traces}
        for name, group in groups.items():
            payloads[name] = group_payload(name, group, data["args"], by_id, evidence.get(name, {}))
            index += [entry(r, name, r["traj_id"] in by_id) for r in group]
        for r in singles:
            payloads[r["traj_id"]] = group_payload(r["traj_id"], [r], data["args"], by_id, {}) | {
                "alone": True
            }
            index.append(entry(r, r["traj_id"], False))
        taught = before_after(traces) if folder.name == "distill" else taught
        phases.append(data)
    evaluation = object_of(run / "evaluate" / "summary.json", problems)
    results = list(lines_of(run / "evaluate" / "results.jsonl", problems))
    differ = discordant(results)
    for task_id, group in games_of(results, [game["task_id"] for game in differ["games"]]).items():
        name = f"evaluation/{task_id}"
        payloads[name] = {
            "id": name,
            "phase": "evaluate",
            "alone": True,
            "episodes": group,
            "task": group[0]["task"],
            "task_id": task_id,
        }
        index += [entry(r | {"phase": "evaluate", "iteration": 0}, name, False) for r in group]
    control = list(
        lines_of(run.parent / f"{run.name}-gigpo" / "warmup" / "metrics.jsonl", problems)
    )
    data = {
        "run": run.name, "written": time.strftime("%Y-%m-%d %H:%M"), "phases": phases,
        "control": slim(control), "index": index, "skills": lives(skills, pairs, phases),
        "forest": own_and_fresh(skills, lines_of(run / "mine" / "effects.jsonl", problems)),
        "rejected": list(lines_of(run / "mine" / "rejected.jsonl", problems)), "internal": taught,
        "evaluation": evaluation, "discordant": differ, "glossary": glossary(),
        "thresholds": {"tau": 0.05},
    }  # fmt: skip
    data["checks"] = checks(phases, skills, problems)
    data["problems"] = problems
    for phase in phases:
        phase["metrics"] = slim(phase["metrics"])
    return data, payloads


def entry(r, group, traced):
    about = {
        key: r.get(key)
        for key in (
            "traj_id",
            "phase",
            "iteration",
            "task",
            "task_type",
            "condition",
            "success",
            "arm",
        )
    }
    return about | {"group": group, "n": len(r["steps"]), "traced": traced}


def games_of(results, differing):
    """{task_id: episodes} of the evaluation's first tries, in the form of `episode_payload`: games
    that differ, and one of each type."""
    games = defaultdict(list)
    for r in results:
        if "steps" in r:
            name = f"{r['arm']}, {r['split']}, {r['task_id']}"
            condition = "skill" if r.get("skill_ids") else "plain"
            about = {
                key: r[key] for key in ("task", "task_type", "success", "score", "skill_ids")
            } | {"traj_id": name, "condition": condition}
            steps = [
                {"t": t, "observation": seen, "action": action}
                for t, (seen, action) in enumerate(r["steps"])
            ]
            games[r["task_id"]].append(about | {"reward": 0.0, "arm": r["arm"], "steps": steps})
    types = {group[0]["task_type"]: task_id for task_id, group in reversed(games.items())}
    chosen = list(dict.fromkeys([*types.values(), *differing[:EVALUATED]]))
    return {task_id: games[task_id] for task_id in chosen if task_id in games}


def slim(metrics):
    """Metrics as the curves need them: numbers with four digits, bank counts, nothing else."""
    return [
        {
            key: round(x, 4) if isinstance(x, float) else x
            for key, x in line.items()
            if isinstance(x, (int, float, dict))
        }
        for line in metrics
    ]


# ---- glossary ------------------------------------------------------------------------------------

# metric -> (sentence, name that the code gives it where that is another one)
METRICS = {
    "success_plain": ("share of won episodes without a skill in the prompt", "success_{condition}"),
    "success_skill": ("share of won episodes with a skill in the prompt", "success_{condition}"),
    "episodes_plain": ("episodes without a skill in this iteration", "episodes_{condition}"),
    "episodes_skill": ("episodes with a skill in this iteration", "episodes_{condition}"),
    "score": ("mean score of the world, which is reported and never trained on", ""),
    "mean_steps": ("steps per episode", ""),
    "env_steps": ("steps of all episodes of the iteration", ""),
    "valid_rate": ("share of well-formed responses", ""),
    "inadmissible_rate": ("share of actions that the world does not know in that state", ""),
    "truncated": (
        "prompts that lost history to fit, or episodes that ended because the context was full",
        "",
    ),
    "ended": ("how many episodes ended for which reason", ""),
    "cut_rate": ("share of responses that were cut off at the largest length", ""),
    "response_tokens": ("sampled tokens of the iteration", ""),
    "no_signal": (
        "share of groups that were won by all or by none: their episode advantages are 0",
        "",
    ),
    "advantage_std": ("standard deviation of A of (7) over all steps", ""),
    "advantage_max": ("largest absolute A", ""),
    "anchor_size": ("mean number of visits of a step's state within its group", ""),
    "anchor_shared": ("share of steps whose state was visited more than once in the group", ""),
    "pg_loss": ("clipped policy-gradient loss (9), mean per token", ""),
    "kl": ("KL estimate k3 to the reference policy (10), mean per token", ""),
    "entropy": ("entropy over what could be sampled, mean per token", ""),
    "clip_fraction": ("share of choices where the clip of (9) was active", ""),
    "dual_clip_fraction": ("share of choices where the dual clip of (9) was active", ""),
    "logprob_change": ("mean absolute change of a log-prob within the update", ""),
    "l_int": (
        "internalisation loss (19): minus the mean of w log pi(y | plain prompt) over taught "
        "tokens",
        "",
    ),
    "lambda": ("weight of L_int in (20)", ""),
    "gated_tokens": (
        "sum M of (17): action tokens of skill episodes in groups where the skill helped",
        "",
    ),
    "mean_weight": ("mean w of (18) over those tokens", ""),
    "gate_open": ("share of paired groups with D_g > 0", ""),
    "mean_effect": ("mean D_g of (14) over the iteration's paired groups", ""),
    "bank": ("skills by status", ""),
    "sampler_gap": ("mean absolute difference of the trainer's and the sampler's log-probs", ""),
    "sampler_gap_max": ("largest of those differences", ""),
    "sampler_ratio": ("mean ratio of the trainer's and the sampler's probabilities", ""),
    "grad_norm": ("norm of the gradient before it was clipped, mean over optimizer steps", ""),
    "optimizer_steps": ("optimizer steps of the update", ""),
    "update_tokens": ("tokens that went through the model in the update", ""),
    "rollout_seconds": ("seconds of playing", ""),
    "update_seconds": ("seconds of the update", ""),
    "steps_per_second": ("environment steps per second of playing", ""),
    "elapsed": ("seconds since the phase began", ""),
}


def places(files=("support/records.py", "common.py", "support/*.py", "distill.py", "mine.py")):
    """{name: [(file, line number, text)]} of every key that the code computes: of a dict, a
    subscript or a keyword, as in Counter(x=...)."""
    found = defaultdict(list)
    for path in (path for pattern in files for path in sorted(ROOT.glob(pattern))):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()

        def add(node, line, path=path, lines=lines):
            if isinstance(node, ast.JoinedStr):
                node = ast.Constant(
                    "".join(
                        v.value if isinstance(v, ast.Constant) else "{" + ast.unparse(v.value) + "}"
                        for v in node.values
                    )
                )
            name = node.value if isinstance(node, ast.Constant) else node
            if isinstance(name, str) and path.name != "report.py":
                found[name].append((str(path.relative_to(ROOT)), line, lines[line - 1].strip()))

        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values):
                    if key is not None and not isinstance(value, ast.Constant):
                        add(key, key.lineno)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
                add(node.targets[0].slice, node.lineno)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                (".update", "Counter", "timed")
            ):
                for keyword in node.keywords:
                    add(keyword.arg, keyword.value.lineno)
                for value in node.args[:1] if ast.unparse(node.func).endswith("timed") else ():
                    add(
                        ast.Constant(f"{value.value}_seconds")
                        if isinstance(value, ast.Constant)
                        else value,
                        node.lineno,
                    )
    return found


def glossary():
    """[metric, sentence, file, line, code] for every metric; file is None where no line computes it
    any more (a test fails then)."""
    known, rows = places(), []
    for name, (sentence, other) in METRICS.items():
        file, line, code = next(iter(known.get(other or name, [])), (None, None, ""))
        rows.append([name, sentence, file, line, code])
    return rows


# ---- the page ------------------------------------------------------------------------------------


def escaped(data):
    """JSON that may stand in a script element, whatever texts are in it: no tag, no comment and no
    line separator can be read there."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def packed(data):
    """gzip + base64 of an object (as JSON) or of a file's bytes; the same input gives the same
    output."""
    raw = (
        data
        if isinstance(data, bytes)
        else json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    )
    return base64.b64encode(gzip.compress(raw, 9, mtime=0)).decode()


def finite(data):
    """The same data with null for numbers that JSON does not know."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    if isinstance(data, np.generic):
        data = data.item()
    return None if isinstance(data, float) and not math.isfinite(data) else data


DOWNLOADS = (
    "warmup/metrics.jsonl", "mine/metrics.jsonl", "distill/metrics.jsonl", "mine/pairs.jsonl",
    "distill/pairs.jsonl", "mine/skills.jsonl", "mine/rejected.jsonl", "distill/skills.jsonl",
    "mine/effects.jsonl", "evaluate/results.jsonl", "evaluate/summary.json",
)  # fmt: skip
LARGEST = (
    1_500_000  # bytes of a packed file that is still put into the page; a larger one is named only
)


def write_report(run_folder):
    """Writes runs/NAME/report.html from what is there; returns its path.  UserError where no phase
    has begun."""
    run = Path(run_folder)
    data, payloads = gather(run)
    files = {name: packed((run / name).read_bytes()) for name in DOWNLOADS if (run / name).exists()}
    data["too_large"] = [name for name, text in files.items() if len(text) > LARGEST]
    files = {name: text for name, text in files.items() if len(text) <= LARGEST}
    template = Environment(autoescape=True).from_string(
        (Path(__file__).parent / "report.html.j2").read_text(encoding="utf-8")
    )
    text = template.render(
        run=data["run"],
        data=escaped(finite(data)),
        payloads=escaped({name: packed(finite(payload)) for name, payload in payloads.items()}),
        files=escaped(files),
    )
    path = run / "report.html"
    write_atomically(path, text)
    return path
