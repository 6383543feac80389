"""The documentation site: pages, links and settings, checked without mkdocs."""

import dataclasses
import importlib
import re
import sys
import types
import typing
from pathlib import Path

import pytest

from fusmae_jax.config.run import Config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def hooks():
    sys.path.insert(0, str(ROOT / 'docs'))
    yield importlib.import_module('hooks')
    sys.path.remove(str(ROOT / 'docs'))


@pytest.fixture(scope='module')
def settings(hooks):
    """Of the page of settings: (heading, name) -> its row."""
    heading, rows = '', {}
    for line in hooks.settings_page.text().splitlines():
        if line.startswith('#'):
            heading = line.strip('# ').partition(': ')[0]
        elif line.startswith('| `'):
            cells = [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
            rows[heading, cells[0].strip('`')] = cells[1:]
    return rows


def names(cls, path=''):
    """The dotted names of all settings, written without the code under test."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, kind = field.metadata.get('key', field.name), hints[field.name]
        inner = [x for x in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(x)]
        if inner:
            star = '' if inner[0] is kind or isinstance(kind, types.UnionType) else '.*'
            yield from names(inner[0], f'{path}{name}{star}.')
        if not inner or inner[0] is not kind:
            yield f'{path}{name}'


def test_every_setting_of_a_run_is_on_the_page(settings):
    listed = {name for command, name in settings if command == 'pretrain'}
    assert listed == set(names(Config)) and {'model.modalities.*.bands', 'init.from'} < listed


@pytest.mark.parametrize(
    ('command', 'name', 'kind', 'default', 'limits', 'meaning'),
    [
        ('pretrain', 'optimizer.b2', 'float', '0.95', '≥ 0, < 1', ''),
        (
            'pretrain',
            'model.remat',
            'none, full, dots',
            "'none'",
            '',
            'recompute blocks in the backward pass',
        ),
        ('pretrain', 'model.patch_size', 'int', '16', '≥ 1', ''),
        ('pretrain', 'dino.local_crops.size', 'int', '48', '≥ 1', 'pixels, after resampling'),
        ('finetune', 'augment.crop', 'bool', 'False', '', "random resized crop; MultiMAE's default"),
        ('convert', 'on_error', 'fail, skip', "'fail'", '', 'skip: leave unusable records out and list them'),
    ],
)
def test_a_row_has_what_stands_in_the_code(settings, command, name, kind, default, limits, meaning):
    assert settings[command, name] == [f'`{kind}`', f'`{default}`', limits, meaning]


def test_comments_above_a_field_are_joined(settings):
    meaning = settings['pretrain', 'masking.decode_ratio'][3]
    assert meaning.startswith('Share of the masked patches') and meaning.endswith('whose counts vary.')
    assert '&lt;name&gt;/&lt;version&gt;' in settings['pretrain', 'data.path'][3]
    assert 'tiny \\| S \\| B' in settings['pretrain', 'model.size'][3]


def test_every_page_is_in_the_navigation(hooks):
    pages = {str(path.relative_to(ROOT / 'docs')) for path in (ROOT / 'docs').rglob('*.md')}
    listed = re.findall(r'[\w/]+\.md', (ROOT / 'mkdocs.yml').read_text())
    assert sorted(listed) == sorted(pages | {*hooks.OUTSIDE, 'configuration.md'})


def test_links_in_pages_lead_to_files(hooks):
    for file in [*(ROOT / 'docs').glob('*.md'), *(ROOT / path for path in hooks.OUTSIDE.values())]:
        for link in hooks.LINK.finditer(file.read_text()):
            assert (file.parent / link[3]).exists(), f'{file.name}: {link[0]}'


@pytest.mark.parametrize(
    ('place', 'link', 'there'),
    [
        ('data.md', '[a](../data/README.md#b)', '[a](archives/index.md#b)'),
        ('archives/index.md', '[a](sen12ms/README.md)', '[a](sen12ms.md)'),
        ('archives/index.md', '[a](../docs/data.md)', '[a](../data.md)'),
        ('design.md', '[a](docs/scale.md#x)', '[a](scale.md#x)'),
        ('index.md', '![a](reconstruction.png)', '![a](reconstruction.png)'),
        ('index.md', '[a](../configs/demo.py)', '`a`'),
        ('index.md', '[a](nothing.md)', '[a](nothing.md)'),
        ('index.md', '[a](../nothing.md)', '[a](../nothing.md)'),
        ('index.md', '[a](https://example.org/x.md)', '[a](https://example.org/x.md)'),
        ('index.md', '[a](#b)', '[a](#b)'),
    ],
)
def test_a_link_as_the_site_has_it(hooks, place, link, there):
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=place))
    assert hooks.on_page_markdown(link, page=page) == there
