"""Sensors declared absent at random in fine-tuning: how often, and never all of a record."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.eval.dense.config import DenseFinetune
from fusmae_jax.eval.dense.config import check as check_dense
from fusmae_jax.eval.finetune.config import Finetune, check, recipe_of
from fusmae_jax.eval.finetune.dropout import check_names, dropped
from fusmae_jax.eval.finetune.rows import sweep
from fusmae_jax.input.prepare import Patches

pytestmark = pytest.mark.usefixtures('strict', 'one_device')
RECORDS = 20_000
NAMES = ('s1', 's2', 'dem')


def patches(records=RECORDS):
    """Ones; the last tenth of the records lacks s1, and one in a hundred of these everything."""
    values = jnp.ones((records, 2, 3), jnp.float32)
    every = {name: np.ones(values.shape, bool) for name in NAMES}
    every['s1'][-records // 10 :] = False
    for valid in every.values():
        valid[-records // 1000 :] = False
    return {name: Patches(values, jnp.asarray(valid)) for name, valid in every.items()}


def there(patches):
    return np.stack([np.asarray(patches[name].valid).any((1, 2)) for name in NAMES], 1)


def run(shares, given=None, seed=0):
    given = given or patches()
    keys = jax.random.split(jax.random.key(seed), RECORDS)
    return given, dropped(given, keys, shares)


def test_sensors_go_as_often_as_asked_and_never_all_of_a_record():
    given, left = run((('s1', 0.9), ('s2', 0.6), ('dem', 0.8)))
    before, after = there(given), there(left)
    assert not (after & ~before).any()
    np.testing.assert_array_equal(after.any(1), before.any(1))
    whole, both = before.all(1), ~before[:, 0] & before[:, 1]
    # Exactly: gone with p, and back in a third of the cases in which all three went.
    p = np.array([0.9, 0.6, 0.8])
    np.testing.assert_allclose(1 - after[whole].mean(0), p - p.prod() / 3, atol=0.015)
    np.testing.assert_allclose(1 - after[both].mean(0)[1:], p[1:] - p[1:].prod() / 2, atol=0.04)
    for name in NAMES:  # what is gone can leave no trace, and what stays is as it was
        values, valid = (np.asarray(x) for x in left[name])
        gone = ~after[:, NAMES.index(name)]
        assert not values[gone & before.any(1)].any() and values[~gone].all()
        np.testing.assert_array_equal(valid[~gone], np.asarray(given[name].valid)[~gone])


def test_a_record_draws_by_its_own_key_and_the_rest_stays():
    given, left = run((('s2', 0.5),))
    after = there(left)
    assert after[:, 0].sum() == there(given)[:, 0].sum() and 0.4 < after[:, 1].mean() < 0.6
    _, moved = run((('s2', 0.5),), {name: Patches(*(x[::-1] for x in p)) for name, p in given.items()})
    # Keys stay with the rows here, so that rows which nothing is missing from draw the same.
    whole = there(given).all(1) & there(given)[::-1].all(1)
    np.testing.assert_array_equal(there(moved)[whole], after[whole])
    for shares, some in (((), given), ((('s2', 0.5),), {'s2': given['s2']}), ((('s2', 0.5),), {
        'dem': given['dem'], 's1': given['s1']
    })):  # fmt: skip
        assert dropped(some, jax.random.split(jax.random.key(0), RECORDS), shares) == some


def test_settings_and_rows_know_of_it_only_where_it_is():
    plain = Finetune()
    plain = dataclasses.replace(plain, data=dataclasses.replace(plain.data, path='-'))
    plain = dataclasses.replace(plain, encoder=dataclasses.replace(plain.encoder, checkpoint='-'))
    some = dataclasses.replace(plain, modality_dropout=(('s2', 0.3),))
    assert (recipe_of(plain), recipe_of(some)) == ('paper', 'custom')
    assert sweep(some).items() - sweep(plain).items() == {('modality_dropout_s2', (0.3,))}
    check(some)
    for shares, message in (((('s2', 1.0),), 'below 1'), ((('s2', 0.1), ('s2', 0.2)), 'twice')):
        with pytest.raises(InputError, match=message):
            check(dataclasses.replace(some, modality_dropout=shares))
        dense = DenseFinetune(data=dataclasses.replace(DenseFinetune().data, path='-'),
                              encoder=some.encoder, modality_dropout=shares)  # fmt: skip
        with pytest.raises(InputError, match=message):
            check_dense(dense)
    with pytest.raises(InputError, match="'s3' is not in XAE; did you mean"):
        check_names((('s3', 0.1),), ['s1', 's2'], 'XAE')
