"""Phase 0: warm the policy up with GiGPO until it wins often enough to learn from itself.

Each iteration plays B tasks x G episodes from the same starts, compares every episode with its
group and every step with the other visits of the same state, and takes one pass of clipped policy
gradient.

    equations   (1)-(8) gigpo_advantages, (9)-(11) gigpo_loss, (12) load_training and update,
                all in common.py; (13) the stop, below
    in          the base policy (--model)
    out         runs/NAME/warmup/: trajectories.jsonl, metrics.jsonl, policy/

    laptop      python warmup.py
    one GPU     python warmup.py --preset paper --model Qwen/Qwen2.5-1.5B-Instruct --engine vllm
    many        bash recipes/qwen7b.sh    (accelerate launch, FSDP)
    GiGPO only  python warmup.py --run NAME-gigpo --model runs/NAME/warmup/policy --stop-at 0 \
                    --lr-end 0.1 --minutes 5      (SIRI's control, for the same minutes)

Interrupted?  The same command goes on after the last finished iteration.
"""

import math
from functools import partial

import support.cli  # noqa: F401 (first: from here on Ctrl-C while importing is one line)
from common import (
    Play,
    assign_advantages,
    gigpo_loss,
    load_training,
    make_env,
    rollout,
    rows_of,
    sample_tasks,
    train_tasks,
    update,
)
from support.cli import by_preset, make_parser, number, parse_args, run_script, whole
from support.files import rng
from support.phases import weights_of
from support.runs import Run
from support.traces import traced
from support.training import sampling_options, update_options

PHASE = "warmup"


def plain_groups(tasks, group_size, seed, k, name=PHASE):
    """B groups of G plain episodes, all of one group from the same task and start."""
    plays = []
    for g, task in enumerate(tasks):
        for i in range(group_size):
            # the key names the episode's random stream: nothing depends on what was drawn before
            plays.append(Play(task, group_id=f"{name}-{k}-{g}", key=(seed, name, k, g, i)))
    return plays


def enough_successes(wins, window, stop_at, episodes):
    """(13) N_succ >= N_req, over the last W iterations.

    wins: successes per iteration; episodes: B G, of one iteration.  A sliding window measures what
    the policy can do now; a total would be reached by a policy that never learns.

    >>> enough_successes([20, 30, 25], window=2, stop_at=0.2, episodes=128)    # 55 >= 52
    True
    """
    needed = math.ceil(stop_at * window * episodes)  # N_req
    # stop_at 0 never stops: the control's setting
    return stop_at > 0 and len(wins) >= window and sum(wins[-window:]) >= needed


def arguments():
    """The command line."""
    # minutes end a laptop's phase, not iterations: a fast machine makes more of them
    parser = make_parser(
        __doc__,
        minutes=by_preset(laptop=3, paper=None),  # wall-clock of this phase
        iterations=by_preset(laptop=10_000, paper=60),  # K_0
        lr_end=1.0,  # a constant rate
    )
    group = parser.add_argument_group("phase 0")
    about = "(13) W: iterations over which successes are counted"
    w = by_preset(laptop=2, paper=5)  # a stand-in changes faster
    group.add_argument("--window", type=whole(1), default=w, help=about)
    about = "(13) N_req as a share of the window's episodes; 0: never stop early"
    share = by_preset(laptop=0.2, paper=0.4)
    group.add_argument("--stop-at", type=number(least=0, most=1), default=share, help=about)
    return parse_args(parser, first=True)


def main():
    args = arguments()
    env = make_env(args.env, args.simulator, args.max_steps)
    tasks = train_tasks(env)  # without the held-out ones
    print(f"{env.describe(env.split_names[0])}; {len(tasks):,} to train on", flush=True)
    source = weights_of(args.source or args.model)  # also the reference of the KL term
    state = {"wins": []}  # successes per iteration; a checkpoint keeps it
    # the folder runs/NAME/warmup: begun, or gone on with after an interruption
    run = Run(args, PHASE, source, state)
    policy, ref_policy, optimizer = load_training(run.weights, source, args)
    run.restore(policy, optimizer)
    loss, how = partial(gigpo_loss, beta=args.beta), update_options(args, env)
    # the control never stops early; by warm-up's name it would first play warm-up's games again
    name = PHASE if args.stop_at else "control"

    for k in run.iterations():
        chosen = sample_tasks(tasks, args.groups, rng(args.seed, name, k, "tasks"))
        plays = plain_groups(chosen, args.group_size, args.seed, k, name)
        with run.timed("rollout"):  # B G records, one an episode
            records = rollout(policy, env, plays, **sampling_options(args))
        # what was better than its group, and better than other visits of its state
        assign_advantages(records, env, omega=args.omega, mode=args.adv_mode)
        with traced(run, policy, env, records, k), run.timed("update"):
            run.set_lr(optimizer)  # linearly to lr_end at the end of the budget
            stream = rng(args.seed, name, k, "mini-batches")
            rows = rows_of(records)
            losses = update(policy, optimizer, rows, stream, loss, ref_policy, **how)
        state["wins"].append(sum(record["success"] for record in records))
        if enough_successes(state["wins"], args.window, args.stop_at, len(plays)):
            run.stop(f"(13): {sum(state['wins'][-args.window :])} wins in {args.window} iterations")
        # files, console line and checkpoint: the same command goes on from here
        run.log(k, policy, optimizer, records, losses)
    run.finish(policy, optimizer, {"successes": state["wins"]})


if __name__ == "__main__":
    run_script(main)
