"""Info files of nuScenes' size: read in batches, or only their beginning."""

import io
import pickle
import weakref
from pathlib import Path

import numpy as np
import pytest

from mmprune.checkpoints.plain_pickle import read_plain_pickle
from projects.VAD.data import info_file, record_head, record_stream
from projects.VAD.data.info_file import (
    load_first_records,
    stream_info_file,
    stream_keyframes,
)
from projects.VAD.data.packed_records import Packer, shared_records
from projects.VAD.data.record_head import first_records
from projects.VAD.data.record_stream import RECORDS, open_stream


class Collected(list):
    """Stands for a list of records."""


def records(count: int) -> list[dict]:
    """What a pickle may hold, some of it more than once."""
    shared = [1.5, 2.5]
    return [
        dict(
            token=f'token {i}',
            scene_token='a scene' if i < count // 2 else 'another',
            timestamp=i * 10**12,
            pose=shared,
            array=np.full((2, 3), i, np.float32),
            big=2**70 + i,
            text='infos' * (i % 3),
            parts=(i, None, True, -1.5, b'\x94h\x00' * (i + 1)),
        )
        for i in range(count)
    ]


def write(path: Path, content: dict, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def same(one, other) -> bool:
    """Whether two structures are equal, arrays included."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other


def read_rewritten(path: Path) -> tuple[dict, list]:
    taken = Collected()
    with open_stream(path, 'infos') as stream:
        content = read_plain_pickle(stream, path, admitted={RECORDS: taken})
    return content, taken


# ---- the stream


@pytest.mark.parametrize('chunk', [7, 100, 1 << 20])
@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_rewritten_pickle_says_the_same(
    tmp_path, monkeypatch, protocol, chunk
):
    monkeypatch.setattr(record_stream, 'CHUNK', chunk)
    content = dict(metadata=dict(note='infos come'), infos=records(40))
    found, taken = read_rewritten(write(tmp_path / 'a', content, protocol))
    assert found['metadata'] == content['metadata']
    assert found['infos'] is taken
    assert same(list(taken), content['infos'])
    assert taken[0]['pose'] is taken[39]['pose']


def test_a_key_is_the_whole_word(tmp_path):
    """And a list behind another word is left where it is."""
    content = dict(more_infos=[1], infos_=[2], infos=records(3))
    found, taken = read_rewritten(write(tmp_path / 'a', content))
    assert (found['more_infos'], found['infos_']) == ([1], [2])
    assert same(list(taken), content['infos'])


def test_keyframes_of_mmdet3d_come_in_batches_with_their_metainfo(tmp_path):
    metainfo = dict(categories=dict(car=0))
    content = dict(metainfo=metainfo, data_list=records(3000))
    path, alive, seen, tokens = write(tmp_path / 'a', content), [], [], []

    def take(batch, found):
        assert found == metainfo
        alive.append(sum(array() is not None for array in seen))
        seen[:] = [weakref.ref(record['array']) for record in batch]
        tokens.extend(record['token'] for record in batch)

    rest = stream_keyframes(path, take)
    assert rest == dict(metainfo=metainfo, data_list=[])
    assert tokens == [f'token {i}' for i in range(3000)]
    assert alive[1:] == [0, 0]


@pytest.mark.parametrize(
    'content',
    [
        dict(infos=[dict(token='a')], metadata={}),
        dict(data_list=[dict(token='a')], metainfo=dict(classes=['car'])),
        dict(metainfo=dict(classes=['car']), data_list=[]),
    ],
    ids=['of VAD', 'classes come last', 'empty'],
)
def test_other_files_are_left_to_be_read_whole(tmp_path, content):
    path = write(tmp_path / 'a', content)
    assert stream_keyframes(path, lambda *_: 1 / 0) is None


def test_records_that_were_taken_are_not_kept(tmp_path):
    """The reader of a pickle otherwise holds all that it has numbered."""
    content = dict(infos=records(3000), metadata={})
    path = write(tmp_path / 'a.pkl', content)
    seen, alive = [], []

    def take(batch):
        # The batch before is through, but for what the last record shares.
        alive.append(sum(array() is not None for array in seen))
        del seen[:]
        seen.extend(weakref.ref(record['array']) for record in batch)

    stream_info_file(path, take)
    assert len(alive) == 3
    assert alive[1:] == [0, 0]


@pytest.mark.parametrize(
    'opcodes',
    [
        b'j\xff\xff\xff\x7f.',  # the object with a number that none has
        b'q\x00h\x00\x94.',  # numbered in both ways
        b'\x8e' + b'\xff' * 8 + b'.',  # more bytes than there can be
        b'p0\n.',  # numbered in decimals
        b'\x01.',  # no opcode at all
    ],
)
def test_what_cannot_be_rewritten_is_left_to_the_reader(tmp_path, opcodes):
    path = tmp_path / 'a.pkl'
    path.write_bytes(b'\x80\x02}' + opcodes)
    assert open_stream(path, 'infos') is None
    with pytest.raises(ValueError, match='info file .*a.pkl'):
        stream_info_file(path, list)


def test_a_file_cut_short_is_refused(tmp_path):
    path = write(tmp_path / 'a.pkl', dict(infos=records(9), metadata={}))
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match='is not a whole pickle'):
            stream_info_file(path, list)


def test_what_fails_in_taking_is_no_fault_of_the_pickle(tmp_path):
    path = write(tmp_path / 'a.pkl', dict(infos=records(2), metadata={}))

    def refuse(batch):
        raise KeyError('what the taker says')

    with pytest.raises(KeyError, match='what the taker says'):
        stream_info_file(path, refuse)


def test_both_layouts_are_read_where_they_stand(tmp_path):
    taken = []
    content = dict(metadata=dict(version='x'), infos=records(2))
    found = stream_info_file(write(tmp_path / 'a', content), taken.extend)
    assert found == dict(content, infos=[]) and same(taken, content['infos'])
    content = dict(metainfo={}, data_list=records(2))
    found = stream_info_file(write(tmp_path / 'b', content), taken.extend)
    assert same(found, content) and len(taken) == 2
    nested = dict(metadata=dict(infos=[dict(a=1)]), infos=records(2))
    with pytest.raises(ValueError, match='infos inside of another part'):
        stream_info_file(write(tmp_path / 'c', nested), taken.extend)


def test_without_rewriting_the_records_come_all_the_same(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(info_file, 'open_stream', lambda path, key: None)
    taken, content = [], dict(infos=records(2), metadata={})
    stream_info_file(write(tmp_path / 'a', content), taken.extend)
    assert same(taken, content['infos'])


# ---- the beginning


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('count', [1, 4, 9])
def test_the_first_records_are_read_alone(tmp_path, protocol, count):
    content = dict(metainfo=dict(classes=['car']), data_list=records(9))
    whole = pickle.dumps(content, protocol=protocol)
    start = first_records(io.BytesIO(whole), ('data_list',), count)
    assert len(start) < len(whole) or count == 9
    found = read_plain_pickle(io.BytesIO(start), 'a')
    assert same(found, dict(content, data_list=content['data_list'][:count]))


def test_what_stands_behind_them_does_not_matter(tmp_path):
    content = dict(metadata=dict(version='x'), infos=records(900))
    path = write(tmp_path / 'a.pkl', content)
    path.write_bytes(path.read_bytes()[:-1000])
    found = load_first_records(path, 5)
    assert same(found, dict(content, infos=content['infos'][:5]))


@pytest.mark.parametrize(
    'content',
    [
        dict(infos=records(4)),  # fewer than asked for
        dict(infos=[[1]] * 9, metadata={}),  # no dicts
        dict(infos=[records(1)[0]] * 9, metadata={}),  # one, nine times
        dict(data_list=records(9), metainfo={}),  # classes come too late
        dict(other=dict(infos=records(9), more=1), more=1),  # elsewhere
        [records(9)],
    ],
)
def test_what_cannot_be_cut_is_read_whole(tmp_path, content):
    assert load_first_records(write(tmp_path / 'a', content), 8) is None


def test_they_are_not_looked_for_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(record_head, 'OPCODES_BEFORE', 100)
    content = dict(metadata=list(range(200)), infos=records(9))
    assert load_first_records(write(tmp_path / 'a', content), 1) is None


def test_code_among_the_first_records_is_refused(tmp_path):
    path = tmp_path / 'a.pkl'
    opcodes = b'\x80\x02}(X\x05\x00\x00\x00infos](}(X\x01\x00\x00\x00a'
    path.write_bytes(opcodes + b'cos\ngetcwd\n)Ru}eX\x01\x00\x00\x00bK\x00u.')
    with pytest.raises(ValueError, match='info file .* needs os.getcwd'):
        load_first_records(path, 1)


# ---- packed


def packed(entries: list[dict], by_time: bool = True):
    packer = Packer()
    for entry in entries:
        packer.add(entry)
    return packer.records(by_time, found={})


def tokens_of(packed_records) -> list[str]:
    return [packed_records[i]['token'] for i in range(len(packed_records))]


def test_records_are_packed_in_the_order_of_time():
    entries = records(4)
    backwards = packed(entries[::-1])
    assert tokens_of(backwards) == [f'token {i}' for i in range(4)]
    unsorted = packed(entries[::-1], by_time=False)
    assert tokens_of(unsorted) == [f'token {i}' for i in (3, 2, 1, 0)]


@pytest.mark.parametrize(
    ('indices', 'expected'),
    [
        (None, [0, 1, 2, 3]),
        (2, [0, 1]),
        (9, [0, 1, 2, 3]),
        (-1, [3]),
        ([2, 0, -1], [2, 0, 3]),
        ([], []),
    ],
)
def test_some_of_them_are_chosen_as_mmengine_does(indices, expected):
    chosen = packed(records(4)).chosen(indices)
    assert tokens_of(chosen) == [f'token {i}' for i in expected]


def test_an_order_or_a_choice_moves_no_bytes():
    entries = records(4)
    backwards = packed(entries[::-1])
    assert np.shares_memory(backwards.chosen([2]).data, backwards.data)
    first = pickle.loads(memoryview(backwards.data))
    assert first['token'] == 'token 3'


def test_a_file_is_read_once_until_it_changes(tmp_path):
    path, reads = write(tmp_path / 'a', {}), []

    def read():
        reads.append(1)
        return packed(records(2))

    first = shared_records(path, 'options', read)
    assert shared_records(path, 'options', read) is first
    assert len(reads) == 1
    shared_records(path, 'other options', read)
    assert len(reads) == 2
    write(path, dict(a=1))
    assert shared_records(path, 'options', read) is not first
