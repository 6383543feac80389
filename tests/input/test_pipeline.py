"""Batches of one data set and of several: rows, order, grids, devices, and a whole run over two."""

import dataclasses
import json
import pickle

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.input import mixture, pipeline
from fusmae_jax.input.contract import Contract, Group
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.input.source import Source
from fusmae_jax.parallel.mesh import batch_sharding, check_batch, make_mesh
from fusmae_jax.run import loop as experiment
from fusmae_jax.shipped.data.synthetic import write
from fusmae_jax.train.setup import make_setup
from tests.support.helpers import CONTRACT, raw_batch
from tests.support.tiny import tiny_config

NUMBERED = [{'id': np.int32(i), 'image': np.full((2, 2), i, np.uint16)} for i in range(10)]


def ids(batches, start, stop):
    return [list(b['id']) for b in pipeline.iterate(batches, start, stop, threads=2, prefetch=2)]


def train(rows, seed=0, batch=4):
    return pipeline.train_batches(NUMBERED, seed, batch, rows)


def test_what_a_step_reads_is_a_function_of_seed_and_step():
    whole = ids(train(range(4)), 0, 20)
    assert ids(train(range(4)), 7, 20) == whole[7:]
    assert ids(train(range(4), seed=1), 0, 20) != whole
    flat = [i for batch in whole for i in batch]
    epochs = [flat[i : i + 10] for i in range(0, 80, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)  # batches run over epoch borders
    assert len({tuple(epoch) for epoch in epochs}) > 1  # and every epoch is shuffled anew


@pytest.mark.parametrize('threads', [1, 3, 8])
def test_any_number_of_readers_gives_the_same_order(threads):
    read = list(pipeline.iterate(train(range(4)), 5, 25, threads=threads, prefetch=threads))
    assert [list(batch['id']) for batch in read] == ids(train(range(4)), 5, 25)


def test_eight_processes_read_one_order():
    whole = ids(train(range(8), batch=8), 0, 9)
    alone = [ids(train((row,), batch=8), 0, 9) for row in range(8)]
    assert [[alone[row][step][0] for row in range(8)] for step in range(9)] == whole


@pytest.mark.parametrize('parts', [[(0, 1), (2, 3)], [(2, 0), (1, 3)], [(0,), (1,), (2,), (3,)]])
def test_processes_read_their_rows_of_the_same_global_batches(parts):
    whole = list(pipeline.iterate(train(range(4)), 3, 6, threads=1, prefetch=1))
    for rows in parts:
        mine = pipeline.iterate(train(rows), 3, 6, threads=1, prefetch=1)
        for batch, full in zip(mine, whole):
            for name in batch:
                np.testing.assert_array_equal(batch[name], full[name][list(rows)])


@pytest.mark.parametrize(
    ('batch', 'records'),
    [
        *((batch, records) for batch in (1, 2) for records in (1, 2, 10)),
        *((10, records) for records in (1, 10)),
        (16, 10),
        # Larger by far than the set, which is read many times over.
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((10, 2), (16, 1), (16, 2))),
    ],
)
def test_any_number_of_records_in_batches_of_any_size(records, batch):
    """One record, batches of one, of all records, and of more than there are."""
    source = NUMBERED[:records]
    batches = pipeline.train_batches(source, 0, batch, range(batch))
    read = [i for one in ids(batches, 0, 20) for i in one]
    assert all(
        sorted(read[k : k + records]) == list(range(records)) for k in range(0, 20 * batch - records, records)
    )
    whole, steps = pipeline.eval_batches(source, batch, range(batch))
    assert [i for one in ids(whole, 0, steps) for i in one][:records] == list(range(records))


def test_the_order_is_that_of_runs_already_begun():
    """Steps of another version must read the same records, or a resumed run would see some of them twice."""
    source = [{'id': np.int32(i)} for i in range(37)]
    batches = pipeline.train_batches(source, 3, 4, range(4))
    read = [batches[step]['id'].tolist() for step in (0, 1, 9)]
    assert read == [[29, 30, 31, 7], [26, 3, 18, 19], [8, 36, 24, 15]]


