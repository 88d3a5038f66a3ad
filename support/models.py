"""Which models can be trained and played: refused in one line before any weights load."""

from transformers import AutoConfig, AutoTokenizer

from envs import UserError


def check_model(name, args=None):
    """UserError unless `name` is a local folder or hub model with a causal LM that the prompts are made for, and whose context holds
    --max-prompt and --max-response tokens.  Cheap: reads config and tokenizer only."""
    try:
        config, tokenizer = AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--model {name}: expected a folder in Hugging Face format or a hub name ({reason})") from None
    if not any("CausalLM" in kind for kind in config.architectures or []):
        raise UserError(f"--model {name}: expected a causal language model, found {config.architectures}")
    # without a template it has to be a stand-in: these know a few thousand tokens, those of their world; base models know ten times more
    if not tokenizer.chat_template and len(tokenizer) > 10_000:
        raise UserError(f"--model {name}: its tokenizer has no chat template; choose an Instruct model, or a stand-in of tiny/")
    if args and args.engine == "vllm" and not tokenizer.chat_template:
        raise UserError(f"--engine vllm samples freely, and {name} is a stand-in, which cannot: use --engine transformers")
    context = getattr(config, "max_position_embeddings", None)
    if args and tokenizer.chat_template and context and (longest := (args.max_prompt or 4096) + args.max_response) > context:
        room = context - args.max_response
        fix = f"--max-prompt to at most {room}" if room > 0 else "--max-response"
        raise UserError(f"--max-prompt and --max-response make {longest} tokens, {name} reads {context}: lower {fix}")


