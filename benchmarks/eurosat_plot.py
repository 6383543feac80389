"""The figure of the EuroSAT benchmark: accuracy by share of the labels, and by steps of pretraining."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.lines import Line
from fusmae_jax.installed import need


def draw(
    file: Path, measurements: Sequence[Line], watched: Mapping[str, Mapping[int, Sequence[float]]]
) -> None:
    """Draws it.

    Args:
        file: a PNG.
        measurements: the lines of the CSV.
        watched: method -> step -> accuracy on the validation split, of each seed.
    """
    need('plot', 'the figure')
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(one['method'] for one in measurements))
    figure = Figure(figsize=(3.4 * (len(methods) + bool(watched)), 3.6), layout='constrained')
    axes = figure.subplots(1, len(methods) + bool(watched), sharey=True, squeeze=False)[0]
    for axis, method in zip(axes, methods):
        chosen = [one for one in measurements if one['method'] == method and ' minus ' not in one['system']]
        for name in dict.fromkeys(one['system'] for one in chosen):
            points = sorted((one for one in chosen if one['system'] == name), key=lambda one: one['share'])
            shares, values = ([one[key] for one in points] for key in ('share', 'estimate'))
            (line,) = axis.plot(shares, values, marker='o', label=name)
            low, high = ([one[key] for one in points] for key in ('low', 'high'))
            axis.fill_between(shares, low, high, color=line.get_color(), alpha=0.2)
        axis.set(xscale='log', title=method, xlabel='share of the labels')
        axis.legend(fontsize='small')
    for name, steps in watched.items():
        at = sorted(steps)
        (line,) = axes[-1].plot(at, [np.mean(steps[step]) for step in at], marker='o', label=name)
        if 0 in steps:
            axes[-1].axhline(np.mean(steps[0]), color=line.get_color(), ls=':', label=f'{name}, random init')
    if watched:
        axes[-1].set(title='while pretraining (validation)', xlabel='steps')
        axes[-1].legend(fontsize='small', loc='lower right')
    axes[0].set_ylabel('top-1')
    for axis in axes:
        axis.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of the library, so that the same numbers make the same file.
    figure.savefig(file, dpi=110, metadata={'Software': None})
