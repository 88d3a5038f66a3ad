"""Which models can be played and trained here: told before their weights are read, measured when
they are loaded.

    check_model       config, tokenizer and chat template: what cannot work is refused before any
                      weights are read
    load_model        the weights, all of them, without code of the model's own
    self_check        sampler, trainer and the model's own forward pass give the same log-probs
    check_saved       a folder whose weights were merged or cast gives the policy's log-probs

and what the sampler and the policy have to know of a model besides its layers: `attention_masks`,
`logits_of`, `context_of`, `render`, `encoder`, `opened_by`, `dropped_ids` and `without_control`.
docs/models.md has the list of models, each of which tests/test_models.py plays.
"""

import re
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from envs import UserError
from support import parallel

TAGS = ("<think>", "</think>", "<action>", "</action>")  # what an answer is made of (envs)
LAYERS = {"full_attention", "sliding_attention"}  # the kinds that `attention_masks` knows


# ---- before weights are read ---------------------------------------------------------------------


def check_model(name, args=None):
    """UserError unless `name` is a local folder or hub model with a causal LM that the prompts are
    made for, and whose context holds --max-prompt and --max-response tokens.

    Cheap: reads config and tokenizer only.  A model's own code is never run."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # damaged files fail in many ways
        not_gone(name)
        raise UserError(
            f"--model {name}: expected a folder in Hugging Face format or a hub name "
            f"({reason_of(error)})"
        ) from None
    kinds = config.architectures or []
    if not any("CausalLM" in str(kind) or "LMHeadModel" in str(kind) for kind in kinds):
        raise UserError(
            f"--model {name}: expected a causal language model, found {config.architectures}"
        )
    try:
        lack, context = lacking(config), context_of(config)
    except (TypeError, AttributeError, ValueError) as error:  # numbers that are none, and the like
        raise UserError(
            f"--model {name}: its config.json is damaged ({reason_of(error)}); get the model again"
        ) from None
    if lack:
        raise UserError(f"--model {name}: {lack}; docs/models.md lists models that work")
    template = tokenizer.chat_template
    # Without a template it has to be a stand-in: these know a few thousand tokens, those of their
    # world; base models know ten times more.
    if not template and len(tokenizer) > 10_000:
        raise UserError(
            f"--model {name}: its tokenizer has no chat template; choose an Instruct model, "
            "or a stand-in of tiny/"
        )
    if template and (lack := template_lacks(tokenizer)):
        raise UserError(f"--model {name}: {lack}; choose another Instruct model (docs/models.md)")
    if not args:
        return
    if args.engine == "vllm" and not template:
        raise UserError(
            f"--engine vllm samples freely, and {name} is a stand-in, which cannot: "
            "use --engine transformers"
        )
    if context < 64:  # not even a first prompt and an action
        raise UserError(f"--model {name} reads {context} tokens: choose a model that reads more")
    longest = (args.max_prompt or 4096) + args.max_response
    if template and longest > context:
        room = context - args.max_response
        fix = f"--max-prompt to at most {room}" if room > 0 else "--max-response"
        raise UserError(
            f"--max-prompt and --max-response make {longest} tokens, {name} reads {context}: "
            f"lower {fix}"
        )


def not_gone(name):
    """UserError where a checkpoint is not there any more: its phase goes on and keeps two."""
    if Path(name).parent.name == "checkpoints" and not [*Path(name).glob("*.safetensors")]:
        fix = "wait for that to end, and give this command again with --overwrite"
        raise UserError(f"{name} is gone, its phase goes on: {fix}")


def lacking(config):
    """Why a model cannot be sampled with a KV cache of unequal rows, by its config; None where it
    can."""
    if not hasattr(transformers, config.architectures[0]):
        return f"transformers {transformers.__version__} has no {config.architectures[0]}"
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - LAYERS)
    if kinds or getattr(getattr(transformers, config.architectures[0]), "_is_stateful", False):
        found = f"layers of kind {', '.join(kinds)}" if kinds else "recurrent layers"
        return f"expected layers of full or sliding attention, found {found} ({config.model_type})"
    return None


def context_of(config):
    """Tokens of prompt and response that a model reads.

    Where positions are encoded otherwise beyond a length (longrope), cached keys would be of the
    one kind and new ones of the other: such a model reads no more than that length."""
    rope = getattr(config, "rope_parameters", None) or {}
    original = getattr(config, "original_max_position_embeddings", None)
    original = rope.get("original_max_position_embeddings") or original
    longest = int(getattr(config, "max_position_embeddings", None) or 10**9)
    return min(longest, original) if original and rope.get("rope_type") == "longrope" else longest


def reason_of(error):
    """An exception as a part of one line."""
    text = " ".join(str(error).split())
    if "custom code" in text or "trust_remote_code" in text:
        return "it needs code of its own, which is never run"
    first = str(error).strip().split("\n")[0]
    return (
        f"{type(error).__name__}: {first[:200]}"
        if not isinstance(error, (OSError, ValueError))
        else first[:200]
    )


# ---- chat templates ------------------------------------------------------------------------------


# Today's date, which some templates show (Llama 3, SmolLM3), is always this one: a run that is
# continued tomorrow, or the plain twin of a prompt, must not read another prompt.
TODAY = "{%- macro strftime_now(format) -%}01 Jan 2026{%- endmacro -%}"


def render(tokenizer, text):
    """A prompt as one user turn in the model's own template, as text.  Thinking modes (Qwen3,
    SmolLM3) are off, since the prompt asks for its own, short <think> block."""
    turn, template = [{"role": "user", "content": text}], tokenizer.get_chat_template()
    more = {"enable_thinking": False} if "enable_thinking" in template else {}
    template = TODAY + template if "strftime_now" in template else template
    return tokenizer.apply_chat_template(
        turn, chat_template=template, add_generation_prompt=True, tokenize=False, **more
    )


def template_lacks(tokenizer):
    """Why a chat template is of no use here; None where it is."""
    try:
        shown = render(tokenizer, "a question") != render(tokenizer, "another one")
    except Exception as error:  # whatever a template raises
        return f"its chat template fails on a single user turn ({reason_of(error)})"
    return None if shown else "its chat template does not show the user's turn"


def encoder(tokenizer):
    """A function from text to token ids, by the tokenizer's core where it has one: with short texts
    most of the time goes into what is wrapped around that."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    core.no_truncation()  # as the wrapper does
    core.no_padding()
    return lambda text: core.encode(text, add_special_tokens=False).ids


