"""The conversion report and the contract, from the sidecars of all shards.

The progress line of a conversion, from the sidecars that workers leave.
"""

import dataclasses
import sys
import threading
import time
from types import TracebackType
from typing import Any

from fusmae_jax.config.build import to_dict
from fusmae_jax.errors import InputError
from fusmae_jax.input.contract import Contract, Statistics
from fusmae_jax.input.contract import fingerprint as digest

from . import plan, records, s1_storage
from .records import RecordSource, Schema
from .statistics import Tally

FILE = 'conversion_report.json'
UNLABELLED = '(no label)'  # pixels of a map


def build(
    folder: plan.Folder,
    source: RecordSource,
    shards: list[plan.Shard],
    settings: dict[str, Any],
    converted: list[str],
    seconds: float,
) -> dict[str, Any]:
    """The report of a conversion whose shards are all there; raises InputError for a split without records.

    Everything but `timing` is the same however often the conversion was cut off and resumed.
    """
    schema = source.schema
    splits: dict[str, Any] = {}
    losses: dict[str, float] = {}
    skips = [dict(skip) for skip in source.skips]
    written = 0
    for name in dict.fromkeys(shard.split for shard in shards):
        of_split = [shard for shard in shards if shard.split == name]
        sidecars = [plan.read(folder.done_file(shard.name)) for shard in of_split]
        tally = Tally(schema)
        for sidecar in sidecars:
            tally.merge(Tally.from_json(schema, sidecar['tally']))
            skips += sidecar['skips']
            losses = s1_storage.largest(losses, sidecar.get('losses', {}))
        if not tally.records:
            raise InputError(
                f"split '{name}' is empty: all its {len(skips)} records were left out: {skips[:3]}"
            )
        splits[name] = _split(schema, tally, sidecars) | {
            'published': source.published.get(name),
            'published_labels': source.published_labels.get(name, {}),
        }
        written += sum(
            s['tally']['records'] for s, shard in zip(sidecars, of_split) if shard.name in set(converted)
        )
    return {
        'dataset': schema.name,
        'version': schema.version,
        'settings': settings,
        'records': sum(split['records'] for split in splits.values()),
        'splits': splits,
        'published_but_absent': [name for name in source.published if name not in splits],
        'notes': [*source.notes],
        'skips': skips,
        'largest_change': losses,  # of a value by the type that it is stored in, dB; by field
        'timing': {
            'finished': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
            'seconds': round(seconds, 3),
            'records_written': written,
            'records_per_second': round(written / seconds, 1),
        },
    }


def _split(schema: Schema, tally: Tally, sidecars: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        'records': tally.records,
        'bytes': sum(sidecar['bytes'] for sidecar in sidecars),
        'shard_records': [sidecar['tally']['records'] for sidecar in sidecars],
        'shard_bytes': [sidecar['bytes'] for sidecar in sidecars],
        'shard_digests': [sidecar['digest'] for sidecar in sidecars],
        'records_with_invalid_pixels': tally.with_invalid,
        'statistics': {group: _by_band(schema, group, tally) for group in schema.groups},
        'outside': {group: tally.moments[group].outside.tolist() for group in schema.groups},
        'labels': {
            field: dict(zip(schema.classes[field], count.tolist())) for field, count in tally.labels.items()
        },
        **({'maps': _pixels(schema, tally)} if schema.maps else {}),
        **({'number_maps': _map_numbers(schema, tally)} if schema.number_maps else {}),
        **({'targets': _numbers(schema, tally)} if schema.targets else {}),
    }


def _pixels(schema: Schema, tally: Tally) -> dict[str, dict[str, int]]:
    """Map -> class -> pixels; those without a class last."""
    return {
        field: dict(zip((*schema.maps[field].classes, UNLABELLED), count.tolist()))
        for field, count in tally.maps.items()
    }


def _map_numbers(schema: Schema, tally: Tally) -> dict[str, dict[str, Any]]:
    """Map -> what it holds, how many pixels have a number, and their mean, least and greatest."""
    maps = {}
    for field, ((count, total, least, greatest),) in tally.number_maps.items():
        about = schema.number_maps[field]
        maps[field] = {
            'quantity': about.quantity,
            'unit': about.unit,
            'pixels': int(count),
            'of': tally.records * about.size[0] * about.size[1],
            'mean': total / count if count else None,
            'minimum': least if count else None,
            'maximum': greatest if count else None,
        }
    return maps


