"""Ranges that stand beside their fields, paths with `~`, and names of modalities."""

import dataclasses
import importlib
import math
import os
import typing

import pytest
from flax import nnx

from data import convert, records
from data.doctor import opening
from data.records import RecordError
from fusmae_jax.checkpoints.checkpoints import find
from fusmae_jax.config.build import build, from_dict, to_dict
from fusmae_jax.config.dino import Dino
from fusmae_jax.config.run import RESERVED, Config, Fusion, Modality, Model, dino_mm
from fusmae_jax.config.setting import range_problems, setting
from fusmae_jax.embed.settings import EncodeConfig
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Knn, LinearProbe
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.eval.reliance.config import Reliance
from fusmae_jax.interop.weights.published_kinds import WeightFile
from fusmae_jax.paths import escaped, user_path
from fusmae_jax.tables.config import StudyArchive, Tables

KINDS = [Config, Dino, LinearProbe, Knn, Finetune, Reliance, WeightFile, EncodeConfig, Tables]
KINDS += [StudyArchive, convert.ConvertConfig]
KINDS += [importlib.import_module(x).Archive for x in convert.BUILDERS.values()]
# What may be any finite number: statistics and offsets, which have the unit of the data.
ANY = {'mean', 'offset', 'nodata', 'bright', 'scale'}


