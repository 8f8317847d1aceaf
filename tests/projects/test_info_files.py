"""Info files are unpickled without running what they may bring."""

import os
import pickle

import numpy as np
import pytest
from tiny_infos import Bomb

from projects.VAD.data.info_file import load_info_file


def test_a_pickle_with_code_is_refused_and_has_not_run(tmp_path):
    marker = tmp_path / 'it_ran'
    path = tmp_path / 'infos.pkl'
    bomb = Bomb(os.mkdir, str(marker))
    path.write_bytes(pickle.dumps(dict(metainfo={}, data_list=[bomb])))
    with pytest.raises(ValueError, match=r'needs (posix|nt)\.mkdir, and only'):
        load_info_file(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    'opcodes, name',
    [
        (b'cbuiltins\neval\n(V1\ntR.', 'builtins.eval'),
        (b'cnumpy\nload\n(Vx\ntR.', 'numpy.load'),
        (b'cnumpy.core.multiarray\n__dict__\n.', '__dict__'),
        (b'c_codecs\ndecode\n(Vx\nVzip\ntR.', '_codecs.decode'),
        (b'Vsomewhere\nQ.', 'outside of the file'),
    ],
)
def test_names_that_are_not_admitted_are_named(tmp_path, opcodes, name):
    path = tmp_path / 'infos.pkl'
    path.write_bytes(b'\x80\x02' + opcodes)
    with pytest.raises(ValueError, match=name):
        load_info_file(path)


def test_a_codec_of_the_files_choice_is_refused(tmp_path):
    path = tmp_path / 'infos.pkl'
    path.write_bytes(b'\x80\x02c_codecs\nencode\n(Vx\nVrot13\ntR.')
    with pytest.raises(ValueError, match="the encoding 'rot13', expected"):
        load_info_file(path)


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_numpy_numbers_pass_in_every_protocol(tmp_path, protocol):
    written = dict(
        metainfo={},
        data_list=[dict(a=np.eye(3), b=np.int64(7), c=np.bool_(True))],
    )
    path = tmp_path / 'infos.pkl'
    path.write_bytes(pickle.dumps(written, protocol=protocol))
    entry = load_info_file(path)['data_list'][0]
    assert np.array_equal(entry['a'], np.eye(3))
    assert (entry['b'], entry['c']) == (7, True)


@pytest.mark.parametrize(
    'content, found',
    [
        ([1], 'holds a list, expected'),
        (dict(infos=[], metadata={}), 'the mmdet3d 0.x layout'),
        (dict(data_list=[]), r"the keys \['data_list'\]"),
    ],
)
def test_another_layout_is_refused(tmp_path, content, found):
    path = tmp_path / 'infos.pkl'
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=found):
        load_info_file(path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.pkl does not exist'):
        load_info_file(tmp_path / 'nothing.pkl')
