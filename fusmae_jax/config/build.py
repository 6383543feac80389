"""From an ml_collections file to a checked configuration, and back to plain data.

`from_dict` refuses unknown keys (naming the nearest valid one), wrong types and numbers outside the range
that stands beside their field, and reports all of them at once; `build` also refuses what cannot be together.
"""

import dataclasses
import math
import re
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import ml_collections

from fusmae_jax import sensors
from fusmae_jax.config.run import JOINT, RESERVED, SIZES, Augment, Config, Model
from fusmae_jax.config.setting import field_problems, range_problems
from fusmae_jax.errors import InputError, nearest, raise_all
from fusmae_jax.paths import user_path

T = TypeVar('T')


def to_dict(config: Any) -> Any:
    """Plain dicts, tuples and scalars of a configuration (for JSON and ConfigDict)."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return tuple(to_dict(value) for value in config)
    return config


def config_dict(config: Any) -> ml_collections.ConfigDict:
    """A ConfigDict with every field of a configuration, for the files in configs/ to change.

    Everything keeps its order, which ml_collections sorts by default: in a stack modalities are channels, and
    the tables of a study are shown one after the other.
    """
    return _ordered(to_dict(config))


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
    raise_all('config: these settings cannot be used', problems or _check_run(config))
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
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    known = {}
    for key, value in values.items():
        if key not in fields:
            problems.append(f'{path}.{key} is not a setting; {nearest(str(key), fields)}')
            continue
        count = len(problems)
        known[key] = _value(hints[key], value, f'{path}.{key}', problems)
        if len(problems) == count:
            problems += field_problems(fields[key], known[key], f'{path}.{key}')
        if len(problems) == count and fields[key].metadata.get('path'):
            known[key] = _expanded(known[key], f'{path}.{key}', problems)
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            problems.append(f'{path}.{name} is missing')
    return cls(**known) if len(problems) == before else None


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
        if value not in args:
            problems.append(f'{path}={value!r}; {nearest(str(value), map(str, args))}')
        return value
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


def check_model(model: Model) -> list[str]:
    """Everything that makes a model impossible, as sentences."""
    problems = range_problems(model, 'model.')
    if problems:
        return problems
    if model.size not in SIZES and not (model.width and model.depth and model.heads):
        problems.append(f'model.size={model.size!r}; {nearest(model.size, SIZES)}')
        return problems
    for name, length in zip(('rows', 'columns'), model.image_size):
        if length % model.patch_size:
            problems.append(
                f'model.image_size={model.image_size}: {length} {name} are not a whole number of '
                f'patches of model.patch_size={model.patch_size}'
            )
    for part, width, heads in (
        ('model', model.width, model.heads),
        ('model.decoder', model.decoder.width, model.decoder.heads),
    ):
        if width < 1 or heads < 1:
            problems.append(f'{part}.width={width} and {part}.heads={heads} must be at least 1')
        elif width % heads:
            problems.append(f'{part}.width={width} is not a multiple of {part}.heads={heads}')
        if width % 4:
            problems.append(f'{part}.width={width} is not a multiple of 4 (2-D sine-cosine positions)')
    if int(model.width * model.mlp_ratio) < 1:
        problems.append(
            f'model.mlp_ratio={model.mlp_ratio} of model.width={model.width} leaves no hidden unit'
        )
    if not model.modalities:
        problems.append('model.modalities is empty: name at least one')
    if model.fusion.encoder == 'xae' and len(model.modalities) < 2:
        problems.append("model.fusion.encoder='xae' needs two modalities or more; use 'none' for one")
    if model.fusion.decoder == 'xad' and len(model.modalities) < 2:
        problems.append("model.fusion.decoder='xad' needs two modalities or more; use 'none' for one")
    if model.fusion.encoder == 'stack':
        if len(model.modalities) < 2:
            problems.append("model.fusion.encoder='stack' needs two modalities or more; use 'none' for one")
        if model.fusion.decoder != 'none':
            problems.append(
                f'model.fusion.decoder={model.fusion.decoder!r} needs tokens of each modality; with '
                "model.fusion.encoder='stack' a token holds all of them: use 'none'"
            )
    for name, modality in model.modalities.items():
        problems += _check_modality(name, modality)
    return problems


def _check_modality(name: str, modality: Any) -> list[str]:
    path, problems = f'model.modalities.{name}', _check_name(name)
    if not modality.bands:
        problems.append(f'{path}.bands is empty')
    if modality.sensor:
        if modality.sensor not in sensors.SENSORS:
            problems.append(f'{path}.sensor={modality.sensor!r}; {nearest(modality.sensor, sensors.SENSORS)}')
        else:
            known = sensors.SENSORS[modality.sensor].bands
            problems += [
                f'{path}.bands: {b!r}; {nearest(b, known)}' for b in modality.bands if b not in known
            ]
    for field in ('mean', 'std'):
        values = getattr(modality, field)
        if (values or not modality.sensor) and len(values) != len(modality.bands):
            problems.append(f'{path}.{field} must have one number for each of {len(modality.bands)} bands')
    return problems


def _check_name(name: str) -> list[str]:
    if not re.fullmatch(r'[a-z][a-z0-9_]*', name):
        return [f'model.modalities: {name!r} must be small letters, digits and _, a letter first']
    if name in RESERVED or name.startswith('other_'):
        return [
            f'model.modalities: {name!r} is a name that the model uses itself; call the modality otherwise'
        ]
    return []


def _check_masking(config: Config) -> list[str]:
    problems = []
    masking, model = config.masking, config.model
    ratio, patches, strategy = masking.ratio, model.num_patches, masking.strategy
    if not 0 < int(patches * (1 - ratio)) < patches:
        problems.append(
            f'masking.ratio={ratio} of {patches} patches: at least one must be visible and one masked'
        )
    if model.fusion.encoder == 'stack' and strategy != 'consistent':
        problems.append(
            f"masking.strategy={strategy!r}: with model.fusion.encoder='stack' a token holds all modalities, "
            "so they are hidden together; use 'consistent'"
        )
    if strategy in JOINT and len(model.modalities) < 2:
        problems.append(
            f"masking.strategy={strategy!r} needs two modalities or more; use 'independent' for one"
        )
    if strategy == 'modality' and model.fusion.absent == 'zero_image':
        problems.append(
            "masking.strategy='modality' leaves no slot for the mean image of a hidden modality; use "
            "model.fusion.absent='self' or 'bypass'"
        )
    return problems


def augment_problems(augment: Augment) -> list[str]:
    """What cannot be in the settings of the augmentation, which fine-tuning has too."""
    problems = []
    low, high = augment.crop_scale
    if not low <= high:
        problems.append(f'augment.crop_scale={augment.crop_scale} must have the low one first')
    low, high = augment.crop_ratio
    if not low <= high:
        problems.append(f'augment.crop_ratio={augment.crop_ratio} must have the low one first')
    return problems


def _check_run(config: Config) -> list[str]:
    problems = [*_check_masking(config), *augment_problems(config.augment)]
    if not any(modality.loss_weight for modality in config.model.modalities.values()):
        problems.append('model.modalities: every loss_weight is 0, so nothing would be learned')
    if config.log.knn.every_steps and not config.log.knn.path:
        problems.append('log.knn.path is empty: name a labelled set, or set log.knn.every_steps=0')
    if not config.train.steps and not config.train.epochs:
        problems.append('train.steps and train.epochs are both 0: give one of them')
    if config.data.mixture and (config.data.path or config.data.val_split):
        problems.append(
            'data.path and data.val_split mean nothing beside data.mixture; set them in its parts'
        )
    for name in config.data.mixture:
        if '/' in name or not name:
            problems.append(f'data.mixture: {name!r} must be a word without a slash')
    return problems
