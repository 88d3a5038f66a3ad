"""The benchmarks run in their smallest sizes and count what they say.   pytest
tests/test_benchmarks.py"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import common
from benchmarks import measure
from envs.alfworld import AlfWorld
from recipes import plan

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def chat_policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    shape = dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=900,
    )
    measure.make_model(
        folder, "qwen2", measure.chat_prompts(20, env=AlfWorld(houses=True)), **shape
    )
    return common.Policy(folder)


def last_line(*command, **settings):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_random_models_are_chat_models_and_prompts_are_those_of_play(chat_policy):
    prompts = measure.chat_prompts(3, env=AlfWorld(houses=True))
    assert chat_policy.style == "chat"
    assert "Your admissible actions" in prompts[0] and "You have taken 1 steps" in prompts[1]
    assert prompts[2] in chat_policy.tokenizer.decode(chat_policy.encode_prompt(prompts[2]))


def test_rows_have_both_signs_of_advantage_and_lengths_in_range(chat_policy):
    rows = measure.random_rows(chat_policy, ["a", "b", "c", "d"], 10)
    assert [row.advantage for row in rows] == [1, -1, 1, -1]
    assert all(5 <= len(row.response_ids) <= 10 for row in rows)
    assert len({row.episode for row in rows}) == 4


def test_useful_flops_by_hand():
    from benchmarks import gpu

    config = plan.read_config("Qwen2.5-0.5B")
    s, row = plan.Sizes(config), common.Row([1] * 3, [1] * 2, [0.0] * 2, [None] * 2)
    d, f, q, kv = 896, 4864, 896, 128
    # with the biases of q, k, v and two norms
    layer = d * q + q + 2 * (d * kv + kv) + q * d + 3 * d * f + 2 * d
    by_hand = 6 * 5 * 24 * layer + 6 * 2 * 151936 * d + 6 * 25 * q * 24
    assert gpu.useful_flops(s, [row], 0) == by_hand


def test_without_cuda_the_gpu_benchmark_says_so_in_one_line():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    done = subprocess.run(
        [sys.executable, str(HERE / "benchmarks" / "gpu.py"), "--size", "7B"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("error: --device cuda: no CUDA device found")
    )


def test_plain_generate_plays_the_same_episodes(chat_policy):
    from benchmarks import update_vs_trl

    env = AlfWorld(houses=True, max_steps=2)
    plays = [common.Play(task, task, ("bench", task)) for task in env.tasks("train")[:2]]
    # two episodes of two steps: nobody wins
    assert update_vs_trl.plain_rollout(chat_policy, env, plays, 4, None)[0] == 4


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="the peak of resident memory is read from Linux's /proc",
)
def test_peak_memory_sees_the_memory_of_worker_threads():
    code = (
        "import torch; from concurrent.futures import ThreadPoolExecutor; from benchmarks.measure "
        "import peak_memory\n"
        "def work(): a = torch.ones(40, 2**20); b = a + 1; del a; b.add_(1)\n"
        "def threaded():\n  with ThreadPoolExecutor(1) as pool: pool.submit(work).result()\n"
        "threaded(); print([peak_memory(work) / 2**20, peak_memory(threaded) / 2**20])"
    )
    assert last_line(
        "-c", code, MALLOC_MMAP_THRESHOLD_="65536", PYTHONPATH=str(HERE)
    ) == pytest.approx([320, 320], rel=0.05)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_in_size_tiny():
    small = (
        "--rows 4 --response 8 --repeat 1 --episodes 2 --steps 2 "
        "--micro-batch-tokens 2048 --dtype float32"
    )
    found = last_line(
        str(HERE / "benchmarks" / "gpu.py"), "--size", "tiny", "--device", "cpu", *small.split()
    )
    assert found["update"]["tokens_per_second"] > 0 and found["rollout"]["steps_per_second"] > 0
    assert 0 < found["position"]["draw_ms"] < found["position"]["ms"]
    assert found["update"]["micro_batch_tokens"] == 2048 and 0 <= found["update"]["padding"] < 0.5
    assert np.isfinite(found["update"]["share_of_matmul"]) and found["memory"]["estimated_gb"] > 0


@pytest.mark.slow
def test_a_checkout_compared_with_itself_samples_the_same_tokens():
    found = last_line(str(HERE / "benchmarks" / "against.py"), str(HERE), "--rounds", "1")
    assert found["stand-in"]["same"] and found["chat"]["same"]
    assert 0.5 < found["chat"]["before_over_now"] < 2


@pytest.mark.slow
def test_the_comparison_with_trl_runs():
    if not find_spec("trl"):
        pytest.skip("TRL is not installed (pip install trl)")
    small = (
        "--rows 4 --response 8 --repeat 1 --hidden 64 --mlp 64 --layers 1 --vocab 600 "
        "--episodes 2 --steps 2 --rollout-response 4"
    )
    found = last_line(str(HERE / "benchmarks" / "update_vs_trl.py"), *small.split())
    assert found["speed_over_trl"] == pytest.approx(
        found["ours"]["tokens_per_second"] / found["trl"]["tokens_per_second"], rel=1e-2
    )
    assert min(found["ours"]["peak_mib"], found["trl"]["peak_mib"]) > 0
