"""What may differ between the processes of a run changes nothing in the exchanges that all must make."""

import dataclasses

import pytest

from fusmae_jax.config import run as cfg
from fusmae_jax.parallel import processes
from fusmae_jax.run import compile_cache, start, validation
from fusmae_jax.shipped.data.synthetic import write
from tests.support.tiny import smallest_model, tiny_config

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture
def exchanges(monkeypatch):
    """Grows by one with each exchange of the processes."""
    made, real = [], processes.gather

    def counted(value):
        made.append(value)
        return real(value)

    for module in (processes, start, validation, compile_cache):
        if hasattr(module, 'gather'):
            monkeypatch.setattr(module, 'gather', counted)
    return made


def settings(folder, **data):
    return tiny_config(model=smallest_model(), data=cfg.Data(path=str(folder), train_split='train', **data))


def test_a_machine_without_a_disk_for_copies(exchanges, tmp_path):
    config = settings(write(tmp_path / 'data', 10))
    counts = []
    for cache in ('', str(tmp_path / 'copies')):
        exchanges.clear()
        data = dataclasses.replace(config.data, cache=cache)
        start.open_run(dataclasses.replace(config, data=data))
        counts.append(len(exchanges))
    assert counts[0] == counts[1] and 'data.cache' in start.HOST


def test_a_machine_whose_environment_has_chosen_a_compilation_cache(exchanges, tmp_path, monkeypatch):
    counts = []
    for chosen in ('', str(tmp_path / 'mine')):
        exchanges.clear()
        monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', chosen)
        with compile_cache.enabled(tmp_path):
            counts.append(len(exchanges))
    assert counts[0] == counts[1] == 1


def test_a_machine_without_what_draws(tmp_path, monkeypatch, caplog):
    """Where one process has no pictures, none has: all devices compute them."""
    config = settings(write(tmp_path / 'data', 10))
    config = dataclasses.replace(config, log=dataclasses.replace(config.log, images_every_steps=5))
    setup, source = start.open_run(config)
    assert validation.make_pictures(setup, source) is not None
    monkeypatch.setattr(validation, 'gather', lambda here: [here, ['matplotlib']])
    assert validation.make_pictures(setup, source) is None and 'without matplotlib' in caplog.text
