"""The command `dense_finetune`: encoder and head trained together, a class for each pixel.

Points, sweeps, validation and what a killed run goes on from are those of `finetune` (`eval/finetune`); what
differs stands here: the loss of a batch of maps, and scores that are confusion matrices, or sums of errors.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax import traverse_util
from jaxtyping import Array, Float

from fusmae_jax.encoders.systems import System, fingerprint, fit
from fusmae_jax.errors import InputError
from fusmae_jax.eval.config import metric_of
from fusmae_jax.eval.dense import calibration, features, heads, losses, numbers
from fusmae_jax.eval.dense.calibration import Calibrator
from fusmae_jax.eval.dense.config import RECIPE, DenseFinetune, check
from fusmae_jax.eval.dense.heads import HeadShape
from fusmae_jax.eval.dense.metrics import of_confusion
from fusmae_jax.eval.dense.rows import check_square, method_fields, system_fields
from fusmae_jax.eval.dense.score import confusion, errors, scores
from fusmae_jax.eval.dense.stored import bands_of, describe, store_temperature, write_head
from fusmae_jax.eval.dense.targets import moved, turned
from fusmae_jax.eval.dense.task import MappedSource, map_of, measured, open_maps, prior
from fusmae_jax.eval.finetune.adapters import fresh, tuned
from fusmae_jax.eval.finetune.command import Run, SettledPoint, TaskKind, TuningArm, run_tuning
from fusmae_jax.eval.finetune.dropout import check_names, dropped
from fusmae_jax.eval.finetune.objective import TARGETS, Network, around
from fusmae_jax.eval.finetune.rows import identity
from fusmae_jax.eval.finetune.stored import HEAD, Keep, keep_encoder, weights
from fusmae_jax.eval.finetune.train import Learned, Point, Trainer
from fusmae_jax.eval.linear_probe import Scale
from fusmae_jax.eval.metrics import Measure, values
from fusmae_jax.eval.task import LabelledSet, entrants
from fusmae_jax.input import presets
from fusmae_jax.input.compatibility import Fitted
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.input.prepare import fields
from fusmae_jax.models import fusmae
from fusmae_jax.models.blocks import sample_paths
from fusmae_jax.parallel.rules import Params
from fusmae_jax.train.objective import Batch, Metrics, Objective, sample_keys

NAME = 'dense_finetune'


def run_dense_finetune(config: DenseFinetune, workdir: epath.PathLike) -> int:
    """Fine-tunes for maps of labels, and writes a row for each metric; see `finetune.command.run_tuning`."""
    return run_tuning(MAPS, config, workdir)


def segmenting(
    net: Network, shape: HeadShape, layers: tuple[int, ...], config: DenseFinetune, size: Any
) -> Learned:
    """A head on maps of tokens, judged by confusion matrices (records, classes, classes) or sums of errors.

    Args:
        net: the encoder.
        shape: of the head.
        layers: the blocks that it is given.
        config: loss, augmentation and stochastic depth.
        size: rows and columns of the labels.
    """
    names = tuple(fields(net.config, net.contract))
    depth = net.whole.model.depth
    of_numbers = config.data.kind == 'map_regression'

    def logits(params: Params, patches: Any, paths: Any = None) -> Float[Array, 'b h w c']:
        tokens = features.token_map(net.merge(tuned(params)), patches, layers, paths)
        return scores(params['head'], tokens.values, shape, size)

    def loss(params: Params, extra: Any, batch: Batch, key: Array) -> tuple[Array, tuple[Metrics, Any]]:
        geometry, rest = sample_keys(jax.random.fold_in(key, extra['seed']), batch[POSITION])
        turn, path = jnp.moveaxis(jax.vmap(jax.random.split)(rest), 1, 0)
        if config.rot90:
            batch = turned(batch, (*names, TARGETS), turn)
        paths = None
        if config.drop_path and depth > 1:
            paths = sample_paths(path, depth, config.drop_path, first=1)
        patches = dropped(augmented(batch, geometry), rest, config.modality_dropout)
        predicted = logits(params, patches, paths)
        labels = moved(batch[TARGETS], geometry, config.augment)
        if of_numbers:
            total = losses.squared(predicted, labels)
        else:
            total = losses.loss(predicted, labels, config.loss, config.focal_gamma)
        return total, ({'loss': total}, extra)

    def score(params: Params, batch: Batch) -> Array:
        judge = errors if of_numbers else confusion
        return judge(logits(params, plain(batch, None)), batch[TARGETS])

    def head(key: Array) -> Any:
        return heads.init(key, shape)

    def init(key: Array) -> tuple[Any, Any]:
        encoder = fusmae.init_params(net.whole.model, key, net.dtype)['encoder']
        params = {'encoder': encoder, 'head': head(key)} | fresh(key, encoder, config.lora_rank)
        return params, {'seed': jnp.zeros((), jnp.uint32)}

    augmented = presets.make_inputs(net.config, net.contract, config.augment)
    plain = presets.make_inputs(net.config, net.contract, None)
    kept = (size, jnp.float32 if of_numbers else jnp.uint8)
    return Learned(Objective(init, loss, names), head, score, kept, (TARGETS,))


class MapTrainer(Trainer):
    """Fine-tunes an encoder and a head on maps of labels."""

    def examples(self, source: Any, point: Point) -> Any:
        """The records that a point learns from, with their maps; numbers are standardised."""
        scale = _scale(self.config, point)
        return MappedSource(self.config.data, source.split, self.fields, point.positions, scale)

    def scores(self, params: Params, source: Any, point: Point | None = None) -> np.ndarray:
        """As of other trainers; a head of numbers is one of the units of the data first."""
        if point is not None and (scale := _scale(self.config, point)) is not None:
            head = self._in_units(params['head'], scale)
            laid_out = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), head, params['head'])
            params = {**params, 'head': laid_out}
        return super().scores(params, source)

    @functools.cached_property
    def _in_units(self) -> Callable[[Any, Any], Any]:
        kind = self.config.head
        return self.jit(lambda head, scale: numbers.in_units(head, kind, scale))


def _scale(config: DenseFinetune, point: Point) -> Scale | None:
    """What the numbers of a point are standardised with; None for classes."""
    if config.data.kind != 'map_regression':
        return None
    return numbers.scale_of(point.labels, config.data.labels)


def _arms(config: DenseFinetune, task: LabelledSet, folder: epath.Path) -> Iterator[TuningArm]:
    data, contract = config.data, task.contract
    about = map_of(data, contract)
    for entrant in entrants(config):
        system, modalities = entrant.system, entrant.modalities
        if system.parts:
            raise InputError(f'encoder.checkpoint: {system.name} has several encoders; fine-tuning takes one')
        assert system.model is not None
        fitted = fit(system.model, contract, modalities, config.encoder, data.path)
        for line in fitted.notes:
            logging.info('%s', line)
        features.check_preset(fitted.config, system.name)
        check_names(config.modality_dropout, [*system.model.config.model.modalities], system.name)
        whole = system.model.config
        layers = features.chosen(config.layers, whole, system.name)
        if config.rot90:
            check_square(contract, fields(fitted.config, contract), about.size)
        net = around(system, fitted, contract, 'resize', '', len(task.classes))
        width = features.width(fitted.config, whole, layers)
        patch = whole.model.patch_size
        shape = HeadShape(config.head, width, net.classes, patch, config.head_width, len(layers))
        learned = segmenting(net, shape, layers, config, about.size)
        words = features.layer_words(layers)
        trainer = MapTrainer(config, net, system.model.params['encoder'], learned=learned)
        yield TuningArm(
            trainer,
            entrant.fields
            | system_fields(fitted, modalities, contract)
            | method_fields(config, NAME, words, config.head),
            identity(config, task, system, fitted, RECIPE),
            folder / f'{entrant.kind}-{"+".join(modalities)}-{config.head}',
            entrant.baseline,
            keeper(config, system, fitted, contract, shape, layers),
            functools.partial(_calibrated, config, task, trainer, shape, layers)
            if config.calibration.pixels
            else None,
        )


def keeper(
    config: DenseFinetune,
    system: System,
    fitted: Fitted,
    contract: Contract,
    shape: HeadShape,
    layers: tuple[int, ...],
) -> Keep:
    """Encoder and head of a point, as `predict` takes them."""

    def keep(params: Any, point: Point, folder: epath.Path) -> None:
        model = keep_encoder(system, fitted, contract, config.data, params, point, folder)
        head, scale = params['head'], _scale(config, point)
        if scale is not None:
            head = numbers.in_units(jax.tree.map(np.asarray, head), shape.kind, scale)
        arrays = traverse_util.flatten_dict(head, sep='/')
        stored = {name: np.asarray(x)[None] for name, x in arrays.items()}
        # The statistics of the inputs are the encoder's own, whichever they were.
        about = describe(
            shape,
            fingerprint(model),
            tuple(fitted.config.model.modalities),
            layers,
            model.config.model.fusion.absent,
            'checkpoint',
            map_of(config.data, contract),
            bands=bands_of(contract, fitted.config),
        )
        plain = {'mean': np.zeros(shape.features, np.float32), 'std': np.ones(shape.features, np.float32)}
        write_head(folder / HEAD, {**stored, **plain, 'seed': np.array([point.seed])}, about)

    return keep


def _calibrated(
    config: DenseFinetune,
    task: LabelledSet,
    trainer: MapTrainer,
    shape: HeadShape,
    layers: tuple[int, ...],
    points: Mapping[Run, SettledPoint],
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    """Fits the temperature of each point, which goes to its head, and measures it."""
    net, size = trainer.net, map_of(config.data, task.contract).size
    inputs = presets.make_inputs(net.config, net.contract, None)

    def tokens(params: Params, batch: Batch) -> Float[Array, 'b h w d']:
        return features.token_map(net.merge(tuned(params)), inputs(batch, None), layers).values

    def over(split: str, run: Callable[[Any], Any]) -> Iterator[tuple[slice, Any]]:
        return trainer.over(_source(config, trainer, split), run)

    calibrator = Calibrator(
        config.calibration, size, lambda head, read: scores(head, read, shape, size), trainer.jit
    )
    read, calibrated = trainer.jit(tokens), {}
    for run, one in points.items():
        params = weights(trainer, one.step, one.folder)
        encode = functools.partial(read, params)
        (calibrated[run],) = calibrator([params['head']], encode, over, task)
        store_temperature(one.folder / HEAD, calibrated[run].temperature)
    return calibration.line(calibrated, task, config.intervals, fields)


def _source(config: DenseFinetune, trainer: Trainer, split: str) -> MappedSource:
    return MappedSource(config.data, split, trainer.fields)


def _judge(config: DenseFinetune, task: LabelledSet) -> Callable[[np.ndarray], float]:
    name = metric_of(config)
    if config.data.kind == 'map_regression':
        return lambda sums: values(numbers.measured(sums, task.val.labels, task.classes[0]))[name]
    return lambda counts: of_confusion(counts.sum(axis=0, dtype=np.float64), task.classes)[name]


def _measure(config: DenseFinetune, task: LabelledSet, scores: np.ndarray) -> Measure:
    return measured(config.data, task, scores)


MAPS = TaskKind(NAME, check, open_maps, _arms, _source, _judge, _measure, prior)
