"""The resamples of evaluated systems on disk, so that they can be paired and averaged later.

Two systems that were evaluated in different runs on the same records, labels and resamples are compared
resample by resample, as within one run; the stored digest says whether they may be.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from fusmae_jax import storage
from fusmae_jax.eval.intervals import Replicates

FILE = 'replicates-{}.npz'  # of a command, as the rows
FORMAT = 1
# What tells the cells of a run apart.
KEYS = ('system', 'method', 'modalities', 'pooled', 'batch_norm', 'label_fraction')


class Stored(NamedTuple):
    """The resamples of one cell."""

    about: Mapping[str, Any]  # its KEYS
    replicates: Replicates


def write(
    cells: Sequence[tuple[Mapping[str, Any], Replicates | None]], workdir: epath.Path, command: str
) -> None:
    """Stores the resamples of cells; whole or not at all.

    Args:
        cells: the fields of the rows of each, and the mean over its runs; None, which is no interval, is
            left out.
        workdir: the folder.
        command: that they are of: 'linear', 'knn', 'finetune'.
    """
    arrays: dict[str, np.ndarray] = {}
    heads: list[dict[str, Any]] = []
    for fields, mean in cells:
        if mean is None:
            continue
        names = list(mean.estimate)
        arrays[f'values-{len(heads)}'] = np.stack([mean.values[name] for name in names])
        arrays[f'estimate-{len(heads)}'] = np.array([mean.estimate[name] for name in names])
        about = {name: fields[name] for name in KEYS}
        heads.append(
            {'about': about, 'metrics': names, 'clusters': mean.clusters, 'resamples': mean.resamples}
        )
    file = workdir / FILE.format(command)
    arrays['heads'] = np.array(json.dumps({'format': FORMAT, 'cells': heads}))
    storage.write_npz(file, arrays)


def read(workdir: epath.PathLike, command: str) -> list[Stored]:
    """What `write` stored; nothing where it never wrote.

    Raises:
        InputError: a file that cannot be read.
    """
    file = epath.Path(workdir) / FILE.format(command)
    if not file.exists():
        return []
    with storage.read_npz(file, 'remove it and evaluate again') as archive:
        known = json.loads(str(archive['heads']))
        if known['format'] != FORMAT:
            raise ValueError(f'format {known["format"]}, expected {FORMAT}')
        return [
            _stored(head, archive[f'estimate-{i}'], archive[f'values-{i}'])
            for i, head in enumerate(known['cells'])
        ]


def _stored(head: Mapping[str, Any], estimate: np.ndarray, values: np.ndarray) -> Stored:
    about = {name: tuple(x) if isinstance(x, list) else x for name, x in head['about'].items()}
    names = head['metrics']
    return Stored(
        about,
        Replicates(
            dict(zip(names, estimate.tolist())), dict(zip(names, values)), head['clusters'], head['resamples']
        ),
    )
