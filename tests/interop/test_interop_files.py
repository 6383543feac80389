"""Weight files: pickles that may not run code, damaged files, and the round trip through PyTorch."""

import argparse
import os

import numpy as np
import pytest

from fusmae_jax.errors import InputError
from fusmae_jax.interop.weights import files
from fusmae_jax.interop.weights.importers import import_weights
from tests.support.interop_models import assert_same, random_params, small_model

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.parity


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({'model': {'w': torch.ones(2)}, 'extra': Evil(tmp_path / 'ran')}, tmp_path / 'evil.pth')
    with pytest.raises(InputError, match='no code in it was run'):
        files.read_state(tmp_path / 'evil.pth')
    assert not (tmp_path / 'ran').exists()


def test_a_training_checkpoint_with_arguments_is_read(tmp_path):
    content = {
        'model': {'norm.weight': torch.arange(3.0), 'steps': 7},
        'optimizer': {'state': {0: {'exp_avg': torch.ones(4)}}},
        'args': argparse.Namespace(lr=1e-3, name='x'),
        'epoch': 3,
    }
    torch.save(content, tmp_path / 'a.pth')
    state = files.read_state(tmp_path / 'a.pth')
    assert list(state) == ['norm.weight']
    np.testing.assert_array_equal(state['norm.weight'], [0, 1, 2])


def test_nested_networks_keep_their_names(tmp_path):
    content = {'teacher': {'backbone.norm.bias': torch.ones(2)}, 'args': argparse.Namespace()}
    torch.save(content, tmp_path / 'dino.pth')
    assert list(files.read_state(tmp_path / 'dino.pth')) == ['teacher.backbone.norm.bias']


def test_bfloat16_tensors_are_not_cast(tmp_path):
    torch.save({'a': torch.ones(2, dtype=torch.bfloat16)}, tmp_path / 'b.pt')
    with pytest.raises(InputError, match='a: '):
        files.read_state(tmp_path / 'b.pt')


@pytest.mark.parametrize('name', ['a.safetensors', 'a.pth'])
@pytest.mark.parametrize('content', [b'', b'\xff' * 64, b'\x08\x00\x00\x00\x00\x00\x00\x00not json'])
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        files.read_state(tmp_path / name)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / 'a.safetensors'
    files.export(path, random_params(small_model()), small_model())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match='not a readable safetensors file'):
        files.read_state(path)
    with pytest.raises(InputError, match='no such weight file'):
        files.read_state(tmp_path / 'b.safetensors')


def test_ours_to_pytorch_and_back_is_bit_identical(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    from fusmae_jax.interop.reference.model import build

    model, params = small_model(positions='learned'), random_params(small_model(positions='learned'))
    files.export(tmp_path / 'a.safetensors', params, model)
    reference = build(model)
    reference.load_state_dict(safetensors.load_file(tmp_path / 'a.safetensors'), strict=True)
    safetensors.save_file(reference.state_dict(), tmp_path / 'b.safetensors')
    back, report = import_weights('fusmae', files.read_state(tmp_path / 'b.safetensors'), model)
    assert_same(back, params)
    assert not report.kept
    assert not report.unused
