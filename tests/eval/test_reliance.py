"""What encoders rely on: disturbed images and attention of known answers, and the command over an archive."""

import csv
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fusmae_jax.config import run as cfg
from fusmae_jax.config.build import from_dict, resolve
from fusmae_jax.config.files import load_config
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.encoders.systems import fit, open_system
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Intervals, Task
from fusmae_jax.eval.features import Extractor
from fusmae_jax.eval.reliance import report
from fusmae_jax.eval.reliance.attention import blocks, mass
from fusmae_jax.eval.reliance.command import run_reliance
from fusmae_jax.eval.reliance.config import CleanHead, Cloud, Reliance
from fusmae_jax.eval.reliance.features import Disturbed
from fusmae_jax.eval.reliance.inputs import clouded, opacity, other_cluster
from fusmae_jax.eval.reliance.maps import _cross, maps
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.normalise import statistics
from fusmae_jax.input.prepare import Patches, make_prepare
from fusmae_jax.models import fusmae
from tests.support.helpers import CONTRACT, random_patches, raw_batch, weights
from tests.support.probe_fixtures import CLASSES, SIZES, checkpoint
from tests.support.tiny import tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures('one_device')


def test_every_image_goes_once_to_another_cluster():
    rng = np.random.default_rng(0)
    clusters = rng.integers(5, size=60)
    clusters[:20] = 7  # a third of them in one
    taken = other_cluster(clusters, 3)
    assert sorted(taken) == list(range(60)) and (clusters[taken] != clusters).all()
    np.testing.assert_array_equal(other_cluster(clusters, 3), taken)
    assert (other_cluster(clusters, 4) != taken).any()
    names = np.char.add('scene ', clusters.astype(str)).astype('S')
    assert (names[other_cluster(names)] != names).all()
    with pytest.raises(InputError, match='holds 20 of 39 records'):
        other_cluster(np.r_[np.arange(19), np.full(20, 99)])


def test_a_cloud_covers_what_it_should_and_follows_the_position_alone():
    cloud = Cloud(cover=0.6)
    draw = jax.jit(lambda at: opacity(cloud, at, (24, 32)))
    alpha = np.asarray(draw(jnp.arange(5, dtype=jnp.uint32)))
    assert alpha.shape == (5, 24, 32) and alpha.min() == 0 and alpha.max() == 1
    np.testing.assert_allclose((alpha > 0.5).mean((1, 2)), 0.6, atol=2 / (24 * 32))
    assert all(np.abs(alpha[i] - alpha[j]).mean() > 0.05 for i in range(5) for j in range(i))
    moved = np.asarray(draw(jnp.array([3, 0], jnp.uint32)))
    np.testing.assert_array_equal(moved, alpha[[3, 0]])
    # Clouds hang together: neighbours agree far better than pixels at random.
    assert np.abs(np.diff(alpha, axis=2)).mean() < 0.3 * np.abs(alpha - alpha[:, ::-1, ::-1]).mean()


def test_an_opaque_pixel_is_bright_and_a_clear_one_stays(strict):
    cloud = Cloud(bright=2.5)
    values = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 12)).astype(np.float32))
    patches = Patches(values, jnp.ones((1, 4, 12), bool).at[0, 3, 5].set(False))
    alpha = jnp.zeros((1, 4, 4), jnp.float32).at[0, :2, :2].set(1).at[0, 2:, 2:].set(0.5)
    under = clouded(patches, alpha, cloud, 2, cfg.Data())
    np.testing.assert_array_equal(under.values[0, 0], np.full(12, 2.5))
    np.testing.assert_array_equal(under.values[0, 1:3], values[0, 1:3])
    expected = np.array(0.5 * values[0, 3] + 1.25)
    expected[5] = values[0, 3, 5]  # nothing was measured there, and nothing is now
    np.testing.assert_allclose(under.values[0, 3], expected, rtol=1e-6)
    np.testing.assert_array_equal(under.valid, patches.valid)


SETTINGS = {
    'zscore': cfg.Data(path='-'),
    'mean_2sigma': cfg.Data(path='-', normalisation='mean_2sigma'),
    'clip': cfg.Data(path='-', clip=2.5),
}


