"""Label fractions: sizes, nesting, shares of classes, and that nothing but names and labels decides them."""

import collections
import hashlib
import time

import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import fractions
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.fractions import read_fraction
from fusmae_jax.input.source import INDEX
from fusmae_jax.shipped.data import fractions as drawn
from fusmae_jax.shipped.data.fractions import lists, stratify, write_lists

DRAWS = ('random', 'stratified')
RECORDS = 5037


def land_cover(records, classes=19, seed=0):
    """Multi-hot labels that occur together, from classes of many records to some of few."""
    rng = np.random.default_rng(seed)
    regions = rng.normal(0, 1.2, (12, classes)) + np.linspace(0.2, -3.2, classes)
    scores = regions[rng.integers(12, size=records)] + rng.logistic(0, 0.7, (records, classes))
    return (scores > 0.8).astype(np.uint8)


def make_index(records=RECORDS, seed=0):
    names = np.array([f'S2A_MSIL2A_patch_{i}' for i in range(records)], np.bytes_)
    return {'s2_name': names, 'labels': land_cover(records, seed=seed)}


@pytest.fixture(scope='module')
def index():
    return make_index()


@pytest.fixture(scope='module')
def subsets(index):
    return lists(index, 's2_name', 'labels')


def test_five_lists_of_each_kind_with_exact_sizes(subsets):
    expected = {f'{draw}_{percent}_{seed}' for draw in DRAWS for percent in (1, 10) for seed in range(5)}
    assert subsets.keys() == expected | {'dino_mm'}
    for name, positions in subsets.items():
        assert positions.dtype == np.int32
        if name != 'dino_mm':
            percent = int(name.split('_')[1])
            assert len(positions) == RECORDS * percent // 100
            assert (np.diff(positions) > 0).all()
            assert positions[0] >= 0 and positions[-1] < RECORDS


def test_fractions_are_rounded_down_as_in_the_literature():
    budgets = {269_695: 2696, 354_196: 3541, 311_667: 3116}
    assert {records: drawn.budget(records, 1) for records in budgets} == budgets
    assert drawn.budget(354_196, 10) == 35_419


@pytest.mark.parametrize('draw', DRAWS)
def test_one_percent_lies_in_ten_percent_and_seeds_differ(subsets, draw):
    for seed in range(5):
        assert set(subsets[f'{draw}_1_{seed}']) < set(subsets[f'{draw}_10_{seed}'])
    tens = [set(subsets[f'{draw}_10_{seed}']) for seed in range(5)]
    # Independent draws of a tenth share a tenth.
    shared = len(tens[0] & tens[1]) / len(tens[0])
    assert 0.03 < shared < 0.2
    assert len(set.union(*tens)) > 1.5 * len(tens[0])


def test_the_random_draw_can_be_computed_from_the_names_alone(index, subsets):
    names = index['s2_name'].tolist()
    ranked = sorted(names, key=lambda n: hashlib.blake2b(b'random/3/' + n, digest_size=8).digest())
    assert {names[i] for i in subsets['random_10_3']} == set(ranked[:503])
    assert {names[i] for i in subsets['random_1_3']} == set(ranked[:50])


def test_the_order_of_the_records_does_not_matter(index, subsets):
    shuffle = np.random.default_rng(9).permutation(RECORDS)
    other = lists({name: values[shuffle] for name, values in index.items()}, 's2_name', 'labels')
    for name in subsets.keys() - {'dino_mm'}:
        assert set(shuffle[other[name]]) == set(subsets[name].tolist()), name


def test_a_record_that_joins_moves_few_others():
    before = lists({'k': np.array([f'{i}' for i in range(1000)], np.bytes_)}, 'k')['random_10_0']
    after = lists({'k': np.array([f'{i}' for i in range(1010)], np.bytes_)}, 'k')['random_10_0']
    assert len(set(before) & set(after)) >= 98


