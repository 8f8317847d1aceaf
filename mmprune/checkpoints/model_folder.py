"""Pruned language models on disk, as folders that transformers loads."""

import csv
import io
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..atomic_file import write_folder
from ..plan import FOLDER_PLAN, PruningPlan
from ..version import __version__
from .huggingface import INDEX, read_tensors, save_tensors, weight_files
from .model_card import model_card
from .plain_config import PLAN_KEY, describe_shapes

ARGS = 'pruning_args.json'
TABLE = 'layer_sparsity.csv'
# What a tokenizer may consist of.
TOKENIZER = (
    *('tokenizer.json', 'tokenizer.model', 'tokenizer_config.json'),
    *('special_tokens_map.json', 'added_tokens.json', 'vocab.json'),
    *('merges.txt', 'vocab.txt', 'chat_template.jinja'),
)


def save_model_folder(
    model: nn.Module,
    plan: PruningPlan,
    folder: str | Path,
    facts: Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
) -> None:
    """Writes a pruned model as a Hugging Face folder, whole or not at all.

    Beside weights and config it holds ``pruning_args.json`` (how it was
    pruned), ``layer_sparsity.csv``, the plan, a model card, and the
    tokenizer.

    Args:
        model: A ``mmprune.HuggingFaceCausalLM``.
        plan: What was removed from it.
        folder: Where.
        facts: More to say in ``pruning_args.json`` and the card, as
            ``base_model`` and ``perplexity``.
        tokenizer: Folder or file that it comes from, if it has one.
    """

    notes = dict(facts or {})
    if plan.groups:
        reason = describe_shapes(model)
        if reason:
            notes['not_plain'] = reason
            model.config.update({PLAN_KEY: FOLDER_PLAN})

    def write(beside: Path) -> None:
        model.save_pretrained(beside)
        write_notes(beside, plan, notes)
        copy_tokenizer(tokenizer, beside)

    write_folder(folder, write)


def sparsity_rows(plan: PruningPlan) -> list[dict]:
    """Returns one row per matrix of which weights were zeroed: its zeros.

    Args:
        plan: Of a :class:`mmprune.pruners.LayerwisePruner`, which counts them
            in each block when it is done.
    """
    rows = []
    for block in plan.provenance.get('blocks', ()):
        for name, found in block['layers'].items():
            total = math.prod(found['shape'])
            rows.append(
                dict(
                    tensor=f'{block["block"]}.{name}',
                    shape='x'.join(map(str, found['shape'])),
                    zeros=found['zeros'],
                    total=total,
                    sparsity=found['zeros'] / total,
                )
            )
    return rows


def write_notes(folder: Path, plan: PruningPlan, facts: dict) -> None:
    """Writes all that is in a folder beside weights and tokenizer.

    Args:
        folder: Where.
        plan: What was removed.
        facts: As in :func:`save_model_folder`.
    """
    found = {'mmprune': __version__, **plan.provenance, **facts}
    rows = sparsity_rows(plan)
    if rows:
        zeros, total = (sum(r[k] for r in rows) for k in ('zeros', 'total'))
        found['reached_sparsity'] = zeros / total
        text = io.StringIO()
        table = csv.DictWriter(text, rows[0], lineterminator='\n')
        table.writeheader()
        table.writerows(rows)
        (folder / TABLE).write_text(text.getvalue())
    text = json.dumps(found, indent=1, default=str)
    (folder / ARGS).write_text(text + '\n')
    (folder / 'README.md').write_text(model_card(found, rows, plan))
    plan.save(folder / FOLDER_PLAN)


def copy_tokenizer(source: str | Path | None, folder: Path) -> None:
    """Copies the files of a tokenizer that are not in a folder yet."""
    if source is None:
        return
    source = Path(source)
    if source.is_file():
        name = 'tokenizer.model'
        if source.suffix == '.json':
            name = 'tokenizer.json'
        shutil.copyfile(source, folder / name)
        return
    for name in TOKENIZER:
        if (source / name).is_file() and not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)


def save_streamed_folder(
    blocks: Sequence[Path],
    source: Path,
    plan: PruningPlan,
    folder: str | Path,
    facts: Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
) -> None:
    """Writes a model folder of which never more than a block is in memory.

    Args:
        blocks: Safetensors of the pruned blocks, with the names of the
            tensors that they replace.
        source: Folder of the dense model; all that is in no block stays.
        plan: What was removed.
        folder: Where.
        facts: As in :func:`save_model_folder`.
        tokenizer: As there; by default the one of the source.
    """

    def write(beside: Path) -> None:
        places = _link_shards(blocks, source, beside)
        index = dict(metadata={}, weight_map=places)
        (beside / INDEX).write_text(json.dumps(index, indent=1))
        for name in ('config.json', 'generation_config.json'):
            if (source / name).is_file():
                shutil.copyfile(source / name, beside / name)
        write_notes(beside, plan, dict(facts or {}))
        copy_tokenizer(tokenizer or source, beside)

    write_folder(folder, write)


def _link_shards(
    blocks: Sequence[Path], source: Path, folder: Path
) -> dict[str, str]:
    """Puts blocks and the rest into a folder; returns tensor -> file."""
    pruned = {name: path for path in blocks for name in _keys(path)}
    files = weight_files(source)
    rest = [name for name in files if name not in pruned]
    parts = _parts(rest, files, max(p.stat().st_size for p in blocks))
    total = len(blocks) + len(parts)
    names = [
        f'model-{i + 1:05d}-of-{total:05d}.safetensors' for i in range(total)
    ]
    for path, name in zip(blocks, names, strict=False):
        try:
            os.link(path, folder / name)
        except OSError:  # another disk
            shutil.copyfile(path, folder / name)
    found = {
        key: names[number]
        for number, path in enumerate(blocks)
        for key in _keys(path)
    }
    for part, name in zip(parts, names[len(blocks) :], strict=True):
        save_tensors(read_tensors(files, {k: k for k in part}), folder / name)
        found |= dict.fromkeys(part, name)
    return found


def _parts(
    names: list[str], files: Mapping[str, Path], limit: int
) -> list[list[str]]:
    """The names in parts of at most ``limit`` bytes, or of one tensor."""
    parts: list[list[str]] = []
    room = 0
    for name in names:
        size = _bytes(files[name], name)
        if size > room or not parts:
            parts.append([])
            room = limit
        parts[-1].append(name)
        room -= size
    return parts


def _bytes(path: Path, name: str) -> int:
    from safetensors import safe_open

    with safe_open(path, 'pt') as file:
        part = file.get_slice(name)
        count = 1
        for size in part.get_shape():
            count *= size
        # As 'F16', 'BF16' or 'I64'.
        bits = int(re.sub(r'\D', '', part.get_dtype()) or 8)
    return count * bits // 8


def _keys(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, 'pt') as file:
        return list(file.keys())
