"""Rows become sequences, sequences become micro-batches of tensors.  Changes no result, only cost.

    mini_batches     rows of whole episodes, about as many as asked for: one optimizer step each
    merge_prefixes   rows whose prompts only grow become one sequence, which costs one forward pass
    micro_batches    sequences of similar length, as many as memory holds: one forward pass each
    padded, per_target    the tensors of a micro-batch

A *target* is a sampled token of a response where there was a choice.  A token that was the only
possible one has probability 1 whatever the policy does: no gradient, KL and entropy 0.  It is left
out of the targets, and still counted in the token means.
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
    weights: list | None = None  # M w per response token of L_int (17), (18); None: not taught
    n_taught: int = 0  # sum of M over the response's tokens
    episode: int = 0  # rows of one episode, and their twins, stay in one mini-batch


def forced(allowed):
    """Whether a token was the only possible one."""
    return allowed is not None and len(allowed) == 1


@dataclass
class Sequence:
    """Token ids with several response spans, and one entry per target in every other list."""

    ids: list
    positions: list = field(default_factory=list)  # of the target in ids
    allowed: list = field(default_factory=list)
    advantages: list = field(default_factory=list)
    rl: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    old_logprobs: list = field(default_factory=list)  # of the sampler, until the trainer's own
    tis_weights: list = field(default_factory=list)  # truncated importance weights, training.py


def mini_batches(rows, size, stream):
    """Lists of rows of about `size` each, shuffled by episode.  An episode and its twins stay
    together, so that twins sit in the mini-batch of their originals, and count as rows:
    mini-batches of 130 may hold 114 or 166."""
    by_episode = defaultdict(list)
    for row in rows:
        by_episode[row.episode].append(row)
    episodes = list(by_episode.values())
    stream.shuffle(episodes)
    n = max(1, min(len(episodes), round(len(rows) / size)))
    parts = np.array_split(np.arange(len(episodes)), n)
    return [[row for e in part for row in episodes[e]] for part in parts]


def merge_prefixes(rows):
    """Joins rows whose prompt begins with the previous row's prompt and response into one sequence.
    Other rows stay by themselves.  Gradients are the same either way."""
    sequences = []
    for row in rows:
        known = sequences[-1].ids if sequences else None
        if known is None or row.prompt_ids[: len(known)] != known:
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
    """The sequences of a mini-batch that have a gradient: sampled rows, then twins, which share no
    prefix with them."""
    merged = merge_prefixes([row for row in rows if row.rl])
    merged += merge_prefixes([row for row in rows if not row.rl])
    return [s for s in merged if any(s.rl) or any(s.weights)]


def micro_batches(sequences, tokens):
    """Splits sequences, longest first, so that each part holds at most `tokens` padded tokens (and
    at least one sequence).  Neighbours are about as long, so little is padded."""
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

    Padding is on the right and is 0: the causal mask keeps it out of every real token's sight, so
    no attention mask is needed."""
    ids = np.zeros((len(sequences), max(len(s.ids) for s in sequences)), dtype=np.int64)
    for row, sequence in zip(ids, sequences):
        row[: len(sequence.ids)] = sequence.ids
    b = np.repeat(np.arange(len(sequences)), [len(s.positions) for s in sequences])
    p = np.concatenate([np.array(s.positions, dtype=np.int64) for s in sequences])
    # in one piece: every transfer to a GPU waits for what it has been told to do before
    flat = torch.from_numpy(np.concatenate([ids.ravel(), b, p])).to(device)
    flat_ids, b, p = flat.split([ids.size, len(b), len(p)])
    return flat_ids.view(ids.shape), b, p


def per_target(sequences, names, device, dtype):
    """{name: tensor (N,)} of fields of all targets, in `padded`'s order, at least float32."""
    table = np.array([[x for s in sequences for x in getattr(s, name)] for name in names])
    table = torch.from_numpy(table).to(torch.promote_types(dtype, torch.float32)).to(device)
    return dict(zip(names, table))


def n_forced(row):
    """How many of a row's tokens were the only possible ones."""
    return sum(forced(allowed) for allowed in row.allowed)
