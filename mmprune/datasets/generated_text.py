"""Text that is made on the spot, where a run has none."""

import random

_PEOPLE = (
    'the teacher', 'a farmer', 'my sister', 'the engineer', 'an old sailor',
    'the mayor', 'a young doctor', 'the pilot', 'our neighbour', 'the judge',
    'a painter', 'the little girl', 'his brother', 'the baker', 'a scientist',
)  # fmt: skip
_VERBS = (
    'found', 'repaired', 'sold', 'painted', 'lost', 'studied', 'carried',
    'described', 'built', 'measured', 'opened', 'watched', 'remembered',
    'bought', 'hid', 'questioned', 'designed',
)  # fmt: skip
_KINDS = (
    'small', 'heavy', 'broken', 'ancient', 'bright', 'quiet', 'wooden',
    'strange', 'expensive', 'green', 'distant', 'famous', 'empty', 'cold',
)  # fmt: skip
_THINGS = (
    'bridge', 'letter', 'engine', 'garden', 'book', 'river', 'machine',
    'house', 'clock', 'map', 'ship', 'coin', 'tower', 'song', 'answer',
    'theory', 'market', 'window', 'horse', 'lamp', 'field', 'computer',
)  # fmt: skip
_PLACES = (
    'near the harbour', 'in the old town', 'behind the school',
    'on the mountain', 'at the station', 'in a laboratory',
    'under the stairs', 'across the border', 'by the sea', 'in the capital',
)  # fmt: skip
_TIMES = (
    'Yesterday', 'Last winter', 'In 1968', 'Every morning', 'After the war',
    'Three weeks later', 'At noon', 'During the storm', 'Once',
    'Before the meeting',
)  # fmt: skip
_ENDS = (
    'because nobody else wanted it', 'although it was raining',
    'and told no one about it', 'while the others slept',
    'so that the children could see it', 'which surprised everybody',
    'for about {n} dollars', 'more than {n} times',
    'until the {thing} was ready', 'but the {thing} was still missing',
)  # fmt: skip
_FRAMES = (
    '{time}, {who} {did} a {kind} {thing} {place}.',
    '{Who} {did} the {thing} {place}, {end}.',
    '"Where is the {kind} {thing}?" asked {who}. "It is {place}," I said.',
    'The {thing} was {kind}, and the {other} was not, {end}.',
    '{time} {who} and {whom} {did} {n} {thing}s {end}.',
    'If {who} {did} the {thing}, then {whom} must have seen it {place}.',
)


def generated_text(letters: int, seed: int = 0) -> str:
    """Returns English sentences, at least ``letters`` long.

    They say little and use few words, but have the grammar, capitals,
    numbers and punctuation of text. Statistics that are taken on real text of
    the kind that a model is for are better.

    Args:
        letters: The least length.
        seed: Another seed, other sentences.
    """
    draw = random.Random(seed)
    parts, length = [], 0
    while length < letters:
        parts.append(_paragraph(draw))
        length += len(parts[-1]) + 2
    return '\n\n'.join(parts)


def _paragraph(draw: random.Random) -> str:
    return ' '.join(_sentence(draw) for _ in range(draw.randint(3, 8)))


def _sentence(draw: random.Random) -> str:
    words = dict(
        who=draw.choice(_PEOPLE),
        whom=draw.choice(_PEOPLE),
        did=draw.choice(_VERBS),
        kind=draw.choice(_KINDS),
        thing=draw.choice(_THINGS),
        other=draw.choice(_THINGS),
        place=draw.choice(_PLACES),
        time=draw.choice(_TIMES),
        n=draw.randint(2, 900),
    )
    words['Who'] = words['who'][0].upper() + words['who'][1:]
    words['end'] = draw.choice(_ENDS).format(**words)
    return draw.choice(_FRAMES).format(**words)
