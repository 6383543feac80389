"""The EuroSAT benchmark on a made-up folder of its layout: splits, errors, report from stored results."""

import dataclasses

import numpy as np
import pytest
from etils import epath
from PIL import Image

from benchmarks import eurosat, eurosat_config, eurosat_release, eurosat_report, eurosat_set
from fusmae_jax import storage
from fusmae_jax.encoders.load import load
from fusmae_jax.errors import InputError
from fusmae_jax.eval import intervals, metrics
from fusmae_jax.input.source import Source, read_index
from fusmae_jax.run.writers import METRICS

IMAGES = 20  # of a class
PLAN = dataclasses.replace(eurosat_config.FULL, shares=(0.1,), tuned={0.1: 1.0})


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp('images')
    for number, name in enumerate(eurosat_set.CLASSES):
        (root / name).mkdir()
        for i in range(1, IMAGES + 1):
            pixels = rng.integers(20 * number, 20 * number + 40, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f'{name}_{i}.jpg', quality=95)
    return root


@pytest.fixture(scope='module')
def data(folder, tmp_path_factory):
    return eurosat_set.write(str(folder), tmp_path_factory.mktemp('data'))


def test_every_class_has_its_share_in_each_split_and_records_are_the_images(folder, data):
    names = []
    for split, count in (('train', 14), ('val', 2), ('test', 4)):
        index = read_index(data, split, ['name', eurosat_set.LABELS])
        np.testing.assert_array_equal(index[eurosat_set.LABELS].sum(axis=0), count)
        first = [name.decode().split('_')[0] for name in index['name'][:20].tolist()]
        assert len(set(first)) > 4, 'classes are mixed, so that the first records are a sample'
        names += index['name'].tolist()
    assert len(set(names)) == len(names) == 10 * IMAGES
    record = Source(data, 'test', ('s2',))[3]
    name = read_index(data, 'test', ['name'])['name'][3].decode()
    with Image.open(folder / name.split('_')[0] / f'{name}.jpg') as image:
        np.testing.assert_array_equal(record['s2'], np.asarray(image))


def test_a_split_depends_on_the_names_alone():
    names = [f'Forest_{i}' for i in range(100)]
    whole = eurosat_set.split_of(names)
    assert whole == eurosat_set.split_of(names[::-1])
    part = eurosat_set.split_of(names, 0.3)
    assert [len(part[split]) for split in eurosat_set.SHARES] == [21, 3, 6]
    assert all(set(part[split]) < set(whole[split]) for split in whole)


def test_folders_that_are_not_eurosat_are_one_message(folder, tmp_path):
    with pytest.raises(InputError, match=r'no folder AnnualCrop, .*--images'):
        eurosat_set.write(str(tmp_path), tmp_path / 'out')
    for number, name in enumerate(eurosat_set.CLASSES):
        (tmp_path / name).symlink_to(folder / name)
        if not number:
            with pytest.raises(InputError, match='no folder Forest, '):
                eurosat_set.write(str(tmp_path), tmp_path / 'out')
    (tmp_path / 'River').unlink()
    (tmp_path / 'River').mkdir()
    with pytest.raises(InputError, match='River: 0 images'):
        eurosat_set.write(str(tmp_path), tmp_path / 'out')


def test_an_image_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / 'Forest').mkdir()
    item = eurosat_set.Item('Forest_1', ('Forest/Forest_1.jpg', 1))
    with pytest.raises(InputError, match=r'Forest_1\.jpg: s2: not an image'):
        eurosat_set.record(item, str(tmp_path))
    (tmp_path / 'Forest' / 'Forest_1.jpg').write_bytes(b'\xff\xd8 no image')
    with pytest.raises(InputError, match=r'Forest_1\.jpg: s2: not an image'):
        eurosat_set.record(item, str(tmp_path))
    Image.new('RGB', (32, 64)).save(tmp_path / 'Forest' / 'Forest_1.jpg')
    with pytest.raises(InputError, match='32 x 64 px; images of EuroSAT have 64 x 64'):
        eurosat_set.record(item, str(tmp_path))


def test_settings_are_told_apart_and_plans_differ():
    assert eurosat_config.digest(PLAN) != eurosat_config.digest(eurosat_config.FULL)
    assert eurosat_config.digest(PLAN) == eurosat_config.digest(dataclasses.replace(PLAN))


def about(system, method):
    names = dict.fromkeys(intervals.KEYS)
    return names | {'system': system, 'method': method, 'modalities': ('s2',), 'label_fraction': 0.1}