def _numbers(schema: Schema, tally: Tally) -> dict[str, dict[str, dict[str, Any]]]:
    """Field -> target -> its unit, how many records have it, and their mean, least and greatest."""
    return {
        field: {
            name: {
                'unit': unit,
                'records': int(count),
                'mean': total / count if count else None,
                'minimum': least if count else None,
                'maximum': greatest if count else None,
            }
            for name, unit, (count, total, least, greatest) in zip(
                schema.targets[field].names, schema.targets[field].units, numbers.tolist()
            )
        }
        for field, numbers in tally.targets.items()
    }


def _by_band(schema: Schema, group: str, tally: Tally) -> dict[str, dict[str, float]]:
    values = to_dict(tally.moments[group].result())
    return {
        band: {key: column[index] for key, column in values.items()}
        for index, band in enumerate(schema.groups[group].bands)
    }


def contract(folder: plan.Folder, schema: Schema, report: dict[str, Any]) -> Contract:
    """The input contract; its statistics are those of train, or of the first split without one."""
    splits = report['splits']
    measured = 'train' if 'train' in splits else next(iter(splits))
    # A name for several splits means nothing where one of them does not exist.
    aliases = {
        alias: names
        for alias, names in schema.split_aliases.items()
        if splits.keys() >= set(names.split('+'))
    }
    schema = dataclasses.replace(schema, split_aliases=aliases)
    return records.contract(
        schema,
        {name: _columns(bands) for name, bands in splits[measured]['statistics'].items()},
        measured,
        fingerprint(report, (folder.data / 'features.json').read_text()),
    )


def fingerprint(report: dict[str, Any], features: str) -> str:
    """The digest of the shards' contents in their order and of the features, from a report."""
    parts = {
        name: list(zip(split['shard_records'], split['shard_digests']))
        for name, split in report['splits'].items()
    }
    about = {'dataset': report['dataset'], 'version': report['version'], 'shards': parts}
    return digest(about | {'features': features})


def _columns(bands: dict[str, dict[str, float]]) -> Statistics:
    keys = next(iter(bands.values())).keys()
    columns: dict[str, Any] = {key: tuple(band[key] for band in bands.values()) for key in keys}
    return Statistics(**columns)


def _label_lines(split: dict[str, Any]) -> list[str]:
    """Label counts, with the published ones beside them where there are any."""
    lines = []
    for field, counts in split['labels'].items():
        published = split['published_labels'].get(field, {})
        for name, count in counts.items():
            beside = f' (published: {published[name]:,})' if name in published else ''
            if count or beside:
                lines.append(f'    {field:<10} {count:>9,}{beside}  {name}')
    for field, pixels in split.get('maps', {}).items():
        total = max(sum(pixels.values()), 1)
        lines += [f'    {field:<10} {count / total:>9.2%} of the pixels  {n}' for n, count in pixels.items()]
    for field, v in split.get('number_maps', {}).items():
        title = f'{v["quantity"]} ({v["unit"]})' if v['unit'] else v['quantity']
        line = f'    {field:<10} {v["pixels"] / max(v["of"], 1):>9.2%} of the pixels'
        if v['pixels']:
            line += f', mean {v["mean"]:.4g}, from {v["minimum"]:.4g} to {v["maximum"]:.4g}'
        lines.append(f'{line}  {title}')
    for field, targets in split.get('targets', {}).items():
        for name, v in targets.items():
            title = f'{name} ({v["unit"]})' if v['unit'] else name
            line = f'    {field:<10} {v["records"]:>9,} of {split["records"]:,} records'
            if v['records']:
                line += f', mean {v["mean"]:.4g}, from {v["minimum"]:.4g} to {v["maximum"]:.4g}'
            lines.append(f'{line}  {title}')
    return lines