def test_a_batch_holds_its_records_in_their_types():
    """Texts of any length, numbers, and images whose bytes begin anywhere."""
    stored = np.arange(19, dtype=np.uint8).tobytes()
    image = np.frombuffer(stored, np.float32, 4, 3).reshape(2, 2)
    records = [{'name': np.asarray(b'x' * n), 'flag': np.asarray(n), 'image': image + n} for n in (1, 5, 3)]
    records[0]['image'] = image
    batches, _ = pipeline.eval_batches(records, 3, range(3))
    batch = batches[0]
    assert batch['name'].tolist() == [b'x', b'xxxxx', b'xxx'] and batch['flag'].tolist() == [1, 5, 3]
    assert batch['image'].dtype == np.float32 and batch['image'].flags.writeable
    np.testing.assert_array_equal(batch['image'][0], image)
    other = [records[0], records[1] | {'image': image[:1]}]
    with pytest.raises(ValueError, match='image: '):
        pipeline.eval_batches(other, 2, range(2))[0][0]


def test_positions_count_over_all_steps():
    batches = list(pipeline.iterate(train((1, 3)), 5, 7, threads=1, prefetch=1))
    assert [list(b[pipeline.POSITION]) for b in batches] == [[21, 23], [25, 27]]
    assert batches[0][pipeline.POSITION].dtype == np.uint32


def test_evaluation_reads_everything_once_and_marks_repeats():
    batches, steps = pipeline.eval_batches(NUMBERED, 4, range(4))
    assert steps == 3
    seen = list(pipeline.iterate(batches, 0, steps, threads=1, prefetch=1))
    counted = [i for b in seen for i, p in zip(b['id'], b[pipeline.POSITION]) if p < len(NUMBERED)]
    assert counted == list(range(10))


def test_rows_follow_the_sharding_and_arrays_arrive_where_they_belong():
    mesh = make_mesh(cfg.Parallel(4, 2))
    sharding = batch_sharding(mesh)
    assert pipeline.local_rows(sharding, 16) == list(range(16))
    batch = {'image': np.arange(16.0), pipeline.POSITION: np.arange(16, dtype=np.uint32)}
    ready = pipeline.to_devices(batch, sharding, {'': 16}, ['image'])
    assert ready['image'].sharding == NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
    np.testing.assert_array_equal(jax.device_get(ready['image']), np.arange(16.0))


def test_batches_and_meshes_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match='batch_size=12 cannot be split over 8 devices'):
        check_batch(12, make_mesh(cfg.Parallel()))
    with pytest.raises(InputError, match='data=3 x fsdp=2'):
        make_mesh(cfg.Parallel(3, 2))
    assert make_mesh(cfg.Parallel(2, -1)).shape == {'data': 2, 'fsdp': 4}


def test_a_source_reads_records_of_named_splits_and_pickles_small(example_dataset, tmp_path):
    source = Source(str(example_dataset), 'train', ('s1', 's2_60m'))
    record = source[2]
    assert len(source) == 6
    assert record['s1'].shape == (120, 120, 2) and record['s2_60m'].dtype == np.uint16
    assert len(pickle.dumps(source)) < 20_000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[2]['s1'], record['s1'])
    with pytest.raises(InputError, match="no split 'trian'; did you mean 'train'"):
        Source(str(example_dataset), 'trian', ())
    with pytest.raises(InputError, match='is empty'):
        Source(str(example_dataset), 'train[:0]', ())
    with pytest.raises(InputError, match=r'contract\.json'):
        Source(str(tmp_path), 'train', ())


