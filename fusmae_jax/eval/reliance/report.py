"""Modality reliance as two tables and a figure."""

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

PRECISION, ATTENTION, FIGURE = 'reliance.csv', 'attention.csv', 'reliance.png'
MACRO, MICRO = 'all classes, macro', 'all classes, micro'
Precision = Mapping[str, Mapping[str, Replicates]]  # system -> condition -> average precisions


class Share(NamedTuple):
    """One line of `attention.csv`."""

    system: str
    block: int  # from 1
    attending: str  # group of tokens
    attended: str
    share: Interval  # of the attention, over records
    tokens: float  # what it would be if every valid token that can be seen weighed the same
    records: int  # with a valid token of the attending group


def write(
    workdir: epath.Path,
    precision: Precision,
    attention: Mapping[str, Sequence[Mapping[str, Shares]]],
    task: LabelledSet,
    settings: Intervals,
) -> None:
    """Writes `reliance.csv`, `attention.csv` and `reliance.png`; each whole or not at all."""
    lines = precision_lines(precision, task)
    storage.write_text(workdir / PRECISION, table(lines))
    shares = [
        share for name, blocks in attention.items() for share in summarise(name, blocks, task, settings)
    ]
    storage.write_text(workdir / ATTENTION, table([_flat(share) for share in shares]))
    storage.write_bytes(workdir / FIGURE, figure(lines, shares))
    for line in lines:
        if line['class'] == MACRO:
            print(
                f'{line["system"]:24}{line["condition"]:16}{line["ap"]:.4f} [{line["low"]}, {line["high"]}]'
            )
    for name in (PRECISION, ATTENTION, FIGURE):
        print(workdir / name)


def precision_lines(precision: Precision, task: LabelledSet) -> list[dict[str, Any]]:
    """A line for each system, condition and class: average precision, interval, and the change.

    `change` is that from the complete input, the first condition, paired on the same resamples; its interval
    is empty without replicates, as are classes without positives.
    """
    positives = {name: int(n) for name, n in zip(task.classes, task.test.labels.sum(axis=0))}
    metrics = {'ap_macro': MACRO, 'ap_micro': MICRO} | {f'ap/{name}': name for name in task.classes}
    lines = []
    for system, conditions in precision.items():
        whole = next(iter(conditions.values()))
        for condition, replicates in conditions.items():
            interval_of, change = intervals(replicates), intervals(difference(replicates, whole))
            for metric, name in metrics.items():
                lines.append(
                    {'system': system, 'condition': condition, 'class': name}
                    | _numbers('ap', 'low', 'high', interval_of[metric])
                    | _numbers('change', 'change_low', 'change_high', change[metric])
                    | {'positives': positives.get(name, ''), 'records': len(task.test.keys)}
                    | {
                        'clusters': interval_of[metric].clusters,
                        'replicates': interval_of[metric].replicates,
                    }
                )
    return lines


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


def figure(lines: Sequence[Mapping[str, Any]], shares: Sequence[Share]) -> bytes:
    """A PNG with a row for each system: average precision by class, and attention by block."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    systems = list(dict.fromkeys(line['system'] for line in lines))
    classes = [name for name in dict.fromkeys(line['class'] for line in lines) if name != MICRO]
    width = max(6.0, 0.75 * len(classes) + 2)
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
        _precision_panel(left, [line for line in lines if line['system'] == system], classes)
        _attention_panel(right, [share for share in shares if share.system == system])
        left.set_title(f'{system}: average precision', fontsize=9)
        right.set_title(f'{system}: attention between sensors', fontsize=9)
    axes[-1, 0].set_xticklabels([textwrap.fill(name, 24) for name in classes], rotation=45, ha='right')
    axes[-1, 1].set_xlabel('block; dotted: the share that equal weights would give', fontsize=8)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside upper left', fontsize=8, ncols=8)
    out = io.BytesIO()
    fig.savefig(out, format='png', dpi=110)
    plt.close(fig)
    return out.getvalue()


def _precision_panel(axis: Any, lines: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> None:
    """Points with intervals, the conditions side by side within each class."""
    conditions = list(dict.fromkeys(line['condition'] for line in lines))
    by_condition = {(line['condition'], line['class']): line for line in lines}
    for i, condition in enumerate(conditions):
        some = [(k, by_condition[condition, name]) for k, name in enumerate(classes)]
        some = [(k, line) for k, line in some if line['ap'] != '']
        x = [k + 0.8 * ((i + 0.5) / len(conditions) - 0.5) for k, _ in some]
        y = [line['ap'] for _, line in some]
        ends = [[abs(line['ap'] - (line[e] or line['ap'])) for _, line in some] for e in ('low', 'high')]
        axis.errorbar(x, y, yerr=ends, fmt='o', ms=4, lw=1, label=condition)
    for k in range(1, len(classes)):
        axis.axvline(k - 0.5, color='0.9', lw=0.8, zorder=0)
    axis.set_xticks(range(len(classes)))
    axis.tick_params(axis='x', labelsize=7)
    axis.set_xlim(-0.6, len(classes) - 0.4)
    axis.set_ylim(0, 1.02)


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
