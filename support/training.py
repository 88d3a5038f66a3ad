"""How an update's arithmetic is spread over threads, processes and memory.  Nothing here changes a result.

    updating       what large models need around an update: recomputed activations, a sampler that sleeps
    backward       the gradient of a mini-batch, summed over its micro-batches
    old_logprobs   pi_old by the training model before its first step, and the gap to the sampler
    token_means    sums over all processes become the metrics
    sampling_options, update_options    what the command line says of them
"""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch.utils.checkpoint import checkpoint

from envs import UserError
from support import large, parallel

# what a metric is a mean over; a metric not named here is one over the response tokens under RL
PER = {"clip_fraction": "choices", "dual_clip_fraction": "choices", "logprob_change": "choices", "l_int": "taught"}


@contextmanager
def updating(policy, checkpointing):
    """Activations are computed again in the backward pass where asked for, and vLLM gives its memory back."""
    large.recompute(policy, checkpointing)
    if policy.engine:
        policy.engine.sleep()
    yield
    large.recompute(policy, False)


@contextmanager
def memory_for(part):
    """UserError with what to lower where the memory does not hold a micro-batch."""
    try:
        yield
    except torch.OutOfMemoryError:
        b, t = len(part), len(part[0].ids)
        less = f"--micro-batch-tokens to {b * t // 2}" if b > 1 else "--max-prompt, or add --gradient-checkpointing"
        raise UserError(f"out of memory with a micro-batch of {b} x {t} tokens: lower {less}") from None


def backward(policy, loss_of, parts, threads=1):
    """Sums the gradients of loss_of(part) over micro-batches into the parameters' .grad; returns the sums of what it reports.

    parts: pairs (micro-batch, counts) of parallel.own_part, this process's share.  loss_of: a micro-batch -> (loss, sums).
    On a CPU `threads` share the micro-batches; the gradients are added in order, so that the result does not depend on who is first."""
    parameters = large.trained(policy)
    shared = policy.device == "cpu" and not parallel.sharded() and not policy.lora

    def gradients(turn):
        part, counts = turn
        with memory_for(part):
            loss, sums = loss_of(part)
            sums = sums if counts else {}
            if shared:
                return torch.autograd.grad(loss * counts, parameters), sums
            scale = parallel.world() if parallel.sharded() else 1  # FSDP2 takes the mean over processes, not the sum
            (loss * counts * scale).backward()
        return (), sums

    total = Counter()
    with ThreadPoolExecutor(threads) as pool, parallel.apart():
        for grads, sums in pool.map(gradients, parts) if shared else map(gradients, parts):
            for p, grad in zip(parameters, grads):
                p.grad = grad if p.grad is None else p.grad.add_(grad)
            total.update(sums)
    if parts:
        parallel.sum_gradients(parameters)
    return total


TIS_CAP = 2.0  # largest importance weight of a token


def old_logprobs(logprobs_of, parts):
    """(9) pi_old by the training model, before the first step; returns what the gap to the sampler's log-probs is.

    Sampler and trainer compute the same policy by other kernels, so tokens come from slightly another one than pi_old.  Truncated
    importance sampling (Ionides 2008) corrects it: the policy gradient's token losses are multiplied by min(pi_old / pi_sampler, cap).
    logprobs_of: a micro-batch -> its targets' log-probs (N,).  parts: pairs (micro-batch, counts)."""
    gap = Counter()
    with torch.no_grad(), parallel.apart():
        for part, counts in parts:
            with memory_for(part):
                old = iter(logprobs_of(part).tolist())
            for s in part if counts else ():
                sampled, s.old_logprobs = s.old_logprobs, [next(old) for _ in s.positions]
                ratios = [math.exp(min(20.0, a - b)) for a, b in zip(s.old_logprobs, sampled)]
                s.tis_weights = [min(ratio, TIS_CAP) for ratio in ratios]
                gaps = [abs(a - b) for a, b, rl in zip(s.old_logprobs, sampled, s.rl) if rl]
                gap.update(gap=sum(gaps), gap_ratio=sum(r for r, rl in zip(ratios, s.rl) if rl), gap_tokens=len(gaps))
                gap["gap_max"] = max([gap["gap_max"], *gaps])
    return gap


def token_means(total, steps):
    """The metrics of an update.  total: sums of this process; steps: sums that all processes have alike."""
    everyone = parallel.gather(total)
    total = Counter(steps)
    for one in everyone:
        total.update(one)
    metrics = {}
    if total["gap_tokens"]:
        metrics["sampler_gap"] = total["gap"] / total["gap_tokens"]
        metrics["sampler_gap_max"] = max(one["gap_max"] for one in everyone)
        metrics["sampler_ratio"] = total["gap_ratio"] / total["gap_tokens"]
    bookkeeping = ("gap", "gap_max", "gap_ratio", "gap_tokens", "tokens", "choices", "taught", "update_tokens", "grad_norm", "steps")
    for name in total:
        if name not in bookkeeping:
            metrics[name] = total[name] / max(1, total[PER.get(name, "tokens")])
    metrics["grad_norm"] = total["grad_norm"] / total["steps"]
    metrics["optimizer_steps"] = total["steps"]
    metrics["update_tokens"] = total["update_tokens"]
    return metrics


def in_chunks(score, size, hidden, tokens, allowed):
    """score(hidden, tokens, allowed) -> (logprobs, entropies), each (N,).  Logits of more than `size` targets do not exist at once:
    they are computed in parts, and again in the backward pass."""
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
    """What common.update is told.  A stand-in's mini-batch is 24 full episodes: as many optimizer steps where episodes are short."""
    return dict(
        mini_batch_rows=args.mini_batch_rows or 24 * env.max_steps,
        micro_batch_tokens=args.micro_batch_tokens,
        threads=args.threads,
        checkpointing=args.gradient_checkpointing,
    )


def in_threads(play, parts, threads):
    """play(part) -> records, for all parts of the episodes, in their order.  UserError where memory runs out."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            return [record for records in pool.map(play, parts) for record in records]
        except torch.OutOfMemoryError:
            size = max(map(len, parts))
            found = f"out of memory with {size} episodes at a time"
            raise UserError(f"{found}: lower --rollout-batch to {max(1, size // 2)}") from None
