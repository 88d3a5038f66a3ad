"""Constrained decoding: at every position only tokens that continue something sayable are possible.

A stand-in answers with one of the admissible actions, or with a free text made of given words (a
search query).  With the actions "go to mug 1" and "go to cup 1" as token tuples (5, 7, 9, 2) and
(5, 7, 8, 2), what may follow is

    response so far   ()     (5,)   (5, 7)    (5, 7, 9)   (5, 7, 9, 2)
    possible next     5      7      8 or 9    2           nothing: it is complete

Sampler, trainer and policy gradient use the same masked distribution, so the gradient is exactly
that of the constrained policy.
"""

from envs import FreeText


def next_tokens(responses, encode, cache, unknown):
    """A function from the response ids so far to the sorted ids that may follow ([]: the response
    is complete).

    responses: strings and FreeTexts, as env.responses gives them.  cache: response -> token tuples,
    kept by the policy, since the same strings come again and again.  unknown: the tokenizer's id of
    words that it lacks."""
    for text in responses:
        if text not in cache:
            parts = (text.start, *text.words) if isinstance(text, FreeText) else (text + "\n",)
            cache[text] = [tuple(encode(part)) for part in parts]
    free = [text for text in responses if isinstance(text, FreeText)]
    whole = [cache[text][0] for text in responses if not isinstance(text, FreeText)]
    sayable = [ids for ids in whole if unknown not in ids]
    # an action with a word that the vocabulary lacks is offered only where there is no other
    whole = sayable or whole
    end = encode("\n")[-1] if free else None

    begun = {(): whole}  # response so far -> the answers that begin with it

    def follow(prefix):
        n, prefix = len(prefix), tuple(prefix)
        if prefix not in begun:
            begun[prefix] = [ids for ids in begun.get(prefix[:-1], whole) if ids[:n] == prefix]
        possible = {ids[n] for ids in begun[prefix] if n < len(ids)}
        for text in free:
            start, *words = cache[text]
            if n < len(start):
                if start[:n] == prefix:
                    possible.add(start[n])
            elif start == prefix[: len(start)]:
                possible |= next_of_words(prefix[len(start) :], words, end, text.most)
        return sorted(possible)

    return follow


def next_of_words(ids, words, end, most):
    """The tokens that may follow ids, which are any of the words (token tuples) one after the other
    and perhaps the begin of one more.

    rests: for every way to read ids as words, the tokens that its last word still lacks; () stands
    between two words."""
    rests = {()}
    for token in ids:
        # between two words any word may begin
        open_words = rests | set(words) if () in rests else rests
        rests = {rest[1:] for rest in open_words if rest and rest[0] == token}
    between = () in rests
    possible = {rest[0] for rest in rests if rest}  # a word goes on
    if between and (not ids or len(ids) < most):
        possible |= {word[0] for word in words}  # or the next one begins
    if between and ids:
        possible.add(end)  # or the line ends
    return possible
