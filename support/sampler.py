"""Sampling with transformers: one response per row and step, with the KV cache kept for as long as an episode's prompts only grow.

The other engine is vllm_engine.py.  Both give sampled ids with their log-probs; here the log-probs are those of the very distribution that
the trainer uses, masked to what was possible (`masked_log_softmax`).
"""

import inspect

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from support.models import attention_masks


def masked_log_softmax(logits, allowed):
    """(N, V) log-probs among the allowed tokens.  allowed: per row a list of token ids, or None for all of them."""
    if all(ids is None for ids in allowed):
        return F.log_softmax(logits, -1)
    mask = torch.zeros_like(logits, dtype=torch.bool)
    rows = [n for n, ids in enumerate(allowed) for _ in (ids or [])]
    mask[rows, [token for ids in allowed for token in (ids or [])]] = True
    free = [n for n, ids in enumerate(allowed) if ids is None]
    mask[free] = True
    return F.log_softmax(logits.masked_fill(~mask, -1e9), -1)  # finite, so that 0 * log 0 = 0 in the entropy


def next_of_words(ids, words, end, most):
    """The tokens that may follow ids, which are any of the words (token tuples) one after the other and perhaps the begin of one more."""
    rests = {()}  # for every way to read ids as words: what is still missing of the last one, () between words
    for token in ids:
        rests = {rest[1:] for rest in (rests | set(words) if () in rests else rests) if rest and rest[0] == token}
    begin = {word[0] for word in words} if () in rests and (not ids or len(ids) < most) else set()
    return {rest[0] for rest in rests if rest} | begin | ({end} if ids and () in rests else set())


