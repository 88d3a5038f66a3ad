"""Phase 1: the policy writes skills from its own successes; paired rollouts find out which help.

Every --mine-every iterations a frozen snapshot of the policy reads some of its winning plain
episodes and writes one short skill from each ("when ..., do ...").  From then on half of a group's
episodes are played with one skill in the prompt, the other half plain, from the same start: the
difference of their success is the skill's effect on this game.  GiGPO goes on with all of them.

    equations   (14) pair_effects, (15) and (16) credit, below; (1)-(12) as in warmup.py
    in          runs/NAME/warmup/: policy/ and the last iterations of trajectories.jsonl
    out         runs/NAME/mine/: skills.jsonl (all skills with their evidence), pairs.jsonl,
                rejected.jsonl, trajectories.jsonl, metrics.jsonl, policy/

    laptop      python mine.py
    one GPU     python mine.py --preset paper --model Qwen/Qwen2.5-1.5B-Instruct --engine vllm
    many        bash recipes/qwen7b.sh    (accelerate launch, FSDP)
    pure mining python mine.py --lr 0    (the policy stays as it is; ambiguity A2)
"""

from collections import Counter, defaultdict
from functools import partial

from common import (
    Play,
    Sampler,
    assign_advantages,
    gigpo_loss,
    large,
    load_training,
    make_env,
    parallel,
    retrieve,
    rollout,
    rows_of,
    sample_tasks,
    task_text,
    train_tasks,
    update,
)
from envs import UserError
from support.cli import by_preset, make_parser, parse_args, run_script, whole
from support.files import read_jsonl, rng, write_jsonl
from support.runs import Run, finished_phase, policy_folder
from support.text import words
from support.traces import traced
from support.training import sampling_options, update_options

PHASE = "mine"
POOL_ITERATIONS = 5  # W: iterations whose successes are mined

# ---- mining ------------------------------------------------------------------------------------


def choose_successes(pool, per_type=4):
    """Up to per_type winning plain episodes for each task type, one per task.

    pool: records of the last iterations, won or not.  From groups with mixed outcomes first, then
    the shortest: contrast and brevity make the cause of success visible.  A world of one task type,
    as WebShop, gives three times as many."""
    if len({record["task_type"] for record in pool}) == 1:
        per_type = max(per_type, 12)
    outcomes = defaultdict(set)
    for record in pool:
        outcomes[record["group_id"]].add(record["success"])

    def worth(record):  # smallest first
        all_won = len(outcomes[record["group_id"]]) == 1
        return all_won, len(record["steps"]), record["traj_id"]  # the id makes the order fixed

    wins = [r for r in pool if r["success"] and r["condition"] == "plain"]
    chosen, tasks, count = [], set(), Counter()
    for record in sorted(wins, key=worth):
        if record["task_id"] not in tasks and count[record["task_type"]] < per_type:
            tasks.add(record["task_id"])
            count[record["task_type"]] += 1
            chosen.append(record)
    return chosen


def alike(a, b, threshold=0.8):
    """Whether two skills for the same kind of task say nearly the same: the Jaccard similarity of
    their sets of words is at least the threshold."""
    x, y = (set(words(f"{skill['condition']} {skill['strategy']}")) for skill in (a, b))
    return a["task_type"] == b["task_type"] and len(x & y) >= threshold * len(x | y)


def generate(policy, prompts, keys, temperature, max_new, batch=64):
    """Free text after each prompt (a string).  keys name a random stream each.  Returns strings."""
    large.ready_to_sample(policy)
    asked = [(policy.encode_prompt(text), key) for text, key in zip(prompts, keys)]
    longest = max((len(ids) for ids, _ in asked), default=0)
    if longest + max_new > policy.context:
        found = f"a prompt of {longest} tokens asks for {max_new} more"
        raise UserError(f"{found}, {policy.name} reads {policy.context}: lower --max-steps")

    def write(asked):
        if policy.engine:
            return policy.engine.write(policy, asked, temperature, max_new)
        written = []
        for i in range(0, len(asked), batch):
            ids, names = zip(*asked[i : i + batch])
            sampler, free = Sampler(policy, len(ids), temperature), [None] * len(ids)
            written += sampler.sample(list(ids), free, [rng(*name) for name in names], max_new)
        return [response_ids for response_ids, _, _ in written]

    return [policy.decode(ids) for ids in parallel.share(write, asked, keys)]


