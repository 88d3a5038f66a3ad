"""Phase 1: the policy writes skills from its own successes, and paired rollouts find out which of them help.

Every --mine-every iterations a frozen snapshot of the policy reads some of its winning plain episodes and writes one short skill from
each ("when ..., do ...").  From then on half of a group's episodes are played with one skill in the prompt, the other half plain, from the
same start: the difference of their success is the skill's effect on this game.  GiGPO goes on with all of them.

    equations   (14) effect D_g, below; (15) utility and (16) life of a skill: credit in common.py; (1)-(12) as in warmup.py
    in          runs/NAME/warmup/: policy/ and the last iterations of trajectories.jsonl
    out         runs/NAME/mine/: skills.jsonl (all skills with their evidence), pairs.jsonl, rejected.jsonl, trajectories.jsonl,
                metrics.jsonl, policy/

    laptop      python mine.py
    one GPU     python mine.py --preset paper --model Qwen/Qwen2.5-1.5B-Instruct --dtype bfloat16 --engine vllm
    many        accelerate launch --config_file recipes/fsdp.yaml mine.py --preset paper --dtype bfloat16 --engine vllm
    pure mining python mine.py --lr 0    (the policy stays as it is; ambiguity A2)
"""

import time
from collections import Counter, defaultdict

from common import (
    Play,
    assign_advantages,
    credit,
    for_file,
    generate,
    pair_effects,
    retrieve,
    rollout,
    rows_of,
    start,
    update,
    words,
)
from envs import UserError
from support.cli import make_parser, parse_args, run_script, skill_arguments
from support.files import read_jsonl, rng, write_jsonl
from support.runs import episode_metrics, finished_phase, policy_folder

PHASE = "mine"


# ---- mining --------------------------------------------------------------------------------------------------------------------


def choose_successes(pool, bank, asked, per_type):
    """Winning plain episodes to write skills from, one per task: of each task type as many as its living skills lack to per_type, so that
    a type has its first skill soon after its first win.  A world of one task type, as WebShop, has at least 12.
    First those that were asked least, then groups with mixed outcomes, then the shortest: contrast and brevity make the cause visible.
    pool: records of the last iterations, won or not; asked: traj_ids, once for every time."""
    per_type = max(per_type, 12) if len({r["task_type"] for r in pool}) == 1 else per_type
    outcomes = defaultdict(set)
    for r in pool:
        outcomes[r["group_id"]].add(r["success"])
    living = [s for s in bank if s["status"] != "retired"]
    count = Counter(s["task_type"] for s in living)
    chosen, tasks = [], {task_id for s in living for task_id in s["source_task_ids"]}
    wins = sorted(
        (r for r in pool if r["success"] and r["condition"] == "plain"),
        key=lambda r: (asked.count(r["traj_id"]), len(outcomes[r["group_id"]]) == 1, len(r["steps"]), r["traj_id"]),
    )
    for r in wins:
        if r["task_id"] not in tasks and count[r["task_type"]] < per_type:
            tasks.add(r["task_id"])
            count[r["task_type"]] += 1
            chosen.append(r)
    return chosen


def alike(a, b, threshold=0.8):
    """Token-set Jaccard similarity of two skills' texts for the same kind of task is at least the threshold."""
    x, y = (set(words(f"{s['condition']} {s['strategy']}")) for s in (a, b))
    return a["task_type"] == b["task_type"] and len(x & y) >= threshold * len(x | y)