def summary(report: dict[str, Any]) -> str:
    """The report as a person reads it after a conversion."""
    lines = [f'{report["dataset"]} {report["version"]}: {report["records"]:,} records']
    for name, split in report['splits'].items():
        published = f' (published: {split["published"]:,})' if split['published'] else ''
        lines.append(
            f'  {name:<6} {split["records"]:>9,} records{published}, {len(split["shard_records"])} shards, '
            f'{split["bytes"] / 2**20:,.1f} MiB'
        )
        for group, bands in split['statistics'].items():
            # Reports of earlier versions did not count these.
            outside = split.get('outside', {}).get(group, [0] * len(bands))
            for (band, v), odd in zip(bands.items(), outside):
                invalid = f', {v["invalid"]:,} invalid pixels' if v['invalid'] else ''
                invalid += f', {odd:,} that its unit cannot be' if odd else ''
                lines.append(
                    f'    {group:<8}{band:<4} mean {v["mean"]:>9.2f}  std {v["std"]:>8.2f}  '
                    f'from {v["minimum"]:>8.2f} to {v["maximum"]:>9.2f}{invalid}'
                )
        lines += _label_lines(split)
    if report['published_but_absent']:
        lines.append(f'  without records, left out: {", ".join(report["published_but_absent"])}')
    if left_out := report['settings'].get('left_out'):
        lines.append(f'  left out as asked: {left_out}')
    lines += [
        f'  {field} is stored with a loss: no value changed by more than {loss:.4g} dB'
        for field, loss in report.get('largest_change', {}).items()
    ]
    lines.append(f'  skipped: {len(report["skips"])}')
    lines += [f'    {s["record"]}: {s["file"]}: {s["field"]}: {s["reason"]}' for s in report['skips'][:5]]
    timing = report['timing']
    lines.append(
        f'  {timing["records_written"]:,} records written in {timing["seconds"]:.1f} s '
        f'({timing["records_per_second"]:,.0f} records/s)'
    )
    return '\n'.join(lines)


class Progress:
    """Prints records done, rate and time left while the pipeline runs; stops it at too many skips.

    Workers may be other processes or other machines: all that is known of them are their sidecars.
    """

    def __init__(self, folder: plan.Folder, shards: list[plan.Shard], missing: list[str], max_skips: int):
        self._folder, self._max_skips = folder, max_skips
        self._total = sum(len(shard.items) for shard in shards)
        sizes = {shard.name: len(shard.items) for shard in shards}
        self._waiting = {name: sizes[name] for name in missing}
        self._kept = self._total - sum(self._waiting.values())
        self._done, self._skips = self._kept, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> 'Progress':
        if self._kept:
            print(
                f'{self._kept:,} of {self._total:,} records are in finished shards and are kept',
                file=sys.stderr,
            )
        # Sidecars of shards that will be written again would count as done.
        for name in self._waiting:
            self._folder.done_file(name).unlink(missing_ok=True)
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if kind is None:
            self._poll()
            self._print(end='\n')

    def _watch(self) -> None:
        # A terminal line may change every second; a log gets one line in ten.
        pause = 1.0 if self._terminal else 10.0
        while not self._over.wait(pause):
            self._poll()
            self._print(end='\r' if self._terminal else '\n')

    def _poll(self) -> None:
        for name in [name for name in self._waiting if self._folder.done_file(name).exists()]:
            self._done += self._waiting.pop(name)
            self._skips += len(plan.read(self._folder.done_file(name))['skips'])
        if self._skips > self._max_skips and not self._folder.stop.exists():
            message = f'{self._skips} records cannot be used so far, more than max_skips allows'
            plan.write(
                self._folder.stop, {'message': f'{message}; the list is in {self._folder.state}/*.done.json'}
            )

    def _print(self, end: str) -> None:
        seconds = time.monotonic() - self._start
        rate = (self._done - self._kept) / max(seconds, 1e-9)
        left = f'{(self._total - self._done) / rate:,.0f} s left' if rate else 'first shards under way'
        line = f'{self._done:,} of {self._total:,} records, {rate:,.0f} records/s, {left}'
        if self._skips:
            line += f', {self._skips} skipped'
        print(f'{line:<90}', end=end, file=sys.stderr, flush=True)
