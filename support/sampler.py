"""Sampling with transformers: one response per row, the KV cache kept while prompts only grow.

    Sampler.sample     responses, token by token: what may follow, logits, a draw
    Sampler.forward    logits; feeds the model what the cache lacks
    RowCache           keys and values of rows of unequal length
    draw, pick         a token per row from its logits and a random number of the row's own stream

The other engine is vllm_engine.py.  Both give sampled ids with their log-probs; here these are of
the very distribution that the trainer uses, masked to what was possible (softmax.py).
What is as large as the vocabulary stays on the device: per position a random number a row goes
there, and a token and its log-prob a row come back, in one transfer.
"""

import inspect
import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from support.models import attention_masks, logits_of

# ---- a token per row -----------------------------------------------------------------------------


GREEDY = 1e-4  # a temperature at which, as below it, only the likeliest token is left
BLOCK = 256  # tokens whose weights are summed first: about the square root of a large vocabulary


def pick(weights, at):
    """Per row the first k with w_0 + ... + w_k > at, and how far into w_k `at` is, (n, 1) each.

    weights: (n, K), none negative.  at: (n, 1) float64, from 0 up to their sum."""
    weights = weights.double()  # so that long sums keep small weights
    ends = weights.cumsum(-1)  # (n, K)
    # rounding may lift `at` to the very end, where nothing would be found, or a weight of 0
    before_end = ends[:, -1:].nextafter(ends.new_zeros(1))
    at = torch.minimum(at, before_end)
    k = torch.searchsorted(ends, at, right=True)
    k = k.clamp(max=weights.shape[1] - 1)  # NaN leads beyond the end; its log-prob will tell
    return k, at - (ends.gather(1, k) - weights.gather(1, k))


def draw(logits, uniform, temperature=1.0):
    """A token of softmax(logits / temperature) per row, and its log-prob (float64), (n,) each.

    logits: (n, V); overwritten, as copies of this size cost time.  uniform: (n,) float64 in [0, 1).
    Lay all weights end to end: the token is the one that uniform * their sum falls on.  To find it,
    V numbers are read but not added up one after the other: a block is looked for first, by the
    sums of the blocks, and then the token inside it."""
    size = logits.shape[1]
    weights = logits.sub_(logits.amax(-1, keepdim=True))  # at most 0, so that exp is at most 1
    if temperature != 1:
        weights.div_(temperature)
    weights.exp_()  # (n, V)

    full = size // BLOCK * BLOCK  # the last block is shorter
    sums = weights[:, :full].unflatten(-1, (-1, BLOCK)).sum(-1)
    sums = torch.cat([sums, weights[:, full:].sum(-1, keepdim=True)], -1).double()  # (n, blocks)
    total = sums.sum(-1, keepdim=True)  # (n, 1)
    block, rest = pick(sums, uniform[:, None] * total)

    ids = block * BLOCK + torch.arange(BLOCK, device=logits.device)  # (n, BLOCK)
    inside = weights.gather(1, ids.clamp(max=size - 1)).masked_fill(ids >= size, 0)
    token = ids.gather(1, pick(inside, rest)[0]).clamp(max=size - 1)  # (n, 1)
    logprob = weights.gather(1, token).double().log() - total.log()
    return token[:, 0], logprob[:, 0]


def draw_listed(logits, uniform, temperature, listed):
    """`draw` among the tokens listed[row] (sorted ids) that are possible in a row."""
    most = max(map(len, listed))
    # (n, 1 + most), built at once: how many, the ids, padding
    table = torch.tensor([[len(ids), *ids, *[0] * (most - len(ids))] for ids in listed])
    table = table.to(logits.device)
    counts, ids = table[:, :1], table[:, 1:]
    padding = torch.arange(most, device=logits.device) >= counts  # (n, most)
    logits = logits.gather(1, ids).masked_fill(padding, -torch.inf)
    k, logprob = draw(logits, uniform, temperature)
    return ids.gather(1, k[:, None])[:, 0], logprob


# ---- keys and values -----------------------------------------------------------------------------


