"""How large models fit: LoRA, recomputed activations, mixed precision, shards; and their weights in
one piece, to sample with and to save.

Functions of a common.Policy.  Weights that are trained are float32 whatever --dtype computes in,
since steps of 1e-6 vanish in bfloat16; with LoRA only the adapters are.
"""

import copy

import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from envs import UserError
from support import models, parallel

MLP = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def prepare_training(policy, args):
    """LoRA, recomputation of activations, mixed precision: what --lora-rank,
    --gradient-checkpointing and --dtype ask for."""
    if args.lora_rank:
        from peft import LoraConfig, inject_adapter_in_model

        torch.manual_seed(args.seed)  # the adapters begin alike in every process
        config = LoraConfig(
            r=args.lora_rank, lora_alpha=args.lora_rank, target_modules=adapted(policy.model)
        )
        inject_adapter_in_model(config, policy.model)
        policy.lora = [layer for layer in policy.model.modules() if hasattr(layer, "lora_A")]
        if not all(isinstance(layer.get_base_layer(), torch.nn.Linear) for layer in policy.lora):
            raise UserError(
                f"--lora-rank: LoRA would adapt more than the linear layers of {policy.name}, "
                "which could not be "
                "merged; train all weights (--lora-rank 0)"
            )
        for p in trained(policy):
            p.data = p.data.float()
    if args.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable(
            {"use_reentrant": False, "preserve_rng_state": False}
        )
    if args.dtype != "float32" and not parallel.sharded():  # FSDP2 casts by itself
        kind, dtype = torch.device(policy.device).type, getattr(torch, args.dtype)
        policy.autocast = lambda: torch.autocast(kind, dtype)
        narrow_stream(policy.model, kind)


def narrow_stream(model, kind):
    """In mixed precision the residual stream, too, is in the dtype of computing, as under FSDP2
    and in vLLM.  Left alone, embeddings and norms, whose weights are float32, would make everything
    between two matrix products float32: twice the memory, and a copy for each product."""

    def cast(module, args, output):
        if torch.is_autocast_enabled(kind):
            return output.to(torch.get_autocast_dtype(kind))

    norms = [m for m in model.modules() if "Norm" in type(m).__name__ and hasattr(m, "weight")]
    for module in [model.get_input_embeddings(), *norms]:
        module.register_forward_hook(cast)


def adapted(model):
    """Names of the layers that get a LoRA adapter: all linear ones but the output head.

    Where experts are kept as one tensor of many matrices they stay as they are, since only what
    `named_weights` can merge may be trained.  The MLP layers beside them stay, too: peft takes
    their names for the experts'."""
    head, experts = model.get_output_embeddings(), any(p.ndim == 3 for p in model.parameters())
    names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer is not head
    ]
    return [name for name in names if not (experts and name.rpartition(".")[2] in MLP)]


def trained(policy):
    """The parameters that are trained, in a fixed order."""
    return [p for p in policy.model.parameters() if p.requires_grad]


def recompute(policy, on):
    """Switches gradient checkpointing.  Only the layers themselves are told that they train, so
    dropout below them stays off; and the sampler's KV cache does not go with it."""
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
    """(name, tensor) of every weight as the plain Hugging Face model has it: shards in one piece
    (every process takes part), LoRA merged, tied weights once, and the buffers that its files
    have."""
    modules = dict(policy.model.named_modules())
    for name, p in policy.model.named_parameters():
        if ".lora_" in name:
            continue
        tensor = parallel.whole(p.detach())
        if policy.lora and name.endswith(".base_layer.weight"):
            layer = modules[name.removesuffix(".base_layer.weight")]
            a, b = (
                parallel.whole(one["default"].weight.detach()).float()
                for one in (layer.lora_A, layer.lora_B)
            )
            tensor = tensor + layer.scaling["default"] * (b @ a)  # (out, in), in float32
        yield name.replace(".base_layer", ""), tensor
    files = policy.model.state_dict().keys()
    for name, buffer in policy.model.named_buffers():
        if name in files:
            yield name.replace(".base_layer", ""), parallel.whole(buffer)


def ready_to_sample(policy):
    """Brings the newest weights to what rollouts use: vLLM, or a copy in one piece of a sharded
    model, or the trained model itself."""
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
        ours = policy.sampling.state_dict()
        for name, tensor in named_weights(policy):
            ours[name].copy_(tensor)
    policy.synced = policy.version


def save(policy, folder, dtype=None):
    """A Hugging Face folder, weights as they are kept or in another dtype.  Every process takes
    part, process 0 writes.

    UserError where weights that were merged or cast are not the policy's any more; measured at the
    first time."""
    changed = policy.lora or parallel.sharded() or dtype not in (None, policy.model.dtype)
    dtype = dtype or policy.model.dtype
    if changed:
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(
                copy.deepcopy(policy.model.config), dtype=dtype
            )
        plain.generation_config = policy.model.generation_config
        kinds = {
            name: tensor.dtype for name, tensor in plain.state_dict().items()
        }  # some stay in float32, whatever the model's is
        weights = {
            name: tensor.to("cpu", kinds[name]) if parallel.rank() == 0 else None
            for name, tensor in named_weights(policy)
        }
    else:
        plain, weights = policy.model, None
    if parallel.rank() == 0:
        plain.save_pretrained(folder, state_dict=weights)
        policy.tokenizer.save_pretrained(folder)
    if changed and dtype not in policy.proved:
        models.check_saved(policy, folder)
        policy.proved.add(dtype)


def whole_state(optimizer):
    """The optimizer's state with every shard in one piece, in memory of process 0; every process
    has to call this."""
    state = optimizer.state_dict()
    for i, values in state["state"].items():
        values = {key: parallel.whole(value) for key, value in values.items()}
        state["state"][i] = (
            {key: value.cpu() for key, value in values.items()} if parallel.rank() == 0 else {}
        )
    return state
