"""Training and evaluation take other windows of one text."""

import numpy as np
import pytest

from mmprune.datasets.tokens import TokenWindows


@pytest.mark.parametrize('rows', [False, True])
def test_windows_that_are_skipped_are_those_of_the_other_set(tmp_path, rows):
    tokens = np.arange(20).reshape(5, 4) if rows else np.arange(22)
    np.save(tmp_path / 'text.npy', tokens)
    source = str(tmp_path / 'text.npy')
    first = TokenWindows(4, source, num_windows=2)
    rest = TokenWindows(4, source, skip=2, num_windows=9, partial=True)
    assert first.windows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert rest.windows[:, 0].tolist() == [8, 12, 16]
    with pytest.raises(ValueError, match='9 were asked for'):
        TokenWindows(4, source, skip=2, num_windows=9)
    with pytest.raises(ValueError, match='no window of 4 tokens behind'):
        TokenWindows(4, source, skip=5)
