"""Several processes against one: the same update, whole checkpoints, a process that dies.   pytest
tests/test_parallel.py

The processes talk over gloo, replicated or sharded by FSDP2; one test goes through `accelerate
launch`."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import common
import distill
import evaluate
import mine
import warmup
from common import Play, assign_advantages, rollout, rows_of
from envs import UserError
from support import files, large, packing, parallel, training
from tests.conftest import arguments, ended, free_port, make_chat_model, play, start

needs_vllm = pytest.mark.skipif(
    not find_spec("vllm"), reason="needs vLLM: pip install -e '.[vllm]'"
)
needs_peft = pytest.mark.skipif(not find_spec("peft"), reason="needs peft: pip install -e '.[gpu]'")
ROOT = Path(__file__).parent.parent
SMALL = (
    "--groups 5 --group-size 4 --threads 1 --mini-batch-rows 30 --micro-batch-tokens 200 "
    "--seed 1 --model model --device cpu"
).split()
WARMUP = [*SMALL, "--iterations", "4", "--stop-at", "0", "--lr", "1e-3"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch, model_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("model").symlink_to(model_folder)


def launch(n, function, shard=False):
    """Calls function() in n processes of one run; returns their exit codes and what each wrote."""
    shared = dict(
        WORLD_SIZE=str(n),
        LOCAL_WORLD_SIZE=str(n),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )
    shared["ACCELERATE_USE_FSDP"] = str(shard).lower()
    children = [
        start(function, out=f"out.{r}", RANK=str(r), LOCAL_RANK=str(r), **shared) for r in range(n)
    ]
    try:
        codes = [ended(child) for child in children]
    finally:
        for child in children:
            child.kill()  # where one hangs, the others would wait for it after the last test
    return codes, [Path(f"out.{r}").read_text() for r in range(n)]


def succeeds(n, function, shard=False):
    codes, texts = launch(n, function, shard)
    assert codes == [0] * n, "\n".join(texts)
    return texts


def same_weights(one, other, tolerance=1e-5):
    one, other = (load_file(Path(folder) / "model.safetensors") for folder in (one, other))
    assert one.keys() == other.keys()
    assert max((one[name] - other[name]).abs().max() for name in one) <= tolerance


WAYS = pytest.mark.parametrize(
    ("n", "shard"),
    [(2, False), (2, True), (3, True)],
    ids=["replicated", "sharded", "sharded over three"],
)


# ---- the update ----


@pytest.fixture(scope="module")
def records(model_folder):
    from envs.alfworld import AlfWorld

    env = AlfWorld(houses=True, max_steps=5)
    records = rollout(
        common.Policy(model_folder),
        env,
        [Play(t, t, ("p", t, i)) for t in env.tasks("train")[:3] for i in range(3)],
    )
    for i, record in enumerate(records):
        record["success"], record["steps"][-1]["reward"] = i % 2 == 0, 10.0 * (i % 2 == 0)
    assign_advantages(records, env, mode="mean_norm")
    return records


def one_update(records, folder, **changes):
    """An update of five mini-batches with every term of the loss, in unequal micro-batches."""
    args = arguments(beta=0.1, **changes)
    parallel.begin("cpu")
    policy, ref_policy, _ = common.load_training("model", "model", args)
    optimizer = torch.optim.AdamW(large.trained(policy), lr=1e-3)
    rows = rows_of(records)
    for row in rows_of(records)[::2]:
        row.rl, row.weights, row.n_taught = (
            False,
            [0.7] * len(row.response_ids),
            len(row.response_ids),
        )
        rows.append(row)
    loss = partial(distill.siri_loss, lam=0.3, beta=0.1, entropy_coef=0.01)
    how = dict(mini_batch_rows=15, micro_batch_tokens=250, recompute_old=True)
    metrics = common.update(
        policy, optimizer, rows, np.random.default_rng(0), loss, ref_policy, **how
    )
    policy.save(folder)
    if parallel.rank() == 0:
        Path(folder, "metrics.json").write_text(json.dumps(metrics))


@WAYS
def test_an_update_is_the_same_with_one_process_and_with_several(records, n, shard):
    one_update(records, "one")
    succeeds(n, partial(one_update, records, "many"), shard)
    same_weights("one", "many")
    with pytest.raises(AssertionError):
        same_weights("model", "many")
    one, many = (json.loads(Path(folder, "metrics.json").read_text()) for folder in ("one", "many"))
    assert one.keys() == many.keys() and one["optimizer_steps"] == 5
    for key in one:
        assert many[key] == pytest.approx(one[key], rel=1e-3, abs=1e-5), key


def test_every_process_runs_equally_many_micro_batches_and_each_counts_once(monkeypatch):
    for n in (1, 2, 3, 5):
        for length in (0, 1, 4, 7):
            monkeypatch.setenv("WORLD_SIZE", str(n))
            parts = []
            for rank in range(n):
                monkeypatch.setenv("RANK", str(rank))
                parts.append(parallel.own_part(list(range(length))))
            assert len({len(part) for part in parts}) == 1
            assert sorted(batch for part in parts for batch, counts in part if counts) == list(
                range(length)
            )


def test_micro_batches_are_the_smallest_that_take_no_more_rounds(monkeypatch):
    lengths = np.random.default_rng(0).integers(400, 1200, 64).tolist()
    sequences = [packing.Sequence([0] * n) for n in lengths]

    def split(n, room, cut=training.even_batches):
        monkeypatch.setenv("WORLD_SIZE", str(n))
        parts = list(cut(sequences, room))
        assert sorted(len(s.ids) for part in parts for s in part) == sorted(lengths)
        return -(-len(parts) // n), parts

    for n in (1, 2, 3, 8):
        for room in (1, 1200, 9000, 40_000, 10**9):
            rounds, plain = split(n, room, packing.micro_batches)
            again, even = split(n, room)
            assert again == rounds and (n > 1 or even == plain)
            largest = max(len(part) * len(part[0].ids) for part in even)
            assert largest <= max(room, *lengths)
            if n > 1 and largest > max(lengths):
                assert split(n, largest - 1, packing.micro_batches)[0] > rounds
    assert len(split(8, 10**9)[1]) == 8  # all work at what one could hold alone
    assert not list(training.even_batches([], 9000))


@needs_peft
@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_update_with_lora_is_the_same_with_one_process_and_with_two(records, dtype, shard):
    changes = dict(lora_rank=4, gradient_checkpointing=True, dtype=dtype)
    one_update(records, "one", **changes)
    succeeds(2, partial(one_update, records, "many", **changes), shard)
    same_weights("one", "many", 1e-5 if dtype == "float32" else 2e-2)  # bfloat16 rounds to 3 digits
    with pytest.raises(AssertionError):
        same_weights("model", "many")


# ---- whole phases ----


def phase(script, arguments, toy=True):
    return partial(play, script.main, arguments, toy)


def in_one_process(script, arguments):
    succeeds(1, phase(script, arguments))


def story(run, name="warmup"):
    """What an iteration's lines say, apart from seconds."""
    lines = files.read_jsonl(f"runs/{run}/{name}/trajectories.jsonl")
    return [
        (
            r["traj_id"],
            [s["action"] for s in r["steps"]],
            [round(s["advantage"], 4) for s in r["steps"]],
        )
        for r in lines
    ]


