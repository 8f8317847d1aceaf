"""The report about the pruning of a language model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic_file import save_json
from ..datasets.text_tokenizer import load_tokenizer
from ..plan import PruningPlan
from ..version import __version__
from . import report_html
from .report import markdown


def write(
    folder: Path,
    facts: Mapping[str, Any],
    plan: PruningPlan,
    rows: list[dict],
    samples: Mapping[str, list],
    sizes: Mapping[str, int],
    tokenizer: str | Path | None,
) -> Path:
    """Writes report.json, report.md and report.html; returns the page.

    Args:
        folder: Where.
        facts: What was measured.
        plan: What was removed.
        rows: One per sparse matrix.
        samples: Model -> prompts with replies, as tokens.
        sizes: ``params`` of the model.
        tokenizer: Where it is, to show samples as text.
    """
    zeros = sum(row['zeros'] for row in rows)
    params = sizes['params']
    kind = plan.provenance.get('pattern') or 'unstructured'
    weights = [
        dict(
            tensor=row['tensor'],
            dense_shape=[int(n) for n in row['shape'].split('x')],
            shape=[int(n) for n in row['shape'].split('x')],
            sparsity=row['sparsity'],
        )
        for row in rows
    ]
    report = dict(
        title=f'{Path(str(facts["base_model"])).name}: {facts["method"]}, '
        f'{kind}, {facts["reached_sparsity"]:.1%} of the weights in blocks',
        models=dict(
            dense=dict(params=params, nonzero=params),
            pruned=dict(params=params, nonzero=params - zeros),
        ),
        notes=_notes(facts),
        versions=dict(mmprune=__version__),
        variants=dict(pruned=dict(removes='weights', weights=weights)),
        weights=weights,
        directions=dict(perplexity='lower'),
        main_metric='perplexity',
        sections=_sections(facts, plan, samples, tokenizer),
        **{k: facts[k] for k in ('perplexity', 'stages') if k in facts},
    )
    if 'perplexity' in facts:
        found = facts['perplexity']['models']
        report['metrics'] = {
            name: dict(perplexity=value) for name, value in found.items()
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_json(report, folder / 'report.json')
    (folder / 'report.md').write_text(markdown(report))
    return report_html.write(folder)


def _notes(facts: Mapping[str, Any]) -> str:
    found = facts.get('perplexity')
    if not found:
        return 'Perplexity was not measured.'
    return (
        f'Perplexity: {found["windows"]} windows of {found["context"]} '
        f'tokens that do not overlap, {"with" if found["bos"] else "without"} '
        f'a BOS token, of {found["data"]}. It depends on the context: only '
        'numbers of one length compare.'
    )


def _sections(
    facts: Mapping[str, Any],
    plan: PruningPlan,
    samples: Mapping[str, list],
    tokenizer: str | Path | None,
) -> list[dict]:
    blocks = plan.provenance.get('blocks', [])
    numbers = list(range(len(blocks)))
    zeros = [block['sparsity'] for block in blocks]
    sections = [
        dict(
            title='Sparsity of blocks',
            series=[dict(name='zeros', x=numbers, y=zeros)],
            x_label='block',
            y_label='fraction of zeros',
        )
    ]
    errors = [block['error'] for block in blocks]
    if None not in errors:
        sections.append(
            dict(
                title='Error of blocks',
                text='Of the output of each block on the first calibration '
                'batch, relative to its own output before it was pruned.',
                series=[dict(name='error', x=numbers, y=errors)],
                x_label='block',
                y_label='relative error',
            )
        )
    sections.append(_stages(facts.get('stages', [])))
    if samples:
        sections.append(_samples(samples, tokenizer))
    return sections


def _stages(stages: list[dict]) -> dict:
    columns = ['stage', 'seconds', 'host_peak_gb', 'device_peak_gb']
    columns = [c for c in columns if any(c in row for row in stages)]
    rows = [
        [
            row['stage'] if c == 'stage' else f'{row.get(c, 0):.2f}'
            for c in columns
        ]
        for row in stages
    ]
    return dict(
        title='Time and memory', table=dict(columns=columns, rows=rows)
    )


def _samples(samples: Mapping[str, list], tokenizer: Any) -> dict:
    """Beginnings of texts, and how each model goes on."""
    text = ' '.join
    try:
        decode = load_tokenizer(tokenizer or '.').decode
    except ValueError:  # a model of tokens, without texts

        def decode(tokens: list[int]) -> str:
            return text(map(str, tokens))

    names = list(samples)
    rows = [
        [decode(each[0]['prompt']), *(decode(one['reply']) for one in each)]
        for each in zip(*samples.values(), strict=True)
    ]
    return dict(
        title='Samples',
        text='Without chance: always the likeliest token.',
        table=dict(columns=['beginning', *names], rows=rows),
    )
