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

from collections import Counter, defaultdict

from common import (
    Play,
    assign_advantages,
    credit,
    generate,
    pair_effects,
    retrieve,
    rollout,
    rows_of,
    sample_tasks,
    start,
    update,
    words,
)
from envs import UserError
from support.cli import by_preset, make_parser, parse_args, run_script, whole
from support.files import read_jsonl, rng, write_jsonl
from support.runs import finished_phase, policy_folder

PHASE = "mine"


# ---- mining --------------------------------------------------------------------------------------------------------------------


def choose_successes(pool, per_type):
    """Up to per_type winning plain episodes for each task type, one per task: from groups with mixed outcomes first, then the shortest,
    since contrast and brevity make the cause of success visible.  A world of one task type, as WebShop, gives at least 12.
    pool: records of the last iterations, won or not."""
    per_type = max(per_type, 12) if len({r["task_type"] for r in pool}) == 1 else per_type
    outcomes = defaultdict(set)
    for r in pool:
        outcomes[r["group_id"]].add(r["success"])
    wins = sorted(
        (r for r in pool if r["success"] and r["condition"] == "plain"),
        key=lambda r: (len(outcomes[r["group_id"]]) == 1, len(r["steps"]), r["traj_id"]),
    )
    chosen, tasks, count = [], set(), Counter()
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


def mine(policy, env, pool, bank, args, k):
    """Asks the policy for one skill per chosen success; returns (new candidates, rejected answers with their reasons).

    This runs before the iteration's update, so the policy *is* the frozen snapshot."""
    chosen = choose_successes(pool, args.per_type)
    keys = [(args.seed, PHASE, k, "write", i) for i in range(len(chosen))]
    prompts = [env.summary_prompt(r, policy.style) for r in chosen]
    answers = generate(policy, prompts, keys, args.mine_temperature, args.max_skill_tokens)
    new, rejected = [], []
    for i, (record, answer) in enumerate(zip(chosen, answers)):
        try:
            skill = {"skill_id": f"{PHASE}-{k}-{i}", "env": args.env, "task_type": record["task_type"]}
            skill |= env.parse_skill(answer, policy.style)
            if any(alike(skill, other) for other in bank + new):
                raise ValueError("near duplicate")
        except ValueError as reason:
            rejected.append({"iteration": k, "traj_id": record["traj_id"], "reason": str(reason), "answer": answer})
            continue
        new.append(
            skill
            | {"status": "candidate", "utility": 0.0, "n_eval": 0, "neg_streak": 0, "deltas": []}
            | {"source_traj_ids": [record["traj_id"]], "source_task_ids": [record["task_id"]]}
            | {"created_iter": k, "updated_iter": k, "retired_iter": None}
        )
    return new, rejected


# ---- paired rollouts -----------------------------------------------------------------------------------------------------------


def pick(bank, planned, env, task_id, task, args, stream):
    """One skill to show for a task, so that its effect is its own: the least-tried fitting candidate or the best fitting active skill.
    planned: skill_id -> groups of this iteration that will try it, which n_eval does not know yet.

    Never on a game that the skill was written from: it would only be asked to remember."""
    task_type = env.task_type(task_id)
    fitting = [s for s in bank if s["status"] != "retired" and task_id not in s["source_task_ids"]]
    candidates = retrieve([s for s in fitting if s["status"] == "candidate"], task, task_type, len(bank))
    active = retrieve([s for s in fitting if s["status"] == "active"], task, task_type, 1)
    if candidates and (not active or stream.random() < args.explore):
        return min(candidates, key=lambda s: s["n_eval"] + planned[s["skill_id"]])
    return active[0] if active else None


