"""One safetensors file, and the hub that holds it."""

import dataclasses
import importlib.machinery
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import fusmae_jax
from fusmae_jax.config import run as cfg
from fusmae_jax.encoders import hub
from fusmae_jax.encoders.inputs import describe
from fusmae_jax.encoders.load import load_one, records_seen
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.encoders.systems import content, fingerprint
from fusmae_jax.errors import InputError
from fusmae_jax.export import card, command, parity
from fusmae_jax.export.source import Source, _model
from fusmae_jax.input import seen
from tests.support.dino_helpers import CONTRACT
from tests.support.helpers import weights
from tests.support.tiny import smallest_model, tiny_config

pytestmark = pytest.mark.usefixtures('one_device')
ADDRESS = 'hf://ground/truth'


@pytest.fixture(scope='module')
def source():
    config = tiny_config(model=dataclasses.replace(smallest_model(), norm='xla'))
    model = Pretrained(config, CONTRACT, weights(config.model), 'float32')
    return Source(model, 'bfloat16', _model(model), '# Card\n\n## Use\n', seen.to_bytes(seen.nothing()))


@pytest.fixture(scope='module')
def file(source, tmp_path_factory):
    path = tmp_path_factory.mktemp('export') / 'encoder.safetensors'
    command._export(source, 'safetensors', path, None)
    return path


def test_the_file_is_the_encoder(source, file):
    model = fusmae_jax.load(file)
    images = {'s1': {'s1': np.random.default_rng(0).normal(-13, 5, (2, 24, 24, 2))}}
    first, second = (
        m.encode(images, units={'s1': 'dB'}, accept=('resolution',)) for m in (source.model, model)
    )
    np.testing.assert_array_equal(first.pooled, second.pooled)
    np.testing.assert_array_equal(first.tokens['s1'], second.tokens['s1'])
    assert model.config == source.model.config and model.contract == CONTRACT
    assert fingerprint(model) == fingerprint(source.model)
    assert len(records_seen(file).names.id) == 0
    assert len(content(str(file))) == 16


def test_its_header_says_how_to_feed_it(source, file):
    with safetensors.safe_open(file, 'np') as opened:
        about = opened.metadata()
    inputs = json.loads(about['inputs'])
    assert inputs['inputs']['s1'] == {
        'sensor': 's1',
        'shape': ['b', 24, 24, 2],
        'dtype': 'float32',
        'bands': ['VV', 'VH'],
        'unit': 'dB',
        'metres_a_pixel': 10.0,
    }
    assert inputs == json.loads(json.dumps(describe(source.model)))
    assert json.loads(about['card'])['parameters'] > 1000
    assert about['dtype'] == 'bfloat16'  # of an accelerator; a CPU takes float32
    assert fusmae_jax.load(file).dtype == 'float32'


def test_the_report_beside_it(file):
    report = json.loads((file.parent / f'{file.name}.parity.json').read_text())
    assert report['ok'] and report['max_abs'] == 0 and report['inputs'] == 'generated images'
    assert {row['case'] for row in report['rows']} == {'whole', 'one image', 'parts missing'}


def test_what_is_no_such_file_is_one_sentence(file, tmp_path):
    whole = file.read_bytes()
    (tmp_path / 'cut.safetensors').write_bytes(whole[:-100])
    (tmp_path / 'text.safetensors').write_bytes(b'hello')
    safetensors.numpy.save_file({'a': np.zeros(3)}, tmp_path / 'foreign.safetensors')
    tensors = safetensors.numpy.load(whole)
    with safetensors.safe_open(file, 'np') as opened:
        about = opened.metadata()
    other = tensors | {'encoder/cls': np.zeros(3, np.float32)}
    safetensors.numpy.save_file(other, tmp_path / 'shapes.safetensors', about)
    safetensors.numpy.save_file(tensors, tmp_path / 'header.safetensors', about | {'config': '{'})
    for name, part in {
        'cut': 'not a whole safetensors file',
        'text': 'not a whole safetensors file',
        'foreign': "format '', not 'fusmae_jax encoder 1'",
        'shapes': r'encoder/cls: the file has \(3,\), the settings say \(32,\)',
        'header': 'its header is not what an export writes',
        'none': 'no such file',
    }.items():
        with pytest.raises(InputError, match=part):
            fusmae_jax.load(tmp_path / f'{name}.safetensors')
    with pytest.raises(InputError, match='neither steps nor an average'):
        load_one(file, 3)


@pytest.mark.parametrize(
    ('address', 'name', 'revision'),
    [
        ('hf://a/b', 'a/b', ''),
        ('hf://a-1/b.c@v1.0', 'a-1/b.c', 'v1.0'),
        ('hf://a/b@refs/pr/1', 'a/b', 'refs/pr/1'),
    ],
)
def test_an_address(address, name, revision):
    assert hub.parse(address) == (name, revision)


@pytest.mark.parametrize('address', ['hf://a', 'hf://a/b/c', 'hf://a/b@', 'hf://'])
def test_what_is_no_address(address):
    with pytest.raises(InputError, match='not an address on the hub'):
        hub.parse(address)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(InputError, match=r'pip install .*\[export\]'):
        fusmae_jax.load(ADDRESS)


