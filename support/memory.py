"""What an update needs in memory, from a model's config: estimates that choose the micro-batch.

    Sizes               widths and parameter counts of a config
    weights_bytes       what stays for the whole run, by part
    micro_batch_bytes   what a forward and backward pass takes beside it
    fitting_tokens      the largest micro-batch for so many bytes; free_tokens: for what is free now

How the memory of a decoder is counted (d hidden size, f width of the MLP, q and k widths of all
query and key heads, b bytes of a number; per token, in the order of a layer's forward pass, what
has to wait for the backward pass):

    2 norms       input (as float32), normalised, output: 12 d in float32, 8 d in bfloat16
    attention     query, key, value, output: b (2 q + 2 k), and a float32 per head; no T x T matrix,
                  as the kernels are fused
    MLP           gate, up, silu(gate), product: 4 b f
    LoRA          frozen weights need no inputs, adapters a copy of every linear layer's input

Without gradient checkpointing every layer keeps all of this, with it only its input, and one layer
at a time the rest.  Logits exist for response tokens only, a chunk of them at once, in 2 float32
copies (logits and their gradient, softmax.py).  Checked within 20 % against measured peaks of small
models on a CPU (tests/test_plan.py).  Not checked: sharded runs, CUDA's own overhead (about 1 GB a
process, not counted; 10 % of the memory is left free for it and for fragmentation).  On one H100,
7B with LoRA: 26.5 GB estimated, 27.5 measured, when logits took 5 copies.
"""

import math
from bisect import bisect_left

import torch
from transformers import AutoModelForCausalLM

from support import parallel

GB = 1e9
LOGIT_COPIES = 2  # float32 copies of a chunk's logits at the peak of the backward pass
LOGITS_AT_ONCE = 2**29  # numbers of a chunk's logits: 2 GiB
FREE = 0.1  # of a card's memory, for CUDA, fragments, buffers of the communication


class Sizes:
    """The widths and parameter counts of a config."""

    def __init__(self, config):
        self.d, self.f = config.hidden_size, config.intermediate_size
        self.layers, self.vocab = config.num_hidden_layers, config.vocab_size
        self.heads = config.num_attention_heads
        head = getattr(config, "head_dim", None) or self.d // self.heads
        self.q, self.k = self.heads * head, config.num_key_value_heads * head
        self.head_norms = config.model_type.startswith("qwen3")  # of queries and keys, too
        with torch.device("meta"):  # shapes without memory
            model = AutoModelForCausalLM.from_config(config)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.layer = sum(p.numel() for p in model.base_model.layers[0].parameters())
        self.largest = max(p.numel() for p in model.parameters())
        # (in + out) of all linear layers of a decoder layer: the parameters of adapters of rank 1
        layer = model.base_model.layers[0].modules()
        linear = [m for m in layer if isinstance(m, torch.nn.Linear)]
        self.adapter = self.layers * sum(m.in_features + m.out_features for m in linear)


def layer_bytes(s, dtype, lora_rank=0):
    """Bytes per token that one decoder layer keeps for its backward pass."""
    b = bytes_of(dtype)
    attention, mlp = b * (2 * s.q + 2 * s.k) + 4 * s.heads, 4 * b * s.f
    norms = 2 * s.d * (4 + 2 * b)
    if s.head_norms:
        norms += (s.q + s.k) * (4 + b)
    if lora_rank:  # norms keep their input only; adapters theirs, each its own copy where cast
        norms = 2 * s.d * 4 + (4 * (s.q + s.k) if s.head_norms else 0)
        # inputs of q, k, v, gate, up; o; down; and A's output
        inputs = 5 * s.d + s.q + s.f if b == 2 else 2 * s.d + s.f
        mlp = 3 * b * s.f + b * (inputs + 7 * lora_rank)
    return norms + attention + mlp


