"""Prompts of chat models, cut to fit."""

from envs import Step, UserError


def fit_prompt(encode, env, task, history, step, skills, limit):
    """(ids, truncated) of a chat prompt of at most `limit` tokens.  encode: from a prompt's text to
    its ids.

    What is too long loses its history first, then the middle of the observation (the task may stand
    at its end), and never the task or the actions.  UserError where it does not fit even so."""

    def tokens(step, **less):
        return encode(env.prompt(task, history, step, skills, "chat", **less))

    ids = tokens(step)
    if len(ids) <= limit:
        return ids, False
    for pairs in (1, 0):  # of the history that are shown
        ids = tokens(step, shown=pairs)
        if len(ids) <= limit:
            return ids, True
    keep = len(step.observation) // 2  # characters at either end
    while keep > len(task) + 20:
        keep = keep * 3 // 4
        short = f"{step.observation[:keep]} ... {step.observation[-keep:]}"
        ids = tokens(Step(short, step.admissible), shown=0)
        if len(ids) <= limit:
            return ids, True
    raise UserError(
        f"task and actions of a prompt take {len(ids)} tokens: raise --max-prompt (now {limit})"
    )
