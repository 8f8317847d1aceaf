"""VAD as ONNX files: the same numbers, static graphs, a driver in numpy.

One module: its tests share one small model and one export of it.
"""

import ast
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from golden import ROOT
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from tiny_nuscenes import write_nuscenes

from mmprune.checkpoints.loading import build_model, load_model
from mmprune.checkpoints.writing import save_pruned
from mmprune.family import build_family
from mmprune.onnx_file import DYNAMIC_OPS, operators, without_shape
from mmprune.onnx_folding import static_shapes
from mmprune.run.options import PruningOptions
from mmprune.run.workflow import prune
from mmprune.tensor_path import Compared
from projects.VAD.export import driver
from projects.VAD.export.sampling import FORMS, PLUGIN
from projects.VAD.export.static_model import seen_cells
from projects.VAD.export.tensor_path import tied, turned, unrounded
from projects.VAD.model.deformable_sampling import sample_levels
from projects.VAD.model.transformer import rotate_bev
from tools import create_data

NANO = ROOT / 'projects' / 'configs' / 'VAD' / 'VAD_nano_mini_world.py'
# A third of what this town is wide, in both directions: 12 x 6 cells.
SMALL = {
    'model.pts_bbox_head.bev_h': 12,
    'model.pts_bbox_head.bev_w': 6,
    'model.pts_bbox_head.num_query': 14,
    'model.pts_bbox_head.num_map_vectors': 8,
    'model.pts_bbox_head.transformer.rotate_center': (3, 6),
    'model.pts_bbox_head.bbox_coder.max_num': 20,
    'model.pts_bbox_head.map_coder.max_num': 10,
    # Of weights that nobody trained some lanes pass, and some do not.
    'model.pts_bbox_head.map_threshold': 0.01,
}


def dataset(cfg):
    return cfg.test_dataloader.dataset


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Path:
    """A folder with data, a config, and a dense and a pruned checkpoint."""
    root = write_nuscenes(tmp_path_factory.mktemp('nuscenes'))
    noise = np.random.default_rng(0)
    for path in root.glob('samples/CAM*/*.jpg'):
        coarse = noise.integers(0, 255, (9, 16, 3), np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, (160, 90)))
    create_data.main(['nuscenes', '--root-path', str(root)])
    cfg = Config.fromfile(NANO)
    cfg.merge_from_dict(SMALL)
    cfg.data_root = str(root)
    for split in ('test', 'val', 'train'):
        found = cfg[f'{split}_dataloader'].dataset
        found.data_root = str(root)
        # Four frames of one scene.
        found.ann_file = 'vad_nuscenes_infos_temporal_train.pkl'
        steps = found.pipeline
        steps[4].scales, steps[5].rows = [0.8], 3
    cfg.work_dir = str(root / 'work')
    cfg.dump(root / 'vad.py')
    cfg.filename = str(root / 'vad.py')
    torch.manual_seed(0)
    model = build_model(cfg)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if 'attention_weights' in name or 'map_cls_branches' in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    torch.save(dict(state_dict=model.state_dict()), root / 'dense.pth')
    asked = PruningOptions(
        sparsity=0.5, mode='structured', latency_runs=0, prune_frozen=True
    )
    found = prune(cfg, model, asked)
    small = found.models['structured']
    save_pruned(small, found.plans['structured'], root / 'small.pth', cfg)
    return root


@pytest.fixture(scope='module')
def deployed(files) -> Path:
    """The pruned model, exported as a user does it."""
    export(files, 'small.pth', files / 'deploy')
    return files / 'deploy'


def export(files, checkpoint, folder, *words):
    command = runpy.run_path(str(ROOT / 'tools' / 'export.py'))['main']
    flags = ['--output-dir', folder, '--latency-runs', 0, *words]
    paths = [files / 'vad.py', files / checkpoint]
    return command([*map(str, paths), *map(str, flags)])


def about(folder):
    return json.loads((folder / 'deploy.json').read_text())


def test_three_frames_in_a_row_agree_in_every_output(deployed):
    parts = about(deployed)['parts']
    assert set(parts) == {'image', 'head_first', 'head'}
    for name, part in parts.items():
        counted = {n for n in part['outputs'] if not n.endswith('_found')}
        decoded = {n for n in part['differences'] if n.startswith('decoded')}
        assert set(part['differences']) == counted | decoded
        assert bool(decoded) == (name != 'image')
        assert max(part['differences'].values()) < 1e-4


def test_a_dense_model_is_exported_alike(files, deployed, tmp_path):
    dense = export(files, 'dense.pth', tmp_path / 'deploy')
    assert not list((tmp_path / 'deploy').glob('*.pth'))
    small = about(deployed)
    sizes = [s['parts']['head']['mb'] for s in (small, dense)]
    assert sizes[0] < 0.9 * sizes[1]


