"""Checked configurations from an ml_collections file, and back to plain data.

`from_dict` refuses unknown keys (naming the nearest valid one), wrong types and numbers outside the range
that stands beside their field, and reports all of them at once; `build` also refuses what cannot be together.
"""

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import ml_collections

from fusmae_jax.config.checks import check_model, check_run
from fusmae_jax.config.run import SIZES, Config, Model
from fusmae_jax.config.setting import field_problems, key_of
from fusmae_jax.errors import InputError, nearest, raise_all
from fusmae_jax.paths import user_path

T = TypeVar('T')


def to_dict(config: Any, *, to_change: bool = False) -> Any:
    """Plain dicts, tuples and scalars of a configuration (for JSON and ConfigDict).

    Sparse fields (`config.setting.SPARSE`) with their defaults are left out; with `to_change` those alone
    that have no value at all.
    """
    if dataclasses.is_dataclass(config):
        fields = [(f, getattr(config, f.name)) for f in dataclasses.fields(config)]
        return {
            key_of(f): to_dict(x, to_change=to_change)
            for f, x in fields
            if 'sparse' not in f.metadata or x != _default(f) or (to_change and x is not None)
        }
    if isinstance(config, Mapping):
        return {key: to_dict(value, to_change=to_change) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return tuple(to_dict(value, to_change=to_change) for value in config)
    return config


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def flatten(values: Any, prefix: str = '') -> dict[str, Any]:
    """Nested mappings to one level with dotted keys; sequences count as values."""
    if not isinstance(values, Mapping):
        return {prefix: list(values) if isinstance(values, tuple | list) else values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f'{prefix}.{key}' if prefix else key)
    return flat


def config_dict(config: Any) -> ml_collections.ConfigDict:
    """A ConfigDict with every field of a configuration, for the files in configs/ to change.

    Everything keeps its order, which ml_collections sorts by default: in a stack modalities are channels, and
    the tables of a study are shown one after the other.
    """
    return _ordered(to_dict(config, to_change=True))


def _ordered(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    groups = {key: _ordered(value) if isinstance(value, dict) else value for key, value in values.items()}
    return ml_collections.ConfigDict(groups, sort_keys=False)


def from_dict(cls: type[T], values: Mapping[str, Any], title: str = 'config') -> T:
    """An instance of the dataclass `cls`, with `~` expanded in its paths.

    Raises InputError with every unknown key, wrong type and number that is not finite or out of range.
    """
    problems: list[str] = []
    result = _dataclass(cls, values, title, problems)
    raise_all(f'{title}: these settings cannot be used', problems)
    assert result is not None
    return result


def build(values: Mapping[str, Any]) -> Config:
    """The checked Config of a pretraining run, with the model size filled in."""
    config = from_dict(Config, values)
    config = dataclasses.replace(config, model=resolve(config.model))
    problems = check_model(config.model)
    raise_all('config: these settings cannot be used', problems or check_run(config))
    return config


def resolve(model: Model) -> Model:
    """The same model with width, depth and heads taken from its named size where they are 0."""
    width, depth, heads = SIZES.get(model.size, (0, 0, 0))
    return dataclasses.replace(
        model, width=model.width or width, depth=model.depth or depth, heads=model.heads or heads
    )


def _dataclass(cls: type[T], values: Any, path: str, problems: list[str]) -> T | None:
    """The instance, or None where a problem was added."""
    if not isinstance(values, Mapping):
        problems.append(f'{path} must be a group of settings, found {values!r}')
        return None
    before, hints = len(problems), typing.get_type_hints(cls)
    fields = {key_of(field): field for field in dataclasses.fields(typing.cast(Any, cls))}
    known = {}
    for key, value in values.items():
        if key not in fields:
            problems.append(f'{path}.{key} is not a setting; {nearest(str(key), fields)}')
            continue
        count = len(problems)
        known[key] = _value(hints[fields[key].name], value, f'{path}.{key}', problems)
        if len(problems) == count:
            problems += field_problems(fields[key], known[key], f'{path}.{key}')
        if len(problems) == count and fields[key].metadata.get('path'):
            known[key] = _expanded(known[key], f'{path}.{key}', problems)
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            problems.append(f'{path}.{name} is missing')
    given = {fields[key].name: value for key, value in known.items()}
    return cls(**given) if len(problems) == before else None


def _expanded(value: Any, path: str, problems: list[str]) -> Any:
    """A path, or each of several, with its home folder."""
    try:
        return tuple(map(user_path, value)) if isinstance(value, tuple) else user_path(value)
    except InputError as error:
        problems.append(f'{path}: {error}')
        return value


def _value(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        return _dataclass(typing.cast(type, hint), value, path, problems)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        # A command line gives text for every field whose default is text.
        chosen = [arg for arg in args if arg is value or str(arg) == str(value)]
        if not chosen:
            problems.append(f'{path}={value!r}; {nearest(str(value), map(str, args))}')
        return chosen[0] if chosen else value
    if origin is types.UnionType:
        # None, or a value of the other type.
        return None if value is None else _value(args[0], value, path, problems)
    if origin is tuple:
        return _tuple(args, value, path, problems)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            problems.append(f'{path} must be a group of settings, found {value!r}')
            return {}
        return {key: _value(args[1], item, f'{path}.{key}', problems) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        # A whole number that no float can hold is as infinite as `inf`, and refused like it.
        return float(value) if abs(value) < sys.float_info.max else math.inf
    if type(value) is not hint:
        name = hint.__name__ if isinstance(hint, type) else hint
        problems.append(f'{path}={value!r} must be of type {name}, found {type(value).__name__}')
    return value


def _tuple(args: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        problems.append(f'{path}={value!r} must be a list')
        return ()
    many = len(args) == 2 and args[1] is Ellipsis
    if not many and len(value) != len(args):
        problems.append(f'{path}={value!r} must have {len(args)} entries, found {len(value)}')
        return tuple(value)
    kinds = [args[0]] * len(value) if many else list(args)
    return tuple(_value(k, v, f'{path}[{i}]', problems) for i, (k, v) in enumerate(zip(kinds, value)))
