"""Modality reliance as two tables and a figure.

Of classes the table has average precision. Of numbers to predict it has R2 and, in the units of the data,
RMSE: a head whose sensor is gone may still order records well and be wrong by a constant, which both count
and a correlation would not. R2 is 1 - squared errors / variation of the truth, so it falls below 0 where the
mean of the test split would have been the better answer, and is not cut off there.
"""

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from fusmae_jax import storage
from fusmae_jax.eval.config import Intervals
from fusmae_jax.eval.intervals import Interval, Replicates, difference, intervals, resample
from fusmae_jax.eval.metrics import means
from fusmae_jax.eval.reliance.attention import Shares
from fusmae_jax.eval.task import LabelledSet

TABLE, ATTENTION, FIGURE = 'reliance.csv', 'attention.csv', 'reliance.png'
Scores = Mapping[str, Mapping[str, Replicates]]  # system -> condition -> metrics


class Statistic(NamedTuple):
    """What is reported of a kind of labels."""

    metric: str  # column of the number
    title: str  # of a panel
    axis: str  # of its numbers
    item: str  # column of the classes or targets
    known: str  # column of the records that have one
    overall: dict[str, str]  # metric over all of them -> the name of its line; the first is drawn


PRECISION = Statistic(
    metric='ap',
    title='average precision',
    axis='',
    item='class',
    known='positives',
    overall={'ap_macro': 'all classes, macro', 'ap_micro': 'all classes, micro'},
)
EXPLAINED = Statistic(
    metric='r2',
    title='R2',
    axis='R2; 0: the mean of the test split',
    item='target',
    known='values',
    overall={'r2_macro': 'all targets, macro'},
)
LOWEST_R2 = -1.0  # that is drawn where it is; what lies below is drawn as a triangle there


class Share(NamedTuple):
    """One line of `attention.csv`."""

    system: str
    block: int  # from 1
    attending: str  # group of tokens
    attended: str
    share: Interval  # of the attention, over records
    tokens: float  # what it would be if every valid token that can be seen weighed the same
    records: int  # with a valid token of the attending group


def statistic(task: LabelledSet) -> Statistic:
    """What is reported of the labels of a task."""
    return EXPLAINED if task.units else PRECISION


def write(
    workdir: epath.Path,
    scores: Scores,
    attention: Mapping[str, Sequence[Mapping[str, Shares]]],
    task: LabelledSet,
    settings: Intervals,
) -> None:
    """Writes `reliance.csv`, `attention.csv` and `reliance.png`; each whole or not at all."""
    lines, reported = score_lines(scores, task), statistic(task)
    storage.write_text(workdir / TABLE, table(lines))
    shares = [
        share for name, blocks in attention.items() for share in summarise(name, blocks, task, settings)
    ]
    storage.write_text(workdir / ATTENTION, table([_flat(share) for share in shares]))
    storage.write_bytes(workdir / FIGURE, figure(lines, shares, reported))
    overall = next(iter(reported.overall.values()))
    for line in lines:
        if line[reported.item] == overall:
            value = line[reported.metric]
            shown = f'{value:.4f}' if value != '' else 'undefined'
            print(f'{line["system"]:24}{line["condition"]:16}{shown} [{line["low"]}, {line["high"]}]')
    for name in (TABLE, ATTENTION, FIGURE):
        print(workdir / name)


def score_lines(scores: Scores, task: LabelledSet) -> list[dict[str, Any]]:
    """A line for each system, condition and class: average precision, interval, and the change.

    Or for each target: R2, interval and change, and RMSE in its unit. `change` is that from the complete
    input, the first condition, paired on the same resamples; its interval is empty without replicates, as are
    classes without positives and targets without two values.
    """
    reported, labels = statistic(task), task.test.labels
    counts = np.isfinite(labels).sum(axis=0) if task.units else labels.sum(axis=0)
    known = {name: int(n) for name, n in zip(task.classes, counts)}
    metrics = reported.overall | {f'{reported.metric}/{name}': name for name in task.classes}
    lines = []
    for system, conditions in scores.items():
        whole = next(iter(conditions.values()))
        for condition, replicates in conditions.items():
            interval_of, change = intervals(replicates), intervals(difference(replicates, whole))
            for metric, name in metrics.items():
                lines.append(
                    {'system': system, 'condition': condition, reported.item: name}
                    | _numbers(reported.metric, 'low', 'high', interval_of[metric])
                    | _numbers('change', 'change_low', 'change_high', change[metric])
                    | (_errors(task, interval_of, name) if task.units else {})
                    | {reported.known: known.get(name, ''), 'records': len(task.test.keys)}
                    | {
                        'clusters': interval_of[metric].clusters,
                        'replicates': interval_of[metric].replicates,
                    }
                )
    return lines