def opened_by(tokenizer):
    """What a template writes of the answer itself: "<think>..." where it opens that block (models
    that always think: Qwen3-Thinking, DeepSeek-R1), else "".  `Policy.decode` puts it before
    responses."""
    if not tokenizer.chat_template:
        return ""
    after = render(tokenizer, "a question").rpartition("a question")[2]
    begin = after.rfind("<think>")
    return after[begin:] if begin > after.rfind("</think>") else ""


def dropped_ids(tokenizer):
    """Ids of special tokens, which are no part of a chat model's text; the answer's tags always
    are."""
    added = tokenizer.added_tokens_decoder
    special = {id for id, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    return special - {id for id, token in added.items() if token.content.strip() in TAGS}


def without_control(tokenizer):
    """A function that leaves no control token in a prompt's text: what the tokenizer would read as
    one, such as <|im_end|>, gets a space after its first character.

    Control tokens are all special ones, and added ones in brackets but the answer's tags.  Text
    that people, models or files have written must not end a turn; only the template may."""
    added = [token for token in tokenizer.added_tokens_decoder.values()]
    names = {token.content for token in added if token.special or token.content[:1] in "<["}
    names |= set(tokenizer.all_special_tokens)
    names = {name for name in names if len(name.strip()) > 1 and name.strip() not in TAGS}
    if not names:
        return lambda text: text
    control = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))

    def clean(text):
        while control.search(text):  # again, as what is left may be another one
            text = control.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        return text

    return clean


# ---- weights -------------------------------------------------------------------------------------


