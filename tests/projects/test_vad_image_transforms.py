"""The image pipeline of VAD, against golden pictures and by hand."""

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.dataset import Compose

from projects.VAD.data.image_transforms import (
    CustomObjectNameFilter,
    CustomObjectRangeFilter,
    NormalizeMultiviewImage,
    PadMultiViewImage,
    PhotoMetricDistortionMultiViewImage,
    RandomScaleImageMultiViewImage,
)
from projects.VAD.data.map_lines import line_targets
from projects.VAD.data.packing import PackVADInputs

NORMALISATIONS = dict(
    torchvision=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    caffe=dict(mean=[103.53, 116.28, 123.675], std=[1, 1, 1], to_rgb=False),
)


@pytest.mark.parametrize('kind', list(NORMALISATIONS))
@pytest.mark.parametrize('scale', [0.4, 0.8])
def test_pictures_equal_the_original(shared, kind, scale):
    path = shared / 'vad' / 'golden' / 'units.npz'
    if not path.exists():
        pytest.skip(f'no {path}')
    with np.load(path) as units:
        name = f'pipe_{kind}_{scale:.1f}'.replace('.', '')
        results = dict(
            img=[units['pipe_in'].astype(np.float32)] * 2,
            lidar2img=[units['pipe_lidar2img_in']] * 2,
        )
        for transform in (
            NormalizeMultiviewImage(**NORMALISATIONS[kind]),
            RandomScaleImageMultiViewImage([scale]),
            PadMultiViewImage(size_divisor=32),
        ):
            results = transform(results)
        for i in range(2):
            np.testing.assert_allclose(
                results['img'][i], units[name], rtol=0, atol=1e-4
            )
            np.testing.assert_allclose(
                results['lidar2img'][i],
                units[f'{name}_lidar2img'],
                rtol=1e-12,
            )
        expected = tuple(units[f'{name}_shape'])
        assert results['img_shape'] == [expected] * 2


def distorted(seed, **options):
    img = np.random.default_rng(0).uniform(0, 255, (8, 9, 3))
    img = img.astype(np.float32)
    np.random.seed(seed)
    transform = PhotoMetricDistortionMultiViewImage(**options)
    return img, transform(dict(img=[img, img.copy()]))['img']


def test_each_camera_is_distorted_on_its_own():
    img, (first, second) = distorted(seed=3)
    assert first.dtype == second.dtype == np.float32
    assert first.shape == second.shape == img.shape
    assert not np.allclose(first, second)


def test_a_distortion_of_no_strength_only_swaps_channels():
    options = dict(
        brightness_delta=0,
        contrast_range=(1, 1),
        saturation_range=(1, 1),
        hue_delta=0,
    )
    swapped = 0
    for seed in range(8):
        img, outputs = distorted(seed, **options)
        for out in outputs:
            np.testing.assert_allclose(
                np.sort(out, axis=2), np.sort(img, axis=2), atol=0.05
            )
            swapped += not np.allclose(out, img, atol=0.05)
    assert 2 <= swapped <= 14


def test_brightness_moves_a_grey_picture_by_at_most_its_delta():
    grey = np.full((4, 4, 3), 100, np.float32)
    transform = PhotoMetricDistortionMultiViewImage(
        brightness_delta=32, contrast_range=(1, 1)
    )
    levels = [transform(dict(img=[grey]))['img'][0].mean() for _ in range(60)]
    assert 68 <= min(levels) < 90 and 110 < max(levels) <= 132
    assert np.isclose(levels, 100, atol=1e-3).sum() > 10


def test_distortion_of_whole_numbers_is_refused():
    with pytest.raises(TypeError, match='float32 pictures, found uint8'):
        PhotoMetricDistortionMultiViewImage()(
            dict(img=[np.zeros((2, 2, 3), np.uint8)])
        )


@pytest.mark.parametrize('scales', [[], [0.0], [0.4, -1]])
def test_scales_must_be_positive(scales):
    with pytest.raises(ValueError, match='scales must hold positive'):
        RandomScaleImageMultiViewImage(scales)


def test_padding_to_a_size():
    img = np.ones((3, 5, 3), np.float32)
    results = PadMultiViewImage(size=(4, 8), pad_val=7)(dict(img=[img]))
    assert results['ori_shape'] == [(3, 5, 3)]
    assert results['pad_shape'] == results['img_shape'] == [(4, 8, 3)]
    assert (results['img'][0][:3, :5] == 1).all()
    assert (results['img'][0][3] == 7).all()
    assert (results['img'][0][:, 5:] == 7).all()


def test_padding_never_crops():
    with pytest.raises(ValueError, match=r'pad to \(2, 2\), found a picture'):
        PadMultiViewImage(size=(2, 2))(dict(img=[np.zeros((3, 5, 3))]))
    for sizes in (dict(), dict(size=(2, 2), size_divisor=32)):
        with pytest.raises(ValueError, match='give exactly one of the two'):
            PadMultiViewImage(**sizes)


def objects(centers, labels, yaw=0.0):
    boxes = torch.ones(len(centers), 9)
    boxes[:, :2] = torch.tensor(centers)
    boxes[:, 6] = yaw
    return dict(
        gt_bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        gt_labels_3d=np.array(labels),
        attr_labels=np.arange(len(labels))[:, None] * np.ones((1, 34)),
    )


def test_only_boxes_strictly_inside_the_region_stay():
    results = objects(
        [[15.0, 0], [14.9, 29.9], [0, -30], [0, 30.1], [-1, 2]],
        [0, 1, 2, 3, 4],
        yaw=4.0,
    )
    results = CustomObjectRangeFilter([-15, -30, -2, 15, 30, 2])(results)
    assert results['gt_labels_3d'].tolist() == [1, 4]
    assert results['attr_labels'][:, 0].tolist() == [1, 4]
    yaw = results['gt_bboxes_3d'].yaw
    torch.testing.assert_close(yaw, torch.full((2,), 4 - 2 * np.pi))


