"""Several converted data sets as one step-addressed source; a single set is a mixture of one.

Every batch holds a fixed number of rows of each set, in proportion to its weight, so shapes stay static and
what a step reads is still a function of (seed, step) alone. In a batch the fields of a set carry its name
as a prefix (`ben/s1`); a single set has none. Each set keeps its own grids, units and contract: `prepare`
brings them onto the model grid before they are joined.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import grain
from jax.sharding import NamedSharding

from fusmae_jax.config.run import Config, Data
from fusmae_jax.errors import InputError
from fusmae_jax.input import pipeline
from fusmae_jax.input.contract import Contract, fingerprint
from fusmae_jax.input.prepare import fields
from fusmae_jax.input.source import Source


def row_counts(data: Data, batch_size: int) -> dict[str, int]:
    """prefix -> rows of a global batch; by weight, the largest remainders getting what is left over."""
    if not data.mixture:
        return {'': batch_size}
    total = sum(part.weight for part in data.mixture.values())
    exact = {name: data.mixture[name].weight / total * batch_size for name in sorted(data.mixture)}
    rows = {name: int(share) for name, share in exact.items()}
    left = batch_size - sum(rows.values())
    for name in sorted(rows, key=lambda name: (rows[name] - exact[name], name))[:left]:
        rows[name] += 1
    return {f'{name}/': count for name, count in rows.items()}


def check_rows(rows: Mapping[str, int], devices: int) -> None:
    """Raises InputError unless every device gets the same number of rows of every set."""
    for prefix, count in rows.items():
        if not count or count % devices:
            others = ', '.join(f'{name.rstrip("/")} {n}' for name, n in rows.items())
            raise InputError(
                f'data.mixture: a batch has {count} rows of {prefix.rstrip("/")!r}, which {devices} devices '
                f'cannot share equally (rows: {others}); change the weights or train.batch_size so that each '
                f'is a multiple of {devices}'
            )


class Mixture:
    """The training records of a run."""

    def __init__(self, sources: Mapping[str, Source], rows: Mapping[str, int]):
        """`sources` and `rows` (of a global batch) by prefix."""
        self.sources, self.rows = dict(sources), dict(rows)
        self.contract = _contract(self.sources)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources.values())

    def copy_to(self, folder: str) -> None:
        """`Source.copy_to` of every set."""
        for source in self.sources.values():
            source.copy_to(folder)

    def batches(self, seed: int, sharding: NamedSharding) -> grain.MapDataset:
        """Endless batches of this process, `batches[step]`; each record carries its global position."""
        total, first, parts = sum(self.rows.values()), 0, {}
        for prefix, count in self.rows.items():
            local_count = pipeline.local_rows(sharding, count)
            where = pipeline.BatchPlace(total, first, count)
            parts[prefix] = pipeline.train_batches(
                self.sources[prefix], _seed(seed, prefix), count, local_count, where
            )
            first += count
        return parts[''] if '' in parts else _Joined(parts)


class _Joined(grain.MapDataset):
    """The batches of all sets under one step, with prefixed fields."""

    def __init__(self, parts: Mapping[str, grain.MapDataset]):
        super().__init__(list(parts.values()))
        self._prefixes = tuple(parts)

    def __len__(self) -> int:
        return min(len(parent) for parent in self._parents)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        return {
            f'{prefix}{name}': value
            for prefix, parent in zip(self._prefixes, self._parents)
            for name, value in parent[index].items()
        }


def _seed(seed: int, prefix: str) -> int:
    """Of a set's shuffle: another one for each name, whatever stands beside it in the mixture."""
    if not prefix:
        return seed
    return int.from_bytes(hashlib.blake2b(f'{seed} {prefix}'.encode(), digest_size=4).digest()) % 2**31


def _contract(sources: Mapping[str, Source]) -> Contract:
    if '' in sources:
        return sources[''].contract
    parts = {prefix.rstrip('/'): source.contract for prefix, source in sources.items()}
    return Contract(
        dataset=f'a mixture of {", ".join(f"{name} ({c.dataset} {c.version})" for name, c in parts.items())}',
        fingerprint=fingerprint({name: part.fingerprint for name, part in parts.items()}),
        parts=parts,
    )


def open_train(config: Config, batch_size: int = 0) -> Mixture:
    """The training records, in batches of the configured size or another."""
    splits = {f'{name}/': (part.path, part.train_split) for name, part in config.data.mixture.items()}
    splits = splits or {'': (config.data.path, config.data.train_split)}
    rows = row_counts(config.data, batch_size or config.train.batch_size)
    return Mixture({prefix: _open(config, *splits[prefix]) for prefix in rows}, rows)


def open_validation(config: Config) -> dict[str, Source]:
    """The sets to validate on, by prefix; empty where validation is off."""
    splits = {f'{name}/': (part.path, part.val_split) for name, part in sorted(config.data.mixture.items())}
    splits = splits or {'': (config.data.path, config.data.val_split)}
    sources = {prefix: _open(config, path, split) for prefix, (path, split) in splits.items() if split}
    for source in sources.values() if config.data.cache else ():
        source.copy_to(config.data.cache)
    return sources


def _open(config: Config, path: str, split: str) -> Source:
    source = Source(path, split, ())
    source.fields = tuple(fields(config, source.contract))
    return source
