"""Evaluation: every game of the validation splits, no training: under the plain prompt and, to
compare, with the mined skills in it.

Every task of a split is played --repetitions times with its own random stream, the same for all
policies, so that policies are compared in pairs.  In float32 the result depends neither on the
batch nor on the order; in bfloat16 a kernel's last bits depend on the batch, and a token now and
then with them.

    in          any finished or unfinished phases of a run, or any policies: --policy A B C (folders
                or hub names)
    out         runs/NAME/evaluate/: results.jsonl (a line per episode), summary.json, success.png,
                types.png, curves.png

    laptop      python evaluate.py
    any         python evaluate.py --policy runs/a/distill runs/b/warmup --temperature 1.0 \
                    --out runs/compare
    skills      python evaluate.py --policy runs/a/mine --with-skills runs/a/mine/skills.jsonl \
                    --out runs/shown

Intervals are over games, 95 %: repetitions of a game are no new games.  Success is the share of won
episodes.  Evaluations whose panels have the same hash have played the same games.
"""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np

import support.cli  # noqa: F401 (first: from here on Ctrl-C while importing is one line)
from common import Play, is_held_out, load_policy, make_env, retrieve, rollout, task_text
from envs import UserError
from support import parallel
from support.cli import base_parser, number, parse_args, run_script, text, whole
from support.files import dump, fingerprint, skills_file, write_atomically, write_jsonl
from support.intervals import by_game, interval, paired_difference
from support.models import check_model
from support.phases import begun_with, check_sources, mark, policy_folder, skills_of, unchanged
from support.report import write_report
from support.results import open_folder
from support.runs import release
from support.sampler import GREEDY
from support.training import sampling_options

# ---- arms: what is evaluated -------------------------------------------------------------------


def default_arms(args):
    """The arms of a whole run: base, after warm-up, skills in the prompt, SIRI.  Each is (name,
    policy folder, skills file or None)."""
    run = Path("runs") / args.run
    found = {phase: run / phase for phase in ("warmup", "mine", "distill") if mark(run / phase)}
    for folder in found.values():
        check_sources(folder)  # each made from the one before, or the table would mix two runs
    arms, skills = [], None  # skills: none while mining goes on
    if "warmup" in found:
        began = begun_with(found["warmup"])
        # what warm-up started from: how good the model is unaided
        arms.append(("base", began.get("source") or began["model"], None))
        arms.append(("after warm-up", policy_folder(found["warmup"]), None))
    if "mine" in found and (found["mine"] / "done").exists():
        skills = skills_of(found["mine"])
        # the policy that wrote them: what phase 2 has to move into the weights
        arms.append(("skills in the prompt", policy_folder(found["mine"]), skills))
    if "distill" in found:
        # the result: no skill, no bank, no longer prompt
        arms.append(("SIRI, plain prompt", policy_folder(found["distill"]), None))
        if skills:  # what the skills still add: nothing, if they are in the weights
            arms.append(("SIRI, with skills", policy_folder(found["distill"]), skills))
    if not arms:
        first = f"run `python warmup.py --run {args.run}` first, or name policies with --policy"
        what = f"nothing to evaluate in {run}" if run.is_dir() else f"no run {run}"
        raise UserError(f"{what}: {first}")
    return arms


def named_arms(args):
    """An arm per name of --policy, and one more for each where skills are shown."""
    arms = []
    for name in args.policy:
        folder = Path(name)
        # what looks like a path is not looked for in the Hub
        if name.startswith(("runs/", ".", "/", "~")) and not folder.is_dir():
            raise UserError(f"--policy {name}: no such folder")
        # a run has several policies, and none of them is meant more than another
        if any(mark(folder / phase) for phase in ("warmup", "mine", "distill")):
            phase = folder / "distill"
            raise UserError(f"--policy {name} is a run: name one of its phases, such as {phase}")
        if mark(folder):  # a phase; other folders and hub names are policies themselves
            check_sources(folder)
        arms.append((name, policy_folder(folder) if mark(folder) else name, None))
    if args.with_skills:  # the same weights, so the difference is the skills'
        arms += [(f"{name} + skills", policy, args.with_skills) for name, policy, _ in arms]
    return arms