@pytest.fixture(scope='module')
def clear():
    """A raw Sentinel-2 image, and what it is prepared to under each of the settings."""
    optical = {'s2': cfg.Model().modalities['s2']}
    configs = {
        name: tiny_config(model=tiny_model('none', modalities=optical), data=data)
        for name, data in SETTINGS.items()
    }
    prepare = {name: jax.jit(make_prepare(config, CONTRACT, None)) for name, config in configs.items()}
    return configs, prepare, raw_batch(1)


@pytest.mark.parametrize('name', list(SETTINGS))
@pytest.mark.parametrize('bright', [1.5, 3.0, -4.0])
def test_an_opaque_cloud_is_what_such_an_image_becomes(clear, name, bright):
    """Each band `bright` standard deviations above its mean, normalised and clipped as any image."""
    configs, prepare, raw = clear
    config = configs[name]
    mean, std = statistics(config.model.modalities['s2'])
    white = dict(raw)
    for field, group in CONTRACT.groups.items():
        if group.modality == 's2':
            rows = [config.model.modalities['s2'].bands.index(band) for band in group.bands]
            white[field] = np.broadcast_to((mean + bright * std)[rows], raw[field].shape).astype(np.float32)
    clear_patches, wanted = (prepare[name](images)['s2'] for images in (raw, white))
    assert clear_patches.valid.all() and wanted.valid.all()

    def under(opacity):
        alpha = jnp.full((1, *config.model.image_size), opacity, jnp.float32)
        return np.asarray(clouded(clear_patches, alpha, Cloud(bright=bright), 8, config.data).values)

    np.testing.assert_allclose(under(1), wanted.values, atol=1e-5)
    np.testing.assert_allclose(under(0), clear_patches.values, atol=1e-6)
    # Where neither meets the limit a thin cloud lies between the two; nowhere does it pass it.
    limit = 1.0 if name == 'mean_2sigma' else config.data.clip
    assert np.abs(under(0.7)).max() <= limit
    if bright == 1.5:
        np.testing.assert_allclose(under(0.7), 0.3 * clear_patches.values + 0.7 * wanted.values, atol=1e-5)


def heads(seed, tokens):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, tokens, 3, 4)).astype(np.float32))


def test_mass_is_the_mean_of_the_softmax(strict):
    query, key = heads(0, 5), heads(1, 6)
    near = jnp.arange(6)[None] < jnp.array([[2], [3]])
    groups = {'near': near, 'far': ~near & (jnp.arange(6) < 5)[None]}  # the last key holds nothing
    query_valid = jnp.arange(5)[None] < jnp.array([[5], [3]])
    shares = mass(query, key, query_valid, groups)
    for i in range(2):
        scores = np.einsum('nhe,mhe->hnm', query[i], key[i])[..., :5] / 2
        weight = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        expected = weight[:, : int(query_valid[i].sum()), : int(near[i].sum())].sum(-1).mean()
        np.testing.assert_allclose(shares.mass['near'][i], expected, rtol=1e-5)
        np.testing.assert_allclose(shares.tokens['near'][i], near[i].sum() / 5, rtol=1e-6)
        np.testing.assert_allclose(shares.mass['near'][i] + shares.mass['far'][i], 1, rtol=1e-6)
    shuffle = np.array([4, 0, 3, 5, 1, 2])
    moved = mass(query, key[:, shuffle], query_valid, {n: g[:, shuffle] for n, g in groups.items()})
    np.testing.assert_allclose(moved.mass['near'], shares.mass['near'], rtol=1e-5)


def test_nobody_who_attends_and_nothing_to_attend_to_have_no_mass(strict):
    query, key = heads(0, 5), heads(1, 6)
    groups = {'a': jnp.zeros((2, 6), bool).at[0].set(True), 'b': jnp.zeros((2, 6), bool)}
    shares = mass(query, key, jnp.ones((2, 5), bool).at[1].set(False), groups)
    np.testing.assert_array_equal(shares.there, [True, False])
    np.testing.assert_allclose(shares.mass['a'], [1, 0], rtol=1e-6)
    shares = mass(query, key, jnp.ones((2, 5), bool), groups)
    np.testing.assert_array_equal(shares.there, [True, False])


