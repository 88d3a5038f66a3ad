"""Log-probs and entropies of tokens from logits (N, V), V large: in little memory and few passes.

token_logprobs    log pi(y) and entropy of N tokens, with their gradients
masked            logits where only some tokens are possible
"""

import numpy as np
import torch


def token_logprobs(logits, tokens, allowed):
    """(N,) log-probs of the tokens and (N,) entropies under the softmax of logits (N, V).

    allowed: per row a list of the token ids that were possible, None for all of them."""
    return _TokenLogprobs.apply(masked(logits, allowed), tokens)


def masked(logits, allowed):
    """Logits (N, V) with -1e9 at every token that a row's list lacks; rows with None stay."""
    lists = [(n, ids) for n, ids in enumerate(allowed) if ids is not None]
    if not lists:
        return logits
    rows, ids = zip(*lists)
    # (2, M): row and id of everything possible, built and moved at once
    index = np.stack([np.repeat(rows, [len(one) for one in ids]), np.concatenate(ids)])
    index = torch.from_numpy(index).to(logits.device)
    possible = torch.zeros_like(logits, dtype=torch.bool)
    possible[index[0], index[1]] = True
    if len(lists) < len(allowed):
        free = np.array([ids is None for ids in allowed])
        possible[torch.from_numpy(free).to(logits.device)] = True
    # finite, so that 0 * log 0 = 0 in the entropy
    return logits.masked_fill(~possible, -1e9)


class _TokenLogprobs(torch.autograd.Function):
    """Left to itself, autograd would keep the log-softmax, its exponential and a gradient of each.
    By hand the backward pass makes one array of that size, the gradient, from the logits z and
    two numbers a row, log sum exp z and the entropy H:

        d log pi(y) / d z_v = [v = y] - p_v        d H / d z_v = -p_v (log p_v + H)
    """

    @staticmethod
    def forward(ctx, logits, tokens):
        norm, entropy = logits.new_empty(len(logits)), logits.new_empty(len(logits))  # (N,)
        for part in _slices(logits):
            norm[part] = logits[part].logsumexp(-1)
            logp = logits[part] - norm[part, None]
            entropy[part] = -logp.exp().mul_(logp).sum(-1)
        ctx.save_for_backward(logits, tokens, norm, entropy)
        return logits.gather(1, tokens[:, None])[:, 0] - norm, entropy

    @staticmethod
    def backward(ctx, to_logprob, to_entropy):
        logits, tokens, norm, entropy = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for part in _slices(logits):
            logp = logits[part] - norm[part, None]
            torch.exp(logp, out=grad[part]).neg_()  # -p
            logp.add_(entropy[part, None]).mul_(to_entropy[part, None])
            grad[part].mul_(logp.add_(to_logprob[part, None]))
        grad.scatter_add_(1, tokens[:, None], to_logprob[:, None])
        return grad, None


def _slices(logits):
    """Slices of rows: temporaries of a megabyte, which a CPU's cache holds, of 256 on a GPU."""
    size = 2**18 if logits.device.type == "cpu" else 2**26
    step = max(1, size // logits.shape[1])
    return [slice(i, i + step) for i in range(0, len(logits), step)]
