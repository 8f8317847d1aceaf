"""tools/export.py: ONNX files that compute what PyTorch does, or none."""

import json
import runpy
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from mmprune import onnx_file
from mmprune.checkpoints.loading import load_model
from mmprune.checkpoints.writing import save_pruned
from mmprune.onnx_file import check_export, session, write_onnx
from mmprune.run.export import export
from mmprune.run.options import PruningOptions
from mmprune.run.workflow import prune
from mmprune.tensor_path import Compared, Part, TensorPath, named_outputs

pytest.importorskip('mmdet')
from test_detector_family import detector, stock  # noqa: E402


def tiny_detector():
    """RetinaNet of the wheel's config, an eighth as wide."""
    cfg = stock('retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.model.backbone.base_channels = 8
    cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16)
    return cfg


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """The config and a dense and a pruned checkpoint, as a user has them."""
    folder = tmp_path_factory.mktemp('retina')
    cfg = tiny_detector()
    model = detector(cfg)
    cfg.dump(folder / 'retina.py')
    cfg.filename = str(folder / 'retina.py')
    torch.save(dict(state_dict=model.state_dict()), folder / 'dense.pth')
    asked = PruningOptions(
        sparsity=0.5, mode='structured', latency_runs=0, prune_frozen=True
    )
    found = prune(cfg, model, asked)
    small = found.models['structured']
    save_pruned(small, found.plans['structured'], folder / 'small.pth', cfg)
    return folder


def command(files, *words):
    main = runpy.run_path(str(ROOT / 'tools' / 'export.py'))['main']
    config = [] if '--no-config' in words else [str(files / 'retina.py')]
    return main([*config, *map(str, words)])


def test_a_pruned_detector_is_exported_and_timed_beside_the_dense_one(
    files, tmp_path
):
    folder = tmp_path / 'a' / 'deploy'
    told = command(
        files, files / 'small.pth', '--output-dir', folder, '--latency-runs', 1
    )
    assert {p.name for p in folder.iterdir()} == {
        'model.onnx', 'deploy.json', 'small.pth', 'small.py',
    }  # fmt: skip
    summary = json.loads((folder / 'deploy.json').read_text())
    assert summary == json.loads(json.dumps(told))
    part = summary['parts']['model']
    assert part['inputs']['inputs'] == dict(
        shape=[1, 3, 64, 96], dtype='float32'
    )
    # Scores and boxes of five levels.
    assert len(part['outputs']) == len(part['differences']) == 10
    assert 0 < max(part['differences'].values()) < 1e-4
    assert set(summary['latency_ms']) == {
        'model exported', 'model exported torch',
        'model dense', 'model dense torch',
    }  # fmt: skip
    # The config beside it builds the pruned model without our command.
    small = load_model(folder / 'small.py', folder / 'small.pth')
    picture = torch.linspace(-2, 2, 3 * 64 * 96).view(1, 3, 64, 96)
    with torch.no_grad():
        scores = small(picture, mode='tensor')[0][0]
    opened = session(folder / 'model.onnx')
    (found, *_) = opened.run(None, dict(inputs=picture.numpy()))
    np.testing.assert_allclose(found, scores, rtol=0, atol=1e-4)


def test_an_export_is_replaced_only_when_asked(files, tmp_path):
    flags = ('--latency-runs', 0, '--output-dir', tmp_path / 'deploy')
    command(files, files / 'dense.pth', *flags)
    with refused('holds an export.*--force'):
        command(files, files / 'small.pth', *flags)
    command(files, files / 'small.pth', *flags, '--force')
    assert (tmp_path / 'deploy' / 'small.py').is_file()
    (tmp_path / 'deploy' / 'deploy.json').unlink()
    with refused('something else than an export'):
        command(files, files / 'dense.pth', *flags, '--force')


@pytest.fixture(autouse=True)
def shown(capsys):
    """What a refusal printed."""
    refused.shown = capsys


class refused:
    """One sentence on stderr that says so, and exit code 2."""

    def __init__(self, text):
        self.text = text

    def __enter__(self):
        self.raises = pytest.raises(SystemExit)
        self.error = self.raises.__enter__()

    def __exit__(self, *what):
        done = self.raises.__exit__(*what)
        import re

        assert self.error.value.code == 2
        said = refused.shown.readouterr().err
        assert re.search(self.text, said), said
        assert said.count('\n') == 1
        return done