@pytest.mark.parametrize('records', [RECORDS, 12_000])
def test_stratified_keeps_the_share_of_every_class(records):
    labels = land_cover(records, seed=4)
    made = lists({'k': np.arange(records).astype('S6'), 'l': labels}, 'k', 'l')
    total = labels.sum(axis=0)
    assert total.min() < 0.01 * records and total.max() > 0.2 * records
    off = {draw: [] for draw in DRAWS}
    for draw in DRAWS:
        for percent in (10, 1):
            wanted = total * percent / 100
            for seed in range(5):
                chosen = labels[made[f'{draw}_{percent}_{seed}']].sum(axis=0)
                off[draw].append(np.abs(chosen - wanted).max())
                if draw == 'stratified':
                    assert (np.abs(chosen - wanted) <= 1.6).all()
                    assert (chosen[wanted >= 1.5] > 0).all(), 'a class was lost'
    assert np.mean(off['stratified']) < 0.3 * np.mean(off['random'])


def test_a_worked_example_of_iterative_stratification():
    # Half of four records, two with the rare class: one of these goes inside. Of the other class inside
    # then lacks one more than what the first pass gave it.
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
    assert stratify(labels, 2).tolist() == [0, 2]
    # The record with both classes is dealt with first, as class 0 is the rarer; then class 1 needs no more.
    labels = np.array([[0, 1], [1, 1]], bool)
    assert stratify(labels, 1).tolist() == [1]


@pytest.mark.parametrize('size', [0, 1, 7, 30])
def test_records_without_a_label_and_extreme_sizes(size):
    labels = np.zeros((30, 3), bool)
    labels[:4, 0] = True
    chosen = stratify(labels, size)
    assert len(chosen) == size == len(set(chosen.tolist()))
    assert abs(labels[chosen, 0].sum() - 4 * size / 30) <= 1


def test_without_labels_there_is_no_stratified_list(index):
    assert not [name for name in lists(index, 's2_name') if name.startswith('stratified')]
    assert drawn.label_field({}) is None
    assert drawn.label_field({'labels': ('a', 'b', 'c'), 'labels_2': ('a', 'b')}) == 'labels_2'


def test_dino_mm_draws_with_replacement_as_its_code_does(subsets):
    # On the 300,000 records that its loader counts, the positions are those of its own call.
    ours = drawn.dino_mm(300_000)
    theirs = np.random.default_rng(42).choice(range(300_000), int(0.01 * 300_000))
    np.testing.assert_array_equal(ours, theirs)
    assert len(ours) == 3000 > len(set(ours.tolist()))
    repeats = collections.Counter(subsets['dino_mm'].tolist())
    assert len(subsets['dino_mm']) == 3000 and max(repeats.values()) > 1 and max(repeats) < RECORDS


def test_bad_indexes():
    names = np.array([b'a', b'b', b'a'])
    with pytest.raises(InputError, match='different names'):
        lists({'k': names}, 'k')
    for labels in (np.zeros(3, np.uint8), np.full((3, 2), 2, np.uint8), np.zeros((2, 2), np.uint8)):
        with pytest.raises(InputError, match='multi-hot'):
            lists({'k': np.array([b'a', b'b', b'c']), 'l': labels}, 'k', 'l')


def write_dataset(folder, index, aliases=None):
    folder.mkdir(parents=True, exist_ok=True)
    made = Contract(key='s2_name', split_aliases=aliases or {})
    (folder / contracts.FILE).write_text(made.to_json())
    np.savez_compressed(folder / INDEX.format(split='train'), **index)
    write_lists(folder, 'train', 's2_name', 'labels' if 'labels' in index else None)
    return folder


@pytest.fixture(scope='module')
def dataset(index, tmp_path_factory):
    aliases = {'everything': 'train', 'both': 'train+rest'}
    return write_dataset(tmp_path_factory.mktemp('fractions') / 'set', index, aliases)


