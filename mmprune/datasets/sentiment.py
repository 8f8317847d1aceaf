"""A small language of film reviews, to have something to learn anywhere."""

import random

POSITIVE = (
    'good great charming moving clever funny warm brilliant fresh honest '
    'gripping lovely witty tender superb graceful lively vivid rich smart'
)
NEGATIVE = (
    'bad dull clumsy flat shallow noisy cold awful stale false tedious ugly '
    'silly bland dreadful stiff lifeless murky thin lazy'
)
THINGS = (
    'film movie story plot cast script acting music dialogue direction '
    'ending comedy drama thriller picture scenes characters camera pace humor'
)
STRONG = 'very really truly rather quite deeply utterly mostly'
NOT = 'not never hardly'
FILLERS = (
    'from start to finish|for two hours|in every scene|after all|to be fair|'
    'at times|as expected|on the whole|without a doubt|in its own way'
)
GLUE = (
    'the a this is was and but yet though it has i find found think feels a '
    'bit of of all its with so , .'
)


def vocabulary() -> list[str]:
    """Returns all words, in a fixed order."""
    parts = (GLUE, NOT, STRONG, POSITIVE, NEGATIVE, THINGS, FILLERS)
    return list(dict.fromkeys(' '.join(parts).replace('|', ' ').split()))


def generate(split: str, size: int) -> tuple[list[str], list[int]]:
    """Returns sentences and whether each is positive (1) or not (0).

    Args:
        split: ``train`` or ``dev``.
        size: How many, each one different.

    Raises:
        ValueError: If the split is unknown.
    """
    if split not in ('train', 'dev'):
        raise ValueError(f'the reviews have train and dev, not {split!r}')
    # What a sentence says decides its split, so that none is in both.
    wanted = dict(train=(0, 1, 2, 3), dev=(4,))[split]
    draw = random.Random(dict(train=1, dev=2)[split])
    found: dict[str, int] = {}
    while len(found) < size:
        text, label = _review(draw)
        if sum(text.encode()) % 5 in wanted:
            found.setdefault(text, label)
    return list(found), list(found.values())


def _review(draw: random.Random) -> tuple[str, int]:
    """One clause, or two of which the second counts."""
    label = draw.randrange(2)
    kind = draw.random()
    if kind < 0.4:
        text = _clause(draw, label)
    elif kind < 0.6:
        text = f'{_clause(draw, label)} and {_clause(draw, label)}'
    elif kind < 0.85:
        turn = draw.choice(('but', 'yet'))
        text = f'{_clause(draw, 1 - label)} , {turn} {_clause(draw, label)}'
    else:
        text = f'{_clause(draw, label)} , though {_clause(draw, 1 - label)}'
    if draw.random() < 0.4:
        filler = draw.choice(FILLERS.split('|'))
        text = f'{text} {filler}'
    return f'{text} .', label


def _clause(draw: random.Random, label: int) -> str:
    turned = draw.random() < 0.3
    words = POSITIVE if label != turned else NEGATIVE
    said = _word(draw, words)
    if draw.random() < 0.4:
        said = f'{_word(draw, STRONG)} {said}'
    if turned:
        said = f'{_word(draw, NOT)} {said}'
    thing = _word(draw, THINGS)
    form = draw.randrange(3)
    if form == 0:
        return f'the {thing} {draw.choice(("is", "was", "feels"))} {said}'
    if form == 1:
        return f'i find this {thing} {said}'
    return f'its {thing} is {said}'


def _word(draw: random.Random, words: str) -> str:
    return draw.choice(words.split())
