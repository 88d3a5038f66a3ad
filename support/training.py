"""How an update's arithmetic is spread over threads, processes and memory.  Changes no result.

    updating       what large models need around an update: recomputed activations, a sampler asleep
    choose_room    how many tokens a micro-batch has, where nobody said: as many as memory holds
    backward       the gradient of a mini-batch, summed over its micro-batches
    old_logprobs   pi_old by the training model before its first step, and the gap to the sampler
    token_means    sums over all processes become the metrics
    sampling_options, update_options    what the command line says of them
"""

import math
import os
from bisect import bisect_left
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch.utils.checkpoint import checkpoint

from envs import UserError
from support import large, memory, packing, parallel

# what a metric is a mean over; a metric not named here is one over the response tokens under RL
PER = {
    "clip_fraction": "choices", "dual_clip_fraction": "choices", "logprob_change": "choices",
    "l_int": "taught",
}  # fmt: skip


@contextmanager
def updating(policy, checkpointing):
    """Activations are computed again in the backward pass where asked for, and vLLM gives its
    memory back."""
    large.recompute(policy, checkpointing)
    if policy.engine:
        policy.engine.sleep()
    yield
    large.recompute(policy, False)


# ---- micro-batches that memory holds -------------------------------------------------------------


AT_MOST = 8192  # tokens of a micro-batch on a CPU, which gains nothing from more


def free_bytes(device):
    """Memory that is free on a device; infinite for a CPU whose system does not say."""
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device)  # of which torch may use the rest
        return free - torch.cuda.memory_allocated(device)
    if not os.path.exists("/proc/meminfo"):  # not Linux
        return math.inf
    with open("/proc/meminfo") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))


def choose_room(policy, optimizer, batches, asked, checkpointing, threads=1):
    """Sets policy.room, the padded tokens of a micro-batch: as asked; else, before the first
    update, what memory.py estimates for the memory that is free, which `threads` share.  Never what
    was too much.

    batches: sequences by mini-batch."""
    sequences = [sequence for batch in batches for sequence in batch]
    if asked:
        policy.room = min(asked, policy.room_limit)
    elif policy.room is None and sequences:
        free, most = free_bytes(policy.device), AT_MOST if policy.device == "cpu" else math.inf
        how = (policy, optimizer, sequences, checkpointing, free, threads)
        fits = min(most, memory.free_tokens(*how) or AT_MOST)
        policy.room = min(parallel.gather(fits))  # all processes cut alike
        if policy.room != most:
            found = f"micro-batches of {policy.room:,} tokens"
            print(f"{found}, for {free / 1e9:.1f} GB of free memory")


def even_batches(sequences, room):
    """Micro-batches of at most `room` padded tokens; of several processes none idles while another
    has much: they are the smallest that take no more rounds."""

    def rounds(tokens):
        return math.ceil(sum(1 for _ in packing.micro_batches(sequences, tokens)) / world)

    if (world := parallel.world_size()) > 1 and sequences:
        fewest = rounds(room)
        room = 1 + bisect_left(range(1, room), -fewest, key=lambda tokens: -rounds(tokens))
    return packing.micro_batches(sequences, room)


def in_micro_batches(policy, sequences, work):
    """work(parts) of this process's share of the micro-batches, pairs as of parallel.own_part.

    Where memory runs out: again with half the tokens, as work has left nothing behind; UserError
    where that is not possible."""
    while True:
        parts = parallel.own_part(list(even_batches(sequences, policy.room)))
        try:
            with parallel.apart():
                return work(parts)
        except torch.OutOfMemoryError:
            pass  # behind this block, where the exception's frames no longer hold tensors
        tokens, rows = max((len(part) * len(part[0].ids), len(part)) for part, _ in parts)
        found = f"out of memory with a micro-batch of {rows} x {tokens // rows} tokens"
        if max(len(part) for part, _ in parts) == 1:
            raise UserError(f"{found}: lower --max-prompt, or add --gradient-checkpointing")
        if parallel.world_size() > 1:  # the others are waiting for what this process did not do
            raise UserError(f"{found}: lower --micro-batch-tokens to {tokens // 2}")
        policy.room_limit = policy.room = tokens // 2
        print(f"{found}: going on with --micro-batch-tokens {policy.room}")
        for p in large.trained(policy):
            p.grad = None
        if policy.device != "cpu":
            torch.cuda.empty_cache()


