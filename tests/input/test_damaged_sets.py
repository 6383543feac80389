"""Data sets from anywhere: damaged shards are one sentence from every command; hostile ones run no code."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import main
from fusmae_jax.errors import InputError
from fusmae_jax.input import pipeline, shards
from fusmae_jax.input import seen as leak
from fusmae_jax.input.builder import open_builder
from fusmae_jax.input.fractions import read_fraction
from fusmae_jax.input.source import Source, read_index
from fusmae_jax.shipped.data import stats_command
from fusmae_jax.shipped.data.doctor.command import run as doctor
from fusmae_jax.shipped.data.doctor.open_set import open_set
from tests.support.files import cut, flip
from tests.support.probe_fixtures import archive, checkpoint

SIZES = {'train': 24, 'val': 12, 'test': 12}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A labelled set; read-only."""
    return archive(tmp_path_factory.mktemp('data'), SIZES)


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    """An untrained checkpoint."""
    return checkpoint(tmp_path_factory.mktemp('run'), data, depth=2)


@pytest.fixture
def copy(data, tmp_path):
    return Path(shutil.copytree(data, tmp_path / 'set'))


def shard(folder, split='train'):
    return folder / f'probe-{split}.array_record-00000-of-00001'


def exchange(folder, one='val', other='test'):
    first, second = shard(folder, one), shard(folder, other)
    first.rename(folder / 'between')
    second.rename(first)
    (folder / 'between').rename(second)


def without_lengths(folder):
    """As a set whose report was not copied along: nothing tells how long shards are."""
    (folder / shards.REPORT).unlink()


DAMAGES = {
    'missing': (Path.unlink, 'this shard is missing'),
    'empty': (lambda file: file.write_bytes(b''), r'this shard has 0 bytes, [\d,]+ were written'),
    'cut': (cut, r'this shard has [\d,]+ bytes, [\d,]+ were written'),
    'a folder': (lambda file: (file.unlink(), file.mkdir()), 'this shard is a folder'),
}


@pytest.mark.parametrize('kind', DAMAGES)
def test_a_split_with_a_damaged_shard_does_not_open(kind, copy):
    damage, message = DAMAGES[kind]
    damage(shard(copy))
    with pytest.raises(InputError, match=rf'{shard(copy)}: {message}.*; copy it again'):
        Source(str(copy), 'train', ('s1',))
    assert len(Source(str(copy), 'val', ('s1',))) == SIZES['val']  # the others do


@pytest.mark.parametrize('kind', ['empty', 'cut'])
def test_without_the_report_a_cut_shard_is_found_when_it_is_read(kind, copy):
    without_lengths(copy)
    DAMAGES[kind][0](shard(copy))
    with pytest.raises(InputError, match=str(shard(copy))):
        list(map(Source(str(copy), 'train', ('s1',)).__getitem__, range(SIZES['train'])))


def test_a_flipped_bit_is_one_record_that_cannot_be_read(data, copy):
    flip(shard(copy))
    source, whole = (Source(str(folder), 'train', ('s1', 's2_10m')) for folder in (copy, data))
    bad = []
    for i in range(len(source)):
        try:
            np.testing.assert_array_equal(source[i]['s1'], whole[i]['s1'])
        except InputError:
            bad.append(i)
    assert len(bad) == 1
    # Through the threads of the loader, and through the processes of `stats`, it stays that sentence.
    batches, steps = pipeline.eval_batches(source, 8, range(8))
    with pytest.raises(InputError, match=f'{shard(copy)}: record {bad[0]} cannot'):
        list(pipeline.iterate(batches, 0, steps, threads=2, prefetch=2))
    with pytest.raises(InputError, match='cannot be read'):
        pickle.loads(pickle.dumps(source))[bad[0]]
    with pytest.raises(InputError, match=f'record {bad[0]} cannot be read'):
        stats_command.run(str(copy), 'train')


def test_exchanged_shards_are_told_by_the_names_of_records(data, copy):
    without_lengths(copy)
    exchange(copy)
    source = Source(str(copy), 'test', ('s1',))
    names = {split: read_index(copy, split, ['name'])['name'] for split in ('val', 'test')}
    there, here = (name[3].decode() for name in names.values())
    message = f"{shard(copy, 'test')}: record 3 is '{there}', by the index of the split it is '{here}'"
    with pytest.raises(InputError, match=message):
        source[3]
    with pytest.raises(InputError, match='shards or index were exchanged'):
        source.index(['labels'])  # without reading an image
    with pytest.raises(InputError, match='shards or index were exchanged'):
        leak.read_records(copy, 'test')
    # The right ones pass, in a part of splits too.
    part = Source(str(data), 'val[6:]+test', ('s1',)).index(['name'], ['nothing'])
    assert part['name'].tolist() == [*names['val'][6:], *names['test']]


