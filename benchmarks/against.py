"""This code against another checkout of it, in turns: rollouts of the stand-in and of a random chat
model.  One JSON line.

    git worktree add ../before HEAD~5
    python benchmarks/against.py ../before

Each of the two runs in a process of its own, which has loaded everything; they take turns, so that
a busy machine slows down both.  Seconds are those that a process computed; with several --threads,
torch's, wall-clock, which wants a quiet machine.  "same" says whether both sampled the same tokens.

    stand-in    64 generated houses, at most 50 steps, constrained actions
    chat        32 houses, one step with a response of 96 tokens from a vocabulary of 50,000
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

HERE = Path(__file__).resolve().parents[1]
CHAT = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, vocab_size=50_000, tie_word_embeddings=True,
    max_position_embeddings=8192,
)  # fmt: skip


def serve(checkout, threads, folder):
    """What a child does: a rollout for every line that it reads, "stand-in" or "chat"."""
    sys.path.insert(0, checkout)
    import common
    from envs.alfworld import AlfWorld

    torch.set_num_threads(int(threads))
    clock = time.process_time if threads == "1" else time.perf_counter
    made = {}
    for kind in map(str.strip, sys.stdin):
        small = kind == "stand-in"
        if kind not in made:
            policy = common.Policy(f"{checkout}/tiny/alfworld" if small else folder)
            env = AlfWorld(houses=True, max_steps=50 if small else 1)
            n = 64 if small else 32
            tasks = env.tasks("train")
            tasks = tasks[:: len(tasks) // n][:n]
            made[kind] = policy, env, [common.Play(task, task, ("against", task)) for task in tasks]
        policy, env, plays = made[kind]
        begun = clock()
        records = common.rollout(policy, env, plays, 1.0, 64, 32 if small else 96)
        seconds = clock() - begun
        tokens = [step["response_ids"] for record in records for step in record["steps"]]
        print(json.dumps([seconds, tokens]), flush=True)


def main():
    from benchmarks import measure
    from envs import UserError
    from envs.alfworld import AlfWorld
    from envs.arguments import Parser, text, whole

    p = Parser(description=__doc__.split("\n\n")[0])
    p.add_argument("checkout", type=text, help="folder of the other code")
    p.add_argument("--threads", type=whole(1, 256), default=1, help="CPU threads of each")
    about = "that count, after one that does not"
    p.add_argument("--rounds", type=whole(1), default=3, help=about)
    args = p.parse_args()
    if not Path(args.checkout, "common.py").is_file():
        fix = "git worktree add ../before COMMIT makes one"
        raise UserError(f"{args.checkout}: expected another checkout of this code; {fix}")
    result = {"threads": args.threads}
    with tempfile.TemporaryDirectory() as folder:
        texts = measure.chat_prompts(20, env=AlfWorld(houses=True))
        measure.make_model(folder, "qwen2", texts, **CHAT)
        children = []
        for checkout in (args.checkout, HERE):
            command = [sys.executable, __file__, "--serve", str(Path(checkout).resolve())]
            command += [str(args.threads), folder]
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            children.append(subprocess.Popen(command, **pipes))
        for kind in ("stand-in", "chat"):
            taken, tokens = ([], []), [None, None]
            for k in range(args.rounds + 1):
                for which, child in enumerate(children):
                    print(kind, file=child.stdin, flush=True)
                    if not (line := child.stdout.readline()):
                        raise UserError(f"{child.args[3]} failed: its message is above")
                    seconds, tokens[which] = json.loads(line)
                    if k:
                        taken[which].append(seconds)
            before, now = map(median, taken)
            ratio = median(a / b for a, b in zip(*taken))
            result[kind] = {"before": before, "now": now, "before_over_now": round(ratio, 2)}
            result[kind]["same"] = tokens[0] == tokens[1]
        for child in children:
            child.stdin.close()
            child.wait()
    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:  # a child, which sees the checkout's own modules only
        serve(*sys.argv[2:])
    else:
        sys.path.insert(0, str(HERE))
        from envs.arguments import run_tool

        run_tool(main)