def test_what_was_stored_is_read(dataset, subsets):
    for draw in DRAWS:
        for percent in (1, 10):
            for seed in range(5):
                read = read_fraction(dataset, 'train', percent / 100, draw, seed)
                np.testing.assert_array_equal(read, subsets[f'{draw}_{percent}_{seed}'])
    np.testing.assert_array_equal(read_fraction(dataset, 'train', 0.01, 'dino_mm', 42), subsets['dino_mm'])
    np.testing.assert_array_equal(read_fraction(dataset, 'everything', 0.1), subsets['random_10_0'])
    for draw in DRAWS:
        np.testing.assert_array_equal(read_fraction(dataset, 'train', 1.0, draw), np.arange(RECORDS))


def test_the_file_is_the_same_each_time(dataset, index, tmp_path):
    name = fractions.FILE.format(split='train')
    again = write_dataset(tmp_path / 'again', index)
    assert (again / name).read_bytes() == (dataset / name).read_bytes()


@pytest.mark.parametrize(
    ('request_', 'message'),
    [
        ({'fraction': 0.05}, '0.05 is not stored; there are 0.01, 0.1 and 1'),
        ({'fraction': 10}, '10 is not stored'),
        ({'draw': 'stratifed'}, "did you mean 'stratified'"),
        ({'seed': 5}, 'seed=5: the stored draws have the seeds 0 to 4'),
        ({'split': 'both'}, "whole splits, such as train; 'train\\+rest' is none"),
        ({'split': 'train[:50%]'}, 'whole splits'),
        ({'split': 'test'}, 'index of the split is missing'),
        ({'draw': 'dino_mm', 'seed': 0}, 'seed=42'),
        ({'draw': 'dino_mm', 'fraction': 0.1, 'seed': 42}, 'fraction=0.01'),
    ],
)
def test_requests_that_cannot_be_met(dataset, request_, message):
    with pytest.raises(InputError, match=message):
        read_fraction(**{'path': dataset, 'split': 'train', 'fraction': 0.1, **request_})


def test_damaged_and_foreign_files(dataset, index, tmp_path):
    name = fractions.FILE.format(split='train')
    folder = write_dataset(tmp_path / 'other', make_index(400))
    few = write_dataset(tmp_path / 'few', make_index(60))
    with pytest.raises(InputError, match='1% of 60 records is none'):
        read_fraction(few, 'train', 0.01)
    (folder / name).write_bytes((dataset / name).read_bytes())
    with pytest.raises(InputError, match='other records than those of the index'):
        read_fraction(folder, 'train', 0.1)
    (folder / name).write_bytes((dataset / name).read_bytes()[:1000])
    with pytest.raises(InputError, match='cannot be read'):
        read_fraction(folder, 'train', 0.1)
    (folder / name).unlink()
    with pytest.raises(InputError, match=r'fractions-train.npz: .* missing'):
        read_fraction(folder, 'train', 0.1)
    plain = write_dataset(tmp_path / 'plain', {'s2_name': index['s2_name']})
    with pytest.raises(InputError, match="no labels; use draw='random'"):
        read_fraction(plain, 'train', 0.1, 'stratified')


def test_the_same_records_in_another_order_are_noticed(index, tmp_path):
    folder = write_dataset(tmp_path / 'set', index)
    np.savez_compressed(folder / INDEX.format(split='train'), **{k: v[::-1] for k, v in index.items()})
    with pytest.raises(InputError, match='other records'):
        read_fraction(folder, 'train', 0.1)


@pytest.mark.slow
def test_the_whole_archive_takes_less_than_two_minutes():
    names = np.array([f'S2A_MSIL2A_20170613T101031_{i}' for i in range(269_695)], np.bytes_)
    index = {'k': names, 'l': land_cover(269_695)}
    begin = time.perf_counter()
    made = lists(index, 'k', 'l')
    assert time.perf_counter() - begin < 120
    assert len(made['stratified_1_4']) == 2696
