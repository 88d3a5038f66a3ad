"""Rows become sequences, sequences become micro-batches of tensors.  Nothing here changes a result, only what it costs.

    mini_batches     rows of whole episodes, about as many as asked for: one optimizer step each
    merge_prefixes   rows whose prompts only grow become one sequence: an append-only episode costs one forward pass
    micro_batches    sequences of similar length, as many as memory holds: one forward pass each

A *target* is a sampled token of a response where there was a choice.  A token that was the only possible one has probability 1
whatever the policy does: no gradient, KL and entropy 0.  It is left out of the targets, and still counted in the token means.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class Row:
    """One (episode, step): one prompt and one response, the unit of training."""

    prompt_ids: list
    response_ids: list
    logprobs: list  # of the sampler
    allowed: list  # per response token: the token ids that were possible, None for all
    advantage: float = 0.0
    rl: bool = True  # enters L_PG, KL and entropy; a plain-prompt twin does not
    weights: list | None = None  # M w per response token for L_int (17), (18); None: nothing is taught
    n_taught: int = 0  # sum of M over the response's tokens
    episode: int = 0  # rows of one episode, and their twins, stay in one mini-batch


def forced(allowed):
    """Whether a token was the only possible one."""
    return allowed is not None and len(allowed) == 1


@dataclass
class Sequence:
    """Token ids with several response spans, and one entry per target in each of the other lists."""

    ids: list
    positions: list = field(default_factory=list)  # of the target in ids
    allowed: list = field(default_factory=list)
    advantages: list = field(default_factory=list)
    rl: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    old_logprobs: list = field(default_factory=list)  # of the sampler, until the trainer's own
    tis_weights: list = field(default_factory=list)  # truncated importance weights, training.py


def mini_batches(rows, size, stream):
    """Lists of rows of about `size` each, shuffled by episode.  An episode and its twins stay together, so that twins sit in the
    mini-batch of their originals, and count as rows: mini-batches of 130 may hold 114 or 166."""
    by_episode = defaultdict(list)
    for row in rows:
        by_episode[row.episode].append(row)
    episodes = list(by_episode.values())
    stream.shuffle(episodes)
    n = max(1, min(len(episodes), round(len(rows) / size)))
    return [[row for e in part for row in episodes[e]] for part in np.array_split(np.arange(len(episodes)), n)]


def merge_prefixes(rows):
    """Joins rows whose prompt begins with the previous row's prompt and response into one sequence.  Other rows stay by
    themselves.  Gradients are the same either way."""
    sequences = []
    for row in rows:
        known = sequences[-1].ids if sequences else None
        if known is None or len(row.prompt_ids) < len(known) or row.prompt_ids[: len(known)] != known:
            sequences.append(Sequence([]))
        sequence, n_prompt = sequences[-1], len(row.prompt_ids)
        sequence.ids = row.prompt_ids + row.response_ids
        weights = row.weights or [0.0] * len(row.response_ids)
        for j, (allowed, logprob, weight) in enumerate(zip(row.allowed, row.logprobs, weights)):
            if forced(allowed):
                continue
            sequence.positions.append(n_prompt + j)
            sequence.allowed.append(allowed)
            sequence.advantages.append(row.advantage)
            sequence.rl.append(row.rl)
            sequence.weights.append(weight)
            sequence.old_logprobs.append(logprob)
            sequence.tis_weights.append(1.0)
    return sequences


def sequences_of(rows):
    """The sequences of a mini-batch that have a gradient: sampled rows, then twins, which share no prefix with them."""
    merged = merge_prefixes([row for row in rows if row.rl]) + merge_prefixes([row for row in rows if not row.rl])
    return [s for s in merged if any(s.rl) or any(s.weights)]


def micro_batches(sequences, tokens):
    """Splits sequences, longest first, so that each part holds at most `tokens` padded tokens (and at least one sequence)."""
    part = []
    for sequence in sorted(sequences, key=lambda s: -len(s.ids)):
        if part and (len(part) + 1) * len(part[0].ids) > tokens:
            yield part
            part = []
        part.append(sequence)
    if part:
        yield part


def padded(sequences, device):
    """ids (B, T) of a micro-batch, and where its N targets are: b (N,), p (N,).

    Padding is on the right and is 0: the causal mask keeps it out of every real token's sight, so no attention mask is needed."""
    length = max(len(s.ids) for s in sequences)
    ids = torch.tensor([s.ids + [0] * (length - len(s.ids)) for s in sequences], device=device)
    where = [(b, p) for b, s in enumerate(sequences) for p in s.positions]
    b, p = (torch.tensor(part, device=device) for part in zip(*where))
    return ids, b, p


def per_target(sequences, name, like):
    """One field of all targets as a tensor (N,), in the order of `padded`; dtype and device as `like`."""
    return torch.tensor([x for s in sequences for x in getattr(s, name)], dtype=like.dtype, device=like.device)


def n_forced(row):
    """How many of a row's tokens were the only possible ones."""
    return sum(forced(allowed) for allowed in row.allowed)
