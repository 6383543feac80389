"""Loads `configs/FILE.py[:VARIANT]` and applies `--config.key=value` settings.

`ml_collections.config_flags` would do it too, but answers a misspelt key with a traceback; here each
problem is one line that names the nearest valid name.
"""

import ast
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from fusmae_jax.config import catalogue
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.paths import user_path

Prepare = Callable[[ml_collections.ConfigDict], None]


def load_config(spec: str, overrides: Sequence[str] = (), prepare: Prepare | None = None) -> dict[str, Any]:
    """The configuration of a file as plain nested dicts.

    Args:
        spec: `FILE.py` or `FILE.py:VARIANT`; the file's `get_config(VARIANT)` returns a ConfigDict. Where no
            `configs/NAME.py` is in the working directory, the one of the package is taken.
        overrides: `key.subkey=value` settings. Values are Python literals, or plain words for text.
        prepare: what is done to the configuration before they are applied.

    Raises:
        InputError: no such file or variant, or keys that the configuration does not have.
    """
    name, _, variant = spec.partition(':')
    file = _file(name)
    module_spec = importlib.util.spec_from_file_location(f'config_{file.stem}', file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
        raise InputError(f'--config: {name} defines no get_config()')
    config = _call(module.get_config, name, variant)
    if prepare is not None:
        prepare(config)
    for override in overrides:
        _set(config, override, name)
    return config.to_dict()


def _file(name: str) -> Path:
    """The file of that name, or the one of that name that ships with the package."""
    file = Path(user_path(name))
    if file.is_file() and file.suffix == '.py':
        return file
    if not file.exists() and (shipped := catalogue.shipped_file(name)):
        _say_once(f'--config: {name} is not here; taken from the package: {shipped}')
        return shipped
    there = {str(path) for path in Path('configs').glob('*.py') if path.stem != '__init__'}
    there |= {f'configs/{stem}.py' for stem in catalogue.shipped_files()}
    raise InputError(f'--config: {name} is not a Python file that exists; {nearest(name, there)}')


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _call(get_config: Callable[..., Any], name: str, variant: str) -> ml_collections.ConfigDict:
    given = [variant] if variant else []
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError as error:
        message = f'takes no variant, found {variant!r}' if variant else 'needs a variant: FILE.py:VARIANT'
        raise InputError(f'--config: get_config() of {name} {message}') from error
    config = get_config(*given)
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(
            f'--config: get_config() of {name} must return a ConfigDict, found {type(config).__name__}'
        )
    return config


def _set(config: ml_collections.ConfigDict, override: str, file: str) -> None:
    path, equals, text = override.partition('=')
    if not equals:
        raise InputError(f'--config.{path} has no value; write --config.{path}=VALUE')
    *groups, key = path.split('.')
    node = config
    for group in [*groups, key]:
        if not isinstance(node, ml_collections.ConfigDict) or group not in node:
            known = list(node) if isinstance(node, ml_collections.ConfigDict) else []
            raise InputError(f'--config.{path}: {file} has no setting {group!r}; {nearest(group, known)}')
        node, parent = node[group], node
    if isinstance(node, ml_collections.ConfigDict):
        inside = f'choose one of {", ".join(sorted(node))}' if node else 'set it in a configuration file'
        raise InputError(f'--config.{path} is a group of settings; {inside}')
    with (
        parent.unlocked(),
        parent.ignore_type(),
    ):  # types are checked, all at once, when the dataclass is built
        parent[key] = text if isinstance(node, str) else _literal(text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {'true': True, 'false': False}.get(text.lower(), text)
