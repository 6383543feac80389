"""The objective of fine-tuning, and the scores of what it has learned: traceable functions of raw batches."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fusmae_jax.config.run import Config
from fusmae_jax.encoders.systems import System
from fusmae_jax.eval import crops, linear_probe
from fusmae_jax.eval.finetune.adapters import fresh, tuned
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.eval.finetune.dropout import check_names, dropped
from fusmae_jax.eval.pooling import check_pooled, pool
from fusmae_jax.input.compatibility import Fitted
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.input.prepare import Patches, fields
from fusmae_jax.input.presets import make_inputs
from fusmae_jax.models import fusmae, heads
from fusmae_jax.models.blocks import sample_paths
from fusmae_jax.parallel.rules import Params
from fusmae_jax.train.objective import Batch, Metrics, Objective, sample_keys

TARGETS = 'targets'  # field of a batch: 0 or 1 for each class, or standardised numbers, NaN where missing


class Network(NamedTuple):
    """An encoder with a linear head on one pooled feature, reading one kind of records.

    Its parameters are `encoder` and `head`, and `lora` where adapters learn in place of the encoder; decoders
    are left behind.
    """

    config: Config  # fitted to the data: what the encoder reads
    whole: Config  # the model's own
    dtype: Any
    contract: Contract  # of the records
    image: str  # 'resize' or 'crops'
    feature: str
    classes: int
    graphdef: nnx.GraphDef  # of the whole model
    shapes: Any  # of its parameters

    def init(self, key: Array) -> Any:
        """Random parameters."""
        encoder = fusmae.init_params(self.whole.model, key, self.dtype)['encoder']
        return {'encoder': encoder, 'head': heads.init_head(key, self.width, self.classes)}

    @property
    def width(self) -> int:
        """Of the feature."""
        model, nothing = self.config.model, {}
        for name in model.modalities:
            shape = (1, model.num_patches, model.patch_dim(name))
            nothing[name] = Patches(jnp.zeros(shape), jnp.ones(shape, bool))

        def feature(encoder: Any) -> Array:
            return pool(self.merge(encoder), nothing, (self.feature,))[0][self.feature]

        return jax.eval_shape(feature, self.shapes['encoder']).shape[1]

    def merge(self, encoder: Any) -> fusmae.FusMAE:
        """The model around the parameters of an encoder; inside traced functions only."""
        # Nothing reads the decoders, so that the compiler drops these zeros.
        rest = {name: part for name, part in self.shapes.items() if name != 'encoder'}
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest)
        return nnx.merge(self.graphdef, {**zeros, 'encoder': encoder})

    @property
    def view(self) -> Contract:
        """The contract of one image."""
        return crops.view_contract(self.contract, self.image)


def network(
    system: System, fitted: Fitted, contract: Contract, config: Finetune, feature: str, classes: int
) -> Network:
    """A system as what is fine-tuned.

    Raises:
        InputError: the feature is not one of this encoder, or the records cannot be cut into four.
    """
    assert system.model is not None
    check_pooled((feature,), system.model.config.model, system.name)
    check_names(config.modality_dropout, [*system.model.config.model.modalities], system.name)
    crops.view_contract(contract, config.image)
    return around(system, fitted, contract, config.image, feature, classes)


def around(
    system: System, fitted: Fitted, contract: Contract, image: str, feature: str, classes: int
) -> Network:
    """The network of a system whose settings were checked."""
    assert system.model is not None
    whole, dtype = system.model.config, system.model.dtype
    graphdef = fusmae.graph(whole.model, dtype)
    shapes = fusmae.param_shapes(whole.model, dtype)
    return Network(fitted.config, whole, dtype, contract, image, feature, classes, graphdef, shapes)


def pooled_objective(net: Network, config: Finetune) -> Objective:
    """The loss of a batch that carries TARGETS; `extra['seed']` sets its random numbers apart.

    Multi-label soft margin: binary cross-entropy, mean over records and classes. Single label: cross-entropy
    with smoothed one-hot targets, mean over records. Regression: squared error of standardised targets, mean
    over those that are there.
    """
    prepare = make_inputs(net.config, net.view, config.augment)
    recipe = linear_probe.make_recipe(config.data.kind, config.label_smoothing)

    def loss(params: Params, extra: Any, batch: Batch, key: Array) -> tuple[Array, tuple[Metrics, Any]]:
        geometry, rest = sample_keys(jax.random.fold_in(key, extra['seed']), batch[POSITION])
        which, path = jnp.moveaxis(jax.vmap(jax.random.split)(rest), 1, 0)
        if net.image == 'crops':
            batch = crops.one_crop(batch, net.contract, crops.crop_index(which))
        depth = net.whole.model.depth
        paths = (
            sample_paths(path, depth, config.drop_path, first=1) if config.drop_path and depth > 1 else None
        )
        model = net.merge(tuned(params))
        patches = dropped(prepare(batch, geometry), rest, config.modality_dropout)
        pooled, _ = pool(model, patches, (net.feature,), paths)
        scores = heads.logits(params['head'], pooled[net.feature])
        targets = batch[TARGETS].astype(jnp.float32)
        total = linear_probe.loss(scores[:, None], targets, recipe)[0]
        return total, ({'loss': total}, extra)

    def init(key: Array) -> tuple[Any, Any]:
        params = net.init(key)
        params |= fresh(key, params['encoder'], config.lora_rank)
        return params, {'seed': jnp.zeros((), jnp.uint32)}

    return Objective(init, loss, tuple(fields(net.config, net.contract)))


def scorer(net: Network) -> Callable[[Any, Mapping[str, Array]], Float[Array, 'b c']]:
    """The traceable function (params, batch) -> logits: nothing is augmented or dropped.

    Of `crops` the mean logit of those of the four that hold a valid pixel.
    """
    prepare = make_inputs(net.config, net.view, None)

    def scores(params: Params, batch: Mapping[str, Array]) -> Float[Array, 'b c']:
        cut = net.image == 'crops'
        images = crops.all_crops(batch, net.contract) if cut else batch
        pooled, seen = pool(net.merge(tuned(params)), prepare(images, None), (net.feature,))
        each = heads.logits(params['head'], pooled[net.feature])
        if not cut:
            return each
        mean, some = crops.crop_mean(each, seen)
        return jnp.where(some[:, None], mean, params['head']['bias'][None])

    return scores


def measured(net: Network) -> Callable[[Mapping[str, Array]], Bool[Array, ' b']]:
    """The traceable function of a batch that says which records have a valid pixel of any sensor."""
    prepare = make_inputs(net.config, net.view, None)

    def some(batch: Mapping[str, Array]) -> Bool[Array, ' b']:
        cut = net.image == 'crops'
        patches = prepare(crops.all_crops(batch, net.contract) if cut else batch, None)
        seen = jnp.any(jnp.stack([jnp.any(p.any_valid, axis=1) for p in patches.values()]), axis=0)
        return crops.crop_any(seen) if cut else seen

    return some