@pytest.fixture
def finished(data, tmp_path):
    """What the runs of a plan leave behind: made-up scores, better ones for the pretrained encoder."""
    (tmp_path / 'data').mkdir()
    target = tmp_path / 'data' / eurosat_set.SCHEMA.name
    target.symlink_to(epath.Path(data).parent)
    truth, rng = np.arange(200) % 10, np.random.default_rng(0)
    for seed in PLAN.seeds:
        base = epath.Path(tmp_path / f'seed-{seed}')
        for method in eurosat_report.METHODS:
            part = base / ('finetune-0.1' if method == 'finetune' else 'frozen')
            part.mkdir(parents=True, exist_ok=True)
            cells = []
            for system, noise in ((eurosat_config.NAME, 0.5), ('random init of it, seed 1', 1.0)):
                scores = np.eye(10)[truth] + noise * rng.standard_normal((200, 10))
                measured = metrics.single_label(scores, truth, eurosat_set.CLASSES)
                cells.append((about(system, method), intervals.resample(measured, np.arange(200), 50)))
            intervals.write_replicates(cells, part, method)
            storage.write_json(
                part / f'done-{method}.json', {'settings': '', 'seconds': 60.0, 'processor_seconds': 30.0}
            )
        (base / 'pretrain').mkdir()
        rows = ('{"step": 0, "knn/top1": 0.5}', '{"step": 9, "knn/top1": 0.75, "probe/top1": 0.625}')
        (base / 'pretrain' / METRICS).write_text('\n'.join(rows))
    return tmp_path


def test_the_report_comes_from_what_is_stored_byte_by_byte(finished):
    kinds = ('eurosat.md', 'eurosat.csv', 'eurosat.png')
    text = eurosat_report.write(finished / 'one', finished, PLAN, quick=False)
    eurosat_report.write(finished / 'two', finished, PLAN, quick=False)
    for name in kinds:
        assert (finished / 'one' / name).read_bytes() == (finished / 'two' / name).read_bytes()
    assert (
        '| pretrained minus from scratch | +' in text and '| nearest neighbours | 0.5000 | 0.7500 |' in text
    )
    assert '| linear probe | - | 0.6250 |' in text
    rows = (finished / 'one' / 'eurosat.csv').read_text().splitlines()
    assert len(rows) == 1 + 3 * 3 and rows[3].startswith('linear probe,pretrained minus random init,0.1')
    low = float(rows[3].split(',')[6])
    assert low > 0, 'the made-up scores are far apart'


def test_a_run_that_has_not_finished_is_named(finished):
    (finished / 'seed-1' / 'frozen' / 'done-knn.json').unlink()
    with pytest.raises(InputError, match='seed-1/frozen: knn has not finished; run the benchmark again'):
        eurosat_report.write(finished / 'one', finished, PLAN, quick=False)


def test_what_has_finished_is_not_run_again_but_with_other_settings(tmp_path):
    calls = []

    def command(config, folder):
        folder.mkdir(exist_ok=True)
        return calls.append(config.steps) or config.steps % 2

    for steps in (4, 4, 6, 6):
        eurosat.once(command, dataclasses.replace(PLAN, steps=steps), tmp_path / 'x', 'linear')
    assert calls == [4, 6]
    with pytest.raises(InputError, match='exit code 1; the same command goes on'):
        eurosat.once(command, dataclasses.replace(PLAN, steps=7), tmp_path / 'x', 'linear')


@pytest.mark.slow
def test_everything_runs_from_the_images_to_the_report(folder, tmp_path):
    plan = dataclasses.replace(PLAN, seeds=(0,), steps=3, batch=8)
    eurosat.run(str(folder), tmp_path, plan)
    text = eurosat_report.write(tmp_path / 'out', tmp_path, plan, quick=True)
    assert '| band statistics |' in text and '| steps | 0 | 1 | 2 | 3 |' in text
    before = (tmp_path / 'seed-0' / 'pretrain' / METRICS).stat().st_mtime_ns
    eurosat.run(str(folder), tmp_path, plan)
    assert (tmp_path / 'seed-0' / 'pretrain' / METRICS).stat().st_mtime_ns == before
    assert eurosat_report.write(tmp_path / 'out', tmp_path, plan, quick=True) == text
    eurosat_release.release(tmp_path, tmp_path / 'release', plan)
    encoder, trained = (load(tmp_path / x) for x in ('release/model.safetensors', 'seed-0/pretrain'))
    images, units = {'s2': np.zeros((2, 64, 64, 3), np.uint8)}, {'s2': '8 bit'}
    np.testing.assert_array_equal(*(one.encode(images, units=units).pooled for one in (encoder, trained)))
    card = (tmp_path / 'release' / 'README.md').read_text()
    assert 'no foundation model' in card and '| band statistics |' in card and 'To be filled' not in card