S2 = tiny_config().model.modalities['s2'].bands
# Another archive: one coarse grid for each sensor, B10 between the bands, other integer types, dB x 100.
OTHER = Contract(
    dataset='other',
    groups={
        's1': Group('s1', ('VH', 'VV'), (64, 64), 'int16', 'dB', scale=0.01, nodata=(-32768.0,)),
        's2': Group('s2', (*S2[:10], 'B10', *S2[10:]), (64, 64), 'int16', 'DN', nodata=(0.0,)),
    },
)
PAIR = Contract(dataset='a mixture', parts={'a': CONTRACT, 'b': OTHER})


def parts(**weights):
    return cfg.Data(mixture={name: cfg.MixturePart(path=name, weight=w) for name, w in weights.items()})


def test_rows_follow_the_weights_and_fill_the_batch():
    assert mixture.row_counts(parts(a=3.0, b=1.0), 16) == {'a/': 12, 'b/': 4}
    assert mixture.row_counts(parts(b=1.0, a=1.0, c=1.0), 16) == {'a/': 6, 'b/': 5, 'c/': 5}
    # Shares of 4.4, 2 and 1.6 rows: the row that is left goes to the largest remainder.
    assert mixture.row_counts(parts(a=5.5, b=2.5, c=2.0), 8) == {'a/': 4, 'b/': 2, 'c/': 2}
    assert mixture.row_counts(cfg.Data(path='x'), 16) == {'': 16}
    with pytest.raises(InputError, match="6 rows of 'b', which 5 devices"):
        mixture.check_rows({'a/': 5, 'b/': 6}, 5)
    with pytest.raises(InputError, match="0 rows of 'b'"):
        mixture.check_rows({'a/': 16, 'b/': 0}, 4)


def batch(rows, seed=0):
    """What the pipeline delivers for PAIR."""
    rng = np.random.default_rng(seed)
    first = {f'a/{name}': x for name, x in raw_batch(rows['a/'], seed).items()}
    n = rows['b/']
    second = {
        'b/position': np.arange(rows['a/'], rows['a/'] + n, dtype=np.uint32),
        'b/s1': rng.normal(-1300, 500, (n, 64, 64, 2)).astype(np.int16),
        'b/s2': rng.integers(1, 4000, (n, 64, 64, 13)).astype(np.int16),
    }
    return first | second


def losses(mesh, steps=3):
    config = tiny_config(parallel=cfg.Parallel(*mesh), data=parts(a=1.0, b=1.0), train=cfg.Train(16, steps=9))
    setup = make_setup(config, PAIR, 100, jax.devices()[: mesh[0] * mesh[1]])
    lowered = setup.lower()
    compiled, state, each = lowered.compile(), setup.init_state(), []
    for step in range(steps):
        ready = jax.device_put(batch({'a/': 8, 'b/': 8}, step), batch_sharding(setup.mesh))
        state, metrics = compiled(state, ready)
        each.append(float(metrics['loss']))
    return each, lowered.as_text()


@pytest.mark.slow
def test_the_loss_is_the_same_on_any_number_of_devices_without_a_scatter():
    one, text = losses((1, 1))
    many, _ = losses((4, 2))
    np.testing.assert_allclose(many, one, rtol=1e-5)
    assert 'stablehlo.scatter' not in text and len(set(one)) == 3


def test_a_set_is_prepared_by_its_own_contract():
    """The rows of a mixture are those of its sets alone: joined, nothing else."""
    from fusmae_jax.train.objective import masked_inputs

    data = parts(a=1.0, b=1.0)
    config = make_setup(tiny_config(data=data, train=cfg.Train(16, steps=9)), PAIR, 100).config
    both = batch({'a/': 8, 'b/': 8})
    key = jax.random.key(3)
    joined = jax.jit(masked_inputs(config, PAIR, config.augment))(both, key)
    at = 0
    for prefix, contract in (('a/', CONTRACT), ('b/', OTHER)):
        of_set = {name.removeprefix(prefix): x for name, x in both.items() if name.startswith(prefix)}
        alone = jax.jit(masked_inputs(config, contract, config.augment))(of_set, key)
        for name in ('s1', 's2'):
            np.testing.assert_allclose(
                joined.patches[name].values[at : at + 8], alone.patches[name].values, atol=1e-5
            )
            np.testing.assert_array_equal(joined.order[name][at : at + 8], alone.order[name])
        at += 8