def micro_batch_bytes(
    s, tokens, targets, dtype="bfloat16", checkpointing=False, logit_chunk=None, lora_rank=0
):
    """(activations, logits, one layer) in bytes of a forward and backward pass over `tokens` padded
    tokens, `targets` of them response tokens.  Activations wait for the backward pass; then come
    the logits' gradients, and after those one layer after the other, so the peak is activations +
    the larger of the other two."""
    b = bytes_of(dtype)
    layer = layer_bytes(s, dtype, lora_rank)
    # bytes per token of the residual stream, which a recomputed layer starts from
    stream = s.d * b
    activations = tokens * s.layers * (stream if checkpointing else layer)
    # at work in a layer's backward pass: two gradients of the MLP's width, two of the stream, and
    # what is computed again
    one_layer = tokens * (2 * b * s.f + 2 * stream + (layer if checkpointing else 0))
    chunk = min(targets, logit_chunk or max(1, LOGITS_AT_ONCE // s.vocab))
    logits = chunk * s.vocab * (4 * LOGIT_COPIES + (2 if b == 2 else 0))
    logits += tokens * s.d * (4 + 2 * b)  # and the norm before them
    return activations, logits, one_layer


def peak(activations, logits, one_layer):
    return activations + max(logits, one_layer)


def weights_bytes(s, gpus=1, dtype="bfloat16", lora_rank=0, beta=0.01):
    """Bytes per GPU by part of what stays for the whole run, as common.load_training sets it up.

    All weights are trained in float32 and computed in dtype, so that steps of 1e-6 are not rounded
    away; split over the GPUs by FSDP2.  With LoRA the weights are frozen, in dtype, on every GPU,
    only the adapters are trained, and the reference is the adapter off."""
    b = bytes_of(dtype)
    trained = lora_rank * s.adapter if lora_rank else s.parameters
    shards = 1 if lora_rank else gpus
    parts = {"weights": (s.parameters * b + trained * 4) if lora_rank else trained * 4 / shards}
    parts["reference"] = s.parameters * b / shards if beta > 0 and not lora_rank else 0.0
    parts["gradients"] = trained * 4 / shards
    parts["optimizer"] = trained * 8 / shards
    if lora_rank:
        parts["computing copies"] = 0.0
    elif gpus > 1:  # FSDP2 gathers two layers at a time, and embeddings and output; their whole
        root = s.parameters - s.layers * s.layer  # gradients before they are shared out
        parts["computing copies"] = b * (2 * s.layer + root) + 4 * root
    else:  # mixed precision copies the weights; the largest gradient comes before it is added
        parts["computing copies"] = (s.parameters * b if b < 4 else 0) + 4 * s.largest
    return parts


def bytes_of(dtype):
    return {"float32": 4, "bfloat16": 2}[dtype]


def fitting_tokens(s, room, share, longest, **how):
    """The largest micro-batch, in steps of 256 padded tokens, whose activations and logits fit into
    `room` bytes, at most 2**18 beyond one row; 0 where not even one row of `longest` tokens does.
    share: of response tokens among all."""

    def bytes_at(tokens):
        return peak(*micro_batch_bytes(s, tokens, math.ceil(tokens * share), **how))

    sizes = range(longest, longest + 2**18, 256)  # bytes grow with them
    fitting = bisect_left(sizes, True, key=lambda tokens: bytes_at(tokens) > room)
    return sizes[fitting - 1] if fitting else 0


def free_tokens(policy, optimizer, sequences, checkpointing, free, threads=1):
    """The largest micro-batch of these sequences for `free` bytes, of which gradients, the
    optimizer's averages and computing copies take theirs first, and where `threads` micro-batches
    are there at once; at least the longest sequence.  None where a model has other parts than are
    counted here."""
    rank = policy.lora[0].r["default"] if policy.lora else 0
    with policy.autocast():
        mixed = torch.is_autocast_enabled(torch.device(policy.device).type)
    rough = mixed or parallel.sharded() or policy.model.dtype == torch.bfloat16
    how = dict(dtype="bfloat16" if rough else "float32", lora_rank=rank)
    try:
        s = Sizes(policy.model.config)
    except AttributeError:  # recurrent layers, other names
        return None
    gpus = parallel.world_size() if parallel.sharded() else 1
    stays = weights_bytes(s, gpus, beta=0, **how)
    coming = stays["gradients"] + stays["computing copies"]
    coming += 0 if optimizer.state else stays["optimizer"]
    longest = max(len(one.ids) for one in sequences)
    share = sum(len(one.positions) for one in sequences) / sum(len(one.ids) for one in sequences)
    how |= dict(checkpointing=checkpointing, logit_chunk=policy.chunk)
    room = (free * (1 - FREE) - coming) / threads
    return fitting_tokens(s, room, share, longest, **how) or longest