def _errors(task: LabelledSet, interval_of: Mapping[str, Interval], name: str) -> dict[str, Any]:
    """RMSE of a target in its unit; nothing of all targets, whose errors have no mean."""
    names = ('rmse', 'rmse_low', 'rmse_high')
    if name not in task.classes:
        return {**dict.fromkeys(names, ''), 'unit': ''}
    error = interval_of[f'rmse/{name}']
    # In significant digits: units can be of any size.
    values = ['' if np.isnan(x) else float(f'{x:.6g}') for x in (error.estimate, error.low, error.high)]
    return {**dict(zip(names, values)), 'unit': task.units[task.classes.index(name)]}


def _numbers(estimate: str, low: str, high: str, interval: Interval) -> dict[str, Any]:
    return {estimate: _round(interval.estimate), low: _round(interval.low), high: _round(interval.high)}


def _round(value: float) -> float | str:
    return '' if np.isnan(value) else round(value, 5)


def summarise(
    system: str, blocks: Sequence[Mapping[str, Shares]], task: LabelledSet, settings: Intervals
) -> list[Share]:
    """Means over the records that have a valid token of the attending group, with cluster intervals."""
    lines = []
    for number, groups in enumerate(blocks, start=1):
        for attending, shares in groups.items():
            there = np.asarray(shares.there)
            if not there.any():
                continue
            clusters = np.asarray(task.test.clusters)[: len(there)][there]
            masses = {name: np.asarray(mass, np.float64)[there] for name, mass in shares.mass.items()}
            # Few records may come from one scene, which has no interval.
            replicates = settings.replicates if len(set(clusters.tolist())) > 1 else 0
            if replicates:
                each = intervals(
                    resample(means(masses, np.ones(there.sum())), clusters, replicates, settings.seed)
                )
            else:
                each = {
                    n: Interval(float(x.mean()), np.nan, np.nan, 0.95, 0, 0, 0) for n, x in masses.items()
                }
            lines += [
                Share(
                    *(system, number, attending, name, each[name]),
                    float(np.asarray(shares.tokens[name])[there].mean()),
                    int(there.sum()),
                )
                for name in masses
            ]
    return lines


def _flat(share: Share) -> dict[str, Any]:
    return (
        {'system': share.system, 'block': share.block, 'from': share.attending, 'to': share.attended}
        | _numbers('share', 'low', 'high', share.share)
        | {'share_of_tokens': _round(share.tokens), 'records': share.records}
    )


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines as CSV; nothing for none."""
    if not lines:
        return ''
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(lines[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def figure(lines: Sequence[Mapping[str, Any]], shares: Sequence[Share], reported: Statistic) -> bytes:
    """A PNG with a row for each system: scores by class or target, and attention by block."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    systems = list(dict.fromkeys(line['system'] for line in lines))
    drawn = list(dict.fromkeys(line[reported.item] for line in lines))
    drawn = [name for name in drawn if name not in list(reported.overall.values())[1:]]
    width = max(6.0, 0.75 * len(drawn) + 2)
    fig, axes = plt.subplots(
        len(systems),
        2,
        figsize=(width + 5, 2.8 * len(systems) + 2.0),
        squeeze=False,
        layout='constrained',
        width_ratios=(width, 5),
        sharex='col',  # the names of the classes stand once, below
    )
    for (left, right), system in zip(axes, systems):
        _score_panel(left, [line for line in lines if line['system'] == system], drawn, reported)
        _attention_panel(right, [share for share in shares if share.system == system])
        left.set_title(f'{system}: {reported.title}', fontsize=9)
        right.set_title(f'{system}: attention between sensors', fontsize=9)
    axes[-1, 0].set_xticklabels([textwrap.fill(name, 24) for name in drawn], rotation=45, ha='right')
    axes[-1, 1].set_xlabel('block; dotted: the share that equal weights would give', fontsize=8)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside upper left', fontsize=8, ncols=8)
    out = io.BytesIO()
    fig.savefig(out, format='png', dpi=110)
    plt.close(fig)
    return out.getvalue()


