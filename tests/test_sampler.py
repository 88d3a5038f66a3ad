"""The sampler draws as it always did, and nothing as large as the vocabulary leaves the device.

pytest tests/test_sampler.py"""

from functools import wraps

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations import sdpa_attention

import common
from support import models, sampler
from support.sampler import Sampler, draw, draw_listed, pick
from support.softmax import masked
from tests.conftest import make_chat_model


def draw_in_numpy(logits, uniform, temperature, allowed):
    """The draw as it was first written: row by row, the sum over all tokens in order."""
    logp = masked(logits / temperature, allowed).log_softmax(-1)
    tokens = []
    for p, u in zip(logp.double().exp().numpy(), uniform.tolist()):
        token = int(np.searchsorted(np.cumsum(p), u * p.sum(), side="right"))
        tokens.append(min(token, int(p.nonzero()[0][-1])))
    return tokens, [float(logp[k, token]) for k, token in enumerate(tokens)]


@pytest.mark.parametrize("size, rows", [(1228, 64), (50_000, 32), (512, 5), (3, 7)])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_draws_are_those_of_a_sum_over_all_tokens_in_order(size, rows, temperature):
    generator = torch.Generator().manual_seed(size)
    for spread in (0.1, 3.0, 20.0):
        logits = spread * torch.randn(rows, size, generator=generator)
        uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
        tokens, logprobs = draw_in_numpy(logits, uniform, temperature, [None] * rows)
        found, of_found = draw(logits.clone(), uniform, temperature)
        assert found.tolist() == tokens
        assert of_found.tolist() == pytest.approx(logprobs, abs=2e-5)


def test_draws_among_listed_tokens_are_those_of_a_mask():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 900, generator=generator)
    listed = [sorted(range(row, 900, 1 + 7 * (row % 9)))[: 2 + 9 * row] for row in range(50)]
    uniform = torch.rand(50, generator=generator, dtype=torch.float64)
    tokens, logprobs = draw_in_numpy(logits, uniform, 1.0, listed)
    found, of_found = draw_listed(logits, uniform, 1.0, listed)
    assert found.tolist() == tokens
    assert of_found.tolist() == pytest.approx(logprobs, abs=1e-5)


def test_frequencies_are_the_probabilities():
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).repeat(40_000, 1)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, _ = draw(logits.clone(), uniform)
    found = torch.bincount(tokens, minlength=4) / len(tokens)
    assert torch.allclose(found, logits[0].softmax(0), atol=0.01) and found[3] == 0


def test_a_weight_of_0_is_never_picked_not_even_at_the_very_end():
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.0, 0.0]] * 4)
    k, rest = pick(weights, torch.tensor([[0.0], [0.5], [0.7], [9.0]], dtype=torch.float64))
    assert k[:, 0].tolist() == [1, 3, 3, 3] and rest[1].item() == pytest.approx(0.0)
    tokens, _ = draw(torch.full((1, 700), -200.0), torch.tensor([1.0 - 2**-53]).double())
    assert tokens.item() == 699


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("options", [[None, None], [[3, 5], [1, 2]]])
def test_logits_that_are_not_finite_stop_the_run(policy, monkeypatch, broken, options):
    def logits(model, hidden):
        found = torch.zeros(len(hidden), 900)
        found[1, 2] = broken
        return found

    monkeypatch.setattr(sampler, "logits_of", logits)
    candidates = [ids and (lambda response, ids=ids: ids) for ids in options]
    streams = [np.random.default_rng(i) for i in range(2)]
    with pytest.raises(FloatingPointError, match="logits of 1 of 2 rows are not finite"):
        Sampler(policy, 2).sample([[3, 4], [5]], candidates, streams, 2)


def test_rows_with_and_without_a_list_of_tokens_go_together(policy):
    def follow(response):
        return [7, 9] if len(response) < 3 else []

    streams = [np.random.default_rng(i) for i in range(3)]
    answers = Sampler(policy, 3).sample([[3, 4], [5], [6]], [None, follow, None], streams, 4)
    assert set(answers[1][0]) <= {7, 9} and answers[1][2] == [[7, 9]] * 3
    assert answers[0][2] == [None] * len(answers[0][0])