class RowCache(DynamicCache):
    """Keys and values of rows of unequal length: every token is written at its own position of its own row, so no padding is kept.

    Padding of a short row lands behind its last token, where the causal mask hides it until real tokens overwrite it."""

    def __init__(self):
        super().__init__()
        self.kv = []  # per layer: keys and values, each (rows, heads, T, head_dim)

    def at(self, rows, positions, all_rows):
        self.rows, self.positions, self.all_rows = rows, positions, all_rows
        self.length = int(positions.max()) + 1

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        if layer_idx == len(self.kv):
            self.kv.append([new.new_zeros(self.all_rows, new.shape[1], 0, new.shape[3]) for new in (key_states, value_states)])
        seen = []
        for which, new in enumerate((key_states, value_states)):  # (n, heads, w, head_dim)
            kept = self.kv[layer_idx][which]
            if kept.shape[2] < self.length:  # grow by half, not at every token
                more = new.new_zeros(self.all_rows, new.shape[1], max(64, self.length * 3 // 2) - kept.shape[2], new.shape[3])
                kept = self.kv[layer_idx][which] = torch.cat([kept, more], 2)
            kept[self.rows[:, None], :, self.positions] = new.transpose(1, 2)
            seen.append(kept[:, :, : self.length] if len(self.rows) == self.all_rows else kept[self.rows, :, : self.length])
        return seen

    def keep(self, order):
        """Row order[k] becomes row k.  Only rows that move are copied: the rest stays where it is, and the end is cut off."""
        to = [k for k, row in enumerate(order) if k != row]
        for layer in self.kv:
            for which, part in enumerate(layer):
                part[to] = part[[order[k] for k in to]]
                layer[which] = part[: len(order)]

    def get_seq_length(self, layer_idx=0):
        return 0  # positions and mask are given explicitly


class Sampler:
    """Samples one response per row, again and again, with the KV cache kept for as long as a row's prompts only grow."""

    WIDTH = 12  # tokens fed per row and forward, unless all have more; what is left of longer rows follows by itself, so little is padded

    def __init__(self, policy, rows, temperature=1.0):
        self.policy, self.temperature = policy, temperature
        self.cache, self.cached = RowCache(), [[] for _ in range(rows)]
        known = inspect.signature(policy.sampling.base_model.forward).parameters
        self.cache_name = "cache" if "cache" in known else "past_key_values"  # transformers before 5.24

    @torch.inference_mode()
    def keep(self, rows):
        """Drops all rows but these, and returns their new order: the last ones fill the gaps, so that little of the cache is copied."""
        late = [i for i in rows if i >= len(rows)]
        staying = set(rows)
        order = [k if k in staying else late.pop() for k in range(len(rows))]
        self.cached = [self.cached[i] for i in order]
        self.cache.keep(order)
        return order

    def forward(self, sequences, wanted):
        """(wanted, V) logits after the last token of these sequences; feeds only what the cache lacks.  All rows are fed something, since
        a part of them would have to be copied out of the cache, but the others no more than fits beside the wanted ones."""
        new = []
        for i, ids in enumerate(sequences):
            known = self.cached[i]
            if ids[: len(known)] != known:  # a rewritten prompt: go back to the common part
                common = next((k for k, (a, b) in enumerate(zip(known, ids)) if a != b), min(len(known), len(ids)))
                known = self.cached[i] = known[:common]
            if len(known) == len(ids):  # logits are wanted once more: feed the last token again
                known = self.cached[i] = known[:-1]
            new.append(ids[len(known) :])
        longest = max(len(new[i]) for i in wanted)
        new = [ids if i in wanted else ids[:longest] for i, ids in enumerate(new)]
        hidden = {}  # of every row's last token so far
        while any(new):
            left = [i for i, ids in enumerate(new) if ids]
            width = max(self.WIDTH, min(256, *(len(new[i]) for i in left)))
            hidden |= dict(zip(left, self.feed(left, [new[i][:width] for i in left])))
            new = [ids[width:] for ids in new]
        return self.policy.logits(self.policy.sampling, torch.stack([hidden[i] for i in wanted]))

    def feed(self, rows, tokens):
        """Runs tokens (a list per row) through the model; returns the hidden state of each row's last one, (len(rows), d)."""
        device, width = self.policy.device, max(map(len, tokens))
        ids = torch.tensor([t + [0] * (width - len(t)) for t in tokens], device=device)
        start = torch.tensor([len(self.cached[i]) for i in rows], device=device)
        positions = start[:, None] + torch.arange(width, device=device)  # (n, w)
        self.cache.at(torch.tensor(rows, device=device), positions, len(self.cached))
        mask = attention_masks(self.policy.sampling, positions, self.cache.length)  # (n, 1, w, T): causal, row by row
        hidden = self.policy.sampling.base_model(
            input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=True, **{self.cache_name: self.cache}
        ).last_hidden_state
        for i, t in zip(rows, tokens):
            self.cached[i] = self.cached[i] + t
        return hidden[torch.arange(len(rows)), torch.tensor([len(t) - 1 for t in tokens])]

    @torch.inference_mode()
    def sample(self, prompts, candidates, streams, max_new):
        """One response per row: list of (response_ids, logprobs, allowed).

        prompts: token ids per row.  candidates: per row what Policy.candidates gave, or None.  streams: a random
        generator per row, so that what an episode does depends neither on the batch nor on its order.  logprobs are those of the
        distribution sampled from; allowed[j] holds the tokens that were possible at j (None: all)."""
        n = len(prompts)
        response, logprobs, allowed = [[[] for _ in range(n)] for _ in range(3)]
        running = set(range(n))

        def add(i, token, logprob, options):
            response[i].append(token)
            logprobs[i].append(logprob)
            allowed[i].append(options)
            longest = min(max_new, self.policy.context - len(prompts[i]))
            if candidates[i] is None and (token in self.policy.eos_ids or len(response[i]) == longest):
                running.discard(i)

        while running:
            options = {}
            for i in sorted(running):
                while i in running:
                    possible = None if candidates[i] is None else candidates[i](response[i])
                    if possible is None or len(possible) > 1:
                        options[i] = possible
                        break
                    if not possible:  # the response is complete
                        running.discard(i)
                    else:
                        add(i, possible[0], 0.0, possible)  # the only possible token: probability 1, no forward pass
            if not options:
                break
            rows = sorted(options)
            with self.policy.autocast():
                logits = self.forward([p + r for p, r in zip(prompts, response)], rows)
            logp = masked_log_softmax(logits / max(self.temperature, 1e-6), [options[i] for i in rows])
            p = logp.double().exp().cpu().numpy()
            logp = logp.cpu().numpy()
            for k, i in enumerate(rows):
                token = int(np.searchsorted(np.cumsum(p[k]), streams[i].random() * p[k].sum(), side="right"))
                token = min(token, int(p[k].nonzero()[0][-1]))
                add(i, token, float(logp[k, token]), options[i])
        return list(zip(response, logprobs, allowed))
