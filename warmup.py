"""Phase 0: warm the policy up with GiGPO until it wins often enough to learn from its own successes.

Each iteration plays B tasks x G episodes from the same starts, compares every episode with its group and every step with the other
visits of the same state, and takes one pass of clipped policy gradient.

    equations   (1)-(8) gigpo_advantages, (9)-(12) update, both in common.py; (13) the stop, below
    in          the base policy (--model)
    out         runs/NAME/warmup/: trajectories.jsonl, metrics.jsonl, policy/

    laptop      python warmup.py
    one GPU     python warmup.py --preset paper --model Qwen/Qwen2.5-1.5B-Instruct --dtype bfloat16 --engine vllm
    many        accelerate launch --config_file recipes/fsdp.yaml warmup.py --preset paper --dtype bfloat16 --engine vllm
    GiGPO only  python warmup.py --run NAME-gigpo --model runs/NAME/warmup/policy --stop-at 0 --lr-end 0.1 --minutes 10.5    (the control)

Interrupted?  The same command goes on after the last finished iteration.
"""

import math

from common import Play, assign_advantages, rollout, rows_of, sample_tasks, start, update
from support.cli import by_preset, make_parser, number, parse_args, run_script, whole
from support.files import rng

PHASE = "warmup"


def plain_groups(tasks, args, k):
    """B groups of G plain episodes each, all of one group from the same task and start."""
    return [
        Play(task, f"{PHASE}-{k}-{g}", (args.seed, PHASE, k, g, i))
        for g, task in enumerate(tasks)
        for i in range(args.group_size)
    ]  # fmt: skip


def enough_successes(wins, args):
    """(13) N_succ >= N_req over the last W iterations: a sliding window measures the current ability, a total would not."""
    needed = math.ceil(args.stop_at * args.window * args.groups * args.group_size)  # N_req
    return args.stop_at > 0 and len(wins) >= args.window and sum(wins[-args.window :]) >= needed


def main():
    parser = make_parser(__doc__, minutes=by_preset(laptop=3, paper=None), iterations=by_preset(laptop=10_000, paper=60))
    group = parser.add_argument_group("phase 0")
    about = "(13) W: iterations over which successes are counted"
    group.add_argument("--window", type=whole(1), default=by_preset(laptop=2, paper=5), help=about)
    about = "(13) N_req as a share of the window's episodes; 0: never stop early"
    group.add_argument("--stop-at", type=number(least=0, most=1), default=by_preset(laptop=0.2, paper=0.4), help=about)
    args = parse_args(parser, first=True)
    state = {"wins": []}  # successes per iteration
    run, env, tasks, policy, ref_policy, optimizer = start(args, PHASE, args.source or args.model, state)

    for k in run.iterations():
        plays = plain_groups(sample_tasks(tasks, args, PHASE, k), args, k)
        with run.timed("rollout"):
            records = rollout(policy, env, plays, args.temperature, args.rollout_batch, args.max_response, args.threads)
        statistics = assign_advantages(records, env, args)
        run.set_lr(optimizer)
        with run.timed("update"):
            losses = update(policy, optimizer, rows_of(records), args, rng(args.seed, PHASE, k, "mini-batches"), ref_policy)
        state["wins"].append(sum(r["success"] for r in records))
        if enough_successes(state["wins"], args):
            run.stop(f"(13): {sum(state['wins'][-args.window :])} successes in the last {args.window} iterations")
        run.log(k, policy, optimizer, records, statistics | losses)
    run.finish(policy, optimizer, {"successes": state["wins"]})


if __name__ == "__main__":
    run_script(main)
