"""What the benchmarks and their tests share: random chat models, rows with real prompts, time and
peak memory.

Nothing is downloaded: models are random weights of a given shape, their tokenizer is a byte-level
BPE trained on the environment's own prompts, and prompts come from episodes in the simulator.
Speed and memory do not depend on what weights say."""

import gc
import os
import re
import time

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from common import Row
from envs.alfworld import AlfWorld

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_prompts(n, seed=0, env=None):
    """n chat prompts (strings) in the order of play: episodes of 50 random admissible actions on
    real games, or on generated houses."""
    env, stream, prompts = env or AlfWorld(), np.random.default_rng(seed), []
    tasks = env.tasks("train")
    while len(prompts) < n:
        step, history = env.reset(tasks[stream.integers(len(tasks))]), []
        while not step.done and len(prompts) < n:
            prompts.append(env.prompt(env.task, history, step, [], "chat"))
            action = step.admissible[stream.integers(len(step.admissible))]
            history.append((step, action))
            step = env.step(action)
    return prompts


def make_tokenizer(texts, vocab):
    """A byte-level BPE with ChatML turns, trained on the texts; at most `vocab` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TURNS
    return fast


def make_model(
    folder, model_type="qwen2", texts=None, seed=0, dtype="float32", device="cpu", **shape
):
    """Writes a random chat model with its tokenizer to a folder, as from_pretrained wants it.
    shape: fields of its config."""
    tokenizer = make_tokenizer(texts or chat_prompts(100), min(4096, shape["vocab_size"]))
    config = AutoConfig.for_model(model_type, **shape)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(seed)
    with torch.device(
        device
    ):  # drawn where it will be used: a CPU takes minutes for 7 billion numbers
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return config


def random_rows(policy, prompts, response_tokens, seed=0):
    """A Row per prompt string, with a random response of 1/2 to 1 times response_tokens, advantages
    of +-1, and the policy's log-probs left at 0 (updates compute none when --old-logprobs is
    sampler; the cost is the same whatever they are)."""
    stream, rows = np.random.default_rng(seed), []
    for i, text in enumerate(prompts):
        n = int(stream.integers(response_tokens // 2, response_tokens + 1))
        response = stream.integers(3, len(policy.tokenizer), n).tolist()
        rows.append(
            Row(
                policy.encode_prompt(text),
                response,
                [0.0] * n,
                [None] * n,
                advantage=1.0 - 2.0 * (i % 2),
                episode=i,
            )
        )
    return rows


# ---- time and memory -----------------------------------------------------------------------------


def seconds(function, repeat=3, device="cpu"):
    """Median wall-clock seconds of `repeat` calls, after one call that does not count."""
    function()
    taken = []
    for _ in range(repeat):
        synchronize(device)
        begun = time.perf_counter()
        function()
        synchronize(device)
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2]


def matmul_rate(device, size, dtype=torch.bfloat16):
    """Operations per second of products of two square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, repeat=10, device=device)


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(function, device="cpu"):
    """Bytes that a call held at its peak beyond what was held before it.  Call the function once
    before: first calls set things up.

    CUDA: torch's allocator counts.  CPU: the kernel's high-water mark of resident memory, of all
    threads and libraries (Linux only).  The process must have been started with
    MALLOC_MMAP_THRESHOLD_=65536, so that freed blocks go back to the system and no old hole hides
    new memory; RuntimeError otherwise.  That makes allocating slow: measure time in another
    process."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if os.environ.get("MALLOC_MMAP_THRESHOLD_") != "65536":
        raise RuntimeError(
            "start the process with MALLOC_MMAP_THRESHOLD_=65536, else freed memory is kept and "
            "the peak means nothing"
        )
    before = resident("VmRSS")
    reset_peak()
    function()
    return resident("VmHWM") - before


def reset_peak():
    """The high-water mark of resident memory starts anew."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def resident(what):
    """Bytes: VmRSS now, VmHWM at the highest."""
    with open("/proc/self/status") as file:
        return int(re.search(rf"{what}:\s+(\d+)", file.read())[1]) * 1024