def test_boxes_of_other_classes_are_dropped():
    results = objects([[0.0, 0]] * 4, [-1, 1, 0, 2])
    results = CustomObjectNameFilter(['car', 'truck'])(results)
    assert results['gt_labels_3d'].tolist() == [1, 0]
    assert len(results['gt_bboxes_3d']) == 2


def sample_results(shift=0.0):
    rng = np.random.default_rng(0)
    return dict(
        img=[
            rng.uniform(size=(4, 6, 3)).astype(np.float32) + shift
            for _ in range(2)
        ],
        lidar2img=[np.eye(4), 2 * np.eye(4)],
        img_shape=[(4, 6, 3)] * 2,
        filename=['a.jpg', 'b.jpg'],
        can_bus=np.arange(18.0),
        scene_token='s',
        secret='not packed',
    )


def test_packing_without_ground_truth():
    results = sample_results()
    packed = PackVADInputs()(results)
    img = packed['inputs']['img']
    assert img.shape == (2, 3, 4, 6) and img.dtype == torch.float32
    np.testing.assert_array_equal(
        img[1].permute(1, 2, 0).numpy(), results['img'][1]
    )
    sample = packed['data_samples']
    assert sample.lidar2img.shape == (2, 4, 4)
    assert sample.img_path == ['a.jpg', 'b.jpg']
    assert sample.img_shape == [(4, 6, 3)] * 2
    assert 'secret' not in sample and 'gt_map' not in sample
    assert 'gt_ego' not in sample and 'gt_instances_3d' not in sample


def test_packing_with_all_ground_truth():
    lines = [np.array([[0.0, 0], [0, 10]]), np.array([[1.0, 0], [1, 9]])]
    results = sample_results() | objects([[0.0, 0]], [3])
    results['gt_map'] = line_targets(lines, [0, 2]) | dict(lines=lines)
    results['gt_ego'] = dict(
        fut_trajs=np.ones((6, 2)), fut_masks=np.ones(6), fut_cmd=[0, 0, 1]
    )
    sample = PackVADInputs()(results)['data_samples']
    assert sample.gt_instances_3d.labels_3d.tolist() == [3]
    assert sample.gt_instances_3d.attr_labels.shape == (1, 34)
    assert sample.gt_map.shift_pts.shape == (2, 19, 20, 2)
    assert sample.gt_map.labels.dtype == torch.int64
    assert len(sample.gt_map.lines) == 2
    assert sample.gt_ego.fut_trajs.dtype == torch.float32
    assert sample.gt_ego.fut_cmd.tolist() == [0, 0, 1]


def test_packing_a_queue_of_frames():
    results = sample_results()
    results['history'] = [sample_results(1.0), sample_results(2.0)]
    packed = PackVADInputs()(results)
    img = packed['inputs']['img']
    assert img.shape == (3, 2, 3, 4, 6)
    torch.testing.assert_close(img[1] - img[0], torch.ones_like(img[0]))
    torch.testing.assert_close(img[2], img[0] - 1)
    history = packed['data_samples'].history
    assert [h['scene_token'] for h in history] == ['s', 's']
    assert history[0]['lidar2img'].shape == (2, 4, 4)


def test_cameras_of_different_size_are_refused():
    results = sample_results()
    results['img'][0] = results['img'][0][:2]
    with pytest.raises(ValueError, match='pictures of sizes'):
        PackVADInputs()(results)


def test_the_stock_loader_starts_the_pipeline(tmp_path):
    """Stock mmdet3d camera entries; the projection is put together."""
    images = {}
    for i in range(2):
        path = str(tmp_path / f'{i}.png')
        mmcv.imwrite(np.full((18, 32, 3), 10 * i, np.uint8), path)
        images[f'CAM_{i}'] = dict(
            img_path=path,
            cam2img=[[10.0, 0, 16], [0, 10.0, 9], [0, 0, 1]],
            lidar2cam=np.eye(4),
        )
    pipeline = Compose(
        [
            TRANSFORMS.build(config)
            for config in (
                dict(
                    type='LoadMultiViewImageFromFiles',
                    to_float32=True,
                    num_views=2,
                ),
                dict(
                    type='NormalizeMultiviewImage',
                    **NORMALISATIONS['caffe'],
                ),
                dict(type='RandomScaleImageMultiViewImage', scales=[0.5]),
                dict(type='PadMultiViewImage', size_divisor=32),
                dict(type='PackVADInputs'),
            )
        ]
    )
    packed = pipeline(dict(images=images))
    img = packed['inputs']['img']
    assert img.shape == (2, 3, 32, 32)
    assert img[1, 0, 0, 0] == pytest.approx(10 - 103.53, abs=1e-4)
    assert (img[:, :, 9:] == 0).all() and (img[:, :, :, 16:] == 0).all()
    meta = packed['data_samples']
    expected = [[5.0, 0, 8, 0], [0, 5, 4.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(meta.lidar2img[1], expected)
    assert meta.img_path[0].endswith('0.png')


def test_resizing_is_done_on_the_float_picture():
    """A resize of whole numbers would be off by up to half a grey level."""
    img = np.random.default_rng(1).uniform(0, 9, (10, 10, 3))
    img = img.astype(np.float32)
    results = RandomScaleImageMultiViewImage([0.4])(
        dict(img=[img], lidar2img=[np.eye(4)])
    )
    expected = cv2.resize(img, (4, 4), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(results['img'][0], expected)
