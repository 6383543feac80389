"""Conversion of thousands of pairs: speed beside bare reads, memory, and ten kills at random moments."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rasterio

from fusmae_jax.shipped.data.generate import bigearthnet_mm
from fusmae_jax.shipped.data.generate.scene import SceneConfig
from tests.support.data_fixtures import Folders, digests, untimed

ROOT = Path(__file__).parents[2]
CONVERT = """
import resource, sys, time
from fusmae_jax.shipped.data import sharded
from fusmae_jax.shipped.data.bigearthnet_mm import pairs
if __name__ == '__main__':
    archive = pairs.Archive(sys.argv[1], sys.argv[2], 'one')
    begin = time.perf_counter()
    beam = sharded.Beam(direct_num_workers=int(sys.argv[4]))
    sharded.convert(pairs.source(archive), sys.argv[3], 64, beam=beam)
    print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
pytestmark = pytest.mark.slow


def start(archive: Folders, output: Path, workers: int = 1) -> subprocess.Popen:
    command = [sys.executable, '-c', CONVERT, str(archive.s1), str(archive.s2), str(output), str(workers)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen) -> tuple[float, float]:
    """Seconds of the conversion, and the peak resident memory in GiB."""
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err[-2000:]
    seconds, memory = map(float, out.split()[-2:])
    return seconds, memory


@pytest.fixture(scope='module')
def archive(tmp_path_factory) -> Folders:
    settings = bigearthnet_mm.write(tmp_path_factory.mktemp('raw'), 2000, SceneConfig(seed=5), workers=2)
    return Folders(Path(settings['s1_root']), Path(settings['s2_root']))


@pytest.fixture(scope='module')
def converted(archive, tmp_path_factory):
    output = tmp_path_factory.mktemp('whole')
    return output / 'bigearthnet_mm' / '1.0.0', *finish(start(archive, output))


def test_speed_beside_bare_reads_and_memory(archive, converted):
    _, seconds, memory = converted
    begin = time.perf_counter()
    for root in archive:
        for patch in root.iterdir():
            for file in patch.glob('*.tif'):
                with rasterio.open(file) as dataset:
                    dataset.read()
    bare = time.perf_counter() - begin
    print(f'\n2,000 pairs: {2000 / seconds:.1f} pairs/s, bare reads {2000 / bare:.1f}, {memory:.2f} GiB')
    assert seconds < bare / 0.6
    assert memory < 2


def test_ten_kills_at_random_moments_leave_a_whole_set(archive, converted, tmp_path):
    whole, seconds, _ = converted
    rng = random.Random(11)
    for _ in range(10):
        process = start(archive, tmp_path, workers=2)
        time.sleep(rng.uniform(0.1, 0.25) * seconds)
        os.killpg(process.pid, signal.SIGKILL)  # its workers too, as when a machine goes away
        process.communicate()
        folder = tmp_path / 'bigearthnet_mm' / '1.0.0'
        if folder.exists():  # complete, or not there at all
            break
        leftovers = {path.name for path in folder.parent.glob('*')} if folder.parent.exists() else set()
        assert leftovers <= {'1.0.0.incomplete', '.1.0.0.lock'}
    finish(start(archive, tmp_path, workers=2))
    assert digests(whole) == digests(folder)
    assert untimed(whole) == untimed(folder)


def linked(archive: Folders, folder: Path, copies: int) -> Folders:
    """The archive `copies` times over: images are hard links, names and metadata are new."""
    result = Folders(folder / 's1', folder / 's2')
    for s1_patch in archive.s1.iterdir():
        meta = json.loads((s1_patch / f'{s1_patch.name}_labels_metadata.json').read_text())
        s2_patch = archive.s2 / meta['corresponding_s2_patch']
        for copy in range(copies):
            names = []
            for patch, root in ((s1_patch, result.s1), (s2_patch, result.s2)):
                head, h, v = patch.name.rsplit('_', 2)
                target = root / f'{head}_{int(h) + 5000 * copy}_{v}'
                target.mkdir(parents=True)
                names.append(target.name)
                for file in patch.glob('*.tif'):
                    os.link(file, target / file.name.replace(patch.name, target.name))
                labels = json.loads((patch / f'{patch.name}_labels_metadata.json').read_text())
                (target / f'{target.name}_labels_metadata.json').write_text(json.dumps(labels))
            file = result.s1 / names[0] / f'{names[0]}_labels_metadata.json'
            file.write_text(json.dumps({**meta, 'corresponding_s2_patch': names[1]}))
    return result


def test_memory_does_not_grow_with_the_archive(archive, converted, tmp_path):
    many = linked(archive, tmp_path, 10)
    seconds, memory = finish(start(many, tmp_path / 'out'))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f'\n20,000 pairs: {20000 / seconds:.1f} pairs/s, {memory:.2f} GiB (2,000: {converted[2]:.2f})')
    assert memory < 2 and children < 2
