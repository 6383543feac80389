"""The head with pyramid pooling and a top-down path: its parts, and what it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Task
from fusmae_jax.eval.dense import convolution, heads, upernet
from fusmae_jax.eval.dense.config import DenseProbe, check
from fusmae_jax.eval.dense.features import Features, Reader, with_earlier
from fusmae_jax.eval.dense.heads import HeadShape
from fusmae_jax.input.contract import Contract, Group


def test_bins_are_means_that_cover_every_place():
    for length in (1, 2, 5, 7, 14):
        for bins in upernet.BINS:
            bins_of = upernet.pooling(length, bins)
            np.testing.assert_allclose(bins_of.sum(axis=1), 1, rtol=1e-6)
            assert (bins_of.sum(axis=0) > 0).all()
            np.testing.assert_array_equal(bins_of, bins_of[::-1, ::-1])
    # Seven places in three bins: 0-2, 2-4, 4-6.
    assert [np.flatnonzero(row).tolist() for row in upernet.pooling(7, 3)] == [
        [0, 1, 2],
        [2, 3, 4],
        [4, 5, 6],
    ]


def test_a_size_is_doubled_by_a_transposed_convolution_and_halved_by_a_maximum():
    layer = convolution.init_doubling(jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (1, 2, 4, 3))
    larger = convolution.doubled(layer, x)
    wanted = jax.lax.conv_transpose(
        *(x, layer['kernel'][::-1, ::-1]),
        (2, 2),
        'VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        transpose_kernel=False,
    )
    one = {'kernel': jnp.eye(3)[None, None], 'bias': layer['bias'], 'norm': layer['norm']}
    np.testing.assert_allclose(larger, convolution.convolved(one, wanted), atol=1e-5)
    odd = np.arange(15, dtype=np.float32).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(convolution.halved(jnp.asarray(odd))[0, ..., 0], [[6, 8, 9], [11, 13, 14]])


def test_the_gradient_of_a_maximum_reaches_one_pixel_and_divides_by_nothing():
    """By the number of pixels that equal it: 0 where the compiler computes it again, rounded otherwise."""
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 3)).at[0, 0, :2].set(9.0)
    function = jax.grad(lambda x: convolution.halved(x).sum())
    slope = np.asarray(function(x))
    padded = np.pad(slope, ((0, 0), (0, 1), (0, 0), (0, 0))).reshape(2, 3, 2, 3, 2, 3)
    assert (padded.sum(axis=(2, 4)) == 1).all() and set(np.unique(slope)) == {0, 1}
    of_slope = np.pad(np.where(slope == 1, x, -np.inf), ((0, 0), (0, 1), (0, 0), (0, 0)), constant_values=-9)
    of_slope = of_slope.reshape(2, 3, 2, 3, 2, 3).max(axis=(2, 4))
    np.testing.assert_array_equal(of_slope, convolution.halved(x))
    assert not {'div', 'eq'} & {str(one.primitive) for one in jax.make_jaxpr(function)(x).eqns}


def test_every_block_counts_and_one_is_taken_four_times():
    four = HeadShape('upernet', 4 * 6, 5, 8, 8, 4)
    params = jax.jit(lambda key: heads.init(key, four))(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 3, 5, 24))

    @jax.jit
    def run(x):
        def squares(x):
            scores = heads.apply(params, x, four)
            return (scores**2).sum(), scores

        return jax.grad(squares, has_aux=True)(x)

    grads, scores = run(x)
    assert scores.shape == (2, 12, 20, 5)
    assert np.any(grads, axis=-1).all()
    assert np.any(np.reshape(grads, (2, 3, 5, 4, 6)), axis=(0, 1, 2, 4)).all()
    one = HeadShape('upernet', 6, 5, 8, 8)
    alone = jax.jit(lambda x: heads.apply(params, x, one))(x[..., :6])
    np.testing.assert_allclose(alone, run(jnp.tile(x[..., :6], 4))[1], atol=1e-5)


def test_it_takes_one_block_or_four():
    given = {'data': Task('x', labels='map', kind='segmentation'), 'encoder': EncoderSettings('run', ())}
    for layers in ((), (3,), (1, 2, 3, 4)):
        check(DenseProbe(**given, head='upernet', layers=layers))
    with pytest.raises(InputError, match="head='upernet' takes one block or four"):
        check(DenseProbe(**given, head='upernet', layers=(1, 2)))


def test_a_block_stands_beside_its_own_change():
    """A head that takes blocks apart is given each with what changed in it."""
    groups = {name: Group(name, ('a',), (2, 2), 'float32', 'dB') for name in ('s1', 'before_s1')}

    def run(params, batch, keys):
        values = jnp.concatenate([batch['s1'], 10 * batch['s1']], axis=-1)  # two blocks
        return Features(values, jnp.ones(values.shape[:3], bool))

    reader = with_earlier(Reader(run, ('s1',), {}, 2, 8, None, 'two', 2), Contract(groups=groups), 'before_')
    both = reader.run({}, {'s1': jnp.full((1, 2, 2, 1), 5.0), 'before_s1': jnp.full((1, 2, 2, 1), 3.0)}, None)
    assert reader.width == 4 and both.values[0, 0, 0].tolist() == [5, 2, 50, 20]
