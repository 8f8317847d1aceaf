"""Measures the perplexity of a language model, also with LoRA adapters.

    python tools/guides/evaluate_ppl.py --model out/pruned \
        --lora_weights out/lora --data wikitext.test.txt

Windows do not overlap; loss is the mean over all predictions. The result
depends on --seqlen, which is printed beside it.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmprune.run import options  # noqa: E402
from mmprune.run.cli import fail_in_one_sentence  # noqa: E402
from mmprune.run.flags import check_values, option, read  # noqa: E402

WIKITEXT = 'hub:wikitext:wikitext-2-raw-v1:test'


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is measured, and on what."""

    model: str | None = option(None, 'folder or hub name of the model')
    lora: str | None = option(
        None, 'folder of adapters to put on it', flag='--lora_weights'
    )
    dense: str | None = option(
        None,
        'folder of the dense model, measured first',
        shown='the one that the pruned model came from, if it is there',
    )
    data: str = option(
        'wikitext2', 'text file or .npy with tokens', metavar='FILE'
    )
    tokenizer: str | None = option(
        None, 'folder or file of the tokenizer', shown="the model's"
    )
    seqlen: int | None = option(
        None,
        'tokens of a window',
        type=int,
        shown="the model's longest, 2048 at most",
        least=2,
    )
    windows: int | None = option(
        None, 'how many', type=int, shown='all', least=1
    )
    bos: bool = option(False, 'begin each window with the BOS token')
    batch_size: int = option(
        1, 'windows at a time', flag='--batch_size', least=1
    )
    device: str = option('cpu', 'cpu or cuda[:N]')
    out: str | None = option(None, 'JSON file for the numbers')
    cache_dir: str | None = option(
        None, 'where models of the hub are cached', flag='--cache_dir'
    )
    trust_checkpoint: bool = options.trust_checkpoint()

    def __post_init__(self) -> None:
        check_values(self)
        if self.model is None:
            raise ValueError('--model is missing; name a folder')


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the command; returns the perplexities by name."""
    (asked,) = read('Measure perplexity.', (EvaluationOptions,), argv)
    if asked.cache_dir:
        os.environ['HF_HUB_CACHE'] = asked.cache_dir
    # PyTorch, which --help does without.
    from mmprune.atomic_file import write_whole
    from mmprune.run.language_model import perplexities
    from mmprune.run.launch import check_device

    check_device(asked.device)
    found = perplexities(
        models(asked),
        windows(asked),
        adapters=asked.lora,
        batch_size=asked.batch_size,
        device=asked.device,
        trust=asked.trust_checkpoint,
    )
    if asked.out:
        write_whole(asked.out, json.dumps(found, indent=1).encode())
    return found


def models(asked: EvaluationOptions) -> dict[str, str]:
    """Returns what is measured, the dense model first."""
    dense = asked.dense
    notes = Path(asked.model) / 'pruning_args.json'
    if dense is None and notes.is_file():
        base = json.loads(notes.read_text()).get('base_model', '')
        dense = base if (Path(base) / 'config.json').is_file() else None
        if dense is None:
            print(
                f'the dense model {base} is not here: give --dense, to see '
                'that data and protocol are right'
            )
    name = 'model' if dense is None and not notes.is_file() else 'pruned'
    return {**({'dense': dense} if dense else {}), name: asked.model}


def windows(asked: EvaluationOptions) -> dict[str, Any]:
    """Returns the config of the windows."""
    from mmprune.families.causal_lm import context_length

    return dict(
        type='mmprune.TokenWindows',
        source=WIKITEXT if asked.data == 'wikitext2' else asked.data,
        tokenizer=asked.tokenizer or asked.model,
        seqlen=asked.seqlen or context_length(dict(pretrained=asked.model)),
        num_windows=asked.windows,
        bos=asked.bos,
    )


if __name__ == '__main__':
    main()
