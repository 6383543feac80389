"""The figure of what a labelled set said while a model trained, beside what it said before the first step."""

import io
from collections.abc import Sequence

from absl import logging
from etils import epath

from fusmae_jax import installed, storage
from fusmae_jax.config.run import Config
from fusmae_jax.eval.config import METRICS
from fusmae_jax.run.labelled import KNN, PROBE
from fusmae_jax.run.writers import curve

FILE = 'labelled.png'
WORDS = {KNN: 'nearest neighbours', PROBE: 'linear probe'}
Points = Sequence[tuple[int, float]]


def draw(workdir: epath.Path, config: Config) -> None:
    """Writes the figure from `metrics.jsonl`; a log line instead where nothing is installed that draws."""
    if absent := installed.missing('plot'):
        logging.info('no %s without %s: %s', FILE, absent[0], installed.install('plot'))
        return
    knn = config.log.knn
    metric = METRICS[knn.kind][0]
    if each := points(workdir, metric):
        start = 'initial weights' if config.init.from_ else 'random init'
        storage.write_bytes(workdir / FILE, figure(each, metric, f'{config.name}, {knn.val_split}', start))


def points(workdir: epath.Path, metric: str) -> dict[str, Points]:
    """Method in words -> (step, value), of what was measured."""
    rows = list(curve(workdir))
    each = {
        words: [(step, values[f'{name}/{metric}']) for step, values in rows if f'{name}/{metric}' in values]
        for name, words in WORDS.items()
    }
    return {words: measured for words, measured in each.items() if measured}


def figure(each: dict[str, Points], metric: str, title: str, start: str) -> bytes:
    """A PNG: a curve for each method, and a dotted line where it was at step 0, called `start`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout='constrained')
    axis = figure.subplots()
    for words, measured in each.items():
        steps, values = zip(*measured)
        (line,) = axis.plot(steps, values, marker='o', markersize=3, label=words)
        if steps[0] == 0:
            axis.axhline(values[0], color=line.get_color(), linestyle=':', label=f'{words}, {start}')
    axis.set(title=title, xlabel='steps', ylabel=metric)
    axis.grid(alpha=0.3)
    axis.legend(fontsize='small')
    out = io.BytesIO()
    figure.savefig(out, format='png', dpi=110)
    return out.getvalue()