def test_an_index_of_other_records_is_refused(copy):
    index = read_index(copy, 'val')
    np.savez(copy / 'index-val.npz', **{name: values[:-1] for name, values in index.items()})
    with pytest.raises(InputError, match=r'index-val\.npz: 11 records, the shards have 12'):
        Source(str(copy), 'val', ('s1',))[0]
    np.savez(copy / 'index-val.npz', **{name: values[::-1] for name, values in index.items()})
    with pytest.raises(InputError, match='shards or index were exchanged'):
        Source(str(copy), 'val', ('s1',))[0]
    np.savez(copy / 'index-val.npz', **(index | {'labels': index['labels'][:-1]}))
    with pytest.raises(InputError, match=r'index-val\.npz: fields of different lengths'):
        Source(str(copy), 'val', ('s1',)).index(['labels'])
    np.savez(copy / 'index-val.npz', **{name: values[::-1] for name, values in index.items()})
    with pytest.raises(InputError, match=r'fractions-val\.npz: drawn from other records'):
        read_fraction(copy, 'val', 0.1)


def test_a_set_without_an_index_can_still_be_read(copy):
    (copy / 'index-train.npz').unlink()
    source = Source(str(copy), 'train', ('s1',))
    assert len([source[i] for i in range(len(source))]) == SIZES['train']
    with pytest.raises(InputError, match=r'index-train\.npz: the index of the split is missing'):
        source.index(['labels'])


def command_lines(folder, run, out):
    data, work = f'--config.data.path={folder}', f'--workdir={out}'
    bands = ('--config.encoder.checkpoint=bands', '--config.encoder.baselines=()')
    start = ('--config.encoder.baselines=()', '--config.data.labels=labels')
    return {
        'stats': ('stats', f'--data={folder}', '--split=test'),
        'bench input': ('bench', 'input', f'--data={folder}', '--split=test'),
        'leaks': ('leaks', f'--checkpoint={run}', f'--data={folder}', '--split=test'),
        'pretrain': (
            'pretrain',
            '--config=configs/pretrain.py:native',
            data,
            work,
            '--config.data.train_split=test',
        ),
        'linear_probe': ('linear_probe', data, work, *bands, '--config.data.labels=labels'),
        'knn': ('knn', data, work, *bands, '--config.data.labels=labels'),
        'finetune': ('finetune', data, work, f'--config.encoder.checkpoint={run}', *start),
    }


# The first three compare every record that they read, as is tested above.
READERS = ('stats', 'bench input', 'pretrain')
JOINERS = ('leaks', 'linear_probe', 'knn', 'finetune')


@pytest.mark.parametrize(
    ('command', 'damage'),
    [
        *((command, damage) for command in READERS + JOINERS for damage in ('missing', 'cut')),
        *((command, 'exchange') for command in JOINERS),
    ],
)
def test_every_command_says_one_sentence(command, damage, copy, run, tmp_path, capsys):
    if damage == 'exchange':
        without_lengths(copy)
        exchange(copy)
    else:
        DAMAGES[damage][0](shard(copy, 'test'))
    assert main.main(['main.py', *command_lines(copy, run, tmp_path / 'out')[command]]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f'error: {shard(copy, "test")}: ') or damage == 'exchange'
    assert 'copy' in line and 'array_record' in line


@pytest.mark.parametrize('damage', [*DAMAGES, 'flip', 'exchange', 'report'])
def test_the_doctor_finds_it_and_looks_at_the_rest(damage, copy, capsys):
    if damage == 'exchange':
        exchange(copy)
    elif damage == 'report':
        report = json.loads((copy / shards.REPORT).read_text())
        report['splits']['val']['shard_digests'] = ['0' * 16]
        (copy / shards.REPORT).write_text(json.dumps(report))
    else:
        (flip if damage == 'flip' else DAMAGES[damage][0])(shard(copy, 'test'))
    assert doctor([str(copy)], as_json=True) == 4
    (whole,) = json.loads(capsys.readouterr().out)
    findings = {one['code']: one for one in whole['findings'] if one['code'].startswith('split.')}
    assert findings.keys() == {'split.fingerprint' if damage == 'report' else 'split.shard'}
    if damage not in ('report', 'exchange'):
        assert str(shard(copy, 'test')) in findings['split.shard']['evidence']
    assert whole['looked_at'] >= SIZES['train'] // 2


def test_an_untouched_set_has_no_such_finding(data, capsys):
    doctor([str(data)], as_json=True)
    (whole,) = json.loads(capsys.readouterr().out)
    assert not [one for one in whole['findings'] if one['code'].startswith('split.')]


MODULE = 'shared_set.evil'