def _score_panel(
    axis: Any, lines: Sequence[Mapping[str, Any]], drawn: Sequence[str], reported: Statistic
) -> None:
    """Points with intervals, the conditions side by side within each class or target."""
    conditions = list(dict.fromkeys(line['condition'] for line in lines))
    of_line = {(line['condition'], line[reported.item]): line for line in lines}
    bottom = 0.0
    for i, condition in enumerate(conditions):
        some = [(k, of_line[condition, name]) for k, name in enumerate(drawn)]
        some = [(k, line) for k, line in some if line[reported.metric] != '']
        x = np.array([k + 0.8 * ((i + 0.5) / len(conditions) - 0.5) for k, _ in some])
        y = np.array([line[reported.metric] for _, line in some])
        low, high = (
            np.array([line[reported.metric] if line[e] == '' else line[e] for _, line in some])
            for e in ('low', 'high')
        )
        bottom = min(bottom, *low) if some else bottom
        bars = axis.errorbar(x, y, yerr=abs(np.stack([low, high]) - y), fmt='o', ms=4, lw=1, label=condition)
        below = y < LOWEST_R2
        axis.plot(x[below], np.full(below.sum(), LOWEST_R2), 'v', ms=5, color=bars[0].get_color())
    for k in range(1, len(drawn)):
        axis.axvline(k - 0.5, color='0.9', lw=0.8, zorder=0)
    axis.set_xticks(range(len(drawn)))
    axis.tick_params(axis='x', labelsize=7)
    axis.set_xlim(-0.6, len(drawn) - 0.4)
    axis.set_ylim(0, 1.02)
    axis.set_ylabel(reported.axis, fontsize=8)
    if reported is EXPLAINED:
        _add_errors(axis, [of_line[conditions[0], name] for name in drawn], max(LOWEST_R2, bottom))


def _add_errors(axis: Any, lines: Sequence[Mapping[str, Any]], bottom: float) -> None:
    """A line at R2 = 0, and below the lowest point the RMSE of each target on the complete input."""
    axis.set_ylim(bottom - 0.25, 1.05)
    axis.axhline(0, color='0.7', lw=0.8, zorder=0)
    for k, line in enumerate(lines):  # '' of all targets, whose errors have no mean
        if line['rmse'] != '':
            text = f'{line["condition"]}:\nRMSE {line["rmse"]:.3g} {line["unit"]}'.rstrip()
            axis.text(k, 0.02, text, fontsize=7, ha='center', transform=axis.get_xaxis_transform())


def _attention_panel(axis: Any, shares: Sequence[Share]) -> None:
    """A line for each pair of different groups over the blocks; dotted, what equal weights would give."""
    pairs = dict.fromkeys(
        (share.attending, share.attended)
        for share in shares
        if share.attending != share.attended and share.attended != 'cls'
    )
    for i, (attending, attended) in enumerate(sorted(pairs)):  # in the same colours for every system
        of_pair = [share for share in shares if (share.attending, share.attended) == (attending, attended)]
        blocks, colour = [share.block for share in of_pair], f'C{i}'
        label = f'{attending} to {attended}'
        axis.plot(
            blocks, [share.share.estimate for share in of_pair], 'o-', ms=3, lw=1, color=colour, label=label
        )
        axis.plot(blocks, [share.tokens for share in of_pair], ':', lw=1, color=colour)
    if not pairs:
        axis.text(0.5, 0.5, 'not measured', ha='center', transform=axis.transAxes)
        axis.set_axis_off()
        return
    axis.set_xticks(sorted({share.block for share in shares}))
    axis.set_ylabel('share of attention', fontsize=8)
    axis.set_ylim(0, 1.02)
    axis.legend(fontsize=7, loc='upper right', ncols=2)