@WAYS
def test_a_phase_tells_the_same_story_with_one_process_and_with_several(n, shard):
    in_one_process(warmup, [*WARMUP, "--run", "one"])
    texts = succeeds(n, phase(warmup, [*WARMUP, "--run", "many"]), shard)
    assert "warmup done" in texts[0] and not any(texts[1:])  # process 0 alone prints
    # four iterations of differences in the last bits
    same_weights("runs/one/warmup/policy", "runs/many/warmup/policy", 1e-4)
    assert story("one") == story("many")


def test_all_three_phases_run_in_two_processes():
    arguments = [*SMALL, "--iterations", "3", "--lr", "3e-3"]
    succeeds(2, phase(warmup, [*arguments, "--stop-at", "0"]))
    succeeds(2, phase(mine, [*arguments, "--mine-every", "3"]), True)
    succeeds(2, phase(distill, [*arguments, "--k-warm", "0"]), True)
    assert Path("runs/default/distill/policy/model.safetensors").exists()
    games = ["--games", "6", "--repetitions", "1", "--threads", "1", "--device", "cpu"]
    for n in (1, 2):
        succeeds(n, phase(evaluate, [*games, "--out", f"evaluate{n}"]))
    one, two = (files.read_jsonl(f"evaluate{n}/results.jsonl") for n in (1, 2))
    assert one == two and len(one) == 5 * 6 and Path("evaluate2/curves.png").exists()


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
def test_every_process_has_a_vllm_engine_of_its_own(shard):
    make_chat_model("chat", max_position_embeddings=4096)
    small = (
        "--groups 3 --group-size 2 --max-steps 2 --max-response 6 --max-prompt 1500 "
        "--iterations 2 --device cpu --lr 1e-3 --stop-at 0"
    )
    arguments = [
        *small.split(),
        "--model",
        "chat",
        "--engine",
        "vllm",
        "--preset",
        "paper",
        "--allow-malformed",
        "--beta",
        "0",
    ]
    succeeds(2, phase(warmup, arguments, toy=False), shard)
    lines = files.read_jsonl("runs/default/warmup/metrics.jsonl")
    assert len(lines) == 2 and all(
        line["sampler_gap"] < 1e-4 and line["env_steps"] == 12 for line in lines
    )