@pytest.fixture
def shared(example_dataset, tmp_path, monkeypatch):
    """A set inside an importable folder that also holds a module, and a file that it would write."""
    mark = tmp_path / 'it_ran'
    folder = tmp_path / 'shared_set'
    data = Path(shutil.copytree(example_dataset, folder / '1.0.0'))
    (folder / 'evil.py').write_text(f'open({str(mark)!r}, "w").close()\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    yield data, mark
    assert not mark.exists() and MODULE not in sys.modules


def edit(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def of_a_field(values):
    values['featuresDict']['features']['s1']['pythonClassName'] = f'{MODULE}.X'


def of_the_whole(values):
    values['pythonClassName'] = f'{MODULE}.X'


def in_the_other_spelling(values):
    field = values['featuresDict']['features']['s1']
    del field['pythonClassName']
    field['python_class_name'] = f'{MODULE}.X'


def nested(values):
    features = values['featuresDict']['features']
    features['more'] = {
        'pythonClassName': values['pythonClassName'],
        'featuresDict': {'features': {'x': {'pythonClassName': f'{MODULE}.X', 'text': {}}}},
    }


def in_the_old_format(values):
    whole = dict(values)
    values.clear()
    values |= {'type': f'{MODULE}.X', 'content': whole}


def of_another_class_of_tfds(values):
    """Registered or not, a conversion writes none of it."""
    field = values['featuresDict']['features']['s1']
    field['pythonClassName'] = 'tensorflow_datasets.core.features.video_feature.Video'


def with_a_type_for_tensorflow(values):
    values['featuresDict']['features']['s1']['tensor']['dtype'] = 'qint8'


FEATURES = (
    of_a_field,
    of_the_whole,
    in_the_other_spelling,
    nested,
    in_the_old_format,
    of_another_class_of_tfds,
    with_a_type_for_tensorflow,
)


@pytest.mark.parametrize('change', FEATURES)
def test_nothing_that_features_name_is_loaded(change, shared):
    data, _ = shared
    edit(data / 'features.json', change)
    with pytest.raises(InputError, match=r'features\.json|TFDS cannot read this folder'):
        open_builder(data)
    for read in (
        lambda: Source(str(data), 'train', ()),
        lambda: open_set(data),
        lambda: leak.read_records(data, 'train'),
    ):
        with pytest.raises(InputError):
            read()
    assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize(
    'argv',
    [
        ('doctor', '{data}'),
        ('stats', '--data={data}'),
        ('bench', 'input', '--data={data}'),
        (
            'pretrain',
            '--config=configs/pretrain.py:native',
            '--config.data.path={data}',
            '--workdir={data}/../run',
        ),
        (
            'linear_probe',
            '--config.data.path={data}',
            '--config.encoder.checkpoint=bands',
            '--config.encoder.baselines=()',
            '--workdir={data}/../run',
        ),
    ],
    ids=lambda argv: argv[0],
)
def test_every_command_says_no_and_runs_nothing(argv, shared, capsys):
    data, _ = shared
    edit(data / 'features.json', of_a_field)
    assert main.main(['main.py', *(word.format(data=data) for word in argv)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{data / 'features.json'}: s1: pythonClassName: '{MODULE}.X'" in line


def template(values):
    values['splits'][0]['filepathTemplate'] = '../../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (template, 'filepathTemplate of train'),
        (lambda values: values['splits'][0].update(name='../../train'), 'no name of a split'),
        (lambda values: values.update(name='../../set'), 'name'),
        (lambda values: values.update(moduleName=f'{MODULE}'), 'moduleName'),
        (lambda values: values.update(module_name=f'{MODULE}'), 'moduleName'),
        (lambda values: values.update(fileFormat='tfrecord'), 'fileFormat'),
    ],
)
def test_files_outside_the_folder_and_other_formats_are_refused(change, words, shared):
    data, _ = shared
    edit(data / 'dataset_info.json', change)
    with pytest.raises(InputError, match=rf'dataset_info\.json.*{words}|{words}'):
        Source(str(data), 'train', ())


def test_aliases_and_names_of_splits_do_not_lead_out_of_the_folder(shared):
    data, _ = shared
    np.savez(data.parent / 'index-x.npz', s2_name=np.array([b'a']))
    edit(data / 'contract.json', lambda values: values['split_aliases'].update(all='../../index-x'))
    for read in (
        lambda: Source(str(data), 'all', ()),
        lambda: read_fraction(data, 'all', 0.1),
        lambda: read_index(data, '/../index-x'),
    ):
        with pytest.raises(InputError, match=r'no (name of a )?split'):
            read()


def test_an_index_with_pickles_is_damaged(shared):
    data, mark = shared

    class Opens:
        def __reduce__(self):
            return open, (str(mark), 'w')

    np.savez(data / 'index-train.npz', s2_name=np.array([Opens()], object))
    with pytest.raises(InputError, match=r'index-train\.npz: cannot be read'):
        Source(str(data), 'train', ())[0]


def test_what_a_conversion_writes_opens(example_dataset):
    assert open_builder(example_dataset).info.splits['train'].num_examples == 6