# ---- panel: what is played ---------------------------------------------------------------------


def split_tasks(env, split):
    """The tasks of a split; held_out: training games that are never trained on.  Recipes are tuned
    there, not on the validation splits."""
    if split == "held_out":
        return [task for task in env.tasks(env.split_names[0]) if is_held_out(task)]
    return env.tasks(split)


def panel_of(env, splits, games=None):
    """{split: tasks}, with `games` only so many of each, evenly spread.  UserError for a split that
    the world does not have."""
    if not splits:  # a world with a training split only
        raise UserError("no validation split in this world: add --split held_out")
    known = [*env.split_names, "held_out"]
    if unknown := [split for split in splits if split not in known]:
        raise UserError(f"--split {unknown[0]}: expected some of {', '.join(known)}")
    panel = {}
    for split in splits:
        tasks = split_tasks(env, split)
        if not tasks:
            raise UserError(f"--split {split} has no games here: leave it out")
        n = min(games or len(tasks), len(tasks))
        # sorted ids stand together by type: the first n would be of one kind
        panel[split] = [tasks[i * len(tasks) // n] for i in range(n)]
    return panel


def panel_hash(env, panel):
    """Eight digits that differ where task ids differ, or what the games say when they begin: on
    another machine files of the same names may hold other games."""
    world, digest = env.fork(), hashlib.sha256()  # a player of its own: env stays as it is
    for split, tasks in sorted(panel.items()):
        for task_id in tasks:
            step = world.reset(task_id)
            first = [split, task_id, world.task, step.observation, *map(str, step.admissible)]
            digest.update(dump(first).encode())
    return digest.hexdigest()[:8]


def play_panel(policy, env, tasks, bank, args, split, arm):
    """All tasks x repetitions; a dict per episode, as in results.jsonl."""
    # candidates are unproved and retired ones do harm
    active = [skill for skill in bank if skill["status"] == "active"]
    plays = []
    for task_id in tasks:
        skills = []
        if active:
            task, task_type = task_text(env, task_id), env.task_type(task_id)
            skills = retrieve(active, task, task_type, args.show)
        for repetition in range(args.repetitions):
            # no arm in the stream's name: all arms meet the same luck, and are compared in pairs
            key = ("evaluate", args.seed, task_id, repetition)
            plays.append(Play(task_id, group_id=task_id, key=key, skills=skills))
    temperature = args.temperature or GREEDY  # logits are divided by it
    how = sampling_options(args) | {"title": f"{arm}, {split}"}
    records = rollout(policy, env, plays, temperature, **how)
    # a line per episode: thousands of them stay a small file
    kept = ("task_id", "task_type", "task", "success", "score", "skill_ids")
    results = []
    for play, record in zip(plays, records):
        about = {"arm": arm, "split": split, "repetition": play.key[-1]}
        result = about | {"temperature": args.temperature} | {key: record[key] for key in kept}
        steps = record["steps"]
        result["n_steps"] = len(steps)
        # well-formed (v), and known to the world: a policy may fail at either
        result["valid_rate"] = float(np.mean([step["valid"] for step in steps]))
        result["inadmissible_rate"] = float(np.mean([step["inadmissible"] for step in steps]))
        # what skills cost: every step reads the whole prompt
        result["prompt_tokens"] = float(np.mean([len(step["prompt_ids"]) for step in steps]))
        if play.key[-1] == 0:  # the first try of a game can be read step by step in the report
            result["steps"] = [[step["observation"], step["action"]] for step in steps]
        results.append(result)
    return results


# ---- table -------------------------------------------------------------------------------------


def summarise(results, arms, splits, baseline):
    """One dict per arm and split, as in summary.json."""
    rows = []
    for split in splits:
        played = [result for result in results if result["split"] == split]
        base = [result for result in played if result["arm"] == baseline]
        for arm in arms:
            part = [result for result in played if result["arm"] == arm]
            # by game, so that repetitions do not narrow the interval
            success, low, high = interval(list(by_game(part).values()))
            row = {"arm": arm, "split": split, "episodes": len(part)}
            row |= {"success": success, "low": low, "high": high, "by_type": {}}
            # few games of a type: wide intervals, which is why they are there
            for kind in sorted({result["task_type"] for result in part}):
                games = by_game(result for result in part if result["task_type"] == kind)
                row["by_type"][kind] = interval(list(games.values()))
            for key in ("score", "n_steps", "prompt_tokens", "inadmissible_rate", "valid_rate"):
                row[key] = float(np.mean([result[key] for result in part]))
            if arm != baseline and base:  # in pairs: how hard a game is cancels out
                row["difference"] = paired_difference(part, base)
            rows.append(row)
    return rows


def print_table(rows, baseline):
    """The same rows for the console, a block per split."""
    # all rows together: a split may lack a type that another one has
    kinds = sorted({kind for row in rows for kind in row["by_type"]})
    # pick_and_place_simple is "put", as everywhere
    words = [kind.replace("pick_", "").replace("and_place", "put") for kind in kinds]
    short = [word.split("_")[0][:7] for word in words]
    width = max(len(row["arm"]) for row in rows)  # names are never cut
    # a world with a score of its own, as WebShop, has a column for it
    scored = any(row["score"] != row["success"] for row in rows)
    for split in dict.fromkeys(row["split"] for row in rows):
        head = f"{split:{width}s}  success [95 %]        " + " ".join(f"{s:>7s}" for s in short)
        print(f"\n{head}{'  score' * scored}  steps  prompt tokens  minus {baseline}")
        for row in (row for row in rows if row["split"] == split):
            line = f"{row['arm']:{width}s}  "
            line += "{success:.3f} [{low:.3f}, {high:.3f}] ".format(**row)
            rates = [row["by_type"].get(kind) for kind in kinds]  # (rate, low, high) or None
            line += " ".join(f"{rate[0]:7.2f}" if rate else f"{'-':>7s}" for rate in rates)
            line += f"  {row['score']:5.3f}" * scored
            line += f"  {row['n_steps']:5.1f}  {row['prompt_tokens']:13.0f}"
            if "difference" in row:
                line += "  {:+.3f} [{:+.3f}, {:+.3f}]".format(*row["difference"])
            print(line)
    n = rows[0]["episodes"]
    print(f"\n{n} episodes per row of the first split; success is the share of won episodes")
    for row in rows:
        if row["valid_rate"] < 0.05:  # a policy that cannot speak looks like one that cannot play
            ill = f"{1 - row['valid_rate']:.0%} of the responses of {row['arm']}"
            print(f"note: {ill} on {row['split']} were ill-formed")


# ---- main --------------------------------------------------------------------------------------


def arguments():
    """The command line."""
    parser = base_parser(__doc__)
    group = parser.add_argument_group("evaluation")
    about = "policies to compare (default: the phases of --run)"
    group.add_argument("--policy", type=text, nargs="+", help=about)
    about = "skills.jsonl: adds an arm with skills in the prompt for every policy of --policy"
    group.add_argument("--with-skills", type=text, help=about)
    about = "active skills in a skill prompt"
    group.add_argument("--show", type=whole(1, 100), default=3, help=about)
    about = "splits (default: all but the training split; held_out: training games set aside)"
    group.add_argument("--split", nargs="+", type=text, help=about)
    about = "episodes per task"
    group.add_argument("--repetitions", type=whole(1, 10_000), default=2, help=about)
    about = "only so many tasks of each split, evenly spread"
    group.add_argument("--games", type=whole(1), help=about)
    about = "of sampling; 0: greedy"
    group.add_argument("--temperature", type=number(least=0, most=100), default=0.4, help=about)
    about = "arm that differences refer to (default: after warm-up, else the first)"
    group.add_argument("--baseline", type=text, help=about)
    about = "output folder (default: runs/NAME/evaluate)"
    group.add_argument("--out", type=text, help=about)
    about = "only write runs/NAME/report.html from what is there, also of a run in progress"
    group.add_argument("--report", action="store_true", help=about)
    args = parse_args(parser)
    if args.with_skills and not args.policy:  # else the file would be ignored without a word
        raise UserError("--with-skills adds arms to those of --policy: name these, too")
    return args


def main():
    args = arguments()
    if args.report:
        print(f"written: {write_report(Path('runs') / args.run)}")
        return
    arms = parallel.first(lambda: named_arms(args) if args.policy else default_arms(args))
    # read and checked once, however many arms show them
    banks = {path: skills_file(path, args.env) if path else [] for _, _, path in arms}
    for _, policy, _ in arms:  # all of them, before the first one is played
        check_model(str(policy), args)
    names = [name for name, _, _ in arms]
    usual = "after warm-up" if "after warm-up" in names else names[0]
    baseline = args.baseline or usual  # what warm-up reached is what SIRI has to add to
    if baseline not in names:
        raise UserError(f"--baseline {baseline}: expected one of {', '.join(names)}")
    env = make_env(args.env, args.simulator, args.max_steps)
    panel = panel_of(env, args.split or env.split_names[1:], args.games)

    # what an answer depends on: an interrupted evaluation goes on where all of this is the same
    asked = ("repetitions", "temperature", "seed", "show", "env", "simulator", "engine", "dtype")
    asked += ("split", "games", "max_steps", "max_prompt", "max_response")
    question = {key: getattr(args, key) for key in asked} | {"panel": panel_hash(env, panel)}
    # weights and skills by what they are, not by where they lie
    question["arms"] = [[arm[0], *(one and fingerprint(one) for one in arm[1:])] for arm in arms]
    # "new/../x" would not be there while it is looked at, and be x when it is written to
    out = Path(os.path.normpath(args.out or f"runs/{args.run}/evaluate"))
    # of this process until it ends; what was played before an interruption comes back
    results = parallel.first(lambda: open_folder(out, question, args.overwrite))
    for split, tasks in panel.items():
        what = env.describe(env.split_names[0] if split == "held_out" else split)
        # some of WebShop's goals cannot be won: 1.0 is not the top of that scale
        if hasattr(env, "ceiling") and split != "held_out":
            what += f", of which {env.ceiling(split):.1%} can be won"
        how_many = f"{len(tasks)} x {args.repetitions} episodes"
        print(f"{what}; {split} {how_many}, temperature {args.temperature}", flush=True)
    print(f"panel {question['panel']}: these games, where another evaluation says the same")

    for name, folder, skills in arms:
        policy = None  # loaded when there is something to play; one at a time in memory
        for split, tasks in panel.items():
            here = [r for r in results if (r["arm"], r["split"]) == (name, split)]
            if len(here) == len(tasks) * args.repetitions:
                continue  # played before an interruption
            # half an arm is played again: its records were gathered in one piece
            if not policy:
                policy = load_policy(folder, args)
                weights = next(weights for arm, weights, _ in question["arms"] if arm == name)
                unchanged(folder, weights)  # a phase may have been made anew meanwhile
            results = [r for r in results if (r["arm"], r["split"]) != (name, split)]
            played = play_panel(policy, env, tasks, banks[skills], args, split, name)
            results += played
            write_jsonl(out / "results.jsonl", results)  # whole, or as it was
            wins = sum(result["success"] for result in played)
            told = sum(result["repetition"] == 0 and bool(result["skill_ids"]) for result in played)
            shown = f"; a skill fitted {told} of {len(tasks)} games" if skills else ""
            print(f"  {name}, {split}: {wins} of {len(played)}{shown}", flush=True)
    if parallel.rank():
        return  # all have the results, process 0 writes them

    from support import figures  # drawing takes a second to load

    rows = summarise(results, names, list(panel), baseline)
    about = {"hardware": f"{args.threads} threads, {args.device}", "command": " ".join(sys.argv)}
    about |= {"baseline": baseline, "temperature": args.temperature, "panel": question["panel"]}
    write_atomically(out / "summary.json", dump(about | {"rows": rows}, indent=1) + "\n")
    figures.bars(rows, out / "success.png", by_type=False)
    figures.bars(rows, out / "types.png", by_type=True)
    # policies that were named need not be phases of one run
    drawn = not args.policy and figures.curves(Path("runs") / args.run, out / "curves.png")
    print_table(rows, baseline)
    release(out)
    written = "results.jsonl, summary.json, success.png, types.png" + ", curves.png" * bool(drawn)
    print(f"written to {out}: {written}", flush=True)
    if not args.policy:
        page = write_report(Path("runs") / args.run)
        print(f"the whole run in one page: {page}", flush=True)


if __name__ == "__main__":
    run_script(main)