def load_model(name, dtype, device="cpu"):
    """The causal LM of a folder or hub name, in eval mode.  dtype: "float32", "bfloat16" or "auto".

    UserError where its files are damaged, or lack weights (transformers would invent them)."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        not_gone(name)
        raise UserError(
            f"{name}: cannot load its weights ({reason_of(error)}); get the model again, "
            "or use an older checkpoint"
        ) from None
    lost = sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
    if lost:
        raise UserError(
            f"{name}: its files lack weights ({', '.join(lost[:3])}{', ...' * (len(lost) > 3)}); "
            "get the model again"
        )
    if extra := sorted(info["unexpected_keys"]):
        some = ", ".join(extra[:3]) + ", ..." * (len(extra) > 3)
        print(f"warning: {name}: weights that its config does not know: {some}", file=sys.stderr)
    model = model.to(device).eval()
    if torch.cuda.is_available():
        fuse_norms(model)
    return model


def fuse_norms(model):
    """RMSNorm in one kernel on a GPU: left alone it is seven, which read and write the residual
    stream in float32 several times.  Only norms that compute just that, by trial."""
    for norm in model.modules():
        if hasattr(norm, "variance_epsilon") and hasattr(norm, "weight"):
            # a mean that is not 0: LayerNorm without bias (Cohere) subtracts it
            x = (1 + torch.arange(3.0 * len(norm.weight)).sin()).view(3, -1).to(norm.weight)
            with torch.no_grad():
                own, fused = norm(x).float(), fused_norm(norm, x).float()
                if torch.allclose(own, fused, atol=0.02, rtol=0.02):
                    norm.forward = partial(fused_norm, norm)


def fused_norm(norm, hidden):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in hidden's dtype."""
    with torch.autocast(hidden.device.type, enabled=False):  # it would make everything float32
        weight = norm.weight.to(hidden.dtype)
        return F.rms_norm(hidden, weight.shape, weight, norm.variance_epsilon)


# ---- what is not in the layers -------------------------------------------------------------------


def logits_of(model, hidden):
    """(..., V) logits of last hidden states (..., d), as the model's own forward makes them, in
    float32: output head, then a scale (Cohere, Granite) and a soft cap (Gemma 2)."""
    logits, config = model.get_output_embeddings()(hidden), model.config
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()  # bfloat16 would round log-probs
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if scale := getattr(config, "logits_scaling", None):
        logits = logits / scale
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits


def attention_masks(model, positions, length, dtype):
    """What a forward pass on new tokens at `positions` (n, w) gets as attention_mask, with `length`
    cached keys: (n, 1, w, length), or one such mask per kind of layer.

    A token sees the keys up to its own; in a layer with a sliding window W only the last W of them.
    Masks are added to the scores, so they are 0 or very negative: eager attention takes no
    others."""
    config = model.config
    keys, own = torch.arange(length, device=positions.device), positions[:, None, :, None]
    hidden = keys > own  # later than the token itself
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    far = hidden | (keys <= own - window) if window else hidden

    def added(hidden):
        scores = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return scores.masked_fill_(hidden, torch.finfo(dtype).min)

    if "sliding_attention" in kinds:
        return {"full_attention": added(hidden), "sliding_attention": added(far)}
    return added(hidden if kinds else far)  # without kinds a window is every layer's (Mistral)


# ---- is what we compute the model? ---------------------------------------------------------------

# Mean differences of log-probs that rounding makes: measured 1e-5 in float32, up to 0.06 between
# two ways to compute in bfloat16, up to 0.2 where weights are cast to it (tiny random models of all
# kinds, experts included)
EXACT, ROUGH, CAST = 1e-3, 0.2, 0.5
WINDOW = (
    64  # a longer sliding window is narrowed to that while the probe runs, so that 96 tokens do
)


@contextmanager
def narrowed(model):
    """A model whose sliding window is short enough for the probe."""
    window = getattr(model.config, "sliding_window", None)
    if window and window > WINDOW:
        model.config.sliding_window = WINDOW
    try:
        yield
    finally:
        if window and window > WINDOW:
            model.config.sliding_window = window