@pytest.fixture
def library(monkeypatch, file):
    """A stand-in for huggingface_hub that keeps what it is asked."""
    asked = []

    class Api:
        def create_repo(self, name, exist_ok):
            asked.append(('create', name, exist_ok))

        def upload_folder(self, repo_id, folder_path, revision, commit_message):
            names = sorted(os.listdir(folder_path))
            readme = (Path(folder_path) / 'README.md').read_text()
            asked.append(('upload', repo_id, revision, names, readme))
            return 'https://hub/commit/1'

    def download(name, what, revision):
        asked.append(('download', name, what, revision))
        if name != 'ground/truth':
            raise OSError('404: no such repository\nmore')
        return str(file)

    module = types.ModuleType('huggingface_hub')
    module.__spec__ = importlib.machinery.ModuleSpec('huggingface_hub', None)
    module.HfApi, module.hf_hub_download = Api, download
    monkeypatch.setitem(sys.modules, 'huggingface_hub', module)
    return asked


def test_an_address_is_loaded_and_an_error_is_one_sentence(source, library):
    model = fusmae_jax.load(f'{ADDRESS}@v2')
    assert library == [('download', 'ground/truth', 'model.safetensors', 'v2')]
    assert fingerprint(model) == fingerprint(source.model)
    with pytest.raises(
        InputError, match=r'hf://no/where: .*could not be had \(404: no such repository\); check'
    ):
        fusmae_jax.load('hf://no/where')


def test_a_push(source, file, library, capsys):
    assert command.run_push(str(file), 'hf://ground/truth@draft', lambda: None) == 0
    created, uploaded = library
    assert created == ('create', 'ground/truth', True)
    assert uploaded[1:4] == (
        'ground/truth',
        'draft',
        ['README.md', 'model.safetensors', 'model.safetensors.parity.json'],
    )
    front, body = uploaded[4].removeprefix('---\n').split('\n---\n')
    assert 'library_name: fusmae_jax' in front and '- sentinel-1' in front.split('\n')
    assert (
        "fusmae_jax.load('hf://ground/truth@draft')" in body
        and '| `s1` | VV, VH | dB | 10.0 | 24 x 24 |' in body
    )
    assert 'https://hub/commit/1' in capsys.readouterr().out
    assert '\n## Card\n\n### Use\n' in card.readme(source, describe(source.model), ADDRESS)


def test_the_cache_of_the_hub_without_a_network(file, tmp_path):
    """Laid out as the library does it: blobs, and snapshots of links to them."""
    pytest.importorskip('huggingface_hub', reason='needs the extra export')
    home, commit = tmp_path / 'hub' / 'models--ground--truth', 'a' * 40
    for folder in ('blobs', 'refs', f'snapshots/{commit}'):
        (home / folder).mkdir(parents=True)
    (home / 'blobs' / ('b' * 64)).write_bytes(file.read_bytes())
    (home / 'refs' / 'main').write_text(commit)
    (home / 'snapshots' / commit / 'model.safetensors').symlink_to(f'../../blobs/{"b" * 64}')
    code = (
        'import fusmae_jax\n'
        f"for name in ('{ADDRESS}', '{ADDRESS}@{commit}'): print(fusmae_jax.load(name).config.model.width)\n"
        f"try: fusmae_jax.load('{ADDRESS}@other')\n"
        'except fusmae_jax.InputError as error: print(error)\n'
    )
    env = os.environ | {'HF_HOME': str(tmp_path), 'HF_HUB_OFFLINE': '1'}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    lines = done.stdout.strip().split('\n')
    assert lines[:2] == ['32', '32'], done.stderr[-2000:]
    assert 'could not be had' in lines[2] and len(lines) == 3


def test_an_error_above_the_limit_leaves_nothing(source, tmp_path, monkeypatch):
    """And what was there before stays."""

    def kind(error):
        return types.SimpleNamespace(
            write=lambda folder, model: (folder / 'weights').write_text(str(error)),
            runner=lambda folder: (
                lambda given, images: {
                    name: x + error for name, x in parity.expected(source.model, images).items()
                }
            ),
        )

    out = tmp_path / 'out'
    monkeypatch.setitem(command.FOLDERS, 'torch', kind(0))
    command._export(source, 'torch', out, None)
    for error in (1e-3, np.nan):
        monkeypatch.setitem(command.FOLDERS, 'torch', kind(error))
        with pytest.raises(InputError, match=r'differs from encode by .* more than 1e-05; it was not kept'):
            command._export(source, 'torch', out, None)
    assert [path.name for path in tmp_path.iterdir()] == ['out']
    assert (out / 'weights').read_text() == '0' and (out / 'parity.json').is_file()


@pytest.mark.parametrize(
    ('kind', 'out', 'part'),
    [
        ('safetensors', 'encoder.bin', 'ends in .safetensors'),
        ('safetensors', 'there', 'ends in .safetensors'),
        ('onnx', 'there', 'is no earlier export'),
        ('onnx', 'gs://bucket/x', 'on this machine'),
    ],
)
def test_where_nothing_can_be_written(kind, out, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there').mkdir()
    with pytest.raises(InputError, match=part):
        command.check_place(kind, out)


def test_samples_are_brought_to_the_inputs(source):
    values = np.arange(2 * 12 * 12 * 2, dtype=np.float32).reshape(2, 12, 12, 2)
    groups = {'radar': dataclasses.replace(CONTRACT.groups['s1'], bands=('VH', 'VV'), size=(12, 12))}
    images, title = parity.make_images(source.model, parity.Samples('two pairs', {'radar': values}, groups))
    assert title == 'two pairs (s1 by the nearest pixels)'
    np.testing.assert_array_equal(images['s1'][:, ::2, ::2], values[..., ::-1])
    assert parity.make_images(source.model, None)[1] == 'generated images'
    assert cfg.Model().modalities['s1'].bands == ('VV', 'VH')