def test_features_go_over_in_half_precision(files, deployed, tmp_path):
    folder = tmp_path / 'deploy'
    parts = export(files, 'small.pth', folder, '--fp16-features')['parts']
    kinds = {each['dtype'] for each in parts['image']['outputs'].values()}
    assert kinds == {'float16'}
    for name in ('head_first', 'head'):
        handed = {
            n: each['dtype'] for n, each in parts[name]['inputs'].items()
        }
        halves = {n for n, kind in handed.items() if kind == 'float16'}
        assert halves == parts['image']['outputs'].keys()
        assert max(parts[name]['differences'].values()) < 1e-4
    # A rounding by 2**-11 is no difference.
    assert max(parts['image']['differences'].values()) < 1e-5
    drawn = [folder, deployed]
    runs = [driver.sessions(f, about(f)) for f in drawn]
    pictures = np.random.default_rng(0).normal(
        size=parts['image']['inputs']['img']['shape']
    )
    given = {'img': pictures.astype(np.float32)}
    for half, whole in zip(
        runs[0]('image', given).values(),
        runs[1]('image', given).values(),
        strict=True,
    ):
        assert np.abs(half - whole).max() <= 2**-11 * np.abs(whole).max()


def test_half_of_a_step_between_halves_is_no_difference():
    own = torch.tensor([1.0002, 1.0002, 2.9e-8, -1.0002])
    found = torch.tensor([1.0, 1.0009765625, 0.0, -1.0], dtype=torch.half)
    off = (unrounded(found, own) - own).abs()
    assert off[[0, 2, 3]].max() == 0
    expected = 1.0009765625 - 1.0002 * (1 + 2**-11)
    assert off[1].item() == pytest.approx(expected, rel=1e-2)


