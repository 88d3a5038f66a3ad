"""Phase 2: what the skills can do moves into the weights, and the skills are thrown away.

Groups are played as in phase 1, half with the best active skills in the prompt, half plain.  Where the skill half wins more often
(D_g > 0), the *actions* of its good episodes are taught to the same policy under the *plain* prompt, next to GiGPO.  Afterwards no
skill, no bank and no longer prompt is needed.

    equations   (17) gate and (18) weight: plain_twins, below; (19) L_int and (20) the sum: update in common.py; lambda(k), below
    in          runs/NAME/mine/: policy/, skills.jsonl
    out         runs/NAME/distill/: policy/ (the result), trajectories.jsonl, pairs.jsonl, skills.jsonl, metrics.jsonl

    laptop      python distill.py
    one GPU     python distill.py --preset paper --model Qwen/Qwen2.5-1.5B-Instruct --dtype bfloat16 --engine vllm
    many        accelerate launch --config_file recipes/fsdp.yaml distill.py --preset paper --dtype bfloat16 --engine vllm
"""

import time
from collections import Counter

from common import (
    Play,
    Row,
    action_token_mask,
    assign_advantages,
    credit,
    for_file,
    pair_effects,
    prompts_of,
    retrieve,
    rollout,
    rows_of,
    sample_tasks,
    start,
    update,
)
from envs import UserError
from support.cli import make_parser, parse_args, run_script, skill_arguments
from support.files import rng, skills_file, write_jsonl
from support.runs import episode_metrics, finished_phase, policy_folder

PHASE = "distill"


def paired_groups(env, tasks, bank, args, k):
    """B groups: G/2 plain and G/2 with the top active skills where there are any, else G plain episodes."""
    plays, shown = [], {}
    active = [s for s in bank if s["status"] == "active"]
    world = env.fork()
    for g, task_id in enumerate(tasks):
        world.reset(task_id)
        skills = retrieve(active, world.task, env.task_type(task_id), args.show)
        shown[f"{PHASE}-{k}-{g}"] = skills
        n_skill = args.group_size // 2 if skills else 0
        for i in range(args.group_size):
            plays.append(Play(task_id, f"{PHASE}-{k}-{g}", (args.seed, PHASE, k, g, i), skills if i < n_skill else []))
    return plays, shown


def plain_twins(policy, env, records, deltas, args):
    """(17), (18) The rows that L_int teaches: the skill episodes' own responses under the plain prompt.

    Per token M w: M = 1[skill used] 1[D_g > 0] 1[action token], w = clip(A, 0, w_max).  Writes gate and weight into the steps."""
    twins = []
    unit = 10.0 if args.adv_mode == "mean_norm" else 1.0  # without the std, advantages are in rewards, of which a success has 10
    for e, record in enumerate(records):
        # (17) the gate: a skill episode of a group in which the skill helped
        gate = record["condition"] == "skill" and (deltas[record["group_id"]] > 0 or "gate" in args.without)
        for s in record["steps"]:
            s["gate"] = int(gate)
            # (18) the *internalisation weight*: the clipped advantage of the step, no gradient
            s["weight"] = gate * (1.0 if "weight" in args.without else min(max(s["advantage"] / unit, 0.0), args.w_max))
        if not gate:
            continue
        for s, prompt_ids in zip(record["steps"], prompts_of(policy, env, record, skills=[])):
            mask = action_token_mask(policy, s) if s["valid"] else [0] * len(s["response_ids"])
            mask = [1] * len(mask) if "mask" in args.without else mask
            row = Row(prompt_ids, s["response_ids"], s["logprobs"], s["allowed"], rl=False, episode=e)
            row.weights, row.gated = [m * s["weight"] for m in mask], sum(mask)
            twins.append(row)
    return twins


def lambda_at(k, args):
    """(20) lambda(k) = lambda_max min(1, k / K_warm); ten times that where L_GiGPO is in rewards (mean_norm), to keep proportions."""
    largest = args.lambda_max * (10 if args.adv_mode == "mean_norm" else 1)
    return largest * min(1.0, k / args.k_warm) if args.k_warm else largest


def main():
    parser = make_parser(__doc__)
    group = skill_arguments(parser)
    group.add_argument("--skills", help="skills.jsonl to use (default: that of the mining phase)")
    group.add_argument("--show", type=int, default=3, help="active skills in a skill prompt")
    group = parser.add_argument_group("internalisation")
    group.add_argument("--lambda-max", type=float, default=0.1, help="(20) largest weight of L_int; 0: GiGPO on paired rollouts only")
    group.add_argument("--k-warm", type=int, default=20, help="(20) iterations until lambda is at its largest; 0: from the start")
    group.add_argument("--w-max", type=float, default=2.0, help="(18) largest weight of a token")
    parts = ["gate", "weight", "mask"]
    group.add_argument("--without", nargs="+", default=[], choices=parts, help="ablation: leave out parts of (17), (18)")
    laptop = dict(minutes=10, n_eval=2, lambda_max=0.5, k_warm=0, lr_end=0.1, retire_after=8)
    args = parse_args(parser, laptop=laptop, paper=dict(iterations=50))
    source = finished_phase(args.source or f"runs/{args.run}/mine")
    bank = skills_file(args.skills or source / "skills.jsonl")
    if not any(skill["status"] == "active" for skill in bank):
        raise UserError(f"no active skill in {args.skills or source / 'skills.jsonl'}: mine longer, or lower --tau-act of mine.py")
    state = {"bank": bank}
    run, env, tasks, policy, ref_policy, optimizer = start(args, PHASE, policy_folder(source), state)

    for k in run.iterations():
        began = time.time()
        plays, shown = paired_groups(env, sample_tasks(tasks, args, PHASE, k), state["bank"], args, k)
        records = rollout(policy, env, plays, args.temperature, args.rollout_batch, args.max_response, args.threads)
        pairs = pair_effects(records, shown)
        for pair in pairs:
            for skill in shown[pair["group_id"]]:
                credit(skill, pair, k, args)
        rolled = time.time()
        statistics = assign_advantages(records, env, args)
        run.set_lr(optimizer)
        twins = plain_twins(policy, env, records, {pair["group_id"]: pair["delta"] for pair in pairs}, args)
        lam = lambda_at(k, args)
        stream = rng(args.seed, PHASE, k, "mini-batches")
        losses = update(policy, optimizer, rows_of(records) + twins, args, stream, ref_policy, lam)

        run.append("trajectories.jsonl", [{"phase": PHASE, "iteration": k, "env": args.env} | for_file(r) for r in records])
        run.append("pairs.jsonl", [{"iteration": k} | pair for pair in pairs])
        metrics = {"iteration": k, "lambda": lam} | episode_metrics(records, rolled - began) | statistics | losses
        metrics["bank"] = dict(Counter(skill["status"] for skill in state["bank"]))
        metrics["mean_effect"] = sum(p["delta"] for p in pairs) / max(1, len(pairs))
        metrics["gate_open"] = sum(p["delta"] > 0 for p in pairs) / max(1, len(pairs))
        run.end_iteration(policy, optimizer, metrics | {"update_seconds": time.time() - rolled})

    write_jsonl(run.folder / "skills.jsonl", state["bank"])  # evidence only: the result is the policy, which has never to see it again
    run.finish(policy, optimizer, {"bank": dict(Counter(skill["status"] for skill in state["bank"]))})


if __name__ == "__main__":
    run_script(main)
