"""What a fine-tuning leaves for other commands: its encoder, as one file that opens like any other.

`encoder.safetensors` lies in the folder of each point that a sweep has settled on. `fusmae_jax.load`,
`encode`, `reliance`, the probes and, with the head of a dense task, `predict` take it where they take a
checkpoint. It reads the records of the task with the statistics of the task, and knows the labelled records
as seen.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fusmae_jax import storage
from fusmae_jax.checkpoints.checkpoints import FOLDER, Checkpoints
from fusmae_jax.encoders import single_file
from fusmae_jax.encoders.inputs import describe
from fusmae_jax.encoders.pretrained import Pretrained
from fusmae_jax.encoders.systems import System
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import Task
from fusmae_jax.eval.dense.stored import store_temperature
from fusmae_jax.eval.finetune.adapters import tuned
from fusmae_jax.eval.finetune.train import Point, Trainer
from fusmae_jax.eval.linear_probe import Heads, in_units
from fusmae_jax.input import seen
from fusmae_jax.input.compatibility import Fitted
from fusmae_jax.input.contract import Contract

ENCODER, HEAD = 'encoder.safetensors', 'head.npz'
Keep = Callable[[Any, Point, epath.Path], Any]  # of the parameters of a point, into its folder


def keep_encoder(
    system: System,
    fitted: Fitted,
    contract: Contract,
    data: Task,
    params: Any,
    point: Point,
    folder: epath.Path,
) -> Pretrained:
    """Writes the encoder of a point; returns it.

    Args:
        system: that every point started from.
        fitted: how it reads the records.
        contract: of the records.
        data: where they are.
        params: of encoder and head, as learned.
        point: what was learned from.
        folder: of the point.
    """
    assert system.model is not None
    model = _finetuned(system, fitted, contract, tuned(params))
    known = None
    if system.seen is not None:
        purpose = f'fine-tuning for {data.labels}'
        known = seen.union(system.seen, seen.collect(data.path, data.train_split, purpose, point.positions))
    single_file.write(
        folder / ENCODER,
        model,
        dtype=jnp.dtype(model.dtype).name,
        inputs=describe(model),
        card={'title': model.config.name, 'fine_tuned': point.about},
        seen=None if known is None else seen.to_bytes(known),
    )
    return model


def keep_linear(
    system: System,
    fitted: Fitted,
    contract: Contract,
    data: Task,
    feature: str,
    params: Any,
    point: Point,
    folder: epath.Path,
) -> None:
    """Writes the linear head of a point, and beside it its encoder; see `keep_encoder`.

    `feature` is what the head reads.
    """
    head = {name: np.asarray(x) for name, x in params['head'].items()}
    # As a linear probe stores several.
    heads = Heads(jnp.asarray(head['kernel'])[:, None], jnp.asarray(head['bias'])[None])
    heads = heads if point.scale is None else in_units(heads, point.scale)
    stored = {
        'kernel': np.asarray(heads.kernel),
        'bias': np.asarray(heads.bias),
        'seed': np.array([point.seed]),
    }
    about = {'feature': np.array(feature), 'labels': np.array(data.labels)}
    about['classes'] = np.array(_outputs(contract, data.labels))
    storage.write_npz(folder / HEAD, stored | about)
    keep_encoder(system, fitted, contract, data, params, point, folder)


def _outputs(contract: Contract, labels: str) -> tuple[str, ...]:
    """What a head of a label field says, in its order: classes, or targets."""
    targets = (contract.targets or {}).get(labels)
    return targets.names if targets else contract.classes[labels]


def own_head(encoder: str, feature: str, labels: str, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """The linear head that an encoder was fine-tuned with.

    Args:
        encoder: `encoder.safetensors` of a point; the head lies beside it.
        feature: that the head has to read.
        labels: the field that it has to have learned.
        classes: of that field in the data, in their order.

    Raises:
        InputError: there is no such head, or its classes are others.
    """
    file = epath.Path(encoder).parent / HEAD
    if not (encoder.endswith(ENCODER) and file.exists()):
        raise InputError(
            f'{encoder}: no {HEAD} beside it; give the {ENCODER} of a point of `finetune`, or head.own=False'
        )
    with storage.read_npz(file, 'fine-tune again') as archive:
        about = {name: str(archive[name]) if name in archive else '' for name in ('feature', 'labels')}
        if about != {'feature': feature, 'labels': labels}:
            raise InputError(
                f'{file}: a head for {about["labels"]!r} on {about["feature"]!r}, asked for {labels!r} on '
                f'{feature!r}; set data.labels and head.feature to what it is for'
            )
        # Heads of earlier versions know how many classes there are, not which.
        known = archive['classes'].tolist() if 'classes' in archive else [*classes]
        if known != [*classes] or archive['bias'].shape[-1] != len(classes):
            raise InputError(
                f'{file}: a head for {archive["bias"].shape[-1]} classes of {labels!r}, {", ".join(known)}; '
                f'the data have {len(classes)}, {", ".join(classes)}: give data with the same ones in this '
                'order'
            )
        return {name: archive[name] for name in ('kernel', 'bias', 'seed')}


def _finetuned(system: System, fitted: Fitted, contract: Contract, encoder: Any) -> Pretrained:
    """The model of a system with another encoder; decoders, which nothing has trained along, stay."""
    assert system.model is not None
    whole, read = system.model.config, fitted.config
    modalities = {**whole.model.modalities, **read.model.modalities}
    fusion = dataclasses.replace(whole.model.fusion, absent=read.model.fusion.absent)
    config = dataclasses.replace(
        whole,
        name=f'{system.name}, fine-tuned',
        model=dataclasses.replace(whole.model, modalities=modalities, fusion=fusion),
    )
    # As it is read back: on the host, in the order in which names are stored.
    params = jax.tree.map(np.asarray, {**system.model.params, 'encoder': encoder})
    return Pretrained(config, contract, params, system.model.dtype)


def keep(
    trainer: Trainer, keeper: Keep, point: Point, step: int, folder: epath.Path, calibrated: bool = False
) -> None:
    """Writes what a settled point leaves, unless that is there already or its weights are gone.

    Not `calibrated`: a head has no temperature, though an earlier run may have given it one.
    """
    whole = all((folder / name).exists() for name in (ENCODER, HEAD))
    if whole and not calibrated:
        store_temperature(folder / HEAD, None)
    if whole or not (folder / FOLDER / str(step)).exists():
        return
    keeper(weights(trainer, step, folder), point, folder)


def weights(trainer: Trainer, step: int, folder: epath.Path) -> Any:
    """The parameters of a point after a step."""
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        return checkpoints.params(trainer.abstract['params'], step)