# ---- checkpoints and deaths ----


def dies_in_iteration(k, main, arguments, ranks):
    """The phase, in which some processes are killed within iteration k's update."""
    update, calls = common.update, []

    def fatal(*given, **more):
        calls.append(1)
        if parallel.rank() in ranks and len(calls) == k + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(*given, **more)

    sys.modules[main.__module__].update = fatal
    play(main, arguments)


@pytest.mark.parametrize(
    ("before", "after"), [((2, True), (1, False)), ((1, False), (2, True)), ((2, False), (2, True))]
)
def test_checkpoints_are_whole_and_go_on_in_any_number_of_processes(before, after):
    in_one_process(warmup, [*WARMUP, "--run", "one"])
    codes, _ = launch(
        before[0],
        partial(dies_in_iteration, 2, warmup.main, [*WARMUP, "--run", "many"], {0, 1}),
        before[1],
    )
    assert codes == [-signal.SIGKILL] * before[0]
    assert [line["iteration"] for line in files.read_jsonl("runs/many/warmup/metrics.jsonl")] == [
        0,
        1,
    ]
    texts = succeeds(after[0], phase(warmup, [*WARMUP, "--run", "many"]), after[1])
    assert "going on after iteration 2" in texts[0]
    same_weights("runs/one/warmup/policy", "runs/many/warmup/policy", 1e-4)
    assert story("one") == story("many")


@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
def test_a_process_that_dies_ends_the_others_with_one_clear_line_and_the_run_goes_on(shard):
    in_one_process(warmup, [*WARMUP, "--run", "one"])
    codes, texts = launch(
        2, partial(dies_in_iteration, 2, warmup.main, [*WARMUP, "--run", "many"], {1}), shard
    )
    assert codes == [1, -signal.SIGKILL]
    line = (
        "error: another process of this run has died; the same command goes "
        "on from the last checkpoint"
    )
    assert texts[0].strip().splitlines()[-1] == line and "Traceback" not in texts[0]
    succeeds(2, phase(warmup, [*WARMUP, "--run", "many"]), shard)
    same_weights("runs/one/warmup/policy", "runs/many/warmup/policy", 1e-4)


def test_a_mistake_is_told_once_and_ends_all_processes():
    codes, texts = launch(2, phase(warmup, [*WARMUP, "--model", "no/such/model"]))
    assert codes == [2, 2] and "--model no/such/model" in texts[0] and not texts[1].strip("\n2")


# ---- launching ----


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        UserError, match="4 processes on a machine with 2 GPUs: launch with --num_processes 2"
    ):
        parallel.begin("cuda")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("accelerate"), reason="needs accelerate: pip install -e '.[gpu]'")
def test_accelerate_launches_the_recipe(tmp_path):
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        ROOT / "recipes" / "fsdp.yaml",
        "--num_processes",
        "2",
    ]
    script = [
        ROOT / "warmup.py",
        *SMALL,
        "--iterations",
        "1",
        "--max-steps",
        "4",
        "--main_process_port",
        str(free_port()),
    ]
    command += script[-2:] + script[:-2]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("warmup done") == 1
        and (tmp_path / "runs/default/warmup/policy/model.safetensors").exists()
    )