def test_more_than_one_drive_at_once_is_refused(files, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        export(files, 'small.pth', tmp_path / 'x', '--batch', '2')
    assert stop.value.code == 2
    assert '--batch' in capsys.readouterr().err


def test_no_shape_and_no_course_depends_on_values(deployed):
    for name in ('image', 'head_first', 'head'):
        model = onnx.load(deployed / f'{name}.onnx')
        onnx.checker.check_model(model, full_check=True)
        assert not DYNAMIC_OPS & set(operators(model))
        assert 'Shape' not in operators(model)
        assert without_shape(model) == []
        assert model.opset_import[0].version == 18
        assert len(model.opset_import) == 1


def test_deploy_json_says_what_goes_in_and_comes_out(files, deployed):
    found = about(deployed)
    head = found['parts']['head']
    first = found['parts']['head_first']
    more = set(head['inputs']) - set(first['inputs'])
    assert more == {'prev_bev', 'turn_index', 'turn_inside'}
    assert head['inputs']['prev_bev']['shape'] == [72, 1, 64]
    assert head['outputs']['bev_embed']['shape'] == [72, 1, 64]
    assert head['inputs']['lidar2img']['shape'] == [1, 6, 4, 4]
    assert head['inputs']['ego_status']['shape'] == [1, 7]
    kinds = {each['dtype'] for each in head['inputs'].values()}
    assert kinds == {'float32', 'int64'}
    assert 'metres' in head['inputs']['can_bus']['about']
    for side in ('inputs', 'outputs'):
        assert all(each['about'] for each in head[side].values())
    assert found['picture_steps'][0]['mean'] == [123.675, 116.28, 103.53]
    assert found['classes'][0] == 'car'
    assert found['image_size'] == [80, 128]


def test_metrics_of_the_files_are_those_of_the_model(files, deployed, capsys):
    main = runpy.run_path(str(ROOT / 'tools' / 'test.py'))['main']
    config = str(files / 'vad.py')
    work = ['--work-dir', str(files / 'work')]
    own = main([config, str(files / 'small.pth'), *work])
    found = main([config, '--onnx', str(deployed), *work])
    assert len(own) > 20 and set(own) == set(found)
    for name, value in own.items():
        assert found[name] == pytest.approx(value, rel=1e-4, nan_ok=True), name
    with pytest.raises(SystemExit):
        main([config, '--onnx', str(files / 'nowhere'), *work])
    assert 'holds no export' in capsys.readouterr().err


def test_the_driver_needs_nothing_of_the_project(deployed, tmp_path):
    tree = ast.parse((deployed / 'run.py').read_text())
    modules = {
        (name.name if isinstance(node, ast.Import) else node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert modules == {
        'argparse', 'collections.abc', 'cv2', 'json', 'math', 'numpy',
        'onnxruntime', 'pathlib',
    }  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run(
        [sys.executable, deployed / 'run.py', deployed / 'frames',
         '--out', tmp_path / 'out'],
        env=env, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('boxes') == 3
    pictures = sorted((tmp_path / 'out').iterdir())
    assert [p.name for p in pictures] == ['0000.png', '0001.png', '0002.png']
    assert cv2.imread(str(pictures[0])).std() > 20


def test_it_prepares_pictures_as_the_pipeline_does(files, deployed):
    from mmdet3d.registry import DATASETS

    cfg = Config.fromfile(files / 'vad.py')
    data = DATASETS.build(dataset(cfg))[1]
    frame = json.loads((deployed / 'frames' / 'frames.json').read_text())[1]
    found = about(deployed)
    pictures = [
        cv2.imread(str(deployed / 'frames' / frame['pictures'][name]))
        for name in found['cameras']
    ]
    img, lidar2img = driver.prepare(
        pictures, frame['lidar2img'], found['picture_steps']
    )
    assert np.array_equal(img[0], data['inputs']['img'].numpy())
    meta = data['data_samples'].metainfo
    assert np.allclose(lidar2img, meta['lidar2img'], rtol=1e-12)
    assert np.array_equal(frame['can_bus'], meta['can_bus'])


@pytest.mark.parametrize('degrees', [0.0, 2.3, -90.0, 181.0])
def test_it_turns_the_bev_as_the_model_does(degrees):
    bev = torch.arange(1.0, 73).view(1, 72, 1)
    index, inside = driver.turn(degrees, [12, 6], [3, 6])
    expected = rotate_bev(bev, (12, 6), torch.tensor([degrees]), (3, 6))
    assert np.array_equal(bev[0].numpy()[index, 0] * inside, expected[0, :, 0])


@pytest.mark.parametrize('most', [None, 2])
def test_a_cell_is_the_mean_of_the_cameras_that_see_it(most):
    seen = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]]).bool().view(2, 1, 4, 1)
    points = torch.arange(16.0).view(2, 1, 4, 1, 2)
    found = seen_cells(points, seen, most)
    expected = [[1, 0.5, 0, 0], [0, 0.5, 0, 1]]
    assert found.weight.tolist() == expected
    if most is None:
        assert torch.equal(found.reference, points.squeeze(1))
        return
    assert found.cells.tolist() == [[0, 1], [1, 3]]
    for camera in (0, 1):
        for cell in (0, 1, 3):
            if seen[camera, 0, cell]:
                place = found.place[camera, cell]
                here = found.reference[camera, place]
                assert torch.equal(here, points[camera, 0, cell])


# Forms.


@pytest.mark.parametrize('maps', [1, 2, 6])
@pytest.mark.parametrize('form', FORMS.values())
def test_every_form_samples_the_same(form, maps):
    shapes = [(3, 4), (2, 2)]
    value = torch.randn(maps, 16, 2, 5)
    at = torch.rand(maps * 7, 2, 2, 3, 2) * 1.6 - 0.3
    at[0] = 1e9  # of a point behind the camera
    weights = torch.rand(maps * 7, 2, 2, 3)
    batch = torch.arange(maps).repeat_interleave(7)
    expected = sample_levels(value, shapes, at, weights, batch)
    # Farther than any number that is left of it in another precision.
    at[0] = float('inf')
    found = form(value, shapes, at, weights, None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_gather_form_computes_the_same(files, tmp_path):
    folder = tmp_path / 'deploy'
    export(files, 'small.pth', folder, '--form', 'gather')
    counts = about(folder)['parts']['head']['operators']
    assert 'GridSample' not in counts and counts['Gather'] > 10
    assert max(about(folder)['parts']['head']['differences'].values()) < 1e-4


def test_the_plugin_form_has_tensorrts_node(files, tmp_path):
    folder = tmp_path / 'deploy'
    export(files, 'small.pth', folder, '--form', 'plugin')
    graph = onnx.load(folder / 'head.onnx').graph
    nodes = [node for node in graph.node if node.op_type == PLUGIN]
    # Two layers of the encoder with two attentions, decoders of two and four.
    assert len(nodes) == 10
    kinds = {t.name: t for t in graph.initializer}
    shapes = static_shapes(graph)
    for node in nodes:
        value, sizes, start, at, weights = node.input
        assert kinds[sizes].data_type == kinds[start].data_type
        assert kinds[sizes].data_type == onnx.TensorProto.INT32
        maps, _, heads, _ = shapes[value]
        assert shapes[at][0] == maps and shapes[at][2] == heads
        assert shapes[at] == (*shapes[weights], 2)
    assert 'GridSample' not in {node.op_type for node in graph.node}


def test_lists_of_lanes_and_cells_are_exact_where_all_fit(files, tmp_path):
    folder = tmp_path / 'deploy'
    words = ('--lanes', '8', '--cells', '70')
    summary = export(files, 'small.pth', folder, *words)
    head = summary['parts']['head']
    assert max(head['differences'].values()) < 1e-4
    assert head['outputs']['overflow']['shape'] == [2]
    assert (summary['lanes'], summary['cells']) == (8, 70)


def test_a_lane_at_a_threshold_makes_trajectories_undecided(files):
    cfg = Config.fromfile(files / 'vad.py')
    model = load_model(cfg, files / 'dense.pth')
    path = build_family(cfg).tensor_path(model)
    data = model.data_preprocessor(pseudo_collate([path.samples[0]]), False)
    with torch.no_grad():
        outs = model.step(data['inputs'], data['data_samples'])
    head = model.pts_bbox_head
    assert not tied(outs, head)
    score = outs['map_all_cls_scores'][-1, 0].sigmoid().amax(-1)
    head.map_threshold = float(score[3]) + 1e-7
    assert tied(outs, head)
    one, other = torch.ones(2), torch.tensor([1.0, 1.1])
    assert turned(Compared('head', 'all_traj_preds', one, other))
    assert not turned(Compared('head', 'all_traj_preds', one, one))
    assert not turned(Compared('head', 'bev_embed', one, other))


def test_two_of_four_survive_eight_bits_where_kernels_are_wide(
    files, tmp_path
):
    cfg = Config.fromfile(files / 'vad.py')
    asked = PruningOptions(
        mode='unstructured',
        pattern='2:4',
        pattern_from=64,
        latency_runs=0,
    )
    found = prune(cfg, load_model(cfg, files / 'dense.pth'), asked)
    plan = found.plans['unstructured']
    model = found.models['unstructured']
    save_pruned(model, plan, tmp_path / 'sparse.pth', cfg)
    export(files, tmp_path / 'sparse.pth', tmp_path / 'd', '--int8', '2')
    graph = onnx.load(tmp_path / 'd' / 'int8' / 'image.onnx').graph
    values = [onnx.numpy_helper.to_array(t) for t in graph.initializer]
    kernels = [v for v in values if v.ndim == 4 and v.dtype == np.int8]

    def left(kernel):
        return (np.moveaxis(kernel, 1, -1).reshape(-1, 4) != 0).sum(1).max()

    wide = [v for v in kernels if min(v.shape[:2]) >= 64]
    narrow = [v for v in kernels if min(v.shape[:2]) == 32]
    # The last norm of a block starts at zero, and its kernel with it.
    assert {int(left(kernel)) for kernel in wide} == {0, 2}
    assert max(map(left, narrow)) == 4


def test_too_few_are_refused_with_what_there_is(files, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export(files, 'small.pth', tmp_path / 'x', '--cells', '3')
    said = capsys.readouterr().err
    assert '--cells 3 are too few' in said and 'cells of one camera' in said
    with pytest.raises(SystemExit):
        export(files, 'small.pth', tmp_path / 'x', '--lanes', '9')
    assert 'the model has 8' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_image_part_of_eight_bits_has_zero_points_of_zero(files, tmp_path):
    folder = tmp_path / 'deploy'
    summary = export(files, 'small.pth', folder, '--int8', '2', '--hand-over')
    assert 0 < summary['int8']['differences']['features_0'] < 0.1
    graph = onnx.load(folder / 'int8' / 'image.onnx').graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    kinds = [node for node in graph.node if 'quantizeLinear' in node.op_type]
    kinds += [node for node in graph.node if node.op_type == 'QuantizeLinear']
    assert len(kinds) > 10
    for node in kinds:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
    weights = [v for v in values.values() if v.ndim == 4]
    assert weights and all(w.dtype == np.int8 for w in weights)
    # A deployment of its own.
    main = runpy.run_path(str(ROOT / 'tools' / 'test.py'))['main']
    flags = ['--onnx', str(folder / 'int8'), '--work-dir', str(files / 'work')]
    assert main([str(files / 'vad.py'), *flags])
    # Raw tensors give what the files gave.
    place = folder / 'hand_over' / '2' / 'head'
    described = about(folder)['parts']['head']
    given = {
        name: np.fromfile(place / 'in' / f'{name}.bin', each['dtype']).reshape(
            each['shape']
        )
        for name, each in described['inputs'].items()
    }
    found = driver.sessions(folder, about(folder))('head', given)
    for name, array in found.items():
        raw = np.fromfile(place / 'out' / f'{name}.bin', array.dtype)
        assert np.array_equal(raw, array.ravel())
    loader = runpy.run_path(str(folder / 'hand_over' / 'load.py'))
    frames = list(loader['load_data']())
    assert len(frames) == 2
    assert np.array_equal(frames[1]['prev_bev'], given['prev_bev'])


def test_a_step_that_the_driver_cannot_do_is_refused(files):
    cfg = Config.fromfile(files / 'vad.py')
    dataset(cfg).pipeline[4].scales = [0.4, 0.8]
    model = load_model(cfg, files / 'dense.pth')
    with pytest.raises(ValueError, match='driver cannot do'):
        build_family(cfg).tensor_path(model)
