"""What the numbers of a task stand on, in words, from the rows that hold them."""

from collections.abc import Mapping, Sequence

from fusmae_jax.eval.row import ALL, Row
from fusmae_jax.tables.collect import Cell
from fusmae_jax.tables.config import Tables


def protocol(config: Tables, found: Mapping[tuple[str, str], Cell]) -> str:
    """A paragraph for each task that has numbers, and a line for each system in it."""
    parts = []
    for task, about in config.tasks.items():
        rows = {
            system: [next(iter(each.values())) for m in cell.by_sensors.values() for each in m.rows]
            for (name, system), cell in found.items()
            if name == task and cell.by_sensors
        }
        if rows:
            lines = [_task(about.label or task, next(iter(rows.values()))[0])]
            lines += [f'- {config.systems[name].label or name}: {_system(own)}' for name, own in rows.items()]
            parts.append('\n'.join(lines))
    return '\n\n'.join(parts) or 'No task has numbers yet.'


def _task(label: str, row: Row) -> str:
    without = f' ({", ".join(row.without_positives)} without positives)' if row.without_positives else ''
    drawn = (
        'all' if row.draw == ALL else f'{row.label_fraction:.0%}, {row.draw}, subsets {_list(row.draw_seeds)}'
    )
    interval = (
        f'intervals over {row.clusters:,} clusters ({row.cluster}), {row.replicates:,} resamples'
        if row.low is not None
        else 'no intervals'
    )
    return (
        f'**{label}**: {row.dataset} {row.dataset_version} ({row.dataset_fingerprint}), split {row.split}, '
        f'{row.records:,} records, {len(row.classes)} classes{without}; {row.train_records:,} labelled '
        f'records ({drawn}) of {row.train_split}; {interval}; code {row.code_version}'
    )


def _system(rows: Sequence[Row]) -> str:
    row = rows[0]
    if row.method == 'prior':
        return 'the shares of the classes among the labelled records'
    leaks = 'leaks unknown' if row.leaks is None else f'{row.leaks["any"]:,} test records seen in pretraining'
    chosen = {
        name: '/'.join(f'{x:g}' for x in sorted({x for r in rows for x in r.chosen.get(name, ())}))
        for name in row.chosen
    }
    words = [
        f'{row.method}, preset {row.preset}',
        f'feature {row.pooled}{" + batch norm" if row.batch_norm else ""}',
        '; '.join(f'{name} {"/".join(f"{x:g}" for x in tried)}' for name, tried in row.sweep.items()),
        f'image {row.image}',
        f'statistics {row.statistics}',
        f'absent sensor {row.absent}' if row.absent else '',
        f'accepted {", ".join(row.accepted)}' if row.accepted else '',
        '; '.join(f'{name} {x}' for name, x in chosen.items()) + f' (settled on {row.settled_on})'
        if chosen
        else '',
        leaks,
        f'weights {", ".join(dict.fromkeys(x for r in rows for x in r.checkpoints))}'
        if row.checkpoints
        else '',
    ]
    return '; '.join(filter(None, words))


def _list(values: Sequence[int]) -> str:
    return ', '.join(map(str, values))
