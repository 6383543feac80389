"""The four quarters of a record, cut on its native grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.eval import crops
from fusmae_jax.input.contract import Contract, Group
from tests.support.probe_fixtures import quarter


def test_crops_are_the_four_quarters():
    groups = {'s1': Group('s1', ('VV', 'VH'), (4, 6))}
    contract = Contract(dataset='test', groups=groups)
    assert crops.view_contract(contract, 'crops').groups['s1'].size == (2, 3)
    assert crops.view_contract(contract, 'resize') == contract
    batch = {'s1': np.arange(2 * 4 * 6 * 2).reshape(2, 4, 6, 2), 'label': np.array([7, 8])}
    every = crops.all_crops(batch, contract)
    quarters = [quarter({'s1': batch['s1']}, top, left)['s1'] for top in (0, 1) for left in (0, 1)]
    np.testing.assert_array_equal(every['s1'], np.concatenate(quarters))
    np.testing.assert_array_equal(every['label'], [7, 8] * 4)
    one = crops.one_crop(batch, contract, jnp.array([2, 1]))
    np.testing.assert_array_equal(one['s1'], [quarters[2][0], quarters[1][1]])
    np.testing.assert_array_equal(one['label'], [7, 8])
    drawn = np.asarray(crops.crop_index(jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_allclose(np.bincount(drawn) / 4000, 0.25, atol=0.03)
    seen = jnp.array([1, 0, 1, 0, 0, 0, 1, 0], bool)  # of record 0 three crops, of record 1 none
    mean, some = crops.crop_mean(jnp.arange(8.0)[:, None], seen)
    np.testing.assert_allclose(mean[:, 0], [(0 + 2 + 6) / 3, 0])
    assert some.tolist() == [True, False]
    with pytest.raises(InputError, match='cannot be cut into four'):
        crops.view_contract(Contract(groups={'s1': Group('s1', ('VV',), (5, 4))}), 'crops')
    with pytest.raises(InputError, match="did you mean 'crops'"):
        crops.view_contract(contract, 'crop')