def paired_groups(env, tasks, bank, args, k):
    """B groups: G/2 plain and G/2 skill episodes where the bank has a skill for the task, else G plain ones."""
    plays, shown, planned = [], {}, Counter()
    world = env.fork()
    for g, task_id in enumerate(tasks):
        world.reset(task_id)
        skill = pick(bank, planned, env, task_id, world.task, args, rng(args.seed, PHASE, k, g, "pick"))
        shown[f"{PHASE}-{k}-{g}"] = [skill] if skill else []
        n_skill = args.group_size // 2 if skill else 0
        if skill:
            planned[skill["skill_id"]] += 1
        for i in range(args.group_size):
            skills = [skill] if i < n_skill else []
            plays.append(Play(task_id, f"{PHASE}-{k}-{g}", (args.seed, PHASE, k, g, i), skills))
    return plays, shown


def main():
    parser = make_parser(__doc__, iterations=by_preset(laptop=2, paper=40))
    group = parser.add_argument_group("phase 1")
    group.add_argument("--mine-every", type=whole(1), default=10, help="I_mine: iterations between mining events")
    about = "(16) paired groups before a candidate may become active"
    group.add_argument("--n-eval", type=whole(1), default=by_preset(laptop=2, paper=8), help=about)
    parser.set_defaults(window=5, mine_temperature=by_preset(laptop=0.2, paper=0.7), explore=0.5)
    group.add_argument("--per-type", type=whole(1), default=by_preset(laptop=2, paper=4), help="until it is a constant")
    group.add_argument("--max-skill-tokens", type=whole(1), default=256, help="until it is a constant")
    group.add_argument("--promote-all", action="store_true", help="until it is a patch")
    args = parse_args(parser)
    source = finished_phase(args.source or f"runs/{args.run}/warmup")
    warm = read_jsonl(source / "trajectories.jsonl")
    last = max((r["iteration"] for r in warm), default=0)
    pool = [r for r in warm if r["iteration"] > last - args.window]
    if not any(r["success"] and r["condition"] == "plain" for r in pool):
        raise UserError(f"no successes to mine in the last {args.window} iterations of {source}: warm up longer")
    state = {"bank": []}
    run, env, tasks, policy, ref_policy, optimizer = start(args, PHASE, policy_folder(source), state)
    for r in pool:
        r["iteration"] -= last + 1  # one clock for both phases: the last warm-up iteration is -1, the first one here 0
    if run.iteration:
        pool += [r for r in read_jsonl(run.folder / "trajectories.jsonl") if r["condition"] == "plain"]

    for k in run.iterations():
        if k % args.mine_every == 0:
            pool = [r for r in pool if r["iteration"] >= k - args.window]
            with run.timed("mine"):
                new, rejected = mine(policy, env, pool, state["bank"], args, k)
            for skill in new:
                skill["status"] = "active" if args.promote_all else "candidate"
            state["bank"] += new
            run.append("rejected.jsonl", rejected)
            print(f"mined {len(new)} candidates, rejected {dict(Counter(r['reason'] for r in rejected))}", flush=True)
        plays, shown = paired_groups(env, sample_tasks(tasks, args, PHASE, k), state["bank"], args, k)
        with run.timed("rollout"):
            records = rollout(policy, env, plays, args.temperature, args.rollout_batch, args.max_response, args.threads)
        pairs = pair_effects(records, shown)
        for pair in pairs:
            for skill in shown[pair["group_id"]]:
                credit(skill, pair["delta"], k, args)
        statistics = assign_advantages(records, env, args)
        run.set_lr(optimizer)
        with run.timed("update"):
            losses = update(policy, optimizer, rows_of(records), args, rng(args.seed, PHASE, k, "mini-batches"), ref_policy)
        pool += [{"iteration": k} | r for r in records if r["condition"] == "plain"]
        run.log(k, policy, optimizer, records, statistics | losses, pairs, state["bank"])

    write_jsonl(run.folder / "skills.jsonl", state["bank"])
    for skill in sorted(state["bank"], key=lambda s: -s["utility"])[:8]:
        print(f"{skill['status']:9s} u {skill['utility']:+.2f} n {skill['n_eval']:2d}  when {skill['condition']}: {skill['strategy']}")
    run.finish(policy, optimizer, {"bank": dict(Counter(skill["status"] for skill in state["bank"]))})


if __name__ == "__main__":
    run_script(main)
