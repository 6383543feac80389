"""A data set from anywhere runs no code, whatever its files name, and names no file outside its folder."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import main
from data.doctor.open_set import open_set
from fusmae_jax.errors import InputError
from fusmae_jax.input import seen as leak
from fusmae_jax.input.builder import open_builder
from fusmae_jax.input.fractions import read_fraction
from fusmae_jax.input.source import Source, read_index

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