def write_skills(policy, env, pool, bank, k, seed, per_type=4, temperature=0.7, max_new=256):
    """Asks the policy for one skill per chosen success; returns (new candidates, refused answers).

    This runs before the iteration's update, so the policy *is* the frozen snapshot."""
    chosen = choose_successes(pool, per_type)
    prompts = [env.summary_prompt(record, policy.style) for record in chosen]
    keys = [(seed, PHASE, k, "write", i) for i in range(len(chosen))]
    answers = generate(policy, prompts, keys, temperature, max_new)
    new, refused = [], []
    for i, (record, answer) in enumerate(zip(chosen, answers)):
        skill = {"skill_id": f"{PHASE}-{k}-{i}", "task_type": record["task_type"]}
        try:
            # the world reads the answer: it refuses what is empty, too long, or cannot transfer
            # because it names "cabinet 3"
            skill |= env.parse_skill(answer, policy.style)
            if any(alike(skill, other) for other in bank + new):
                raise ValueError("near duplicate")
        except ValueError as reason:
            about = {"iteration": k, "traj_id": record["traj_id"]}
            refused.append(about | {"reason": str(reason), "answer": answer})
            continue
        skill |= {"status": "candidate", "utility": 0.0, "n_eval": 0, "neg_streak": 0, "deltas": []}
        skill |= {"source_traj_ids": [record["traj_id"]], "source_task_ids": [record["task_id"]]}
        new.append(skill | {"created_iter": k, "updated_iter": k, "retired_iter": None})
    return new, refused


# ---- paired rollouts ---------------------------------------------------------------------------


def pick(env, bank, task_id, planned, stream, explore=0.5):
    """One skill to show for a task, so that its effect is its own: the least-tried fitting
    candidate, or the best fitting active skill.  A list, empty where there is none.

    planned: skill_id -> groups of this iteration that try it, which n_eval does not know yet."""
    task, task_type = task_text(env, task_id), env.task_type(task_id)
    # never on a game that the skill was written from: it would only be asked to remember
    fitting = [s for s in bank if task_id not in s["source_task_ids"]]
    candidates = [skill for skill in fitting if skill["status"] == "candidate"]
    candidates = retrieve(candidates, task, task_type, len(bank))
    active = [skill for skill in fitting if skill["status"] == "active"]
    active = retrieve(active, task, task_type, 1)
    if candidates and (not active or stream.random() < explore):
        return [min(candidates, key=lambda s: s["n_eval"] + planned[s["skill_id"]])]
    return active


def plan_pairs(env, tasks, bank, seed, k):
    """What iteration k plays: a pair (task_id, skills to show) per group."""
    plan, planned = [], Counter()
    for g, task_id in enumerate(tasks):
        skills = pick(env, bank, task_id, planned, rng(seed, PHASE, k, g, "pick"))
        planned.update(skill["skill_id"] for skill in skills)
        plan.append((task_id, skills))
    return plan


def paired_groups(plan, group_size, seed, k, phase=PHASE):
    """G/2 skill and G/2 plain episodes per group where there is a skill for it, else G plain ones.

    plan: (task_id, skills) per group.  Returns the plays, and group_id -> skills shown."""
    plays, shown = [], {}
    for g, (task_id, skills) in enumerate(plan):
        group_id = f"{phase}-{k}-{g}"
        shown[group_id] = skills
        n_skill = group_size // 2 if skills else 0
        for i in range(group_size):
            in_prompt = skills if i < n_skill else []
            plays.append(Play(task_id, group_id, (seed, phase, k, g, i), in_prompt))
    return plays, shown


def pair_effects(records, shown):
    """(14) D_g = mean success of group g's skill episodes - mean success of its plain ones.

    Returns a line of pairs.jsonl per paired group."""
    pairs = []
    for group_id, skills in shown.items():
        group = [record for record in records if record["group_id"] == group_id]
        s_skill = [int(r["success"]) for r in group if r["condition"] == "skill"]
        s_base = [int(r["success"]) for r in group if r["condition"] == "plain"]
        if s_skill and s_base:
            pair = {key: group[0][key] for key in ("group_id", "task_id", "task_type", "task")}
            pair["skill_ids"] = [skill["skill_id"] for skill in skills]
            pair |= {"s_skill": s_skill, "s_base": s_base}
            pair["delta"] = sum(s_skill) / len(s_skill) - sum(s_base) / len(s_base)
            pairs.append(pair)
    return pairs


# ---- a skill's life ----------------------------------------------------------------------------


def credit(skill, delta, k, n_eval=8, ema=0.2, tau_act=0.05, retire_after=3):
    """(15) and (16): one more effect D of a skill, seen in iteration k; changes the skill.

    With 4 + 4 episodes at 50 % success one D has a standard deviation of 0.35; the running mean
    brings it to 0.12.  Plain 1 of 4 wins, with the skill 3 of 4: D = 0.5.

    >>> skill = {"utility": 0.0, "n_eval": 0, "neg_streak": 0, "deltas": [], "status": "candidate"}
    >>> credit(skill, 0.5, k=0, n_eval=2)
    >>> skill["utility"], skill["status"]
    (0.5, 'candidate')
    >>> credit(skill, 0.0, k=1, n_eval=2)
    >>> skill["utility"], skill["status"]    # 0.8 x 0.5 + 0.2 x 0 > 0.05, after two pairs
    (0.4, 'active')
    """
    # (15) u <- D at first, then (1 - a) u + a D
    u = skill["utility"]
    skill["utility"] = delta if skill["n_eval"] == 0 else (1 - ema) * u + ema * delta
    skill["n_eval"] += 1
    skill["deltas"].append(round(delta, 4))
    skill["neg_streak"] = skill["neg_streak"] + 1 if skill["utility"] < 0 else 0
    skill["updated_iter"] = k
    # (16) candidate -> active -> retired
    tried = skill["n_eval"] >= n_eval
    if skill["status"] == "candidate" and tried and skill["utility"] > tau_act:
        skill["status"] = "active"
    hopeless = skill["status"] == "candidate" and skill["n_eval"] >= 3 * n_eval
    if skill["neg_streak"] >= retire_after or hopeless:
        skill["status"], skill["retired_iter"] = "retired", k


