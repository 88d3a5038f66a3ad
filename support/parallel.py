"""Several processes of one run, as `accelerate launch` or `torchrun` start them.  With one process
every function here does nothing.

    rollout    task groups are dealt to the processes, and the records are gathered, in order, in
               every process
    update     every process takes its share of each mini-batch's micro-batches; the gradients are
               summed over processes
    weights    replicated, or sharded by FSDP2 where the launcher's file asks for it
               (recipes/fsdp.yaml)
    files      process 0 writes and prints; several machines need a shared folder

So every process sees all records and takes every decision alike: random streams have names, and
the only clock is process 0's (`agree`). One process and many make the same update up to the order
of sums (tests/test_parallel.py).
"""

import math
import os
import re
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from envs import UserError

JOIN = timedelta(minutes=5)  # for all processes to start and to import what they need


def rank():
    """Number of this process, from 0."""
    return number("RANK", 0)


def world_size():
    """Number of processes."""
    return number("WORLD_SIZE", 1)


def number(name, default):
    """What a launcher has set.  UserError where it is no number, or no launcher can have set it."""
    value = os.environ.get(name, "") or str(default)
    if not re.fullmatch("[0-9]{1,6}", value):
        found = f"{name}={value[:40]} in the environment: expected a whole number"
        raise UserError(f"{found}; type `unset {name}`, or launch anew")
    return int(value)


def check():
    """UserError where the environment is half of a launcher's: left over from another job, or set
    by hand."""
    names = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if world_size() == 0 or (world_size() > 1 and missing) or rank() >= max(1, world_size()):
        there = [name for name in ("WORLD_SIZE", *names) if name in os.environ]
        found = ", ".join(f"{name}={os.environ[name]}" for name in there)
        found = f"the environment asks for several processes ({found})"
        fix = "start with accelerate launch or torchrun, or type `unset WORLD_SIZE RANK LOCAL_RANK`"
        raise UserError(f"{found}, but no launcher has started them: {fix}")


def sharded():
    """Whether weights, gradients and optimizer state are split over the processes."""
    return world_size() > 1 and os.environ.get("ACCELERATE_USE_FSDP") == "true"


def begin(device):
    """Joins the other processes; returns the torch device of this one.  UserError where a machine
    has more processes than GPUs."""
    check()
    if device.startswith("cuda") and world_size() > 1:
        here, found = number("LOCAL_WORLD_SIZE", world_size()), torch.cuda.device_count()
        if here > found:
            both = f"{here} processes on a machine with {found} GPUs"
            raise UserError(f"{both}: launch with --num_processes {found}")
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    if world_size() > 1 and not dist.is_initialized():
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if rank() == 0:
            print(f"waiting for {world_size()} processes at {place}", file=sys.stderr, flush=True)
        # objects go over gloo on any machine.  A rollout may keep a process waiting for long; one
        # that died is noticed without a timeout
        try:
            store, _, _ = next(dist.rendezvous("env://", timeout=JOIN))
            backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
            who = dict(store=store, rank=rank(), world_size=world_size())
            dist.init_process_group(backend, timeout=timedelta(hours=6), **who)
        except (dist.DistError, ValueError) as error:
            reason = str(error).split("\n")[0][:200]
            found = f"{world_size()} processes were to meet at {place} and did not ({reason})"
            one = "for one process type `unset WORLD_SIZE RANK LOCAL_RANK`"
            raise UserError(f"{found}: start all of them together; {one}") from None
        # all have joined before one may leave with a mistake, or the others would only see it gone
        agree(None)
    return device


alone = False  # whether this process is doing what the others are not


@contextmanager
def apart():
    """What is done in here differs by process: a mistake is told by the process that meets it
    (common.run_script), else by process 0."""
    global alone
    alone = True
    yield  # an exception leaves the mark as it is
    alone = False


# ---- objects -------------------------------------------------------------------------------------


def gather(value):
    """The values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def agree(value):
    """Process 0's value."""
    return gather(value)[0]


def first(function):
    """function() in process 0 alone; its result, or its UserError, in every process."""
    result = mistake = None
    if rank() == 0:
        try:
            result = function()
        except UserError as error:
            mistake = error
    result, mistake = agree((result, mistake))
    if mistake:
        raise mistake
    return result


def share(work, items, keys):
    """work(items), where the items are dealt to the processes, those of equal key to the same one.
    All results, in the items' order."""
    if world_size() == 1:
        return work(items)
    owner = {key: n % world_size() for n, key in enumerate(dict.fromkeys(keys))}
    own = [i for i, key in enumerate(keys) if owner[key] == rank()]
    with apart():
        done = work([items[i] for i in own])
    parts = gather(dict(zip(own, done)))
    results = {i: result for part in parts for i, result in part.items()}
    return [results[i] for i in range(len(items))]


# ---- gradients -----------------------------------------------------------------------------------


def own_part(batches):
    """This process's share of a list of micro-batches: pairs (micro-batch, 1).  All get equally
    many, since sharded layers are gathered by all processes together: who is short runs the last,
    smallest one again, as (micro-batch, 0)."""
    rounds = math.ceil(len(batches) / world_size())
    turns = range(rank(), rounds * world_size(), world_size())
    return [(batches[i], 1) if i < len(batches) else (batches[-1], 0) for i in turns]


def sum_gradients(parameters):
    """Adds the gradients of all processes; sharded ones were added by FSDP2 on the way."""
    if world_size() > 1 and not sharded():
        for p in parameters:
            dist.all_reduce(p.grad)


# ---- shards --------------------------------------------------------------------------------------


def shard(model, dtype, device):
    """FSDP2: every layer, then the rest of the model, is split over all processes and gathered when
    it is used.  Computes in `dtype`; weights, gradients and their sums stay as they were loaded.
    `model.run(function, ...)` then calls a function that uses the model."""
    mesh = dist.init_device_mesh(torch.device(device).type, (world_size(),))
    mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    kinds = model._no_split_modules or []
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    # a layer's weights stay until its backward pass: faster, larger
    keep = os.environ.get("FSDP_RESHARD_AFTER_FORWARD") == "false"
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=mixed, reshard_after_forward=not keep)
    fully_shard(model, mesh=mesh, mp_policy=mixed, reshard_after_forward=True)
    # FSDP2 hangs hooks on what is returned: no views
    model.run = lambda function, *args: tuple(value.clone() for value in function(*args))
    register_fsdp_forward_method(model, "run")


def whole(tensor):
    """A sharded tensor in one piece; every process has to call this.  Other values as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value, parameter):
    """A whole tensor, split as a parameter of its shape is."""
    if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
        return value
    value = value.to(parameter.device)
    # each process cuts out its own part
    where = (parameter.device_mesh, parameter.placements)
    return distribute_tensor(value, *where, src_data_rank=None)
