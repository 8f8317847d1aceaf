"""Exports a checkpoint, dense or pruned, to ONNX, checked against PyTorch.

    python tools/export.py CONFIG CHECKPOINT --output-dir deploy

Any family: backbone, neck and raw outputs of a detector, the whole network
of a classifier, the parts of VAD (docs/export.md). Nothing is written if an
output of onnxruntime differs from PyTorch's by more than 1e-4 of its scale.
A family's own flags show with its config: tools/export.py CONFIG --help.
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
class ExportOptions:
    """What is exported, and where to."""

    config: str = argument('config of the dense model')
    checkpoint: str = argument('its weights, dense or pruned')
    output_dir: str = option('./deploy', 'the folder that is made')
    force: bool = option(False, 'replace what an export wrote there')
    opset: int = option(18, 'of the operators, 16 to 19')
    latency_runs: int = option(
        5, 'timed runs of each graph, 0 for none', least=0
    )
    ann_file: str | None = options.annotations()
    trust_checkpoint: bool = options.trust_checkpoint()
    cfg_options: tuple[str, ...] = options.config_options()

    def __post_init__(self) -> None:
        check_values(self)


@fail_in_one_sentence
def main(argv: list[str] | None = None) -> dict:
    """Runs the command; returns what deploy.json holds."""
    words = sys.argv[1:] if argv is None else argv
    named = [word for word in words if word.endswith('.py')]
    own = ()
    if named and Path(named[0]).is_file():
        from mmprune.family import family_kind

        kind = family_kind(load_config(named[0]))
        own = tuple(filter(None, [getattr(kind, 'EXPORT_OPTIONS', None)]))
    asked, *more = read('Export to ONNX.', (ExportOptions, *own), argv)
    from mmprune.family import use_annotations
    from mmprune.onnx_file import check_export
    from mmprune.run.export import SUMMARY, export_checkpoint
    from mmprune.run.folder import check_output

    check_export(asked.opset)
    folder = Path(asked.output_dir)
    check_output(folder, '--output-dir', allowed=True)
    if folder.is_dir() and any(folder.iterdir()):
        known = (folder / SUMMARY).is_file()
        if not known or not asked.force:
            raise ValueError(
                f'{folder} holds an export; choose another --output-dir or '
                'replace it by --force'
                if known
                else f'{folder} holds something else than an export; choose '
                'another --output-dir'
            )
    cfg = load_config(asked.config, asked.cfg_options)
    if asked.ann_file:
        use_annotations(cfg, asked.ann_file)
    summary = export_checkpoint(
        cfg,
        asked.checkpoint,
        folder,
        trust=asked.trust_checkpoint,
        opset=asked.opset,
        latency_runs=asked.latency_runs,
        options=more[0] if more else None,
    )
    for name, each in summary.get('latency_ms', {}).items():
        print(f'{name}: {each:.1f} ms')
    print(f'wrote {folder}')
    return summary


if __name__ == '__main__':
    main()
