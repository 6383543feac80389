"""Opening an encoder: the one door for Python, `encode`, `doctor`, the evaluations and the tables.

An encoder is that of a run or of one of its checkpoints, of whatever recipe; a folder of imported weights;
one file that `export` wrote, here or on the Hugging Face hub (`hf://ORG/NAME`); or several of these side by
side ('runs/s1 + runs/s2', late fusion). Each carries the preset of its input.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from fusmae_jax.checkpoints.checkpoints import Checkpoints, open_step
from fusmae_jax.config.build import build
from fusmae_jax.config.run import Config
from fusmae_jax.encoders import hub, single_file, store
from fusmae_jax.encoders.pretrained import Embedding, Pretrained
from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input import contract as contracts
from fusmae_jax.input import seen as seen_records
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.seen import Seen
from fusmae_jax.parallel.rules import Params
from fusmae_jax.train.recipes import recipe_of
from fusmae_jax.train.setup import total_steps

AND = ' + '  # between encoders whose features stand side by side


def load(
    path: epath.PathLike, step: int | None = None, *, average: bool = False
) -> 'Pretrained | SideBySide':
    """The pretrained encoder, or encoders, that a path names.

    Args:
        path: a working directory of `pretrain`, its checkpoints folder, or one checkpoint in it; a folder
            that `import` wrote; a .safetensors file that `export` wrote; such a file on the hub,
            'hf://ORG/NAME' or 'hf://ORG/NAME@REVISION'; or several of these with ' + ' between them, each for
            sensors of its own.
        step: which checkpoint; the newest by default, or the one that `path` names.
        average: the average of the weights in place of the last ones, of a run with `train.ema`.

    Raises:
        InputError: nothing there, no average, or weights that do not fit the stored configuration.
    """
    if (paths := several(path)) and step is None:
        return SideBySide([(part, load_one(part, average=average)) for part in paths])
    return load_one(path, step, average=average)


def load_one(path: epath.PathLike, step: int | None = None, *, average: bool = False) -> Pretrained:
    """`load` for what needs a single encoder."""
    if several(path):
        raise InputError(f'{path}: several encoders side by side; give one')
    if hub.is_hub(path) or single_file.is_single_file(path):
        if step is not None or average:
            raise InputError(f'{path}: an exported file has neither steps nor an average')
        return single_file.read(local(path)).model
    if store.is_imported(path):
        if step is not None or average:
            raise InputError(f'{path}: imported weights have neither steps nor an average')
        return store.read(path).model
    checkpoints, step = open_step(path, step)
    try:
        return _of_checkpoint(checkpoints, step, path, average)
    finally:
        checkpoints.close()


def several(path: epath.PathLike) -> list[str]:
    """The paths that ' + ' stands between; none for a single one."""
    parts = str(path).split(AND)
    return [part.strip() for part in parts] if len(parts) > 1 and not epath.Path(path).exists() else []


def local(path: epath.PathLike) -> epath.PathLike:
    """The path itself, or where a file of the hub lies on this machine."""
    return hub.fetch(path) if hub.is_hub(path) else path


def records_seen(path: epath.PathLike) -> Seen | None:
    """The records that an encoder has learned from; None where nobody wrote them down."""
    if hub.is_hub(path) or single_file.is_single_file(path):
        return single_file.read(local(path)).seen
    if store.is_imported(path):
        return seen_records.nothing() if store.read(path).untouched else None
    checkpoints, step = open_step(path)
    try:
        return _seen(checkpoints, step, path)
    finally:
        checkpoints.close()


def _seen(checkpoints: Checkpoints, step: int, path: epath.PathLike) -> Seen | None:
    packed = checkpoints.seen(step)
    return None if packed is None else seen_records.from_bytes(packed, f'{path}: checkpoint {step}')


class Stored(NamedTuple):
    """What a checkpoint holds of a model."""

    config: Config
    contract: Contract
    dtype: str  # of its products
    params: Params  # of the recipe's model, as learned: of DINO-MM those of the teacher


def read_stored(
    checkpoints: Checkpoints, step: int, path: epath.PathLike, average: bool = False, on_host: bool = False
) -> Stored:
    """A model as a checkpoint holds it.

    Args:
        checkpoints: that it is one of.
        step: of the checkpoint.
        path: what messages call it.
        average: the average of the weights.
        on_host: as NumPy arrays, so that no device has to hold it.

    Raises:
        InputError: no average, or weights that do not fit the stored configuration.
    """
    meta = checkpoints.meta(step)
    config = build(meta['config'])
    recipe, contract = recipe_of(config), contracts.from_values(meta['contract'], f'{path}: contract')
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: Any) -> Any:
        if on_host:
            return np.empty(leaf.shape, leaf.dtype)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)

    params, extra = jax.tree.map(place, recipe.shapes(config, meta['dtype']))
    if average and extra:
        raise InputError(f'{path}: its encoder is a teacher, an average already; leave `average` off')
    params = checkpoints.params(params, step, 'ema' if average else 'params')
    if extra:
        # How far the last step moves the teacher depends on how long the run is.
        steps = meta.get('total_steps') or _length(config, _seen(checkpoints, step, path), path)
        params = recipe.learned(params, checkpoints.extra(extra, step), config, steps)
    return Stored(config, contract, meta['dtype'], params)


def _length(config: Config, records: Seen | None, path: epath.PathLike) -> int:
    """Steps of the run of an older checkpoint, which does not say: by its records, if it started afresh."""
    if records is None and not config.train.steps:
        logging.info('%s does not say its records: the teacher is taken as stored', path)
    return total_steps(config, len(records.names.id) if records else 1)


def _of_checkpoint(checkpoints: Checkpoints, step: int, path: epath.PathLike, average: bool) -> Pretrained:
    config, contract, stored_dtype, params = read_stored(checkpoints, step, path, average)
    recipe = recipe_of(config)
    on_cpu = jax.default_backend() == 'cpu' and stored_dtype == 'bfloat16'
    dtype = 'float32' if on_cpu else stored_dtype
    return Pretrained(recipe.encoder_config(config), contract, recipe.encoder_params(params, config), dtype)


class SideBySide:
    """Late fusion: several encoders as one, each with the sensors that it reads."""

    def __init__(self, models: Sequence[tuple[str, Pretrained]]):
        """`models` with the names that messages call them by; features come in this order."""
        if not models:
            raise InputError('late fusion needs at least one model')
        self.models = tuple(model for _, model in models)
        check_apart([(name, model.config.model.modalities) for name, model in models])

    def encode(
        self,
        images: Mapping[str, Any],
        *,
        units: Mapping[str, str],
        resolution: float | Mapping[str, float] | None = None,
        accept: Sequence[str] = (),
        contract: Contract | None = None,
    ) -> Embedding:
        """Features of any non-empty subset of the modalities.

        Tokens are those of each modality's own encoder. `cls` and `pooled` stand side by side in the order of
        the models, so that they are as wide as those of the encoders in use together. Arguments are those of
        `Pretrained.encode`.

        Raises:
            InputError: for a modality without an encoder; for images of different number; and as the
                encoders do.
        """
        known = [name for model in self.models for name in model.config.model.modalities]
        for name in images:
            if name not in known:
                raise InputError(f'images[{name!r}] has no encoder here; {nearest(name, known)}')
        if not images:
            raise InputError(f'images is empty; give one or more of {known}')
        parts = []
        for model in self.models:
            given = {name: images[name] for name in model.config.model.modalities if name in images}
            if given:
                metres = _of_these(resolution, given)
                parts.append(
                    model.encode(given, units=units, resolution=metres, accept=accept, contract=contract)
                )
        sizes = [len(part.cls) for part in parts]
        if len(set(sizes)) > 1:
            raise InputError(f'images: the modalities differ in their number of images: {sizes}')
        cls, pooled = (np.concatenate(x, axis=-1) for x in zip(*((part.cls, part.pooled) for part in parts)))
        tokens = {name: x for part in parts for name, x in part.tokens.items()}
        return Embedding(tokens, cls, pooled)


def check_apart(encoders: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Raises InputError unless each encoder, by its path, reads modalities of its own."""
    owner: dict[str, str] = {}
    for path, names in encoders:
        for name in names:
            if name in owner:
                raise InputError(f'encoder.checkpoint: {owner[name]} and {path} both read {name}; take one')
            owner[name] = path


def _of_these(resolution: Any, images: Mapping[str, Any]) -> Any:
    """What of a `resolution` by name is about some modalities, or their record fields."""
    if not isinstance(resolution, Mapping):
        return resolution
    fields = {field for image in images.values() if isinstance(image, Mapping) for field in image}
    return {key: value for key, value in resolution.items() if key in images or key in fields}
