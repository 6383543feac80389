"""Heads on disk: what was learned, and all that is needed to use it on other images."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from flax import traverse_util

from fusmae_jax import storage
from fusmae_jax.config.build import from_dict
from fusmae_jax.config.run import Config
from fusmae_jax.errors import InputError
from fusmae_jax.eval.dense.heads import HeadShape
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.input.contract import Contract, LabelMap, NumberMap

ABOUT, FORMAT = 'about', 1
TEMPERATURE = 'temperature'  # of each head, where it was fitted


class StoredHead(NamedTuple):
    """A head of a probe, or of a fine-tuning."""

    params: Any
    scale: Scale  # of the features that it is given
    shape: HeadShape
    weights: str  # fingerprint of the encoder
    modalities: tuple[str, ...]
    layers: tuple[int, ...]
    absent: Any  # the rule for sensors that are not given
    stats: str  # where the statistics of its inputs were from: 'checkpoint' or 'dataset'
    labels: LabelMap | NumberMap  # what it predicts, and on which grid
    temperature: float  # that its scores are divided by; 1 where none was fitted
    dates: int = 1  # 2: it is given the tokens and their change since an earlier image
    accepted: tuple[str, ...] = ()  # differences of what it learned from, from what the encoder had
    # Of each sensor the bands that its records had; the mean stood for others. Earlier versions do not say.
    bands: Mapping[str, tuple[str, ...]] = {}


def describe(
    shape: HeadShape,
    weights: str,
    modalities: Sequence[str],
    layers: Sequence[int],
    absent: str,
    stats: str,
    labels: LabelMap | NumberMap,
    dates: int = 1,
    accepted: Sequence[str] = (),
    bands: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """What is stored beside the parameters, as JSON has it."""
    return {
        'format': FORMAT,
        'shape': shape._asdict(),
        'weights': weights,
        'modalities': [*modalities],
        'layers': [*layers],
        'absent': absent,
        'stats': stats,
        **_labels(labels),
        **({'dates': dates} if dates > 1 else {}),
        **({'accepted': [*accepted]} if accepted else {}),
        **({'bands': {name: [*each] for name, each in bands.items()}} if bands else {}),
    }


def bands_of(contract: Contract, config: Config) -> dict[str, list[str]]:
    """Of each sensor of a model the bands that there are images of, in the order of the model."""
    there = {(group.modality, band) for group in contract.groups.values() for band in group.bands}
    return {
        name: [band for band in modality.bands if (name, band) in there]
        for name, modality in config.model.modalities.items()
    }


def _labels(labels: LabelMap | NumberMap) -> dict[str, Any]:
    grid = {'size': [*labels.size], 'resolution': labels.resolution}
    if isinstance(labels, NumberMap):
        return {'numbers': {'quantity': labels.quantity, 'unit': labels.unit} | grid}
    return {'labels': {'classes': [*labels.classes], 'values': [*labels.values]} | grid}


def write_head(file: epath.Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes heads (several along the first axis of each array) with their description; whole or not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    storage.write_npz(file, {**arrays, ABOUT: np.array(json.dumps(about))})


def store_temperature(file: epath.Path, temperature: float | None) -> None:
    """Gives the one head in a file its temperature; None: it has none, whatever it had."""
    with storage.read_npz(file, 'fine-tune again') as archive:
        arrays = {name: archive[name] for name in archive.files}
    before = arrays.pop(TEMPERATURE, None)
    if temperature is not None:
        storage.write_npz(file, arrays | {TEMPERATURE: np.array([temperature])})
    elif before is not None:
        storage.write_npz(file, arrays)


def read_head(file: epath.PathLike) -> StoredHead:
    """The first of the heads in a file.

    Raises:
        InputError: no such file, or no head that can be used on other images.
    """
    if not epath.Path(file).exists():
        raise InputError(
            f'{file}: there is no such file; `dense_probe` writes heads/ into its workdir, '
            '`dense_finetune` head.npz into the folder of a point'
        )
    with storage.read_npz(epath.Path(file), 'give a file of heads/ of a `dense_probe`') as archive:
        about = json.loads(str(archive[ABOUT])) if ABOUT in archive else {}
        arrays = {name: archive[name] for name in archive.files if name != ABOUT}
    if about.get('format') != FORMAT:
        raise InputError(
            f'{file}: no head that can be used on other images: take one from heads/ of a `dense_probe`, of '
            'an encoder'
        )
    labels: LabelMap | NumberMap
    if 'numbers' in about:
        labels = from_dict(NumberMap, about['numbers'], f'{file}: numbers')
    else:
        labels = from_dict(LabelMap, about['labels'], f'{file}: labels')
    return StoredHead(
        parameters(arrays)[0],
        Scale(arrays['mean'], arrays['std']),
        HeadShape(**about['shape']),
        about['weights'],
        tuple(about['modalities']),
        tuple(about['layers']),
        about['absent'],
        about['stats'],
        labels,
        float(arrays[TEMPERATURE][0]) if TEMPERATURE in arrays else 1.0,
        about.get('dates', 1),
        tuple(about.get('accepted', ())),
        {name: tuple(bands) for name, bands in about.get('bands', {}).items()},
    )


def parameters(arrays: Mapping[str, np.ndarray]) -> list[Any]:
    """Those of each head in the arrays of a file."""
    names = [name for name in arrays if name not in ('seed', 'mean', 'std', TEMPERATURE, ABOUT)]
    return [
        traverse_util.unflatten_dict({name: arrays[name][i] for name in names}, sep='/')
        for i in range(len(arrays['seed']))
    ]
