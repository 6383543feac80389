import pickle

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fusmae_jax.config import run as cfg
from fusmae_jax.errors import InputError
from fusmae_jax.input import pipeline
from fusmae_jax.input.source import Source
from fusmae_jax.parallel.mesh import batch_sharding, check_batch, make_mesh

RECORDS = [{'id': np.int32(i), 'image': np.full((2, 2), i, np.uint16)} for i in range(10)]


def ids(batches, start, stop):
    return [list(b['id']) for b in pipeline.iterate(batches, start, stop, threads=2, prefetch=2)]


def train(rows, seed=0, batch=4):
    return pipeline.train_batches(RECORDS, seed, batch, rows)


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


@pytest.mark.parametrize('records', [1, 2, 10])
@pytest.mark.parametrize('batch', [1, 2, 10, 16])
def test_any_number_of_records_in_batches_of_any_size(records, batch):
    """One record, batches of one, of all records, and of more than there are."""
    source = RECORDS[:records]
    batches = pipeline.train_batches(source, 0, batch, range(batch))
    read = [i for one in ids(batches, 0, 20) for i in one]
    assert all(
        sorted(read[k : k + records]) == list(range(records)) for k in range(0, 20 * batch - records, records)
    )
    whole, steps = pipeline.eval_batches(source, batch, range(batch))
    assert [i for one in ids(whole, 0, steps) for i in one][:records] == list(range(records))


def test_positions_count_over_all_steps():
    batches = list(pipeline.iterate(train((1, 3)), 5, 7, threads=1, prefetch=1))
    assert [list(b[pipeline.POSITION]) for b in batches] == [[21, 23], [25, 27]]
    assert batches[0][pipeline.POSITION].dtype == np.uint32


def test_evaluation_reads_everything_once_and_marks_repeats():
    batches, steps = pipeline.eval_batches(RECORDS, 4, range(4))
    assert steps == 3
    seen = list(pipeline.iterate(batches, 0, steps, threads=1, prefetch=1))
    counted = [i for b in seen for i, p in zip(b['id'], b[pipeline.POSITION]) if p < len(RECORDS)]
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
