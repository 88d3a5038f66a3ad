"""Stand-in policies: build.py trains them; lessons and scripted players say what they are
taught."""


def acting(prompts, task, skills, history, style, write=lambda action, step: action):
    """A whole episode as one prompt, in pieces (text, whether it is to be learned): every response
    is.

    prompts: the environment's module of words; history: list of (Step, action); write: the response
    that stands for an action."""
    pieces = []
    for t, (step, action) in enumerate(history):
        text = (
            prompts.continuation(history[:t], step, style)
            if t
            else prompts.prompt(task, [], step, skills, style)
        )
        pieces += [(text, False), (write(action, step) + "\n", True)]
    return pieces
