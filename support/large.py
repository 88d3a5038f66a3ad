"""How large models fit: LoRA, recomputed activations, mixed precision, shards; and their weights in one piece, to sample with and to save.

Functions of a common.Policy.  Weights that are trained are float32 whatever --dtype computes in, since steps of 1e-6 vanish in bfloat16;
with LoRA only the adapters are.
"""

import copy

import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from support import parallel


def load_model(name, device, dtype):
    """A Hugging Face model, ready to be played.  Code that comes with a model is never run."""
    model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype), trust_remote_code=False)
    return model.to(device).eval()


def prepare_training(policy, args):
    """LoRA, recomputation of activations, mixed precision: what --lora-rank, --gradient-checkpointing and --dtype ask for."""
    if args.lora_rank:
        from peft import LoraConfig, inject_adapter_in_model

        torch.manual_seed(args.seed)  # the adapters begin alike in every process
        inject_adapter_in_model(LoraConfig(r=args.lora_rank, lora_alpha=args.lora_rank, target_modules="all-linear"), policy.model)
        policy.lora = [layer for layer in policy.model.modules() if hasattr(layer, "lora_A")]
        for p in trained(policy):
            p.data = p.data.float()
    if args.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    if args.dtype != "float32" and not parallel.sharded():  # FSDP2 casts by itself
        policy.autocast = lambda: torch.autocast(torch.device(policy.device).type, getattr(torch, args.dtype))


def trained(policy):
    """The parameters that are trained, in a fixed order."""
    return [p for p in policy.model.parameters() if p.requires_grad]


def recompute(policy, on):
    """Switches gradient checkpointing.  Only the layers themselves are told that they train, so dropout below them stays off; and the
    sampler's KV cache does not go with it."""
    for layer in policy.model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = on


def without_adapter(policy):
    """The same policy as it was before LoRA: the reference, for free."""
    other = copy.copy(policy)
    other.adapter_off = True
    return other


def enable_adapter(policy, on):
    """LoRA on or off; off is the model that training began with."""
    for layer in policy.lora:
        layer.enable_adapters(on)


def named_weights(policy):
    """(name, tensor) of every weight as the plain Hugging Face model has it: shards in one piece (every process takes part), LoRA
    merged, tied weights once."""
    modules = dict(policy.model.named_modules())
    for name, p in policy.model.named_parameters():
        if ".lora_" in name:
            continue
        tensor = parallel.whole(p.detach())
        if policy.lora and name.endswith(".base_layer.weight"):
            layer = modules[name.removesuffix(".base_layer.weight")]
            a, b = (parallel.whole(one["default"].weight.detach()).float() for one in (layer.lora_A, layer.lora_B))
            tensor = tensor + layer.scaling["default"] * (b @ a)  # (out, in), in float32
        yield name.replace(".base_layer", ""), tensor


def ready_to_sample(policy):
    """Brings the newest weights to what rollouts use: vLLM, or a copy in one piece of a sharded model, or the trained model itself."""
    if policy.engine:
        for p in trained(policy):
            p.grad = None  # not needed until the next update, and vLLM wants the room
        policy.engine.wake()
    if policy.synced == policy.version:
        return
    if policy.engine:
        policy.engine.sync(policy)
        policy.engine.verify(policy)
    elif policy.sampling is not policy.model:
        ours = dict(policy.sampling.named_parameters())
        for name, tensor in named_weights(policy):
            ours[name].data.copy_(tensor)
    policy.synced = policy.version


def save(policy, folder, dtype=None):
    """A Hugging Face folder, weights as they are kept or in another dtype.  Every process takes part, process 0 writes."""
    if policy.lora or parallel.sharded() or dtype not in (None, policy.model.dtype):
        dtype = dtype or policy.model.dtype
        weights = {name: tensor.to("cpu", dtype) if parallel.rank() == 0 else None for name, tensor in named_weights(policy)}
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(copy.deepcopy(policy.model.config), dtype=dtype)
        plain.generation_config = policy.model.generation_config
    else:
        plain, weights = policy.model, None
    if parallel.rank() == 0:
        plain.save_pretrained(folder, state_dict=weights)
        policy.tokenizer.save_pretrained(folder)


def whole_state(optimizer):
    """The optimizer's state with every shard in one piece, in memory of process 0; every process has to call this."""
    state = optimizer.state_dict()
    for i, values in state["state"].items():
        values = {key: parallel.whole(value) for key, value in values.items()}
        state["state"][i] = {key: value.cpu() for key, value in values.items()} if parallel.rank() == 0 else {}
    return state