def warm_pool(source):
    """The records of the last warm-up iterations, which the first skills are written from.
    UserError where nothing was won in them."""
    warm = read_jsonl(source / "trajectories.jsonl")
    last = max((record["iteration"] for record in warm), default=0)
    pool = [record for record in warm if record["iteration"] > last - POOL_ITERATIONS]
    if not any(record["success"] and record["condition"] == "plain" for record in pool):
        found = f"no successes to mine in the last {POOL_ITERATIONS} iterations of {source}"
        raise UserError(f"{found}: warm up longer")
    for record in pool:
        # one clock for both phases: the last warm-up iteration is -1, the first one here 0
        record["iteration"] -= last + 1
    return pool


def main():
    parser = make_parser(
        __doc__,
        minutes=None,
        iterations=by_preset(laptop=2, paper=40),
        lr_end=1.0,
        per_type=by_preset(laptop=2, paper=4),  # successes mined per task type and event
        mine_temperature=by_preset(laptop=0.2, paper=0.7),  # of writing skills
    )
    group = parser.add_argument_group("phase 1")
    about = "I_mine: iterations between mining events"
    group.add_argument("--mine-every", type=whole(1), default=10, help=about)
    about = "(16) paired groups before a candidate may become active"
    tries = by_preset(laptop=2, paper=8)
    group.add_argument("--n-eval", type=whole(1), default=tries, help=about)
    args = parse_args(parser)
    env = make_env(args.env, args.simulator, args.max_steps)
    tasks = train_tasks(env)
    source = finished_phase(args.source or f"runs/{args.run}/warmup")
    pool = warm_pool(source)
    state = {"bank": []}  # every skill ever written; a checkpoint keeps it
    run = Run(args, PHASE, policy_folder(source), state)
    policy, ref_policy, optimizer = load_training(run.weights, policy_folder(source), args)
    run.restore(policy, optimizer)
    if run.iteration:  # going on after an interruption
        here = read_jsonl(run.folder / "trajectories.jsonl")
        pool += [record for record in here if record["condition"] == "plain"]
    loss, how = partial(gigpo_loss, beta=args.beta), update_options(args, env)

    for k in run.iterations():
        bank = state["bank"]
        if k % args.mine_every == 0:
            pool = [record for record in pool if record["iteration"] >= k - POOL_ITERATIONS]
            how_to_write = (args.seed, args.per_type, args.mine_temperature)
            new, refused = write_skills(policy, env, pool, bank, k, *how_to_write)
            bank += [skill | {"env": args.env} for skill in new]
            run.append("rejected.jsonl", refused)
        # half of a group with one skill in the prompt, the other half without
        chosen = sample_tasks(tasks, args.groups, rng(args.seed, PHASE, k, "tasks"))
        plan = plan_pairs(env, chosen, bank, args.seed, k)
        plays, shown = paired_groups(plan, args.group_size, args.seed, k)
        with run.timed("rollout"):
            records = rollout(policy, env, plays, **sampling_options(args))
        pairs = pair_effects(records, shown)  # (14)
        for pair in pairs:
            for skill in shown[pair["group_id"]]:
                credit(skill, pair["delta"], k, args.n_eval)  # (15), (16)
        # GiGPO goes on, each row under the prompt that it was sampled with
        assign_advantages(records, env, omega=args.omega, mode=args.adv_mode)
        with traced(run, policy, env, records, k), run.timed("update"):
            run.set_lr(optimizer)
            stream = rng(args.seed, PHASE, k, "mini-batches")
            rows = rows_of(records)
            losses = update(policy, optimizer, rows, stream, loss, ref_policy, **how)
        pool += [record | {"iteration": k} for record in records if record["condition"] == "plain"]
        run.log(k, policy, optimizer, records, losses, pairs, bank)

    write_jsonl(run.folder / "skills.jsonl", state["bank"])
    for skill in sorted(state["bank"], key=lambda s: -s["utility"])[:8]:
        evidence = f"{skill['status']:9s} u {skill['utility']:+.2f} n {skill['n_eval']:2d}"
        print(f"{evidence}  when {skill['condition']}: {skill['strategy']}"[:100])
    run.finish(policy, optimizer, {"bank": dict(Counter(s["status"] for s in state["bank"]))})


if __name__ == "__main__":
    run_script(main)
