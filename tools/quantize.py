"""Gives a trained model weights of four bits, packed, and reports about it.

    python tools/quantize.py CONFIG CHECKPOINT --output-dir work_dirs/4bit

Any family; the checkpoint may be dense, pruned, or of a training with rounded
weights (docs/quantize.md).
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmprune.run import options  # noqa: E402
from mmprune.run.cli import fail_in_one_sentence, load_config  # noqa: E402
from mmprune.run.flags import argument, check_values, option, read  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """What is quantized, and how."""

    config: str = argument('config of the model, dense or pruned')
    checkpoint: str = argument('its weights, dense or pruned')
    output_dir: str = option('./quantized_models', 'where results go')
    force: bool = option(False, 'overwrite what is there')
    method: str = option(
        'rtn',
        'round to the nearest, or gptq, which looks at training data',
        choices=('rtn', 'gptq'),
    )
    group_size: int | None = option(
        None,
        'weights that share a scale',
        type=int,
        least=2,
        shown="32, or the training's",
    )
    activations: str | None = option(
        None,
        'int8 rounds them too, with a range for each token',
        choices=('float', 'int8'),
        shown="float, or the training's",
    )
    keep: tuple[str, ...] = option(
        (),
        'layers that stay in float; may be repeated',
        action='append',
        metavar='REGEX',
    )
    latency_runs: int = option(5, 'timed runs per model, 0 for none', least=0)
    eval: bool = option(False, 'evaluate both models')
    ann_file: str | None = options.annotations()
    trust_checkpoint: bool = options.trust_checkpoint()
    cfg_options: tuple[str, ...] = options.config_options()

    def __post_init__(self) -> None:
        check_values(self)


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> dict:
    """Runs the command; returns the report."""
    (asked,) = read('Give a model four-bit weights.', (QuantizeOptions,), argv)
    # PyTorch, which --help does without.
    from mmprune.family import use_annotations
    from mmprune.quantization import Scheme
    from mmprune.quantization.models import float_config
    from mmprune.run.quantize import NAME, quantize

    cfg = load_config(asked.config, asked.cfg_options)
    folder = Path(asked.output_dir)
    if (folder / NAME).exists() and not asked.force:
        raise ValueError(
            f'{folder} holds a quantized model; choose another --output-dir '
            'or overwrite it with --force'
        )
    if asked.ann_file:
        use_annotations(cfg, asked.ann_file)
    changes = {
        name: getattr(asked, name)
        for name in ('group_size', 'activations')
        if getattr(asked, name) is not None
    }
    trained = float_config(cfg)[1] or Scheme()
    report = quantize(
        cfg,
        asked.checkpoint,
        folder,
        method=asked.method,
        scheme=Scheme(**{**trained.to_dict(), **changes}),
        keep=asked.keep,
        latency_runs=asked.latency_runs,
        evaluate=asked.eval,
        trust=asked.trust_checkpoint,
    )
    print(f'wrote {folder / NAME} and {folder / "report.html"}')
    return report


if __name__ == '__main__':
    main()