@functools.cache
def compiled(encoder, absent):
    model = resolve(tiny_model(fusion=cfg.Fusion(encoder, absent=absent)))
    graphdef = fusmae.graph(model)
    return weights(model, 0), jax.jit(lambda p, x: blocks(nnx.merge(graphdef, p), x))


def encoded_by(encoder, patches, change=lambda params: params, absent='self'):
    params, function = compiled(encoder, absent)
    return jax.device_get(function(change(params), patches))


def without_queries(params):
    """Queries that are 0 make every key weigh the same."""
    width = 32

    def clear(path, leaf):
        names = [entry.key for entry in path]
        if 'qkv' in names:
            return leaf.at[..., :width].set(0)
        return jnp.zeros_like(leaf) if 'query' in names else leaf

    return jax.tree_util.tree_map_with_path(clear, params)


@pytest.fixture(scope='module')
def patches():
    """Two records; the second lacks most of its radar image."""
    result = random_patches(tiny_model(), 2)
    result['s1'] = result['s1']._replace(valid=result['s1'].valid.at[1, 4:].set(False))
    return result


@pytest.mark.parametrize('encoder', ['none', 'xae'])
def test_shares_of_a_model_sum_to_one_and_equal_weights_give_those_of_the_tokens(encoder, patches):
    for blind in (False, True):
        by_block = encoded_by(encoder, patches, without_queries if blind else lambda params: params)
        assert len(by_block) == 3
        for number, groups in enumerate(by_block):
            fused = encoder == 'xae' and number == 0
            assert list(groups) == (['s1', 's2'] if fused else ['cls', 's1', 's2'])
            for shares in groups.values():
                np.testing.assert_allclose(sum(shares.mass.values()), 1, rtol=1e-5)
                if blind:
                    for name, share in shares.mass.items():
                        np.testing.assert_allclose(share, shares.tokens[name], rtol=1e-5)
            if fused:  # cross-attention: nothing stays with a sensor's own tokens
                np.testing.assert_array_equal(groups['s1'].mass['s1'], 0)
                np.testing.assert_array_equal(groups['s2'].tokens['s1'], 1)
            else:
                np.testing.assert_allclose(groups['cls'].tokens['s1'], [16 / 33, 4 / 21], rtol=1e-6)
                spread = np.abs(groups['s1'].mass['s2'] - groups['s1'].tokens['s2'])
                assert blind or spread.max() > 0.01


@pytest.mark.parametrize('encoder', ['none', 'xae'])
def test_maps_of_single_patches_add_up_to_the_shares_of_all(encoder, patches):
    params, _ = compiled(encoder, 'self')
    graphdef = fusmae.graph(resolve(tiny_model(fusion=cfg.Fusion(encoder))))
    function = jax.jit(lambda p, x, token: maps(nnx.merge(graphdef, p), x, token))
    each = jax.device_get([function(params, patches, jnp.int32(i)) for i in range(16)])
    shares = encoded_by(encoder, patches)
    assert {len(blocks) for blocks in each} == {len(shares)}
    for number, groups in enumerate(shares):
        for name in patches:
            valid = np.asarray(patches[name].valid.any(axis=2))
            for other in patches:
                share = np.stack([one[number][name][other] for one in each], axis=1)
                assert share.shape == (2, 16, 16)
                # A patch without a pixel is not looked at.
                assert (
                    share[~np.broadcast_to(patches[other].valid.any(axis=2)[:, None], share.shape)] == 0
                ).all()
                mean = [share[b][valid[b]].sum(axis=-1).mean() for b in range(2)]
                np.testing.assert_allclose(mean, groups[name].mass[other], rtol=1e-4, atol=1e-6)


