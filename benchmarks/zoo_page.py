"""The page that `zoo.py` writes about the families it has run."""

import statistics
from importlib import import_module
from importlib.metadata import version

from zoo_verdicts import STAGES, least, own_seconds, success

from mmprune.run.report import markdown_table

# Which folders of a wheel are asked about.
CHOSEN = {
    'mmdet': '',
    'mmdet3d': ' without sparse convolutions',
}


def render(
    states: list[dict], missing: list[str], package: str, ratio: float
) -> str:
    """Returns the page about all families that were run.

    Args:
        states: What was found of each of them.
        missing: Names of those that were not run.
        package: Whose families they are.
        ratio: Fraction of the units that was removed.
    """
    ours = sum(map(success, states))
    peer = sum(s['stages'].get('torch_pruning') == 'ok' for s in states)
    unbuilt = sum(s['stages']['build'] != 'ok' for s in states)
    exported = sum(s['stages'].get('export') == 'ok' for s in states)
    spent = [own_seconds(s) for s in states if success(s)] or [0.0]
    head = ('family', 'config', 'params M', 'MACs G', 'CPU s')
    names = ('build', 'prune', 'reload', 'train', 'export', 'Torch-Pruning')
    rows = [row(state) for state in states]
    failed = [
        f'- **{s["family"]}**, {stage}: {escaped(verdict)}'
        for s in states
        for stage, verdict in s['stages'].items()
        if verdict not in ('ok', '-') and stage != 'torch_pruning'
    ]
    held = [
        f'- **{s["family"]}**, {len(s["held"])}, as `{name}`: {escaped(why)}'
        for s in states
        for name, why in list(s.get('held', {}).items())[:1]
    ]
    failed.sort(key=lambda line: ', export: - (' in line)
    return '\n'.join(
        [
            f'# The zoo of {package}, pruned from stock configs',
            '',
            f'Made by `python benchmarks/zoo.py{options(package, ratio)}` '
            f'with {package} {import_module(package).__version__}, torch '
            f'{version("torch")}, torch-pruning {version("torch-pruning")}. '
            'What one run has done the next one keeps.',
            '',
            f'**{ours} of {len(states)}** families pass every stage, '
            f'{exported} of them with an ONNX file; {unbuilt} do not build '
            f'here unpruned ({len(missing)} of '
            f'{len(states) + len(missing)} were not run). A family is one '
            'config of each folder of the wheel that holds a detector or '
            'segmenter' + CHOSEN[package] + '; some folders hold the same '
            'architecture. Torch-Pruning alone prunes '
            f'{peer} so that they still run, as Python objects: no config '
            'builds them. Median '
            f'{statistics.median(spent):.0f} CPU seconds a family.',
            '',
            'Each stage is a process of its own. *build*: from the config, '
            'with random weights and calibrated batch norms; *prune*: '
            f'{ratio:.0%} of the units of every layer by the front door '
            '(`--scope layer`, as Torch-Pruning does), of the parameters '
            f'that hold units which may go at least {least(ratio):.0%} gone, '
            'masked equals pruned to 1e-4, written; *reload*: by a stock '
            'Runner from the checkpoint, outputs bit-identical; *train*: one '
            "step of the detector's own loss moves every parameter that a "
            'step of the masked model moves by more than rounding (a '
            'millionth of the largest gradient); *export*: ONNX, where the '
            'dense model exports (empty: it does not, or was not tried). '
            'Small pictures, and few points and voxels. Torch-Pruning: its '
            'dependency graph and magnitude pruner as in its README, nothing '
            'frozen, on raw outputs, else predictions, else losses, the '
            'layers that write them left out; ok if the model still predicts '
            'and has lost a tenth of its parameters, or as much as ours if '
            'that is less.',
            '',
            markdown_table([*head, *names], rows),
            '',
            '## What fails, and why',
            '',
            *(failed or ['Nothing.']),
            '',
            '## Groups that the comparison kept dense',
            '',
            *(held or ['None.']),
            '',
            '## Not run',
            '',
            ', '.join(missing) or 'None.',
            '',
        ]
    )


def escaped(verdict: str) -> str:
    """Returns an error as text that is no link of a Markdown page."""
    return verdict.replace('](', '] (')


def options(package: str, ratio: float) -> str:
    asked = '' if package == 'mmdet' else f' --package {package}'
    return asked if ratio == 0.3 else f'{asked} --ratio {ratio:g}'


def row(state: dict) -> list[str]:
    def change(key: str, scale: float) -> str:
        if key not in state:
            return ''
        before, after = state[key]
        return f'{before * scale:.1f} → {after * scale:.1f}'

    def mark(verdict: str) -> str:
        if verdict == 'ok':
            return verdict
        return '' if verdict.startswith('-') else 'fails'

    marks = [mark(state['stages'].get(stage, '-')) for stage in STAGES]
    config = state['config'].partition('/')[2]
    return [
        state['family'],
        f'`{config}`',
        change('params', 1e-6),
        change('macs', 1e-9),
        f'{own_seconds(state):.0f}',
        *marks,
    ]