def test_what_computes_something_else_is_not_handed_over(
    files, tmp_path, monkeypatch
):
    run = onnx_file.run_session

    def wrong(opened, inputs):
        return {k: v * 1.001 for k, v in run(opened, inputs).items()}

    monkeypatch.setattr('mmprune.run.export.run_session', wrong)
    with refused('computes something else than PyTorch: output_._.'):
        command(
            files, files / 'small.pth', '--output-dir', tmp_path / 'a' / 'b'
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (('--opset', 15), '--opset 15.*16 to 19'),
        (('--opset', 20), '--opset 20.*16 to 19'),
        (('--latency-runs', -1), '--latency-runs'),
    ],
)
def test_bad_options_are_one_sentence(files, tmp_path, words, said):
    with refused(said):
        command(
            files, files / 'dense.pth', '--output-dir', tmp_path / 'x', *words
        )
    assert not list(tmp_path.iterdir())


def test_weights_cut_without_a_plan_are_refused(files, tmp_path):
    weights = torch.load(files / 'small.pth')['state_dict']
    torch.save(dict(state_dict=weights), tmp_path / 'cut.pth')
    with refused('cut.pth does not fit'):
        command(files, tmp_path / 'cut.pth', '--output-dir', tmp_path / 'x')
    assert not (tmp_path / 'x').exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(
        onnx_file, 'find_spec', lambda name: None if name == 'onnx' else 1
    )
    with pytest.raises(ImportError, match=r'needs onnx, .*mmprune\[export\]'):
        check_export()


class Odd(nn.Module):
    """A layer inside a net that does what ONNX has no form for."""

    def __init__(self, act):
        super().__init__()
        self.neck = nn.Sequential()
        self.neck.add_module('odd', Act(act))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.neck(x),)


class Act(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def part(act, static=False):
    example = torch.arange(6.0).view(2, 3)
    return Part('net', Odd(act), dict(x=example), ('y',), {'x': 'm'}, static)


def test_an_operator_without_a_form_is_named_with_its_module(tmp_path):
    with pytest.raises(ValueError) as error:
        write_onnx(part(torch.special.i1), tmp_path / 'x.onnx')
    assert str(error.value) == (
        'net cannot be exported, at neck.odd: the operator '
        'aten::special_i1 has no form in ONNX'
    )
    assert not list(tmp_path.iterdir())


def test_a_static_graph_may_not_depend_on_values(tmp_path):
    def act(x):
        return x.flatten()[x.flatten().nonzero().flatten()]

    counts = write_onnx(part(act), tmp_path / 'x.onnx')
    assert counts['NonZero'] == 1
    with pytest.raises(ValueError, match='graph of net has NonZero'):
        write_onnx(part(act, static=True), tmp_path / 'y.onnx')
    assert not (tmp_path / 'y.onnx').exists()


def test_what_a_trace_froze_is_found_by_the_mirrored_input(tmp_path):
    frozen = part(lambda x: x * float(x.flatten()[0] + 1))
    write_onnx(frozen, tmp_path / 'x.onnx')
    opened = session(tmp_path / 'x.onnx')
    found = list(
        TensorPath([frozen]).compare(
            lambda _, given: onnx_file.run_session(opened, given)
        )
    )
    assert [type(each) for each in found] == [Compared, Compared]
    same = [torch.equal(each.expected, each.found) for each in found]
    assert same == [True, False]


def test_outputs_are_named_by_their_place():
    x = torch.zeros(1)
    assert list(named_outputs(x)) == ['output']
    assert list(named_outputs([x, (x, x.long())])) == [
        'output_0',
        'output_1_0',
    ]
    assert list(named_outputs({'a': (x, [x])})) == ['a_0', 'a_1_0']


def test_it_is_one_call_from_python(files, tmp_path):
    cfg = tiny_detector()
    lines = []
    summary = export(
        cfg, detector(cfg), tmp_path / 'out', latency_runs=0, log=lines.append
    )
    assert 'latency_ms' not in summary
    assert lines[0].startswith('model.onnx: ')
    assert 'onnx' in sys.modules
