"""CIFAR folders, digits, their transforms, and the accuracy on them."""

import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger

from mmprune.datasets import CIFAR, Digits, PadCrop, RandomMirror, ToTensor
from mmprune.metrics import Accuracy

PIPELINE = [dict(type='mmprune.ToTensor')]


def write(folder, name: str, labels: list[int], key: str = 'labels') -> None:
    """A batch whose image i is i everywhere, but 100 + i in green."""
    data = np.zeros((len(labels), 3, 1024), np.uint8)
    data += np.arange(len(labels), dtype=np.uint8)[:, None, None]
    data[:, 1] += 100
    batch = {
        'data': data.reshape(len(labels), 3072),
        key: labels,
        'batch_label': 'made for a test',
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open('wb') as file:
        pickle.dump(batch, file, protocol=2)


def cifar10(folder):
    inside = folder / 'cifar-10-batches-py'
    write(inside, 'data_batch_1', [3, 1, 4, 1, 5])
    write(inside, 'data_batch_4', [9, 2, 6, 5, 3])
    write(inside, 'test_batch', [5, 8])
    return folder


def test_a_folder_with_fewer_batches_is_read_and_counted(tmp_path, capsys):
    MMLogger.get_instance('cifar_test', log_level='INFO')
    data = CIFAR('cifar10', cifar10(tmp_path), 'trainval', PIPELINE)
    assert len(data) == 10
    assert data.labels == [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    sample = data[7]
    assert sample['data_samples'] == 6
    assert sample['inputs'].dtype == torch.uint8
    assert sample['inputs'].shape == (3, 32, 32)
    # third image of the second batch: red, green, blue
    assert sample['inputs'][:, 5, 9].tolist() == [2, 102, 2]
    said = capsys.readouterr().out
    assert 'cifar10 trainval: 10 images in 2 of 5 files' in said
    assert 'the original has 50000' in said


def test_the_last_training_images_validate(tmp_path):
    root = cifar10(tmp_path)
    train = CIFAR('cifar10', root, 'train', PIPELINE, num_val=0.3)
    val = CIFAR('cifar10', root, 'val', PIPELINE, num_val=3)
    assert train.labels == [3, 1, 4, 1, 5, 9, 2]
    assert val.labels == [6, 5, 3]
    assert CIFAR('cifar10', root, 'test', PIPELINE).labels == [5, 8]
    few = CIFAR('cifar10', root, 'train', PIPELINE, num_images=2)
    assert few.labels == [3, 1]


def test_the_folder_itself_may_be_given(tmp_path):
    inside = cifar10(tmp_path) / 'cifar-10-batches-py'
    assert len(CIFAR('cifar10', inside, 'test', PIPELINE)) == 2


def test_cifar100_has_its_own_layout(tmp_path):
    inside = tmp_path / 'cifar-100-python'
    write(inside, 'train', [99, 7, 0], key='fine_labels')
    data = CIFAR('cifar100', tmp_path, 'trainval', PIPELINE)
    assert data.labels == [99, 7, 0]
    assert len(data.metainfo['classes']) == 100


def test_the_real_files_are_read(shared):
    root = shared / 'data' / 'cifar10_lossless'
    data = CIFAR('cifar10', root, 'trainval', PIPELINE)
    assert len(data) == 3000
    assert data.labels[:10] == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert data.metainfo['classes'][6] == 'frog'
    test = CIFAR('cifar10', root, 'test', PIPELINE)
    counts = np.bincount(test.labels).tolist()
    assert counts == [17, 12, 22, 18, 12, 17, 11, 7, 23, 10]


def test_nothing_is_downloaded(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing is downloaded by'):
        CIFAR('cifar10', tmp_path, 'test', PIPELINE)


class Evil:
    """Runs a command when it is unpickled by the stock unpickler."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    root = cifar10(tmp_path)
    path = root / 'cifar-10-batches-py' / 'test_batch'
    path.write_bytes(pickle.dumps({'data': Evil(tmp_path / 'ran')}, 2))
    with pytest.raises(ValueError, match=r'test_batch: it needs \w+.system'):
        CIFAR('cifar10', root, 'test', PIPELINE)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (b'not a pickle', 'is not a whole pickle'),
        (pickle.dumps([1, 2]), 'holds a list, a dict was expected'),
        (
            pickle.dumps({'data': np.zeros((2, 5))}),
            'holds no CIFAR images.*3072',
        ),
        (
            pickle.dumps({'data': np.zeros((2, 3072)), 'labels': [1]}),
            'has 2 images and 1 labels',
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, says):
    root = cifar10(tmp_path)
    (root / 'cifar-10-batches-py' / 'test_batch').write_bytes(content)
    with pytest.raises(ValueError, match=f'test_batch {says}'):
        CIFAR('cifar10', root, 'test', PIPELINE)


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (dict(kind='cifar11', split='test'), "must be one of 'cifar10'"),
        (dict(kind='cifar10', split='dev'), "split must be one of 'train'"),
        (dict(kind='cifar10', split='train', num_val=10), 'is empty with'),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        CIFAR(data_root=cifar10(tmp_path), **options)


def test_digits_are_there_without_a_file():
    train, val = Digits('train', PIPELINE), Digits('val', PIPELINE)
    assert (len(train), len(val)) == (1438, 359)
    image = train[0]['inputs']
    assert image.shape == (1, 8, 8) and image.max() == 15 * 16
    assert train.labels[:5] == [0, 1, 2, 3, 4]
    assert np.bincount(val.labels).min() >= 30


def test_a_crop_moves_the_image_and_fills_with_zeros():
    np.random.seed(0)
    img = np.arange(1, 17, dtype=np.uint8).reshape(4, 4, 1)
    places = set()
    for _ in range(200):
        out = PadCrop(1)(dict(img=img))['img']
        wide = np.pad(img, ((1, 1), (1, 1), (0, 0)))
        fits = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if (wide[top : top + 4, left : left + 4] == out).all()
        ]
        assert len(fits) == 1
        places.update(fits)
    assert len(places) == 9


def test_a_mirror_turns_left_and_right():
    img = np.arange(6).reshape(1, 3, 2)
    turned = RandomMirror(1.0)(dict(img=img))['img']
    assert turned.tolist() == [[[4, 5], [2, 3], [0, 1]]]
    assert RandomMirror(0.0)(dict(img=img))['img'] is img
    packed = ToTensor()(dict(img=turned, gt_label=2))
    assert packed['inputs'].shape == (2, 1, 3)


def test_accuracy_counts_the_rank_of_the_right_class():
    metric = Accuracy(topk=(1, 2))
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]])
    samples = [
        dict(pred_scores=row, gt_label=label)
        for row, label in zip(scores, (1, 1, 0), strict=True)
    ]
    metric.process(None, samples)
    found = metric.evaluate(3)
    assert found == {
        'Acc@1': pytest.approx(100 / 3),
        'Acc@2': pytest.approx(200 / 3),
    }
    # neither an exploded network nor one that says nothing is right
    metric.process(
        None,
        [
            dict(pred_scores=torch.full((3,), value), gt_label=label)
            for value, label in ((float('nan'), 0), (0.5, 0), (0.5, 1))
        ],
    )
    assert metric.results == [3, 0, 1]
    with pytest.raises(ValueError, match='topk counts from 1'):
        Accuracy(topk=(0,))
