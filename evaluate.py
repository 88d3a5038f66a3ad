"""Evaluation: every game of the validation splits under the plain prompt, no skills, no training.

Every task of a split is played --repetitions times with its own random stream, the same for all policies,
so that policies are compared in pairs.  In float32 the result depends neither on the batch nor on the
order; in bfloat16 a kernel's last bits do depend on the batch, and a sampled token now and then with them.

    in          any finished or unfinished phases of a run, or any policies: --policy A B C (folders, hub names)
    out         runs/NAME/evaluate/: results.jsonl (a line per episode), summary.json, success.png, types.png,
                curves.png

    laptop      python evaluate.py
    any         python evaluate.py --policy runs/a/distill runs/b/warmup --temperature 1.0 --out runs/compare
    skills      python evaluate.py --policy runs/a/mine --with-skills runs/a/mine/skills.jsonl

Intervals are over games, both 95 %: repetitions of a game are no new games.  "All" is the share of won
episodes.  The panel's hash tells whether two machines have played the same games.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from common import Play, is_held_out, load_policy, make_env, retrieve, rollout
from envs import UserError
from support import parallel
from support.cli import base_parser, number, parse_args, run_script, text, whole
from support.files import dump, fingerprint, read_json, read_jsonl, skills_file, write_atomically, write_jsonl
from support.models import check_model
from support.runs import begun_with, check_sources, hold, mark, policy_folder, release

GREEDY = 1e-4  # a temperature at which only the likeliest token is left
OWN = ("results.jsonl", "summary.json", "success.png", "types.png", "curves.png")  # and args.json, the mark


# ---- arms: what is evaluated -----------------------------------------------------------------------------------


def default_arms(args):
    """The arms of a whole run: base, after warm-up, skills in the prompt, SIRI; each (name, policy, skills file or None)."""
    run = Path("runs") / args.run
    first = f"run `python warmup.py --run {args.run}` first, or name policies with --policy"
    if not run.is_dir():
        raise UserError(f"no run {run}: {first}")
    found = {phase: run / phase for phase in ("warmup", "mine", "distill") if mark(run / phase)}
    arms = []
    if "warmup" in found:
        began = begun_with(found["warmup"])
        arms.append(("base", began.get("source") or began["model"], None))
        arms.append(("after warm-up", policy_folder(found["warmup"]), None))
    skills = run / "mine" / "skills.jsonl"  # written when mining has ended
    if "mine" in found and skills.exists():
        arms.append(("skills in the prompt", policy_folder(found["mine"]), skills))
    if "distill" in found:
        arms.append(("SIRI, plain prompt", policy_folder(found["distill"]), None))
        if skills.exists():
            arms.append(("SIRI, with skills", policy_folder(found["distill"]), skills))
    if not arms:
        raise UserError(f"nothing to evaluate in {run}: {first}")
    for folder in found.values():
        check_sources(folder)  # arms that were made from one another, or the table would compare what it does not name
    return arms


def named_arms(args):
    """An arm per name of --policy, and one more for each where skills are shown."""
    arms = []
    for name in args.policy:
        folder = Path(name)
        if name.startswith(("runs/", ".", "/", "~")) and not folder.is_dir():
            raise UserError(f"--policy {name}: no such folder")
        if any(mark(folder / phase) for phase in ("warmup", "mine", "distill")):
            raise UserError(f"--policy {name} is a run: name one of its phases, such as {folder / 'distill'}")
        if mark(folder):
            check_sources(folder)
        arms.append((name, policy_folder(folder) if mark(folder) else name, None))
    if args.with_skills:
        arms += [(f"{name} + skills", policy, args.with_skills) for name, policy, _ in arms]
    return arms


# ---- panel: what is played -------------------------------------------------------------------------------------


def split_tasks(env, split):
    if split == "held_out":  # training games that are never trained on: tune recipes here, not on the validation splits
        return [t for t in env.tasks(env.split_names[0]) if is_held_out(t)]
    return env.tasks(split)


def panel_hash(env, panels):
    """Eight digits that differ where task ids differ, or what the games say when they begin: files of the same
    name may hold other games on another machine."""
    world, digest = env.fork(), hashlib.sha256()
    for split, tasks in sorted(panels.items()):
        for task_id in tasks:
            step = world.reset(task_id)
            digest.update(json.dumps([split, task_id, world.task, step.observation, list(map(str, step.admissible))]).encode())
    return digest.hexdigest()[:8]


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
            # the stream's name has no arm in it: all arms meet the same luck
            plays.append(Play(task_id, task_id, ("evaluate", args.seed, task_id, repetition), skills))
    temperature = args.temperature or GREEDY
    title = f"{arm}, {split}"
    records = rollout(policy, env, plays, temperature, args.rollout_batch, args.max_response, args.threads, title)
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


# ---- statistics: repetitions of a game are no new games --------------------------------------------------------


def by_game(results):
    """{task_id: list of 0/1}."""
    games = {}
    for r in results:
        games.setdefault(r["task_id"], []).append(int(r["success"]))
    return games


def design_effect(games):
    """How many episodes of these tell as much as one of a game of its own, between 1 and the repetitions.

    games: a list of lists of 0/1.  The variance of the mean is measured between games (Kish's design effect):
        sum over games of (wins - p plays)^2 G / (G - 1),  over  N p (1 - p).
    Few games tell little about it, none where all are won.  So two more are imagined, one always won and one
    always lost; without them 12 games of few losses have intervals that miss in 1 of 5 cases, instead of 1 of 20."""
    plays = np.array([len(g) for g in games] + [np.mean([len(g) for g in games])] * 2)
    wins = np.array([sum(g) for g in games] + [plays[-1], 0])
    p = wins.sum() / plays.sum()
    between = ((wins - p * plays) ** 2).sum() * len(plays) / (len(plays) - 1)
    return float(np.clip(between / (plays.sum() * p * (1 - p)), 1.0, plays[:-2].max()))


def interval(games):
    """(rate, low, high): Wilson's 95 % interval, of as many episodes as all of these are worth.  games: lists of 0/1."""
    n, wins = sum(map(len, games)), sum(map(sum, games))
    rate, worth, z = wins / n, n / design_effect(games), 1.959964
    middle = (rate + z * z / (2 * worth)) / (1 + z * z / worth)
    half = z * (rate * (1 - rate) / worth + z * z / (4 * worth * worth)) ** 0.5 / (1 + z * z / worth)
    return rate, max(0.0, middle - half), min(1.0, middle + half)


def half_width(d, games=None):
    """Half of the 95 % interval of a mean over pairs; nan for a single one.  d: an array of differences; games: what game each is of,
    where one has several."""
    sums = {}
    for game, value in zip(range(len(d)) if games is None else games, d - np.mean(d)):
        sums[game] = sums.get(game, 0.0) + value
    between = sum(value**2 for value in sums.values()) * len(sums) / max(1, len(sums) - 1)
    return float(1.96 * between**0.5 / len(d)) if len(sums) > 1 else float("nan")


def paired_difference(a, b, seed=0):
    """(mean, low, high) of success(a) - success(b) over the games that both played; 95 % bootstrap over games."""
    from scipy import stats  # takes a second to import

    a, b = ({task: float(np.mean(wins)) for task, wins in by_game(one).items()} for one in (a, b))
    d = np.array([a[task] - b[task] for task in sorted(a) if task in b])
    if len(d) < 2:
        return float(d.mean()), float("nan"), float("nan")  # one game has no interval
    if np.all(d == d[0]):
        return (float(d.mean()),) * 3
    stream = np.random.default_rng(seed)
    low, high = stats.bootstrap((d,), np.mean, n_resamples=5000, method="percentile", rng=stream).confidence_interval
    return float(d.mean()), float(low), float(high)


def summarise(results, arms, splits, baseline):
    """One dict per arm and split, as in summary.json."""
    rows = []
    for split in splits:
        for arm in arms:
            part = [r for r in results if r["arm"] == arm and r["split"] == split]
            base = [r for r in results if r["arm"] == baseline and r["split"] == split]
            rate, low, high = interval(list(by_game(part).values()))
            row = {"arm": arm, "split": split, "episodes": len(part), "success": rate, "low": low, "high": high}
            kinds = sorted({r["task_type"] for r in part})
            typed = {kind: [r for r in part if r["task_type"] == kind] for kind in kinds}
            row["by_type"] = {kind: interval(list(by_game(some).values())) for kind, some in typed.items()}
            for key in ("score", "n_steps", "prompt_tokens", "inadmissible_rate", "valid_rate"):
                row[key] = float(np.mean([r[key] for r in part]))
            if arm != baseline and base:
                row["difference"] = paired_difference(part, base)
            rows.append(row)
    return rows


def print_table(rows, baseline):
    """The same rows for the console: a block per split."""
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
    for row in rows:
        if row["valid_rate"] < 0.05:  # a policy that cannot speak looks like one that cannot play
            print(f"note: {1 - row['valid_rate']:.0%} of the responses of {row['arm']} on {row['split']} were ill-formed")


# ---- the folder: only an evaluation's own files are ever removed, by name --------------------------------------


def open_folder(out, question, overwrite):
    """Makes the output folder this process's own; returns what an interrupted evaluation of the same question has answered already.
    UserError where the folder is another's, or holds answers to another question."""
    kept = out / "args.json"
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file: choose another folder")
        others = [one.name for one in out.iterdir() if one.name not in (*OWN, "args.json", "lock")] if out.is_dir() else []
        before = read_json(kept) if kept.is_file() else {}
        ours = "arms" in before and "phase" not in before
        if not ours and (others or kept.exists() or any((out / name).exists() for name in OWN)):
            raise UserError(f"{out} holds files that no evaluation wrote: choose a new folder with --out")
        out.mkdir(parents=True, exist_ok=True)
        hold(out)
        if ours and before.get("question") != question and not overwrite:
            changed = [key for key, value in question.items() if before.get("question", {}).get(key) != value]
            raise UserError(f"{out} answers another question ({', '.join(changed)}): choose another --out, or add --overwrite")
        if overwrite:
            for name in OWN:
                (out / name).unlink(missing_ok=True)
        if not ours or overwrite:
            write_atomically(kept, dump({"arms": [arm for arm in question["arms"]], "question": question, "command": sys.argv}) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): choose another --out") from None
    return read_results(out / "results.jsonl") if (out / "results.jsonl").exists() else []


def read_results(path):
    """results.jsonl, with the fields that the table needs."""
    results = read_jsonl(path)
    for number, r in enumerate(results, 1):  # noqa: F402 (a line's number)
        texts = all(isinstance(r.get(key), str) for key in ("arm", "split", "task_id", "task_type"))
        keys = ("success", "score", "n_steps", "prompt_tokens", "inadmissible_rate", "valid_rate")
        if not texts or not all(isinstance(r.get(key), (int, float)) for key in keys):
            raise UserError(f"{path}, episode {number} lacks a field: mend or delete that line")
    return results


def main():
    parser = base_parser(__doc__)
    group = parser.add_argument_group("evaluation")
    group.add_argument("--policy", type=text, nargs="+", help="policies to compare (default: the phases of --run)")
    about = "skills.jsonl: adds an arm with skills in the prompt for every policy of --policy"
    group.add_argument("--with-skills", type=text, help=about)
    group.add_argument("--show", type=whole(1, 100), default=3, help="active skills in a skill prompt")
    about = "splits (default: all but the training split; held_out: training games set aside)"
    group.add_argument("--split", nargs="+", type=text, help=about)
    group.add_argument("--repetitions", type=whole(1, 10_000), default=2, help="episodes per task")
    group.add_argument("--games", type=whole(1), help="only so many tasks of each split, evenly spread")
    about = "of sampling; 0: greedy"
    group.add_argument("--temperature", type=number(least=0, most=100), default=0.4, help=about)
    about = "arm that differences refer to (default: after warm-up, else the first)"
    group.add_argument("--baseline", type=text, help=about)
    group.add_argument("--out", type=text, help="output folder (default: runs/NAME/evaluate)")
    args = parse_args(parser)
    if args.with_skills and not args.policy:
        raise UserError("--with-skills adds arms to those of --policy: name these, too (a run's own arms have its skills already)")

    arms = parallel.first(lambda: named_arms(args) if args.policy else default_arms(args))
    banks = {skills: skills_file(skills, args.env) if skills else [] for _, _, skills in arms}
    for _, policy, _ in arms:
        check_model(str(policy), args)
    names = [name for name, _, _ in arms]
    baseline = args.baseline or ("after warm-up" if "after warm-up" in names else names[0])
    if baseline not in names:
        raise UserError(f"--baseline {baseline}: expected one of {', '.join(names)}")
    env = make_env(args.env, args.simulator, args.max_steps)
    splits = args.split or list(env.split_names[1:])
    if unknown := set(splits) - {*env.split_names, "held_out"}:
        raise UserError(f"--split {min(unknown)}: expected some of {', '.join([*env.split_names, 'held_out'])}")
    panels = {split: split_tasks(env, split) for split in splits}
    if args.games:
        panels = {s: [t[i * len(t) // args.games] for i in range(min(args.games, len(t)))] for s, t in panels.items()}

    # what an answer depends on: an interrupted evaluation goes on only where all of this is the same
    asked = ("split", "games", "repetitions", "temperature", "seed", "show", "env", "simulator", "engine", "dtype")
    question = {key: getattr(args, key) for key in (*asked, "max_steps", "max_prompt", "max_response")}
    question["panel"] = panel_hash(env, panels)
    question["arms"] = parallel.first(lambda: [[n, fingerprint(p), s and fingerprint(s)] for n, p, s in arms])
    out = Path(args.out or f"runs/{args.run}/evaluate")
    path = out / "results.jsonl"
    results = parallel.first(lambda: open_folder(out, question, args.overwrite))
    for split in splits:
        what = env.describe(env.split_names[0] if split == "held_out" else split)
        if hasattr(env, "ceiling") and split != "held_out":
            what += f", of which {env.ceiling(split):.1%} can be won"
        print(f"{what}; {split} {len(panels[split])} x {args.repetitions} episodes, temperature {args.temperature}", flush=True)
    print(f"panel {question['panel']}: the same games where another evaluation says the same", flush=True)
    for name, folder, skills in arms:
        policy = None
        for split in splits:
            n = sum(r["arm"] == name and r["split"] == split for r in results)
            if n == len(panels[split]) * args.repetitions:
                continue  # finished before an interruption
            results = [r for r in results if (r["arm"], r["split"]) != (name, split)]
            policy = policy or load_policy(folder, args)
            results += play_panel(policy, env, panels[split], banks[skills], args, split, name)
            write_jsonl(path, results)
            wins = [r["success"] for r in results if r["arm"] == name and r["split"] == split]
            print(f"  {name}, {split}: {sum(wins)} of {len(wins)}", flush=True)
    if parallel.rank():
        return

    from support import figures  # drawing is loaded when there is something to draw

    rows = summarise(results, names, splits, baseline)
    about = {"hardware": f"{args.threads} threads, {args.device}", "command": " ".join(sys.argv), "baseline": baseline}
    about |= {"temperature": args.temperature, "panel": question["panel"]}
    write_atomically(out / "summary.json", json.dumps(json.loads(dump(about | {"rows": rows})), indent=1) + "\n")
    figures.bars(rows, out / "success.png", by_type=False)
    figures.bars(rows, out / "types.png", by_type=True)
    drawn = not args.policy and figures.curves(Path("runs") / args.run, out / "curves.png")
    print_table(rows, baseline)
    release(out)
    print(f"written: {path}, summary.json, success.png, types.png{', curves.png' if drawn else ''}")


if __name__ == "__main__":
    run_script(main)