def attention(module, query, key, value, attention_mask, scaling=None, packed=None, **how):
    """transformers' "sdpa", without repeating keys and values where every row has one new token:
    the query heads that share a key head lie side by side there, as if they were positions of it.

    query: (n, heads, 1, d).  key, value: (n, key heads, T, d).  attention_mask: (n, 1, 1, T).
    packed: queries (1, heads, N, d) and mask (1, 1, N, T) hold one row's tokens after the other's:
    per row (its keys', how many tokens, how many keys they see at most)."""
    if packed:
        counts = [count for _, count, _ in packed]
        parts = zip(packed, query.split(counts, 2), attention_mask.split(counts, 2))
        grouped = dict(enable_gqa=query.shape[1] > key.shape[1], scale=scaling)
        out = []
        for (i, _, end), part, mask in parts:
            own = key[i : i + 1, :, :end], value[i : i + 1, :, :end], mask[..., :end]
            out.append(F.scaled_dot_product_attention(part, *own, **grouped))
        return torch.cat(out, 2).transpose(1, 2), None
    n, heads, width, d = query.shape
    shared = heads // key.shape[1]
    special = how.get("softcap") is not None or how.get("position_bias") is not None
    if width > 1 or shared == 1 or module.training or special:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **how
        )
    query = query.reshape(n, heads // shared, shared, d)
    out = F.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)
    return out.reshape(n, 1, heads, -1), None


AttentionInterface.register("sdpa", attention)  # models look it up by this name


class RowCache(DynamicCache):
    """Keys and values of rows of unequal length: every token is written at its own position of its
    own row, so no padding is kept.

    Padding of a short row lands behind its last token, where the causal mask hides it until real
    tokens overwrite it."""

    def __init__(self):
        super().__init__()
        self.kv = []  # per layer: keys and values, each (rows, room, heads, head_dim)
        self.room = 0

    def at(self, rows, positions, length, all_rows, seen):
        """The next pass brings tokens at positions (n, w) of rows (n, 1) or, packed, (1, w), all
        below `length`.  seen: the rows, (n,), whose keys and values are wanted; None: all."""
        if length > self.room:
            more = max(64, 2 * length) - self.room  # not at every token
            for layer in self.kv:
                layer[:] = [F.pad(part, (0, 0, 0, 0, 0, more)) for part in layer]
            self.room += more
        self.length, self.seen, self.all_rows = length, seen, all_rows
        self.slots = (rows * self.room + positions).flatten()  # (n w,) in rows end to end

    def update(self, keys, values, layer_idx, *args, **kwargs):
        """Writes keys and values (n, heads, w, d); returns all of `seen`, (n, heads, T, d)."""
        if layer_idx == len(self.kv):
            # both in the dtype of values: in mixed precision rotation leaves keys in float32, and
            # attention would cast all of them at every token
            rows, room = self.all_rows, self.room
            layer = [values.new_zeros(rows, room, x.shape[1], x.shape[3]) for x in (keys, values)]
            self.kv.append(layer)
        seen = []
        for kept, new in zip(self.kv[layer_idx], (keys, values)):
            new = new.transpose(1, 2).flatten(0, 1).flatten(1)  # (n w, heads d)
            kept.view(-1, new.shape[1]).index_copy_(0, self.slots, new.to(kept.dtype))
            # of all rows nothing needs to be copied out
            own = kept[:, : self.length] if self.seen is None else kept[self.seen, : self.length]
            seen.append(own.transpose(1, 2))
        return seen

    def keep(self, order):
        """Row order[k] becomes row k.  Only rows that move are copied: the rest stays where it is,
        and the end is cut off."""
        moves = [(k, row) for k, row in enumerate(order) if k != row]
        for layer in self.kv:
            for part in layer:
                for k, row in moves:
                    part[k] = part[row]  # row >= len(order), so none is overwritten before it moves
            layer[:] = [part[: len(order)] for part in layer]

    def get_seq_length(self, layer_idx=0):
        return 0  # positions and mask are given explicitly


# ---- responses -----------------------------------------------------------------------------------


