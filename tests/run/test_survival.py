"""Replica checksums, the profiler's window, and a short storm of kills."""

import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from fusmae_jax.checkpoints import manifest
from fusmae_jax.config import run as cfg
from fusmae_jax.errors import DivergedError, InputError
from fusmae_jax.parallel.mesh import make_mesh
from fusmae_jax.run.profiling import Profiler, Window, parse_window
from fusmae_jax.train.checksum import make_check
from tests.support import storm


def params_on(mesh):
    """One array split over fsdp, one replicated everywhere, of two types."""
    values = {
        'kernel': jnp.arange(1, 65, dtype=jnp.float32).reshape(8, 8),
        'norm': {'scale': jnp.arange(6, dtype=jnp.bfloat16)},
    }
    where = {
        'kernel': NamedSharding(mesh, PartitionSpec(None, 'fsdp')),
        'norm': {'scale': NamedSharding(mesh, PartitionSpec())},
    }
    return jax.device_put(values, where)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def changed(array, device, change):
    """The same global array, with the copy on one device changed."""
    shards = []
    for shard in array.addressable_shards:
        value = np.array(shard.data)
        if shard.device == device:
            change(value)
        shards.append(jax.device_put(value, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


def flip_last_bit(value):
    value.reshape(-1).view(f'uint{8 * value.itemsize}')[0] ^= 1


def flip_two_signs(value):
    value.reshape(-1)[:2] *= -1


@pytest.mark.parametrize('change', [flip_last_bit, flip_two_signs])
@pytest.mark.parametrize(('data', 'fsdp'), [(4, 2), (8, 1)])
def test_one_wrong_copy_is_named(data, fsdp, change):
    mesh = make_mesh(cfg.Parallel(data, fsdp), jax.devices()[:8])
    params = params_on(mesh)
    check = make_check(abstract(params), mesh)
    check(params, 1)
    device = mesh.devices[2, fsdp - 1]
    with pytest.raises(DivergedError) as caught:
        check({**params, 'kernel': changed(params['kernel'], device, change)}, 7)
    message = str(caught.value)
    assert message.startswith('step 7: ') and f': kernel on {device}. ' in message
    scale = changed(params['norm']['scale'], device, lambda value: flip_last_bit(value[3:]))
    with pytest.raises(DivergedError, match=f'norm/scale on {device}'):
        check({**params, 'norm': {'scale': scale}}, 7)


def test_shards_that_exist_once_are_not_compared():
    mesh = make_mesh(cfg.Parallel(1, 8), jax.devices()[:8])
    params = params_on(mesh)
    check = make_check(abstract(params), mesh)
    check({**params, 'kernel': changed(params['kernel'], mesh.devices[0, 3], flip_last_bit)}, 1)


def test_two_copies_that_differ_are_both_named():
    mesh = make_mesh(cfg.Parallel(2, 1), jax.devices()[:2])
    params = params_on(mesh)
    kernel = changed(params['kernel'], mesh.devices[1, 0], flip_last_bit)
    with pytest.raises(DivergedError, match=f'kernel on {mesh.devices[0, 0]}, {mesh.devices[1, 0]}'):
        make_check(abstract(params), mesh)({**params, 'kernel': kernel}, 1)


def test_windows():
    assert parse_window('') is None
    assert parse_window('100:110') == Window(100, 110) and parse_window('7') == Window(7, 7)
    for wrong in ('0', '9:8', '1:', 'x', '-3:4'):
        with pytest.raises(InputError, match='such as 100:110'):
            parse_window(wrong)


def test_the_steps_of_the_window_are_traced_and_trouble_does_not_stop_them(tmp_path, capsys):
    double = jax.jit(lambda x: x @ x)
    value = jnp.eye(8)
    other = Profiler(tmp_path / 'other', Window(1, 9))
    other.step(1, value)  # a trace of somebody else
    profiler = Profiler(tmp_path, Window(1, 1))
    with profiler.step(1, value):  # cannot start: logged
        value = double(value)
    profiler.close()
    other.close()
    profiler = Profiler(tmp_path / 'own', Window(3, 4))
    for step in range(1, 7):
        with profiler.step(step, value):
            value = double(value)
    profiler.close()
    (trace,) = (tmp_path / 'own' / 'profile').rglob('*.xplane.pb')
    content = trace.read_bytes()
    assert b'train' in content
    assert not (tmp_path / 'profile').exists() and 'own/profile' in capsys.readouterr().out


def test_processes_that_share_a_host_do_not_share_a_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    profiler = Profiler(tmp_path, Window(1, 1))
    with profiler.step(1, None):
        pass
    profiler.close()
    assert list((tmp_path / 'profile' / 'process_1').rglob('*.xplane.pb'))


@pytest.mark.slow
def test_a_short_storm(tmp_path):
    storm.storm(tmp_path, steps=30, kills=3, seed=1)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_one_sentence(tmp_path):
    """On a disk too small for its checkpoints a run stops; with more space it ends as if nothing had been."""
    config, calm, disk = storm.write_config(tmp_path, steps=40), tmp_path / 'calm', tmp_path / 'disk'
    storm.finish(config, calm, tmp_path / 'calm.log')
    used = sum(f.stat().st_size for f in (calm / 'checkpoints').rglob('*') if f.is_file())
    rest = sum(f.stat().st_size for f in calm.rglob('*') if f.is_file()) - used
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={(2 * rest + used // 2) // 1024}k', 'tmpfs', disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('mounting a tmpfs needs root')
    try:
        with storm.launch(config, disk, tmp_path / 'full.log') as process:
            code = process.wait(storm.PATIENCE)
        output = (tmp_path / 'full.log').read_text()
        assert code == 2, output
        (told,) = [line for line in output.splitlines() if line.startswith('error: ')]
        assert 'the disk is full' in told and 'Traceback' not in output
        saved = manifest.saved_steps(epath.Path(disk / 'checkpoints'))
        assert saved and all(
            manifest.damage(epath.Path(disk / 'checkpoints' / str(s))) is None for s in saved
        )
        subprocess.run(['mount', '-o', 'remount,size=100m', disk], check=True)
        storm.finish(config, disk, tmp_path / 'again.log')
        assert f'resuming from step {saved[-1]} ' in (tmp_path / 'again.log').read_text()
        storm.same(calm, disk)
    finally:
        subprocess.run(['umount', '-l', disk], check=True)