def test_the_map_of_cross_attention_is_that_of_the_patches_it_names(patches):
    """Keys that move, as patches of the other sensor change places, move the map with them."""
    order = np.random.default_rng(0).permutation(16)
    valid = {name: patches[name].valid.any(axis=2) for name in ('s1', 's2')}
    stages = {'block1/query/s1': heads(0, 16), 'block1/key/s1': heads(1, 16)}
    moved = stages | {'block1/key/s1': stages['block1/key/s1'][:, order]}
    one, other = map(jax.jit(lambda x: _cross('s1', x, valid, 'self', jnp.int32(5))), (stages, moved))
    np.testing.assert_allclose(one['s2'][:, order], other['s2'], rtol=1e-5)
    assert (one['s1'] == 0).all() and np.ptp(one['s2'][0]) > 1e-4


def test_without_the_other_sensor_xae_attends_to_its_own(patches):
    gone = patches | {'s1': patches['s1']._replace(valid=jnp.zeros_like(patches['s1'].valid))}
    first = encoded_by('xae', gone)[0]
    np.testing.assert_array_equal(first['s1'].there, False)
    np.testing.assert_allclose(first['s2'].mass['s2'], 1, rtol=1e-6)
    image = encoded_by('xae', gone, absent='zero_image')[0]
    np.testing.assert_allclose(image['s2'].mass['s1'], 1, rtol=1e-6)


def test_tokens_that_are_alike_share_by_their_number():
    """Untrained weights, equal tokens: a key weighs as much as any other, whatever the query."""
    model = resolve(tiny_model('none', positions='learned'))
    zero = {n: p._replace(values=jnp.zeros_like(p.values)) for n, p in random_patches(model, 1).items()}

    params = weights(model, 0)
    encoder = params['encoder']
    for name in ('patch', 'cls', 'position_table'):
        encoder[name] = jax.tree.map(jnp.zeros_like, encoder[name])
    graphdef = fusmae.graph(model)
    by_block = jax.jit(lambda p, x: blocks(nnx.merge(graphdef, p), x))(params, zero)
    for groups in by_block:
        for shares in groups.values():
            np.testing.assert_allclose(shares.mass['s1'], 16 / 33, rtol=1e-5)
            np.testing.assert_allclose(shares.mass['cls'], 1 / 33, rtol=1e-5)


HEAD = CleanHead(epochs=30.0, batch_size=16, learning_rates=(1e-2, 3e-2), seeds=(0, 1), batch_norm=True)


@pytest.fixture(scope='module')
def run(tmp_path_factory, data):
    return checkpoint(tmp_path_factory.mktemp('run'), data, trained_on='test[:4]', depth=1)


def settings(path, run, **changes):
    values = {
        'data': Task(path=str(path), labels='labels'),
        'checkpoints': (run,),
        'names': ('XAE',),
        'head': HEAD,
        'intervals': Intervals('scene', 40),
        'attention_records': 20,
        'batch': 32,
    }
    return Reliance(**(values | changes))


