"""The page that a folder of a pruned model opens with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def model_card(facts: Mapping[str, Any], rows: list[dict], plan: Any) -> str:
    """Returns the README of a model folder, with the hub's front matter.

    Args:
        facts: What ``pruning_args.json`` holds.
        rows: One per sparse matrix.
        plan: What was removed.
    """
    base = Path(str(facts.get('base_model', 'a dense model'))).name
    parts = [
        _front_matter(facts),
        f'# {base}, pruned',
        _what(facts, rows, plan),
        '## Load it',
        _loading(facts),
    ]
    if facts.get('perplexity'):
        parts += ['## Perplexity', _perplexity(facts['perplexity'])]
    blocks = facts.get('blocks')
    if blocks:
        parts += ['## Blocks', _blocks(blocks)]
    return '\n\n'.join(parts) + '\n'


def _front_matter(facts: Mapping[str, Any]) -> str:
    lines = ['library_name: transformers', 'pipeline_tag: text-generation']
    base = str(facts.get('base_model', ''))
    # A folder of somebody's machine is no model of the hub.
    if base.count('/') == 1 and not base.startswith(('.', '/', '~')):
        lines.append(f'base_model: {base}')
    return '\n'.join(['---', *lines, 'tags:', '- pruned', '- mmprune', '---'])


def _what(facts: Mapping[str, Any], rows: list[dict], plan: Any) -> str:
    if not rows:
        kept = {
            g.name: f'{len(plan.keep[g.name])} of {g.size} {g.granularity}s'
            for g in plan.groups
        }
        lines = [f'- `{name}`: {text}' for name, text in kept.items()]
        return '\n'.join(['Units that stay:', '', *lines])
    kinds = sorted(set(plan.sparse.values()))
    return (
        f'{facts["reached_sparsity"]:.2%} of the weights of '
        f'{len(rows)} matrices are zero ({", ".join(kinds)}), by '
        f'{facts.get("method", facts.get("importance"))}. Embeddings and '
        'head are dense. `layer_sparsity.csv` has every matrix, '
        '`pruning_args.json` all settings. Zeros alone make nothing faster: '
        'that takes kernels or formats that skip them.'
    )


def _loading(facts: Mapping[str, Any]) -> str:
    reason = facts.get('not_plain')
    if reason:
        return (
            f'It has no plain config: {reason}. With mmprune:\n\n'
            '```python\nfrom mmprune.models.huggingface_causal_lm import '
            'build_huggingface_causal_lm\n\n'
            "model = build_huggingface_causal_lm(pretrained='THIS_FOLDER')\n"
            '```'
        )
    return (
        '```python\nfrom transformers import AutoModelForCausalLM\n\n'
        "model = AutoModelForCausalLM.from_pretrained('THIS_FOLDER')\n```"
    )


def _perplexity(found: Mapping[str, Any]) -> str:
    models = found['models']
    lines = ['| model | perplexity |', '|---|---|']
    lines += [f'| {name} | {value:.4f} |' for name, value in models.items()]
    lines += [
        '',
        f'{found["windows"]} windows of {found["context"]} tokens that do '
        f'not overlap, from {found["data"]}, '
        f'{"each behind a BOS token" if found["bos"] else "without BOS"}.',
    ]
    return '\n'.join(lines)


def _blocks(blocks: list[dict]) -> str:
    lines = ['| block | sparsity | error of its output |', '|---|---|---|']
    for row in blocks:
        error = row.get('error')
        shown = '-' if error is None else f'{error:.4f}'
        lines.append(f'| {row["block"]} | {row["sparsity"]:.2%} | {shown} |')
    return '\n'.join(lines)