def mine(policy, env, pool, bank, asked, args, k):
    """Asks the policy for one skill per chosen success; returns (new candidates, rejected answers with their reasons).

    This runs before the iteration's update, so the policy *is* the frozen snapshot."""
    chosen = choose_successes(pool, bank, asked, args.per_type)
    asked += [r["traj_id"] for r in chosen]
    keys = [(args.seed, PHASE, k, "write", i) for i in range(len(chosen))]
    prompts = [env.summary_prompt(r, policy.style) for r in chosen]
    answers = generate(policy, prompts, keys, args.mine_temperature, args.max_skill_tokens)
    new, rejected = [], []
    for i, (record, answer) in enumerate(zip(chosen, answers)):
        try:
            skill = {"skill_id": f"{PHASE}-{k}-{i}", "env": args.env, "task_type": record["task_type"]}
            skill |= env.parse_skill(answer, policy.style)
            if skill["task_type"] is None:  # such as where one kind of thing lies: too few games are for it to ever prove anything
                raise ValueError("for one object only")
            if any(alike(skill, other) for other in bank + new):
                raise ValueError("near duplicate")
        except ValueError as reason:
            rejected.append({"iteration": k, "traj_id": record["traj_id"], "reason": str(reason), "answer": answer})
            continue
        new.append(
            skill
            | {"status": "candidate", "utility": 0.0, "n_eval": 0, "neg_streak": 0, "deltas": [], "plain": []}
            | {"source_traj_ids": [record["traj_id"]], "source_task_ids": [record["task_id"]]}
            | {"created_iter": k, "updated_iter": k, "retired_iter": None}
        )
    return new, rejected


# ---- paired rollouts -----------------------------------------------------------------------------------------------------------


def pick(bank, planned, task_id, task, task_type, args):
    """The one skill that half of a group is shown, so that the effect is its own: of the fitting candidates that lack pairs to N_eval the
    most promising, else the best active skill, else any candidate; None where nothing fits.
    planned: skill_id -> groups of this iteration that try it, which n_eval does not know yet.

    Never on a game that the skill was written from: it would only be asked to remember."""
    fitting = [s for s in bank if s["status"] != "retired" and task_id not in s["source_task_ids"]]
    fitting = retrieve(fitting, task, task_type, len(bank))
    candidates = [s for s in fitting if s["status"] == "candidate"]
    short = [s for s in candidates if s["n_eval"] + planned[s["skill_id"]] < args.n_eval]
    if short:
        return max(short, key=lambda s: s["utility"])
    return next((s for s in fitting if s["status"] == "active"), candidates[0] if candidates else None)


def paired_groups(env, tasks, bank, args, k):
    """B groups: G/2 plain and G/2 skill episodes where the bank has a skill for the game, else G plain ones.

    In the first half of the groups task types take turns, and those with the fewest pairs so far get one more; in the second half only types
    take turns that have a candidate short of N_eval pairs.  So a type that won late catches up.  Games of a type are drawn at random."""
    stream, world = rng(args.seed, PHASE, k, "tasks"), env.fork()
    games, plays, shown = defaultdict(list), [], {}
    for i in stream.permutation(len(tasks)):
        games[env.task_type(tasks[i])].append(tasks[i])
    turns, planned = Counter(), Counter()
    pairs = Counter()
    for s in bank:
        pairs[s["task_type"]] += s["n_eval"]
    for g in range(args.groups):
        short = [s for s in bank if s["status"] == "candidate" and s["n_eval"] + planned[s["skill_id"]] < args.n_eval]
        turn = {s["task_type"] for s in short} & set(games) if g >= args.groups // 2 else {}
        task_type = min(turn or games, key=lambda t: (turns[t], pairs[t], t))
        task_id = games[task_type][turns[task_type] % len(games[task_type])]
        turns[task_type] += 1
        world.reset(task_id)
        skill = pick(bank, planned, task_id, world.task, task_type, args)
        shown[f"{PHASE}-{k}-{g}"] = [skill] if skill else []
        n_skill = args.group_size // 2 if skill else 0
        if skill:
            planned[skill["skill_id"]] += 1
        for i in range(args.group_size):
            skills = [skill] if i < n_skill else []
            plays.append(Play(task_id, f"{PHASE}-{k}-{g}", (args.seed, PHASE, k, g, i), skills))
    return plays, shown


