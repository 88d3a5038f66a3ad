"""What benchmarks/gpu_vllm.sh runs: parts that each take one process.  Prints one JSON line for
each finding.

python benchmarks/gpu_vllm.py --part all --model runs/smollm2
python benchmarks/gpu_vllm.py --part all --model FOLDER --device cpu --dtype float32    tries it out

phase       warmup, mine, distill, two iterations each, in worlds that hand out wins
(tests/generous.py)
            and evaluate; gap: mean and largest difference of trainer's and sampler's log-probs
probe       after every sync: what engine and policy say to the same 64 tokens
skipped     whether a sync that is left out is noticed
sleep       memory that sleep gives back, seconds of sleep and wake
samplers    sampled tokens/s of vLLM and of transformers, the same plays
ipc         seconds of vLLM's own transfer (CUDA IPC, needs a second process) beside the copy
invariant   of 32 greedy texts, how many are the same alone and in a batch
"""

import base64
import inspect
import json
import os
import pickle
import sys
import time
from importlib import import_module
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import common  # noqa: E402
from envs import UserError  # noqa: E402
from envs.alfworld import AlfWorld  # noqa: E402
from support import large, vllm_engine  # noqa: E402
from support.cli import Parser, make_parser, parse_args, run_script, text, whole  # noqa: E402
from support.files import read_jsonl, write_jsonl  # noqa: E402
from tests.generous import generous  # noqa: E402


def tell(what, **found):
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}
    print(json.dumps({"what": what} | rounded), flush=True)


def settings(args):
    """The command line that all parts share."""
    line = f"--preset paper --model {args.model} --engine vllm --device {args.device}"
    line += f" --dtype {args.dtype} --max-prompt 2048"
    return (
        line
        + f" --max-response {args.response} --rollout-batch {args.groups * 8}"
        + f" --max-steps {args.steps}"
    )


def watch(engine_class):
    """Every sync is followed by a line about the probe."""
    verify = engine_class.verify

    def verified(self, policy):
        before = self.seen
        verify(self, policy)
        ours, theirs = self.seen
        changed = None if before is None else int((theirs != before[1]).sum())
        gap = (ours - theirs).abs()
        tell(
            "probe",
            gap=gap.mean().item(),
            gap_max=gap.max().item(),
            answers_changed=changed,
            of=len(theirs),
        )

    engine_class.verify = verified


def run(script, line):
    """A script's main() in this process, so that vLLM starts once."""
    sys.argv = [f"{script}.py", *line.split()]
    begun = time.time()
    import_module(script).main()
    return time.time() - begun


def phases(args):
    folder = Path("runs") / args.run
    for script in ("warmup", "mine", "distill"):
        line = f"{settings(args)} --run {args.run} --overwrite --groups {args.groups}"
        line += " --group-size 8 --iterations 2"
        line += " --allow-malformed" + (" --stop-at 0" if script == "warmup" else "")
        if script == "distill":  # a random model's skills earn no promotion
            skills = [
                skill | {"status": "active"}
                for skill in read_jsonl(folder / "mine" / "skills.jsonl")
            ]
            write_jsonl(folder / "active.jsonl", skills)
            line += f" --skills {folder / 'active.jsonl'}"
        seconds = run(
            script, line.replace(f" --model {args.model}", "") if script != "warmup" else line
        )
        for metrics in read_jsonl(folder / script / "metrics.jsonl"):
            known = (
                "iteration",
                "sampler_gap",
                "sampler_gap_max",
                "sampler_ratio",
                "response_tokens",
                "env_steps",
            )
            timed = {k: v for k, v in metrics.items() if "seconds" in k}
            tell(
                script,
                seconds_of_phase=seconds,
                **{k: metrics[k] for k in known if k in metrics},
                **timed,
            )
    line = settings(args).replace(f" --model {args.model}", "")
    seconds = run(
        "evaluate", f"{line} --run {args.run} --overwrite --games {args.groups} --repetitions 1"
    )
    tell("evaluate", seconds_of_phase=seconds)


