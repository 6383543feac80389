"""The ten lines in data/paired_folder/README.md: they are read from there, and run."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

import main
from data.generate.paired_folder import write
from data.generate.scene import SceneConfig

ROOT = Path(__file__).parents[2]
README = ROOT / 'data' / 'paired_folder' / 'README.md'


def lines() -> list[str]:
    """The indented block under the heading."""
    section = README.read_text().split('## From two GeoTIFFs to a first step')[1].split('\n## ')[0]
    return [line for line in section.splitlines() if line.startswith('    ')]


def commands() -> list[list[str]]:
    """Its commands, as a shell would take them."""
    text = '\n'.join(line.strip() for line in lines()).replace('\\\n', ' ')
    return [shlex.split(line, comments=True) for line in text.splitlines()]


def test_it_is_ten_lines():
    assert len(lines()) == 10
    quoted = [line in (ROOT / 'docs' / 'data.md').read_text() for line in lines()]
    assert all(quoted) or not any(quoted), 'docs/data.md quotes other lines'


# What else makes the model compile in seconds.
SMALLER = [
    '--config.model.image_size=(32, 32)',
    '--config.model.decoder.width=16',
    '--config.model.decoder.heads=2',
    '--config.log.images_every_steps=0',
    '--config.model.depth=1',
    '--config.model.decoder.depth=1',
]


@pytest.mark.parametrize(
    'more', [SMALLER, pytest.param([], marks=pytest.mark.slow)], ids=['quick', 'as it is']
)
def test_from_two_geotiffs_to_a_first_pretraining_step(more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The second file of the layout: 120 x 240 pixels.
    write(tmp_path / 'raw', 2, SceneConfig(size=120, seed=5))
    shutil.copy('raw/s1/area_0001.tif', 'radar.tif')
    shutil.copy('raw/s2/area_0001.tif', 'optical.tif')
    for command in commands():
        if command[0] == 'mkdir':
            for folder in command[2:]:
                Path(folder).mkdir(parents=True)
        elif command[0] == 'cp':
            shutil.copy(*command[1:])
        else:
            assert command[:2] == ['python', 'main.py']
            arguments = [
                word.replace('--config=configs/', f'--config={ROOT}/configs/') for word in command[2:]
            ]
            arguments += more if arguments[0] == 'pretrain' else []
            assert main.main(['main.py', *arguments]) == 0
    assert len(tfds.builder_from_directory('mine/data/paired_folder/1.0.0').as_data_source('train')) == 2
    steps = [json.loads(line) for line in Path('mine/run/metrics.jsonl').read_text().splitlines()]
    assert steps[-1]['step'] == 2
    assert 0 < steps[-1]['loss'] < 10
    assert steps[-1]['loss'] == pytest.approx(steps[-1]['loss/s1'] + steps[-1]['loss/s2'], rel=1e-3)
    assert Path('mine/run/COMPLETE').exists()