def backward(policy, loss_of, sequences, threads=1):
    """Sums the gradients of loss_of over micro-batches of the sequences into the parameters' .grad;
    returns the sums of what it reports.

    loss_of: a micro-batch -> (loss, sums).  On a CPU `threads` share the micro-batches; gradients
    are added in order, so that the result does not depend on who is first."""
    parameters = large.trained(policy)
    shared = policy.device == "cpu" and not parallel.sharded() and not policy.lora

    def gradients(turn):
        part, counts = turn
        loss, sums = loss_of(part)
        sums = sums if counts else {}
        if shared:
            return torch.autograd.grad(loss * counts, parameters), sums
        # FSDP2 takes the mean over processes, not the sum
        scale = parallel.world_size() if parallel.sharded() else 1
        (loss * counts * scale).backward()
        return (), sums

    def work(parts):
        total = Counter()
        with ThreadPoolExecutor(threads) as pool:
            for grads, sums in pool.map(gradients, parts) if shared else map(gradients, parts):
                for p, grad in zip(parameters, grads):
                    p.grad = grad if p.grad is None else p.grad.add_(grad)
                total.update(sums)
        return total

    total = in_micro_batches(policy, sequences, work)
    if sequences:
        parallel.sum_gradients(parameters)
    return total


TIS_CAP = 2.0  # largest importance weight of a token


def old_logprobs(policy, batches, temperature):
    """(9) pi_old by the training model, before the first step; returns the gap to the sampler.

    Sampler and trainer compute the same policy by other kernels, so tokens come from slightly
    another one than pi_old.  Truncated importance sampling (Ionides 2008) corrects it: the policy
    gradient's token losses are multiplied by min(pi_old / pi_sampler, cap).  batches: sequences by
    mini-batch."""

    def work(parts):
        # processes run all of theirs together, also those that are there to make up the number
        found = [(part, counts, policy.logprobs(part, temperature)[0]) for part, counts in parts]
        return [(part, logprobs.tolist()) for part, counts, logprobs in found if counts]

    done, gap = [], Counter()
    with torch.no_grad():
        for sequences in batches:
            done += in_micro_batches(policy, sequences, work)
    for part, old in done:
        old = iter(old)
        for s in part:
            sampled, s.old_logprobs = s.old_logprobs, [next(old) for _ in s.positions]
            ratios = [math.exp(min(20.0, a - b)) for a, b in zip(s.old_logprobs, sampled)]
            s.tis_weights = [min(ratio, TIS_CAP) for ratio in ratios]
            gaps = [abs(a - b) for a, b, rl in zip(s.old_logprobs, sampled, s.rl) if rl]
            gap["gap"] += sum(gaps)
            gap["gap_ratio"] += sum(r for r, rl in zip(ratios, s.rl) if rl)
            gap["gap_tokens"] += len(gaps)
            gap["gap_max"] = max([gap["gap_max"], *gaps])
    return gap


def token_means(total, steps):
    """The metrics of an update.  total: sums of this process; steps: sums that all have alike."""
    everyone = parallel.gather(total)
    total = Counter(steps)
    for one in everyone:
        total.update(one)
    metrics = {}
    if total["gap_tokens"]:
        metrics["sampler_gap"] = total["gap"] / total["gap_tokens"]
        metrics["sampler_gap_max"] = max(one["gap_max"] for one in everyone)
        metrics["sampler_ratio"] = total["gap_ratio"] / total["gap_tokens"]
    bookkeeping = {"gap", "gap_max", "gap_ratio", "gap_tokens", "tokens", "choices", "taught"}
    bookkeeping |= {"update_tokens", "grad_norm", "steps"}
    for name in total:
        if name not in bookkeeping:
            metrics[name] = total[name] / max(1, total[PER.get(name, "tokens")])
    metrics["grad_norm"] = total["grad_norm"] / total["steps"]
    metrics["optimizer_steps"] = total["steps"]
    metrics["update_tokens"] = total["update_tokens"]
    return metrics


def in_chunks(score, size, hidden, tokens, allowed):
    """score(hidden, tokens, allowed) -> (logprobs, entropies), each (N,).  Logits of more than
    `size` targets do not exist at once: they are computed in parts, again in the backward pass."""
    if len(tokens) <= size:
        return score(hidden, tokens, allowed)
    logprobs, entropies = [], []
    for i in range(0, len(tokens), size):
        part = (hidden[i : i + size], tokens[i : i + size], allowed[i : i + size])
        found = checkpoint(score, *part, use_reentrant=False, preserve_rng_state=False)
        logprobs.append(found[0])
        entropies.append(found[1])
    return torch.cat(logprobs), torch.cat(entropies)


def sampling_options(args):
    """What common.rollout is told."""
    return dict(batch=args.rollout_batch, max_response=args.max_response, threads=args.threads)


def update_options(args, env):
    """What common.update is told.  A stand-in's mini-batch is 24 full episodes: as many optimizer
    steps where episodes are short."""
    return dict(
        mini_batch_rows=args.mini_batch_rows or 24 * env.max_steps,
        micro_batch_tokens=args.micro_batch_tokens,
        threads=args.threads,
        checkpointing=args.gradient_checkpointing,
    )


def in_threads(play, parts, threads):
    """play(part) -> records, for all parts of the episodes, in their order.  UserError where memory
    runs out."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            return [record for records in pool.map(play, parts) for record in records]
        except torch.OutOfMemoryError:
            size = max(map(len, parts))
            found = f"out of memory with {size} episodes at a time"
            raise UserError(f"{found}: lower --rollout-batch to {max(1, size // 2)}") from None