RECORDS = {
    'a/': [{'id': np.int32(i)} for i in range(10)],
    'b/': [{'id': np.int32(100 + i)} for i in range(7)],
}


def made(rows, sources=RECORDS):
    result = mixture.Mixture.__new__(mixture.Mixture)
    result.sources, result.rows = sources, rows
    return result


def test_order_positions_and_resumption():
    sharding = batch_sharding(make_mesh(cfg.Parallel(), jax.devices()[:1]))
    batches = made({'a/': 4, 'b/': 2}).batches(0, sharding)
    whole = list(pipeline.iterate(batches, 0, 20, threads=2, prefetch=2))
    for step, one in enumerate(whole):
        at = np.concatenate([one[f'a/{POSITION}'], one[f'b/{POSITION}']])
        np.testing.assert_array_equal(at, np.arange(6) + 6 * step)
    later = list(pipeline.iterate(batches, 13, 20, threads=1, prefetch=1))
    for one, other in zip(whole[13:], later, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    seen = [int(i) for one in whole for i in one['b/id']]
    assert all(sorted(seen[k : k + 7]) == list(range(100, 107)) for k in (0, 7, 14, 21))
    # What stands beside a set changes nothing of its order.
    beside = made({'b/': 2, 'z/': 3}, {'b/': RECORDS['b/'], 'z/': RECORDS['a/']}).batches(0, sharding)
    assert [list(beside[k]['b/id']) for k in range(9)] == [list(batches[k]['b/id']) for k in range(9)]


def test_sets_of_one_length_are_shuffled_apart():
    """One order for both would pair the records of two sets, the same ones in every epoch's batches."""
    sharding = batch_sharding(make_mesh(cfg.Parallel(), jax.devices()[:1]))
    batches = made({'a/': 5, 'b/': 5}, {'a/': RECORDS['a/'], 'b/': RECORDS['a/']}).batches(0, sharding)
    first, second = ([int(i) for k in range(2) for i in batches[k][f'{name}/id']] for name in 'ab')
    assert first != second and sorted(first) == sorted(second) == list(range(10))


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    return [write(tmp_path_factory.mktemp(name), 16, seed=i) for i, name in enumerate('ab')]


@pytest.mark.slow
def test_a_run_over_two_sets(sets, tmp_path):
    def config(steps):
        two = {
            name: cfg.MixturePart(path=path, train_split='train[:12]', val_split='train[12:]', weight=1.0)
            for name, path in zip('ab', sets)
        }
        return tiny_config(
            data=cfg.Data(mixture=two, threads=1),
            train=cfg.Train(batch_size=16, steps=steps),
            optimizer=cfg.Optimizer(learning_rate=1e-3, warmup_steps=1),
            checkpoint=cfg.Checkpoint(every_steps=2),
            log=cfg.Log(every_steps=1, images_every_steps=4, num_images=2, eval_every_steps=2),
        )

    assert experiment.pretrain(config(4), tmp_path) == 0
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    held = next(row for row in rows if 'val/loss' in row)
    assert held['val/loss'] == pytest.approx((held['val/a/loss'] + held['val/b/loss']) / 2)
    assert held['val/a/loss'] != held['val/b/loss']
    moved = config(4)
    moved = dataclasses.replace(
        moved,
        data=dataclasses.replace(moved.data, mixture=moved.data.mixture | {'b': cfg.MixturePart(sets[0])}),
    )
    with pytest.raises(InputError, match=r'data\.mixture\.b\.'):
        experiment.pretrain(moved, tmp_path)