def test_one_small_transfer_a_position_comes_back(policy, monkeypatch):
    """A token and its log-prob per row; no other way off the device is taken."""
    left = []
    for name in ("tolist", "item", "cpu", "numpy", "__int__", "__float__", "__bool__"):
        whole = getattr(torch.Tensor, name)

        def leave(tensor, *given, whole=whole, name=name, **more):
            left.append((name, tuple(tensor.shape)))
            return whole(tensor, *given, **more)

        monkeypatch.setattr(torch.Tensor, name, leave)
    streams = [np.random.default_rng(i) for i in range(4)]
    prompts = [[3 + i, 4, 5 * i] for i in range(4)]
    policy.eos_ids = set()
    Sampler(policy, 4).sample(prompts, [None] * 4, streams, 5)
    assert left == [("tolist", (2, 4))] * 5


def test_a_stream_gives_one_number_per_sampled_token(policy):
    streams = [np.random.default_rng(i) for i in range(3)]
    answers = Sampler(policy, 3).sample([[3], [4], [5]], [None] * 3, streams, 6)
    for i, (ids, _, _) in enumerate(answers):
        other = np.random.default_rng(i)
        other.random(len(ids))
        assert streams[i].random() == other.random()


@torch.inference_mode()
def test_decoding_repeats_no_keys_and_attends_as_transformers_does(tmp_path, monkeypatch):
    policy = common.Policy(make_chat_model(tmp_path))  # seven query heads share one key head
    rows = [[5 + (7 * i + 3 * j) % 600 for j in range(9 + 4 * i)] for i in range(3)]
    ours = Sampler(policy, 3)
    ours.forward(rows, [0, 1, 2])
    rows = [[*ids, 11] for ids in rows]
    expected = torch.cat([policy.model(torch.tensor([ids])).logits[:, -1] for ids in rows])

    def repeat(*given):
        raise AssertionError("keys are repeated")

    monkeypatch.setattr(sdpa_attention, "repeat_kv", repeat)
    monkeypatch.setattr(sampler, "sdpa_attention_forward", repeat)
    assert torch.allclose(ours.forward(rows, [0, 1, 2]), expected, atol=1e-5)


def test_a_first_pass_has_no_mask_and_later_ones_a_small_one(policy, monkeypatch):
    masks, forward = [], policy.model.base_model.forward

    @wraps(forward)  # the sampler looks at its parameters
    def watch(**given):
        mask = given["attention_mask"]
        masks.append(mask if mask is None else tuple(mask.shape))
        return forward(**given)

    monkeypatch.setattr(policy.model.base_model, "forward", watch)
    one = Sampler(policy, 2)
    with torch.inference_mode():
        one.forward([[3, 4, 5], [6]], [0, 1])
        one.forward([[3, 4, 5, 6], [6, 7]], [0, 1])
    assert masks == [None, (2, 1, 1, 16)]  # T is rounded up to a multiple of 16


def test_weights_are_cast_once_a_response_and_not_at_every_token(policy):
    entered = []

    class Autocast:
        def __enter__(self):
            entered.append(1)

        def __exit__(self, *error):
            pass

    policy.autocast = Autocast
    streams = [np.random.default_rng(0)]
    Sampler(policy, 1).sample([[3]], [None], streams, 5)
    assert len(entered) == 1


class Kernels(TorchDispatchMode):
    """Counts what a GPU would launch: operations that write, and no views of their input."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            tensors = [one for one in args if isinstance(one, torch.Tensor)]
            places = [one.untyped_storage().data_ptr() for one in tensors]
            new = out.untyped_storage().data_ptr() not in places
            self.n += new or func._schema.is_mutable
        return out


def test_a_token_position_launches_26_kernels_a_layer_where_norms_are_one(tmp_path):
    """With 128 rows a position waits for launches (docs/gpus.md).  Norms left alone: 40."""
    counts = []
    for layers in (2, 3):
        folder = make_chat_model(tmp_path / str(layers), num_hidden_layers=layers)
        policy = common.Policy(folder, dtype="bfloat16")
        models.fuse_norms(policy.model)  # as is done on a GPU
        one, rows = Sampler(policy, 4), [list(range(20)) for _ in range(4)]
        one.forward(rows, range(4))
        with torch.inference_mode(), Kernels() as kernels:
            one.go_on([ids + [5] for ids in rows], range(4))
        counts.append(kernels.n)
    assert counts[1] - counts[0] <= 26
