"""Free text from a policy: used to write skills."""

from envs import UserError
from support import large, parallel
from support.files import rng
from support.sampler import Sampler


def generate(policy, prompts, keys, temperature, max_new, batch=64):
    """Free text after each prompt (a string).  keys name a random stream each.  Returns strings."""
    large.ready_to_sample(policy)
    asked = [(policy.encode_prompt(text), key) for text, key in zip(prompts, keys)]
    longest = max((len(ids) for ids, _ in asked), default=0)
    if longest + max_new > policy.context:
        found = f"a prompt of {longest} tokens asks for {max_new} more"
        raise UserError(f"{found}, {policy.name} reads {policy.context}: lower --max-steps")

    def write(asked):
        if policy.engine:
            return policy.engine.write(policy, asked, temperature, max_new)
        written = []
        for i in range(0, len(asked), batch):
            ids, names = zip(*asked[i : i + batch])
            sampler, free = Sampler(policy, len(ids), temperature), [None] * len(ids)
            written += sampler.sample(list(ids), free, [rng(*name) for name in names], max_new)
        return [response_ids for response_ids, _, _ in written]

    return [policy.decode(ids) for ids in parallel.share(write, asked, keys)]
