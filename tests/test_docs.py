"""What README and docs say holds: commands, flags, links, examples."""

import argparse
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmprune.calibration import calibrate
from mmprune.groups import PruneGroup, Slice
from mmprune.registry import TASK_UTILS
from mmprune.run.config_file import config_path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(
        ROOT / name
        for name in ('README.md', 'README_zh.md', 'CONTRIBUTING.md')
    ),
    ROOT / 'benchmarks' / 'README.md',
    *sorted((ROOT / 'docs').glob('*.md')),
]
STARTS = ('python tools/', 'python benchmarks/', 'make')


class Parsed(BaseException):
    """Stops a script as soon as it has read its flags; no error."""

    def __init__(self, parser, found):
        super().__init__('parsed')
        self.parser, self.found = parser, found


def commands(page: Path) -> list[str]:
    """The shell commands of a page, fenced as bash or indented."""
    text = page.read_text()
    fenced = re.findall(r'^```bash\n(.*?)^```', text, re.M | re.S)
    text = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
    lines = '\n'.join(fenced).splitlines()
    lines += [x[4:] for x in text.splitlines() if x.startswith('    ')]
    joined = '\n'.join(lines).replace('\\\n', ' ')
    plain = (line.split('  # ')[0] for line in joined.splitlines())
    return [
        ' '.join(c.split())
        for c in plain
        if c.split()[:1] == ['make'] or c.startswith(STARTS[:2])
    ]


def cases() -> list:
    return [
        pytest.param(command, id=f'{page.relative_to(ROOT)}: {command[:60]}')
        for page in PAGES
        for command in commands(page)
    ]


def parse(monkeypatch, script: Path, words: list[str]) -> Parsed:
    """Runs a script up to the point where its flags are read."""
    for name in ('parse_args', 'parse_intermixed_args'):
        parse = getattr(argparse.ArgumentParser, name)

        def stop(self, *args, parse=parse, **kwargs):
            raise Parsed(self, parse(self, *args, **kwargs))

        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    monkeypatch.setattr(sys, 'argv', [str(script), *words])
    monkeypatch.setattr(sys, 'path', [str(script.parent), *sys.path])
    spec = importlib.util.spec_from_file_location(
        f'documented_{script.stem}', script
    )
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    with pytest.raises(Parsed) as stopped:
        module.main()
    return stopped.value


@pytest.mark.parametrize('command', cases())
def test_a_documented_command_exists_and_takes_its_flags(command, monkeypatch):
    program, *words = shlex.split(command)
    if program == 'make':
        targets = re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.M)
        assert {w for w in words if '=' not in w} <= set(targets)
        return
    script = ROOT / words[0]
    assert script.is_file()
    args = parse(monkeypatch, script, words[1:]).found
    if 'config' in args:
        assert (ROOT / config_path(args.config)).is_file()


def test_pages_have_commands():
    counts = {page: len(commands(page)) for page in PAGES}
    assert counts[ROOT / 'README.md'] >= 6
    assert counts[ROOT / 'docs' / 'prune_vad.md'] >= 5
    assert counts[ROOT / 'docs' / 'visualize.md'] >= 3  # indented ones


def test_both_readmes_give_the_same_commands():
    english, chinese = (ROOT / n for n in ('README.md', 'README_zh.md'))
    assert commands(english) == commands(chinese)


def test_both_readmes_give_the_same_numbers():
    pattern = r'\d+(?:\.\d+)?(?:e-\d+)?'
    tables = []
    for name in ('README.md', 'README_zh.md'):
        rows = [
            line
            for line in (ROOT / name).read_text().splitlines()
            if line.startswith('|')
        ]
        tables.append([re.findall(pattern, row) for row in rows])
    assert tables[0] == tables[1]


def test_every_flag_of_the_pruning_command_is_documented(monkeypatch):
    script = ROOT / 'tools' / 'prune_and_retrain.py'
    parser = parse(monkeypatch, script, ['config', 'checkpoint']).parser
    lines = (ROOT / 'docs' / 'prune_vad.md').read_text().split('\n\n')
    for action in parser._actions:
        for flag in action.option_strings:
            if flag in ('-h', '--help', '--local_rank'):
                continue
            about = [
                row
                for part in lines
                for row in (
                    part.splitlines() if part.startswith('|') else [part]
                )
                if re.search(rf'`{flag}[ `]', row)
            ]
            assert about, flag
            if isinstance(action.default, str | int | float) and not (
                isinstance(action.default, bool)
            ):
                stated = f'`{action.default}`'
                assert any(stated in row for row in about), (flag, stated)


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r'\]\(([^)#\s]+)[^)]*\)', page.read_text())
    for target in targets:
        if not target.startswith(('http://', 'https://')):
            assert (page.parent / target).exists(), target


def test_every_page_is_linked_from_the_readme():
    text = (ROOT / 'README.md').read_text()
    for page in (ROOT / 'docs').glob('*.md'):
        assert f'](docs/{page.name})' in text, page.name


def test_the_criterion_of_the_docs_scores_by_the_largest_weight():
    text = (ROOT / 'docs' / 'add_a_criterion.md').read_text()
    (code,) = re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)
    names = dict(__name__=__name__)
    try:
        exec(code, names)
        criterion = TASK_UTILS.build(dict(type='mmprune.LargestWeight'))
    finally:
        TASK_UTILS.module_dict.pop('LargestWeight', None)
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net[0].weight.data = torch.tensor([[3.0, -4.0], [1.0, 2.0]])
    net[0].bias.data = torch.tensor([0.5, -7.0])
    group = PruneGroup(
        'g',
        'neuron',
        2,
        (Slice('0.weight'), Slice('0.bias')),
        (Slice('1.weight', 1),),
    )
    stats = calibrate(net, [group], criterion.needs)
    assert criterion(group, stats).tolist() == [4, 7]