def ready(args):
    """(policy to be trained, its arguments)."""
    sys.argv = ["gpu_vllm", *settings(args).split()]
    chosen = parse_args(make_parser("gpu_vllm"), first=True)
    chosen.vllm_memory = 0.3  # enough here, and several parts may share a card
    policy = common.load_policy(args.model, chosen, trained=True)
    large.ready_to_sample(policy)
    return policy, chosen


def nudge(policy):
    """A small update."""
    with torch.no_grad():
        for p in large.trained(policy):
            p.add_(torch.randn_like(p), alpha=1e-5)
    policy.version += 1


def skipped(policy):
    engine, seen = policy.engine, False
    nudge(policy)
    sync, engine.sync = engine.sync, lambda policy: None
    try:
        large.ready_to_sample(policy)
    except RuntimeError as error:
        seen = str(error)
    engine.sync = sync
    tell("skipped", noticed=bool(seen), message=seen)
    begun = time.time()
    engine.sync(policy)
    synchronize()
    tell("copy", seconds=time.time() - begun)
    engine.verify(policy)


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def sleep_and_wake(policy):
    if not policy.engine.can_sleep:
        return tell("sleep", skipped="on a CPU vLLM does not sleep")
    before = torch.cuda.mem_get_info()[0]
    begun = time.time()
    policy.engine.sleep()
    slept, freed = time.time() - begun, torch.cuda.mem_get_info()[0] - before
    begun = time.time()
    policy.engine.wake()
    tell("sleep", freed_gb=freed / 1e9, seconds=slept, wake_seconds=time.time() - begun)


def samplers(policy, args):
    env = AlfWorld(houses=True, max_steps=args.steps)
    plays = [
        common.Play(task, task, ("gpu_vllm", task))
        for task in env.tasks("train")[: args.groups * 8]
    ]
    engine = policy.engine
    for name in ("vllm", "transformers"):
        policy.engine = engine if name == "vllm" else None
        if name == "transformers" and engine.can_sleep:
            engine.sleep()
        begun = time.time()
        records = common.rollout(policy, env, plays, 1.0, len(plays), args.response)
        synchronize()
        seconds = time.time() - begun
        tokens = sum(len(step["response_ids"]) for record in records for step in record["steps"])
        tell(
            "samplers",
            engine=name,
            tokens_per_second=tokens / seconds,
            tokens=tokens,
            seconds=seconds,
        )
    policy.engine = engine


def invariant(args):
    """Greedy texts alone and together.  VLLM_BATCH_INVARIANT is set before vLLM is imported."""
    os.environ["VLLM_BATCH_INVARIANT"] = "1"
    policy, _ = ready(args)
    env = AlfWorld(houses=True)
    asked = []
    for task in env.tasks("train")[:32]:
        step = env.reset(task)
        asked.append(
            (policy.encode_prompt(env.prompt(env.task, [], step, [], "chat")), ("same", task))
        )
    begun = time.time()
    together = policy.engine.write(policy, asked, 0.0, args.response)
    seconds = time.time() - begun
    alone = []
    for one in asked:
        policy.engine.llm.reset_prefix_cache()
        alone += policy.engine.write(policy, [one], 0.0, args.response)
    same = sum(a == b for a, b in zip(together, alone))
    tell("invariant", same=same, of=len(asked), seconds_together=seconds)