def main():
    parser = make_parser(__doc__)
    group = skill_arguments(parser)
    group.add_argument("--mine-every", type=int, default=10, help="I_mine: iterations between mining events")
    group.add_argument("--window", type=int, default=5, help="W: iterations whose successes are mined")
    group.add_argument("--per-type", type=int, default=4, help="successes mined per task type and event (12 where there is one type)")
    group.add_argument("--mine-temperature", type=float, default=0.7, help="of writing skills")
    group.add_argument("--max-skill-tokens", type=int, default=256, help="length of a written skill")
    group.add_argument("--promote-all", action="store_true", help="ablation: every candidate is active at once")
    args = parse_args(parser, laptop=dict(iterations=4, n_eval=4, mine_every=1, per_type=2, mine_temperature=0.2), paper=dict(iterations=40))
    source = finished_phase(args.source or f"runs/{args.run}/warmup")
    warm = read_jsonl(source / "trajectories.jsonl")
    last = max((r["iteration"] for r in warm), default=0)
    pool = [r for r in warm if r["iteration"] > last - args.window]
    if not any(r["success"] and r["condition"] == "plain" for r in pool):
        raise UserError(f"no successes to mine in the last {args.window} iterations of {source}: warm up longer, or raise --window")
    state = {"bank": [], "asked": []}
    run, env, tasks, policy, ref_policy, optimizer = start(args, PHASE, policy_folder(source), state)
    for r in pool:
        r["iteration"] -= last + 1  # one clock for both phases: the last warm-up iteration is -1, the first one here 0
    if run.iteration:
        pool += [r for r in read_jsonl(run.folder / "trajectories.jsonl") if r["condition"] == "plain"]

    for k in run.iterations():
        began = time.time()
        if k % args.mine_every == 0:
            pool = [r for r in pool if r["iteration"] >= k - args.window]
            new, rejected = mine(policy, env, pool, state["bank"], state["asked"], args, k)
            for skill in new:
                skill["status"] = "active" if args.promote_all else "candidate"
            state["bank"] += new
            run.append("rejected.jsonl", rejected)
            print(f"mined {len(new)} candidates, rejected {dict(Counter(r['reason'] for r in rejected))}", flush=True)
        plays, shown = paired_groups(env, tasks, state["bank"], args, k)
        records = rollout(policy, env, plays, args.temperature, args.rollout_batch, args.max_response, args.threads)
        pairs = pair_effects(records, shown)
        for pair in pairs:
            for skill in shown[pair["group_id"]]:
                credit(skill, pair, k, args)
        rolled = time.time()
        statistics = assign_advantages(records, env, args)
        run.set_lr(optimizer)
        losses = update(policy, optimizer, rows_of(records), args, rng(args.seed, PHASE, k, "mini-batches"), ref_policy)

        lines = [{"phase": PHASE, "iteration": k, "env": args.env} | for_file(r) for r in records]
        run.append("trajectories.jsonl", lines)
        run.append("pairs.jsonl", [{"iteration": k} | pair for pair in pairs])
        pool += [r for r in lines if r["condition"] == "plain"]
        metrics = {"iteration": k} | episode_metrics(records, rolled - began) | statistics | losses
        metrics["bank"] = dict(Counter(skill["status"] for skill in state["bank"]))
        metrics["mean_effect"] = sum(p["delta"] for p in pairs) / max(1, len(pairs))
        run.end_iteration(policy, optimizer, metrics | {"update_seconds": time.time() - rolled})

    write_jsonl(run.folder / "skills.jsonl", state["bank"])
    for skill in sorted(state["bank"], key=lambda s: -s["utility"])[:8]:
        print(f"{skill['status']:9s} u {skill['utility']:+.2f} n {skill['n_eval']:2d}  when {skill['condition']}: {skill['strategy']}")
    run.finish(policy, optimizer, {"bank": dict(Counter(skill["status"] for skill in state["bank"]))})


if __name__ == "__main__":
    run_script(main)
