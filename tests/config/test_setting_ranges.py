"""The range of every number in every settings class, and what lies outside of it."""

import dataclasses
import math
import typing

import pytest

from fusmae_jax.config.build import build, from_dict, to_dict
from fusmae_jax.config.run import Config
from fusmae_jax.config.setting import range_problems
from fusmae_jax.errors import InputError
from tests.support.kinds import KINDS

# What may be any finite number: statistics and offsets, which have the unit of the data.
ANY = {'mean', 'offset', 'nodata', 'measured', 'bright', 'scale'}


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
            values = node = to_dict(kind(), to_change=True)
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