def ipc(args):
    """vLLM in a process of its own, and weights that it opens in ours by CUDA IPC.  Our engine runs
    in the trainer's process, where such handles cannot be opened nor are needed."""
    if args.device == "cpu":
        return tell("ipc", skipped="CUDA IPC needs a GPU")
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork could not use this process's CUDA
    }
    from transformers import AutoModelForCausalLM
    from vllm import LLM, SamplingParams
    from vllm.v1.worker.gpu_worker import Worker

    if not hasattr(Worker, "start_weight_update"):
        return tell("ipc", skipped="this vLLM has no weight transfer")
    try:  # 0.24's own module needs ray, which vLLM does not bring
        import vllm.distributed.weight_transfer.ipc_engine  # noqa: F401
    except ImportError as error:
        return tell("ipc", skipped=f"it imports {error.name}: pip install {error.name}")
    how = dict(dtype=args.dtype, gpu_memory_utilization=0.2, enforce_eager=True, max_model_len=2048)
    llm = LLM(model=args.model, weight_transfer_config={"backend": "ipc"}, **how)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(
        args.device
    )
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01)
    probe = [{"prompt_token_ids": list(range(100, 164))}]
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)

    def say():
        llm.reset_prefix_cache()
        answer = llm.generate(probe, params, use_tqdm=False)[0].prompt_logprobs[1:]
        return [next(iter(one.values())).logprob for one in answer]

    before = say()
    begun = time.time()
    # 0.24 asks whether names are those of a checkpoint; later versions know
    takes = inspect.signature(Worker.start_weight_update).parameters
    more = {"is_checkpoint_format": True} if "is_checkpoint_format" in takes else {}
    llm.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
    llm.collective_rpc("start_weight_update", kwargs=more)
    llm.collective_rpc("update_weights", kwargs={"update_info": handles(model)})
    llm.collective_rpc("finish_weight_update")
    synchronize()
    seconds, after = time.time() - begun, say()
    changed = sum(a != b for a, b in zip(before, after))
    tell("ipc", seconds=seconds, answers_changed=changed, of=len(after))


def handles(model):
    """What vLLM's IPC backend is told of the weights: names, shapes, and handles by GPU."""
    from torch.multiprocessing.reductions import reduce_tensor

    weights = [(name, p.detach().contiguous()) for name, p in model.named_parameters()]
    gpu = str(torch.cuda.get_device_properties(0).uuid)
    opened = [{gpu: reduce_tensor(tensor)[1]} for _, tensor in weights]
    return {
        "names": [name for name, _ in weights],
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in weights],
        "shapes": [list(tensor.shape) for _, tensor in weights],
        "ipc_handles_pickled": base64.b64encode(pickle.dumps(opened)).decode(),
    }


def everything(args):
    make_env = common.make_env
    common.make_env = lambda *given: generous(make_env(*given))  # before the phases import it
    watch(vllm_engine.Engine)
    phases(args)
    policy, _ = ready(args)
    skipped(policy)
    sleep_and_wake(policy)
    samplers(policy, args)


def main():
    p = Parser(description=__doc__.split("\n\n")[0])
    p.add_argument("--part", choices=["all", "ipc", "invariant"], default="all", help="which")
    p.add_argument("--model", type=text, default="runs/smollm2", help="a chat model's folder")
    p.add_argument("--run", type=text, default="gpu-vllm", help="its name in runs/")
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try it out")
    p.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of computing"
    )
    p.add_argument("--groups", type=whole(1), default=8, help="task groups; 8 episodes each")
    p.add_argument("--steps", type=whole(1), default=6, help="of an episode")
    p.add_argument("--response", type=whole(1), default=64, help="tokens of a response")
    about = "no compilation and no CUDA graphs: begins a minute earlier, samples slower"
    p.add_argument("--eager", action="store_true", help=about)
    args = p.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: no CUDA device found; use --device cpu --dtype float32 to try it out"
        )
    vllm_engine.check(args)
    if args.eager:
        import vllm

        compiled = vllm.LLM
        vllm.LLM = lambda **how: compiled(**how | {"enforce_eager": True})
    tell("machine", torch=torch.__version__, vllm=vllm_engine.installed(), device=args.device)
    {"all": everything, "ipc": ipc, "invariant": invariant}[args.part](args)


if __name__ == "__main__":
    run_script(main)
