"""The page of all settings: fields of dataclasses with type, default, range and the comments beside them."""

import ast
import dataclasses
import html
import importlib
import inspect
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any, Literal, NamedTuple

from fusmae_jax.config.setting import key_of
from fusmae_jax.shipped.data.convert import BUILDERS

# Title, module and name of the settings, and what stands before theirs.
COMMANDS = (
    ('pretrain', 'fusmae_jax.config.run', 'Config', ''),
    ('linear_probe', 'fusmae_jax.eval.config', 'LinearProbe', ''),
    ('attentive_probe', 'fusmae_jax.eval.attentive.config', 'AttentiveProbe', ''),
    ('knn', 'fusmae_jax.eval.config', 'Knn', ''),
    ('finetune', 'fusmae_jax.eval.finetune.config', 'Finetune', ''),
    ('dense_probe', 'fusmae_jax.eval.dense.config', 'DenseProbe', ''),
    ('dense_knn', 'fusmae_jax.eval.dense.config', 'DenseKnn', ''),
    ('dense_finetune', 'fusmae_jax.eval.dense.config', 'DenseFinetune', ''),
    ('reliance', 'fusmae_jax.eval.reliance.config', 'Reliance', ''),
    ('encode', 'fusmae_jax.embed.settings', 'EncodeConfig', ''),
    ('neuco', 'fusmae_jax.shipped.data.neuco.settings', 'NeucoConfig', ''),
    ('import', 'fusmae_jax.interop.weights.published_kinds', 'WeightFile', ''),
    ('tables', 'fusmae_jax.tables.config', 'Tables', ''),
    ('convert', 'fusmae_jax.shipped.data.convert', 'ConvertConfig', ''),
    *(
        (f'convert, {name}', f'fusmae_jax.shipped.data{module}', 'Archive', 'archive')
        for name, module in BUILDERS.items()
    ),
)
LIMITS = {'least': '≥', 'above': '>', 'most': '≤', 'below': '<'}
INTRODUCTION = """# Configuration

Written from the dataclasses of the code when the site is built. A setting is given as `--config.NAME=VALUE`
behind `--config=FILE.py`; an unknown one is an error that names the nearest. `*` stands for a name of yours,
such as that of a sensor. Ranges hold for each number of a list. Defaults are those of the code: a file in
`configs/` can have others.
"""


class Row(NamedTuple):
    """One setting."""

    name: str
    kind: str
    default: str
    limits: str
    meaning: str


def text() -> str:
    """The page, in Markdown."""
    parts = [INTRODUCTION]
    for title, module, name, prefix in COMMANDS:
        cls = getattr(importlib.import_module(module), name)
        parts.append(f'## {title}\n\n`{module}.{name}`\n')
        for path, defaults in groups(cls(), prefix):
            heading = f'### {title}: `{path}`\n\n' if path != prefix else ''
            table = [Row('setting', 'type', 'default', 'range', 'meaning'), Row(*['---'] * 5)]
            lines = [f'| {" | ".join(row)} |' for row in table + rows(defaults, path)]
            parts.append(f'{heading}{_words(inspect.getdoc(defaults))}\n\n' + '\n'.join(lines) + '\n')
    return '\n'.join(parts)


def groups(defaults: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """The dataclass with its defaults, then those in it, each with its dotted path."""
    yield path, defaults
    for name, kind in typing.get_type_hints(type(defaults)).items():
        inner, star = _inner(kind)
        if inner:
            value = getattr(defaults, name)
            value = value if dataclasses.is_dataclass(value) else inner()
            yield from groups(value, f'{path}.{name}{star}'.removeprefix('.'))


def rows(defaults: Any, path: str = '') -> list[Row]:
    """The settings of a dataclass that are no groups, in order, with their values in `defaults`."""
    hints, comments = typing.get_type_hints(type(defaults)), _comments(type(defaults))
    prefix = f'{path}.' if path else ''
    return [
        Row(
            f'`{prefix}{key_of(field)}`',
            _code(_type(hints[field.name])),
            _code(_value(getattr(defaults, field.name))),
            ', '.join(
                f'{sign} {field.metadata[key]:.10g}' for key, sign in LIMITS.items() if key in field.metadata
            ),
            _words(comments.get(field.name, '')),
        )
        for field in dataclasses.fields(defaults)
        if not dataclasses.is_dataclass(hints[field.name])
    ]


def _inner(kind: Any) -> tuple[Any, str]:
    """The dataclass that a type holds, and `.*` where it does by names; None where it holds none."""
    if dataclasses.is_dataclass(kind):
        return kind, ''
    star = '.*' if typing.get_origin(kind) is not None and _is_mapping(kind) else ''
    inside = [arg for arg in typing.get_args(kind) if dataclasses.is_dataclass(arg)]
    return (inside[0], star) if inside else (None, '')


def _is_mapping(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _type(kind: Any) -> str:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return ', '.join(map(str, arguments))
    if isinstance(kind, types.UnionType):
        return ' or '.join(_type(argument) for argument in arguments)
    if _is_mapping(kind):
        return f'names to {_type(arguments[1])}'
    if typing.get_origin(kind) is tuple:
        if arguments[-1] is Ellipsis:
            return f'list of {_type(arguments[0])}'
        return f'{len(arguments)} of {_type(arguments[0])}'
    return 'None' if kind is types.NoneType else kind.__name__


def _value(value: Any) -> str:
    return ', '.join(value) if isinstance(value, Mapping) else repr(value)


def _comments(cls: type) -> dict[str, str]:
    """Of each field, the comment lines right above it and those beside it; base classes first."""
    comments: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        source = textwrap.dedent(inspect.getsource(base))
        above, beside = _comment_lines(source)
        tree = ast.parse(source).body[0]
        assert isinstance(tree, ast.ClassDef)
        for node in tree.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                first = node.lineno
                while first - 1 in above:
                    first -= 1
                lines = [above[i] for i in range(first, node.lineno)]
                lines += [beside[i] for i in range(node.lineno, (node.end_lineno or 0) + 1) if i in beside]
                comments[node.target.id] = ' '.join(lines)
    return comments


def _comment_lines(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """The comments by line: those alone on theirs, and those behind code."""
    above: dict[int, str] = {}
    beside: dict[int, str] = {}
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            kind = beside if token.line[: token.start[1]].strip() else above
            kind[token.start[0]] = token.string.lstrip('# ')
    return above, beside


def _words(text: str | None) -> str:
    """Plain words in a cell of a table: only what stands in backticks is marked up."""
    parts = ' '.join((text or '').split()).split('`')
    parts[::2] = [html.escape(re.sub(r'([*_\[\]])', r'\\\1', part), quote=False) for part in parts[::2]]
    return '`'.join(parts).replace('|', '\\|')


def _code(text: str) -> str:
    return f'`{text}`'.replace('|', '\\|') if text else ''