class Sampler:
    """Samples one response per row, again and again."""

    def __init__(self, policy, rows, temperature=1.0):
        self.policy, self.temperature = policy, max(temperature, 1e-6)
        self.cache, self.cached = RowCache(), [[] for _ in range(rows)]  # cached: token ids per row
        # Tokens fed per row and pass, unless all rows have more.  What is left of longer rows
        # follows by itself, so little is padded; on a GPU another pass costs more than padding.
        self.width = 12 if policy.device == "cpu" else 128
        # On a CPU longer ones are packed: no padding and no further pass; attention is row by row
        implementation = policy.sampling.config._attn_implementation
        self.packs = policy.device == "cpu" and implementation == "sdpa"
        self.windowed = bool(getattr(policy.sampling.config, "sliding_window", None))
        known = inspect.signature(policy.sampling.base_model.forward).parameters
        self.cache_name = "cache" if "cache" in known else "past_key_values"  # before 5.24

    @torch.inference_mode()
    def keep(self, rows):
        """Drops all rows but these, and returns their new order: the last ones fill the gaps, so
        that little of the cache is copied."""
        late = [i for i in rows if i >= len(rows)]
        staying = set(rows)
        order = [k if k in staying else late.pop() for k in range(len(rows))]
        self.cached = [self.cached[i] for i in order]
        self.cache.keep(order)
        return order

    def forward(self, sequences, wanted):
        """(wanted, V) logits after the last token of these sequences; feeds what the cache lacks.

        All rows are fed something, since a part of them would have to be copied out of the cache
        (not where they are packed), but the others no more than fits beside the wanted ones."""
        self.go_back(sequences)
        return self.go_on(sequences, wanted)

    def go_back(self, sequences):
        """Forgets what the cache holds of rows beyond the beginning of these sequences."""
        for known, ids in zip(self.cached, sequences):
            if ids[: len(known)] != known:  # a rewritten prompt: go back to the common part
                pairs = enumerate(zip(known, ids))
                common = next((k for k, (a, b) in pairs if a != b), min(len(known), len(ids)))
                del known[common:]

    def go_on(self, sequences, wanted):
        """`forward` where all sequences begin with what the cache holds, which is not compared."""
        new = []
        for known, ids in zip(self.cached, sequences):
            if len(known) == len(ids):  # logits are wanted once more: feed the last token again
                known.pop()
            new.append(ids[len(known) :])
        longest = max(len(new[i]) for i in wanted)
        among = set(wanted)
        new = [ids if i in among else ids[:longest] for i, ids in enumerate(new)]
        hidden = None  # (rows, d): of every row's last token so far
        while any(new):
            left = [i for i, ids in enumerate(new) if ids]
            shortest = 256 if self.packs else min(256, *(len(new[i]) for i in left))
            width = max(self.width, shortest)
            last = self.feed(left, [new[i][:width] for i in left])
            if hidden is None:
                hidden = last.new_zeros(len(new), last.shape[1])
            hidden[torch.tensor(left, device=last.device)] = last
            new = [ids[width:] for ids in new]
        wanted = torch.tensor(wanted, device=hidden.device)
        return logits_of(self.policy.sampling, hidden[wanted])

    def feed(self, rows, tokens):
        """Runs tokens (a list per row) through the model; returns the hidden state of each row's
        last one, (len(rows), d)."""
        starts, counts = [len(self.cached[i]) for i in rows], [len(t) for t in tokens]
        width, past, packed = max(counts), any(starts), None
        if self.packs and width > self.width:
            # one row after the other, as a single row; masks and `attention` keep them apart
            packed = [(i, n, start + n) for i, n, start in zip(rows, counts, starts)]
            table = [
                [i, position, token]
                for i, start, ids in zip(rows, starts, tokens)
                for position, token in enumerate(ids, start)
            ]
            row, positions, ids = torch.tensor(table).T[:, None]  # (1, N) each
            last = torch.tensor(counts).cumsum(0) - 1  # of every row, among all tokens
            length, seen = max(end for _, _, end in packed), None
        else:
            # (n, 3 + w), built and moved at once: row, where it goes on, how many, tokens, padding
            table = [
                [i, start, len(ids), *ids, *[0] * (width - len(ids))]
                for i, start, ids in zip(rows, starts, tokens)
            ]
            table = torch.tensor(table).to(self.policy.device)
            row, start, count, ids = table[:, :1], table[:, 1:2], table[:, 2], table[:, 3:]
            positions = start + torch.arange(width, device=ids.device)  # (n, w)
            last = torch.arange(len(rows), device=ids.device) * width + count - 1
            length, seen = max(starts) + width, None if len(rows) == len(self.cached) else row[:, 0]
        if past:  # a multiple of 16, for attention kernels that would pad the mask in every layer
            length = -(-length // 16) * 16
        self.cache.at(row, positions, length, len(self.cached), seen)
        mask = None  # without a past: causal, as models are without a mask
        model = self.policy.sampling
        if past or self.windowed or packed:
            # the mask is added to scores, which are in the dtype of computing
            kind = ids.device.type
            mixed = torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind) if mixed else model.dtype
            mask = attention_masks(model, positions, length, dtype)  # (n, 1, w, T), row by row
        hidden = model.base_model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            use_cache=True,
            **({"packed": packed} if packed else {}),  # to `attention`
            **{self.cache_name: self.cache},
        ).last_hidden_state  # (n, w, d)
        for i, t in zip(rows, tokens):
            self.cached[i] += t
        return hidden.flatten(0, 1)[last]

    @torch.inference_mode()
    def sample(self, prompts, candidates, streams, max_new):
        """One response per row: list of (response_ids, logprobs, allowed).

        prompts: token ids per row.  candidates: per row what Policy.candidates gave, or None.
        streams: a random generator per row, so that what an episode does depends neither on the
        batch nor on its order.  logprobs are those of the distribution sampled from; allowed[j]
        holds the tokens that were possible at j (None: all).  FloatingPointError where logits are
        not finite."""
        own = self.policy.sampling is self.policy.model  # else a copy in the dtype of computing
        # around all positions: weights are cast once, not per token
        with self.policy.autocast() if own else nullcontext():
            return self.respond(prompts, candidates, streams, max_new)

    def respond(self, prompts, candidates, streams, max_new):
        n = len(prompts)
        response, logprobs, allowed = [[[] for _ in range(n)] for _ in range(3)]
        running, sequences = set(range(n)), [list(ids) for ids in prompts]  # they grow, in place
        self.go_back(sequences)  # once: a response only goes on

        def add(i, token, logprob, options):
            response[i].append(token)
            sequences[i].append(token)
            logprobs[i].append(logprob)
            allowed[i].append(options)
            longest = min(max_new, self.policy.context - len(prompts[i]))
            if candidates[i] is None and (
                token in self.policy.eos_ids or len(response[i]) == longest
            ):
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
                    else:  # the only possible token: probability 1, no forward pass
                        add(i, possible[0], 0.0, possible)
            if not options:
                break
            rows = list(options)
            logits = self.go_on(sequences, rows)  # (rows, V)
            uniform = [streams[i].random() for i in rows]
            for i, token, logprob in zip(rows, *self.tokens(logits, uniform, [*options.values()])):
                add(i, token, logprob, options[i])
        return list(zip(response, logprobs, allowed))

    def tokens(self, logits, uniform, options):
        """Draws a token per row; returns tokens and log-probs as lists."""
        uniform = torch.tensor(uniform, dtype=torch.float64).to(logits.device)
        if any(ids is not None for ids in options):
            size = logits.shape[1]
            listed = [range(size) if ids is None else ids for ids in options]
            drawn = draw_listed(logits, uniform, self.temperature, listed)
        else:
            drawn = draw(logits, uniform, self.temperature)
        drawn = torch.stack([part.double() for part in drawn])  # (2, rows)
        tokens, logprobs = drawn.tolist()  # the one transfer of a position
        broken = sum(not math.isfinite(x) for x in logprobs)
        if broken:
            raise FloatingPointError(
                f"logits of {broken} of {len(logprobs)} rows are not finite while sampling: the "
                "weights have diverged; lower --lr, and resume from an iteration before"
            )
        return [int(token) for token in tokens], logprobs