def probe(model):
    """Token ids of two rows of unequal length, (2, T): the first one longer than the window."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return [
        torch.randint(vocabulary, (n,), generator=generator).tolist() for n in (WINDOW + 32, 29)
    ]


def own_logprobs(model, ids, device):
    """(T, V) log-probs after each token by the model's own forward pass."""
    return (
        model(input_ids=torch.tensor([ids], device=device), use_cache=False)
        .logits[0]
        .float()
        .log_softmax(-1)
    )


def scored(policy, rows):
    """Per row the log-probs of its tokens from the second on, by the trainer."""
    ends = [len(row) for row in rows]
    rows = [
        SimpleNamespace(ids=row, positions=range(1, n), allowed=[None] * (n - 1))
        for row, n in zip(rows, ends)
    ]
    return policy.logprobs(rows)[0].detach().float().split([n - 1 for n in ends])


@torch.no_grad()
def self_check(policy, sampler=None):
    """Mean differences of sampler's and trainer's log-probs to those of the model's own forward
    pass, on the probe; UserError unless they are rounding.

    sampler: a fresh support.sampler.Sampler of two rows; None where another engine samples.

    A model that only seems to be supported would be trained as another policy than the one that was
    sampled: the loss looks well, and nothing is learnt, or what is learnt is not what is saved."""
    model, gaps = policy.sampling, {}
    rows = probe(model)
    try:
        with narrowed(policy.model), narrowed(model):
            with policy.autocast():
                own = [own_logprobs(model, row, policy.device) for row in rows]
            for row, logp, trained in zip(rows, own, scored(policy, rows)):
                targets = torch.tensor(row[1:], device=policy.device)[:, None]
                gap = (logp[:-1].gather(1, targets)[:, 0] - trained).abs().mean().item()
                gaps["trainer"] = max(gap, gaps.get("trainer", 0.0))
            for left in (4, 3, 2, 1, 0) if sampler else ():  # the last tokens come one at a time
                parts = [row[: len(row) - left] for row in rows]
                with policy.autocast():
                    found = sampler.forward(parts, [0, 1]).float().log_softmax(-1)
                for part, logp, one in zip(parts, own, found):
                    gap = (logp[len(part) - 1] - one).abs().mean().item()
                    gaps["sampler"] = max(gap, gaps.get("sampler", 0.0))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever an unknown kind of model does with our masks and cache
        raise UserError(
            f"{policy.name}: models of kind {model.config.model_type} cannot be played here "
            f"({reason_of(error)}); docs/models.md lists models that work"
        ) from None
    if not all(logp.isfinite().all() for logp in own):
        raise UserError(
            f"{policy.name}: its log-probs are not finite: the weights are damaged, or too large "
            f"for --dtype {str(model.dtype).removeprefix('torch.')}"
        )
    for who, gap in gaps.items():
        if not gap < (EXACT if exact(policy) else ROUGH):
            raise UserError(
                f"{policy.name}: log-probs of our {who} and of the model's own forward differ by "
                f"{gap:.2g} (models of kind {model.config.model_type}); docs/models.md lists "
                "models that work"
            )
    return gaps


def exact(policy):
    """Whether a policy computes in float32 throughout."""
    with policy.autocast():
        rough = torch.is_autocast_enabled(torch.device(policy.device).type)
    return not rough and policy.sampling.dtype == torch.float32


@torch.no_grad()
def check_saved(policy, folder):
    """UserError unless the model in a folder gives the policy's log-probs.  Every process takes
    part.

    For weights that were merged or cast on the way: what was forgotten there would be found by the
    next phase only, as a policy that has lost what it had learnt."""
    rows = probe(policy.model)
    ours = [logp.cpu() for logp in scored(policy, rows)]

    def compare():
        model = load_model(folder, "auto")
        for row, logp in zip(rows, ours):
            theirs = own_logprobs(model, row, "cpu")[:-1].gather(1, torch.tensor(row[1:])[:, None])[
                :, 0
            ]
            gap = (theirs - logp).abs().mean().item()
            if not gap < (EXACT if exact(policy) and model.dtype == torch.float32 else CAST):
                raise UserError(
                    f"{folder}: log-probs of the saved model and of the trained one differ by "
                    f"{gap:.2g}; the run stops with the checkpoint before"
                )

    parallel.first(compare)