@pytest.fixture(scope='module')
def written(data, run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('out')
    assert run_reliance(settings(data, run), workdir) == 0
    return workdir


def lines(file):
    with file.open() as stream:
        return list(csv.DictReader(stream))


def test_every_condition_and_class_has_a_line(written):
    rows = lines(written / report.TABLE)
    names = ['all sensors', 's1 only', 's2 only', 's1 shuffled', 's2 shuffled', 's2 clouded']
    assert list(dict.fromkeys(row['condition'] for row in rows)) == names
    assert {row['class'] for row in rows} == {*CLASSES, *report.PRECISION.overall.values()}
    assert len(rows) == 6 * 5 and {row['records'] for row in rows} == {str(SIZES['test'])}
    for row in rows:
        assert float(row['low']) <= float(row['ap']) <= float(row['high']) and row['clusters'] == '7'
        whole = next(r for r in rows if (r['condition'], r['class']) == (names[0], row['class']))
        assert float(row['change']) == pytest.approx(float(row['ap']) - float(whole['ap']), abs=2e-5)
    assert {float(row['change']) for row in rows[:5]} == {0.0}


def test_a_class_falls_where_its_own_sensor_is_gone(written):
    """In these data `rough` moves the radar bands alone, `bright` the optical ones."""
    ap = {(row['condition'], row['class']): float(row['ap']) for row in lines(written / 'reliance.csv')}
    assert ap['all sensors', 'bright'] > 0.75
    assert ap['all sensors', 'bright'] - ap['s2 shuffled', 'bright'] > 0.15
    assert abs(ap['all sensors', 'bright'] - ap['s1 shuffled', 'bright']) < 0.1


def test_attention_has_a_line_for_each_pair_and_the_protocol_is_told(written):
    rows = lines(written / report.ATTENTION)
    first = {(r['from'], r['to']): float(r['share']) for r in rows if r['block'] == '1'}
    assert first == {('s1', 's1'): 0, ('s1', 's2'): 1, ('s2', 's1'): 1, ('s2', 's2'): 0}
    for block, name in {(r['block'], r['from']) for r in rows}:
        of_sensor = [r for r in rows if (r['block'], r['from']) == (block, name)]
        assert sum(float(r['share']) for r in of_sensor) == pytest.approx(1, abs=1e-4)
        assert sum(float(r['share_of_tokens']) for r in of_sensor) == pytest.approx(1, abs=1e-4)
        assert all(float(r['low']) <= float(r['share']) <= float(r['high']) for r in of_sensor)
        assert {r['records'] for r in of_sensor} == {'20'}
    protocol = json.loads((written / 'settings-reliance.json').read_text())
    assert protocol['systems'][0]['leaks']['id'] == 4 and protocol['systems'][0]['absent'] == 'self'
    assert protocol['settings']['cloud']['cover'] == 0.7 and protocol['records']['test'] == SIZES['test']
    with Image.open(written / report.FIGURE) as picture:
        assert picture.size[0] > picture.size[1] > 200
        assert np.asarray(picture.convert('L')).std() > 20
    assert not list(written.glob('*.part'))


@pytest.mark.slow
def test_conditions_change_their_own_sensor_alone(data, run):
    """Features of the complete input and of one sensor are those of the linear probe, and as valid."""
    task = Task(path=str(data), labels='labels', test_split='val', val_split='test')
    config, encoder = settings(data, run, data=task), EncoderSettings(checkpoint=run, batch=32)
    system = open_system(run, encoder)
    fitted = fit(system.model, contracts.read(data), ('s1', 's2'), encoder, str(data))
    count = SIZES['val']
    nobody = Disturbed(config, system, fitted).features(np.arange(count))
    for name in ('s1 shuffled', 's2 shuffled'):  # each with its own image
        np.testing.assert_allclose(nobody[name].values, nobody['all sensors'].values, rtol=1e-4, atol=1e-5)
    for sensors, name in ((('s1', 's2'), 'all sensors'), (('s1',), 's1 only'), (('s2',), 's2 only')):
        probe = Extractor(system, config.data, sensors, ('mean_patch',), encoder)('val')['mean_patch']
        np.testing.assert_allclose(nobody[name].values, probe.values, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(nobody[name].valid, probe.valid)
    lost = {name: int((~of_condition.valid).sum()) for name, of_condition in nobody.items()}
    assert {name: count for name, count in lost.items() if count} == {'s1 only': 1}  # one has no radar
    assert np.abs(nobody['s2 clouded'].values - nobody['all sensors'].values).mean() > 0.01


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'checkpoints': ()}, 'give one working directory or more'),
        ({'head': CleanHead(feature='concat_per_sensor')}, "head.feature='concat_per_sensor'"),
        ({'names': ('a', 'b')}, 'one for each of 1 checkpoints'),
        ({'intervals': Intervals('')}, 'name an index field'),
        ({'data': Task(path='nowhere')}, 'does not exist'),
        (
            {'data': Task(path='nowhere', kind='segmentation')},
            "'segmentation': only labels and numbers",
        ),
    ],
)
def test_impossible_settings_are_one_message(data, run, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run_reliance(settings(data, run, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_file_in_configs_builds():
    config = from_dict(Reliance, load_config('configs/reliance.py', ["checkpoints=('runs/a', 'runs/b')"]))
    assert config.checkpoints == ('runs/a', 'runs/b') and config.head.feature == 'mean_patch'
