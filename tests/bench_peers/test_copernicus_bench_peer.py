"""The adapter of Copernicus-Bench under its own tasks, data sets and trainer.

The images are the nine real BigEarthNet v2 samples of GEO-Bench-2, written as the benchmark keeps its own.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio

import fusmae_jax
from fusmae_jax.shipped.data.geobench2 import samples
from fusmae_jax.shipped.data.geobench2.images import read_images
from tests.support.peers import clone

# Warnings of theirs are not ours to mend.
pytestmark = [pytest.mark.bench_peers, pytest.mark.filterwarnings('ignore')]
ADAPTER = Path(__file__).parents[2] / 'integrations/fusmae_copernicus_bench.py'
ACCEPT = ('order', 'offset', 'level', 'fill', 'floor', 'brightness')
S2 = ('B01', 'B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B09', 'B11', 'B12')


@pytest.fixture(scope='module')
def source():
    """The folder `src` of the benchmark, whose modules can be imported; its other models are not."""
    folder = clone('Copernicus-FM') / 'Copernicus-Bench/src'
    for name in ('torch', 'lightning', 'mmseg', 'torchgeo', 'kornia', 'omegaconf', 'rioxarray'):
        pytest.importorskip(name)
    before = set(sys.modules)
    models = types.ModuleType('foundation_models')
    models.__path__ = [str(folder / 'foundation_models')]
    for name in ('Croma', 'ScaleMAE', 'GFM', 'SoftCon', 'Dofa', 'SatMAE', 'CopernicusFM', 'ViT'):
        setattr(models, f'{name}Model', None)
    sys.modules['foundation_models'] = models
    sys.path.insert(0, str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield folder
    sys.path.remove(str(folder))
    for name in set(sys.modules) - before:
        if name.split('.')[0] in ('foundation_models', 'datasets', 'util', 'factory'):
            del sys.modules[name]


@pytest.fixture(scope='module')
def adapter(source):
    spec = importlib.util.spec_from_file_location('fusmae_copernicus_bench', ADAPTER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register()
    return module


@pytest.fixture(scope='module')
def images():
    file = clone('GEO-Bench-2') / 'tests/data/benv2/benv2.tortilla'
    return [read_images(file, sample) for sample in samples.list_samples(file)[0]]


@pytest.fixture(scope='module')
def root(images, tmp_path_factory):
    """The real images in the layout of BigEarthNet in the benchmark; the same ones for each split."""
    folder = tmp_path_factory.mktemp('cobench') / 'copernicusbench/bigearthnet_s1s2'
    rows = []
    for number, image in enumerate(images):
        paths = {
            's1': f'S1A_IW_GRDH_1SDV_20180601T000000_{number}.tif',
            's2': f'S2A_MSIL2A_20180601T000000_{number}.tif',
        }
        # The file of GEO-Bench-2 has VH first.
        for sensor, pixels in (('s1', image.s1[..., ::-1]), ('s2', image.s2)):
            file = folder / f'BigEarthNet-{sensor.upper()}-5%' / paths[sensor]
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file, np.moveaxis(pixels, -1, 0))
        rows.append([*paths.values(), *(str(int(i == number)) for i in range(19))])
    head = ','.join(['s1_path', 's2_path', *(f'class_{i}' for i in range(19))])
    for split in ('train', 'val', 'test'):
        text = '\n'.join([head, *(','.join(row) for row in rows)])
        (folder / f'multilabel-{split}.csv').write_text(text + '\n')
    return folder.parents[1]


def write(file, pixels):
    about = {'count': len(pixels), 'height': pixels.shape[1], 'width': pixels.shape[2], 'dtype': pixels.dtype}
    place = {'crs': 'EPSG:32634', 'transform': rasterio.Affine(10, 0, 500_000, 0, -10, 7_000_000)}
    with rasterio.open(file, 'w', driver='GTiff', **about, **place) as out:
        out.write(pixels)


def configured(source, root, name, monkeypatch, **changes):
    """The configuration of a set as the benchmark has it, but for its resampling."""
    from omegaconf import OmegaConf

    monkeypatch.setenv('DATASETS_DIR', str(root))
    parts = [OmegaConf.load(source / f'configs/dataset/{one}.yaml') for one in ('base_dataset', name)]
    return OmegaConf.merge(*parts, {'defaults': None}, changes)


def model_config(folder, task, **changes):
    from omegaconf import OmegaConf

    usual = {'model_type': 'fusmae', 'task': task, 'folder': folder, 'freeze_backbone': True}
    return OmegaConf.create(usual | changes)


def settings(task):
    from omegaconf import OmegaConf

    return OmegaConf.create(
        {'task': task, 'num_gpus': 1, 'lr': 0.1, 'weight_decay': 0, 'warmup_epochs': 0, 'epochs': 1}
    )


def batch(config):
    """All images of the test split, as the benchmark hands them over."""
    import torch
    from factory import create_dataset

    return torch.stack([one[0] for one in create_dataset(config)[2]])


# Its loggers ask for accounts; the rest is its own.
QUIET = """
import runpy, sys
import lightning.pytorch.loggers as loggers
loggers.MLFlowLogger = loggers.WandbLogger = lambda **about: loggers.CSVLogger('logs')
runpy.run_path(sys.argv[0], run_name='__main__')
"""
MODEL = """
defaults: [base_model]
model_type: fusmae
task: ${task}
folder: null
radar: by_level
freeze_backbone: true
"""
BOTH = {
    'dataset_type': 'fusmae_both',
    'of': 'cobench_bigearthnet_s12',
    'band_names': ['VV', 'VH', *S2],
    'band_stats': None,
}
SETS = {
    ('s1',): ('cobench_bigearthnet_s1', {'image_resolution': 120}),
    ('s2',): ('cobench_bigearthnet_s2', {'image_resolution': 120}),
    ('s1', 's2'): ('cobench_bigearthnet_s2', BOTH),
}


@pytest.mark.parametrize('sensors', SETS)
def test_features_are_those_of_the_encoder(sensors, adapter, source, root, images, exported, monkeypatch):
    import torch

    name, changes = SETS[sensors]
    config = configured(source, root, name, monkeypatch, **changes)
    task = adapter.FusMAEModel(
        settings('classification'), model_config(exported[1], 'classification'), config
    )
    assert tuple(task.images[0].bands) == sensors
    with torch.no_grad():
        logits, features = task.eval()(batch(config))
    assert logits.shape == (9, 19)
    encoder = fusmae_jax.load(exported[0])
    order = [S2.index(b) for b in encoder.config.model.modalities['s2'].bands]
    given = {
        's1': np.stack([image.s1[..., ::-1] for image in images]),
        's2': np.stack([image.s2[..., order] for image in images]),
    }
    ours = encoder.encode(
        {sensor: given[sensor] for sensor in sensors}, units={'s1': 'dB', 's2': 'DN'}, accept=ACCEPT
    ).pooled
    assert np.abs(features.numpy() - ours).max() < 2e-4 * np.abs(ours).max()


def test_exchanged_channels_are_found_in_the_first_images(adapter, source, root, exported, monkeypatch):
    import torch

    config = configured(source, root, 'cobench_bigearthnet_s1', monkeypatch, image_resolution=120)
    samples, contract = batch(config), adapter.load(Path(exported[1])).contract
    mean, std = (torch.tensor(list(x))[:, None, None] for x in config.band_stats.values())
    other = ((samples * std + mean).flip(1) - mean) / std
    right = adapter.Images(config, contract)
    expected = right(samples)['s1']
    assert right.exchanged == 0 and (expected[:, 0] - expected[:, 1]).mean() > 5
    for radar, same in (('by_level', True), ('by_name', False)):
        read = adapter.Images(config, contract, radar)
        assert torch.allclose(read(other)['s1'], expected, atol=1e-4) == same
        assert read.exchanged == same
        # What the first images said holds for the next ones.
        if same:
            assert torch.equal(read(other[:1])['s1'], read(other)['s1'][:1])
    # An encoder that has VH first, VH alone, or the other orbit besides.
    for bands, index in ((['VH', 'VV'], [1, 0]), (['VH'], [1])):
        s1 = contract['sensors']['s1'] | {'bands': bands}
        other_contract = contract | {'sensors': {'s1': s1, 's1_desc': contract['sensors']['s1']}}
        for given in (samples, other):
            images = adapter.Images(config, other_contract)(given)
            assert list(images) == ['s1']
            assert torch.allclose(images['s1'], expected[:, index], atol=1e-4)


def test_zero_power_is_not_measured_after_z_scores_too(adapter, source, root, exported, monkeypatch):
    import torch

    config = configured(source, root, 'cobench_flood_s1', monkeypatch)
    read = adapter.Images(config, adapter.load(Path(exported[1])).contract)
    power = torch.tensor([0.1, 0.02])[:, None, None].repeat(3, 1, 8, 8)
    power[:, :, 0, 0] = 0
    radar = read((power - read.mean) / read.std)['s1']
    assert torch.isnan(radar[:, :, 0, 0]).all() and torch.isfinite(radar[:, :, 1:]).all()


@pytest.mark.parametrize('sensors', SETS)
def test_its_trainer_fits_a_head(sensors, adapter, source, root, exported, monkeypatch, tmp_path):
    from datasets.data_module import BenchmarkDataModule
    from factory import create_model
    from lightning import Trainer

    name, changes = SETS[sensors]
    config = configured(source, root, name, monkeypatch, **changes)
    task = create_model(settings('classification'), model_config(exported[1], 'classification'), config)
    before = {key: x.clone() for key, x in task.state_dict().items()}
    quiet = {'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False}
    quiet |= {'enable_model_summary': False, 'num_sanity_val_steps': 0}
    trainer = Trainer(max_epochs=1, accelerator='cpu', default_root_dir=tmp_path, **quiet)
    data = BenchmarkDataModule(config, batch_size=3, num_workers=0, pin_memory=False)
    trainer.fit(task, data)
    (scores,) = trainer.test(task, data, verbose=False)
    assert np.isfinite(scores['test_loss']) and 0 < scores['test_acc1'] <= 100
    changed = {key for key, x in task.state_dict().items() if not x.equal(before[key])}
    assert changed == {
        'images.0.exchanged',
        'head.1.weight',
        'head.1.bias',
        'head.0.running_mean',
        'head.0.running_var',
        'head.0.num_batches_tracked',
    }


def test_its_command_line_trains_and_tests(source, root, exported, tmp_path):
    folder = tmp_path / 'src'
    shutil.copytree(source, folder)
    shutil.copy(ADAPTER, folder)
    (folder / 'configs/model/fusmae.yaml').write_text(MODEL)
    # It pins a torch that opens its own checkpoints without being asked to.
    more = {'DATASETS_DIR': str(root), 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1', 'PYTHONPATH': str(folder)}
    words = {
        'model': 'fusmae',
        'dataset': 'cobench_bigearthnet_s1',
        'task': 'classification',
        # Relative to where the command is given, which Hydra leaves.
        'model.folder': os.path.relpath(exported[1], tmp_path),
        'dataset.image_resolution': 120,
        'lr': 0.1,
        'batch_size': 3,
        'num_workers': 0,
        'epochs': 1,
        'strategy': 'auto',
        'output_dir': tmp_path / 'out',
        'hydra.run.dir': tmp_path / 'out',
    }
    code = f'import sys; sys.argv[0] = {str(folder / ADAPTER.name)!r}; {QUIET.strip()}'
    given = [f'{key}={value}' for key, value in words.items()]
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, *given],
        env=os.environ | more,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'test_acc1' in done.stdout


@pytest.mark.parametrize('name', ['cobench_dfc2020_s1', 'cobench_dfc2020_s2', 'cobench_flood_s1'])
def test_maps_of_four_blocks_go_into_upernet(name, adapter, source, root, exported, monkeypatch):
    import torch

    config = configured(source, root, name, monkeypatch)
    stats = {key: torch.tensor(list(x))[:, None, None] for key, x in config.band_stats.items()}
    kind = 'changedetection' if 'flood' in name else 'segmentation'
    task = adapter.FusMAEModel(settings(kind), model_config(exported[1], kind), config).train()
    samples = 0.3 * torch.randn(2, len(stats['mean']), 64, 64, generator=torch.Generator().manual_seed(0))
    outputs = task(samples)
    assert [x.shape for x in outputs] == [(2, config.num_classes, 64, 64)] * 2
    target = torch.zeros(2, 64, 64, dtype=torch.long)
    target[:, :8] = config.ignore_index
    task.loss(outputs, target).backward()
    learned = {key.split('.')[0] for key, p in task.named_parameters() if p.grad is not None}
    assert learned == {'neck', 'decoder', 'aux_head'}
    images = task.images[-1](samples.chunk(len(task.images), 1)[-1])
    (pixels,) = images.values()
    low, high = adapter.LEVELS['DN' if 's2' in name else 'dB']
    assert low < pixels.nanmedian() < high


def test_values_of_another_unit_are_refused(adapter, source, root, exported, monkeypatch):
    import torch

    contract = adapter.load(Path(exported[1])).contract
    for name, stats in (
        ('cobench_bigearthnet_s1', {'mean': [0.06, 0.01], 'std': [0.01, 0.01]}),
        ('cobench_bigearthnet_s2', {'mean': [0.1] * 12, 'std': [0.01] * 12}),
        ('cobench_lcz_s2', {'mean': [1000.0] * 10, 'std': [10.0] * 10}),
    ):
        config = configured(source, root, name, monkeypatch, band_stats=stats)
        with pytest.raises(ValueError, match='declared as'):
            adapter.Images(config, contract)(torch.zeros(1, len(stats['mean']), 8, 8))
    config = configured(source, root, 'cobench_lcz_s2', monkeypatch)
    optical = adapter.Images(config, contract)(torch.zeros(1, 10, 8, 8))['s2']
    bands = contract['sensors']['s2']['bands']
    assert torch.isnan(optical[:, bands.index('B01')]).all()
    assert optical[0, bands.index('B02'), 0, 0] == pytest.approx(1120)