def numbers(kind, path=()):
    """Where the numbers of a settings class stand: path, field, type, and how many there are at least."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], (*path, field.name)
        inside = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            yield from numbers(hint, name)
        elif hint in (int, float):
            yield name, field, hint, 0
        elif typing.get_origin(hint) is tuple and inside[0] in (int, float):
            yield name, field, inside[0], 1 if Ellipsis in inside else len(inside)


def outside(field, kind):
    """Values that a field may not have: not finite, below its range, above it."""
    limits = field.metadata
    wrong = [math.nan, math.inf, -math.inf] if kind is float else []
    wrong += [kind(limits[name] - 1) for name in ('least', 'above') if name in limits]
    wrong += [kind(limits[name]) for name in ('above', 'below') if name in limits]
    return wrong + [kind(limits[name] + 1) for name in ('most', 'below') if name in limits]


@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: f'{kind.__module__}.{kind.__name__}')
def test_a_number_that_cannot_be_is_refused_by_name(kind):
    """Whatever the command, and before anything is read."""
    for path, field, of, count in numbers(kind):
        assert {'least', 'above'} & {*field.metadata} or field.name.split('_')[-1] in ANY, (
            f'{path} needs its range beside it'
        )
        for wrong in outside(field, of):
            values = node = to_dict(kind())
            for name in path[:-1]:
                node = node[name]
            node[path[-1]] = (wrong,) * count if count else wrong
            with pytest.raises(InputError) as error:
                from_dict(kind, values)
            assert f'{".".join(path)}{"[0]" if count else ""}={wrong} must be' in str(error.value)
    assert not range_problems(kind())


def test_all_ranges_are_reported_at_once_and_with_the_types():
    values = to_dict(Config())
    values['optimizer'] |= {'b1': 1.5, 'b2': -0.5, 'eps': -1, 'learning_rate': math.inf}
    values['model'] |= {'mlp_ratio': 0, 'size': 3}
    values['model']['modalities']['s1']['loss_weight'] = -1.0
    values['train']['epochs'] = 10**400  # a whole number that no float holds
    with pytest.raises(InputError) as error:
        build(values)
    for part in (
        'b1=1.5',
        'b2=-0.5',
        'eps=-1',
        'rate=inf',
        'ratio=0',
        'size=3',
        's1.loss_weight=-1',
        'epochs=',
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ('change', 'part'),
    [
        ({'mlp_ratio': 1e-4}, 'leaves no hidden unit'),
        ({'modalities': {'s1': Modality(('VV',), 's1', loss_weight=0.0)}}, 'every loss_weight is 0'),
    ],
)
def test_what_is_possible_alone_and_not_together(change, part):
    model = Model(**({'size': 'tiny', 'fusion': Fusion('none')} | change))
    with pytest.raises(InputError, match=part):
        build(to_dict(Config(model=model)))


def test_a_group_without_its_values_is_named_not_a_traceback():
    values = to_dict(dino_mm())
    values['dino']['global_crops'] = {'size': 'big'}
    with pytest.raises(InputError, match=r"size='big' must be of type int(.|\n)*count is missing"):
        from_dict(Config, values)


NAMES = [*sorted(RESERVED), 'other_s1', 'S1', '1s', 'a/b', '', 'sentinel-1', 'é']


@pytest.mark.parametrize('name', NAMES)
def test_a_modality_is_not_called_like_a_part_of_the_model(name):
    modality = Modality(('VV',), 's1')
    with pytest.raises(InputError, match=f'model.modalities: {name!r} '):
        build(to_dict(Config(model=Model(modalities={name: modality, 's2': modality}))))


def test_the_names_that_are_taken_are_all_that_a_container_of_modules_has():
    assert {name for name in dir(nnx.Dict) if not name.startswith('_')} <= RESERVED


@dataclasses.dataclass(frozen=True)
class Paths:
    one: str = setting('', path=True)
    many: tuple[str, ...] = setting((), path=True)
    word: str = ''


def test_a_tilde_is_the_home_folder_in_paths_alone(monkeypatch):
    monkeypatch.setenv('HOME', '/home/somebody')
    given = from_dict(Paths, {'one': '~/run', 'many': ['~', 'a/~', 'gs://b/~'], 'word': '~/run'})
    assert given == Paths('/home/somebody/run', ('/home/somebody', 'a/~', 'gs://b/~'), '~/run')
    with pytest.raises(InputError, match=r'config\.one: ~nobody-here/run: ~nobody-here is no home folder'):
        from_dict(Paths, {'one': '~nobody-here/run'})
    assert user_path('~/x') == '/home/somebody/x'


def test_every_setting_that_names_a_file_or_folder_expands_it():
    """By the names that such settings have; another one that is a path needs `path=True` too."""
    words = ('path', 'root', 'checkpoint', 'checkpoints', 'output', 'table', 'metadata', 'file')
    for kind in KINDS:
        for name, field in text_fields(kind):
            if name.split('_')[-1] in words:
                assert field.metadata.get('path'), f'{kind.__name__}: {name}'


def text_fields(kind):
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        inside = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            yield from text_fields(hint)
        elif inside and dataclasses.is_dataclass(inside[-1]):
            yield from text_fields(inside[-1])
        elif hint is str or inside[:1] == (str,):
            yield field.name, field


@pytest.mark.parametrize('name', ['run', 'checkpoints', '7', 'checkpoints/7', 'checkpoints/checkpoints'])
def test_a_run_may_be_called_like_its_checkpoints(name, tmp_path):
    workdir = tmp_path / name
    (workdir / 'checkpoints' / '30').mkdir(parents=True)
    for path, step in ((workdir, None), (workdir / 'checkpoints' / '30', 30)):
        assert find(path) == (workdir, step)
        assert opening.kind_of(path) == 'checkpoint'
    # A folder of checkpoints inside a run of that name is a run to look at; its own step finds the way.
    (tmp_path / 'data').mkdir()
    assert opening.kind_of(tmp_path / 'data') == 'folder'


def test_names_that_are_no_text_are_escaped_and_refused(tmp_path):
    name = os.fsdecode(b'caf\xe9')
    assert escaped(f'{name}/\u00e9\u20ac') == 'caf\\xe9/\u00e9\u20ac'
    with pytest.raises(InputError, match=r'caf\\xe9: this name is not UTF-8'):
        user_path(name)
    with pytest.raises(InputError, match=r'caf\\xe9: this name is not UTF-8'):
        records.folder(str(tmp_path / name), 's1_root')
    error = RecordError(name, 'f', 'x', 'y')
    assert str(error) == 'caf\\xe9: f: x; y' and error.skip(name)['record'] == 'caf\\xe9'
