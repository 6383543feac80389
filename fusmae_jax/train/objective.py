"""The objective seam: what one step minimises, apart from how it is stepped, sharded and logged.

One step and one loop serve every objective. `loss` must be a function of its arguments alone: all
randomness comes from `key` and the global position of each record.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from fusmae_jax.config.run import JOINT, Augment, Config
from fusmae_jax.input.contract import Contract
from fusmae_jax.input.pipeline import POSITION
from fusmae_jax.input.prepare import Patches, fields, make_prepare
from fusmae_jax.models import fusmae, masking
from fusmae_jax.models.masking import Slots, hidden_patches, num_slots, sample_slots
from fusmae_jax.parallel.rules import Params
from fusmae_jax.train import balance, losses, patch_order

Batch = Mapping[str, Array]
Metrics = dict[str, Array]
Sums = dict[str, tuple[Array, Array]]


class Objective(NamedTuple):
    """`init(key) -> (params, extra)` and `loss(params, extra, batch, key) -> (loss, (metrics, extra))`.

    `extra` is state that no gradient reaches, such as a teacher's weights. `fields` names the image
    fields of a record that `loss` reads.

    A batch may come in micro-batches of as many records each, one after the other; `loss` sees one of them
    and hands its extra state on to the next. `weights(batch, key)` is a tree of what its means divide by,
    where that is not the number of records: `loss` then takes the mean of the micro-batches' weights as a
    fifth argument, in place of its own, so that the mean of the micro-batches' losses is the loss of the
    batch. `begin(params, extra)` is the extra state that the first one is given, and `settle(extra, metrics)`
    the extra state and the metrics after the last, of the whole batch.

    Where `extra` holds parameters too, `restart(params, extra)` is the extra state that goes with others than
    those of `init`. `shapes()` are the shapes and dtypes of what `init` gives, where they are known without
    tracing it.
    """

    init: Callable[[Array], tuple[Params, Any]]
    loss: Callable[..., tuple[Array, tuple[Metrics, Any]]]
    fields: tuple[str, ...]
    weights: Callable[[Batch, Array], Any] | None = None
    begin: Callable[[Params, Any], Any] = lambda params, extra: extra
    settle: Callable[[Any, Metrics], tuple[Any, Metrics]] = lambda extra, metrics: (extra, metrics)
    restart: Callable[[Params, Any], Any] = lambda params, extra: extra
    shapes: Callable[[], tuple[Params, Any]] | None = None


class Masked(NamedTuple):
    """A masked batch: what the model is given and what it has to predict."""

    patches: dict[str, Patches]
    # (b, n), visible patches first, then those to predict; empty for a joint sequence
    order: dict[str, Array]
    visible: int  # of each sensor, or of all of them in a joint sequence
    slots: Slots | None = None  # the joint sequence, where the strategy draws one

    def targets(self, name: str) -> tuple[Patches, Array | None]:
        """What has to be predicted of a modality; and which of it, (b, m), is hidden at all (None: all)."""
        patches = self.patches[name]
        if self.slots is None:
            return losses.masked_targets(patches, self.order[name], self.visible), None
        hidden = hidden_patches(self.slots, list(self.patches), patches.values.shape[1])[name]
        return Patches(patches.values, patches.valid & hidden[..., None]), hidden


def sample_keys(key: Array, positions: Array) -> tuple[Array, Array]:
    """Two random keys for each record, for geometry and for the mask, from its global position."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def masked_inputs(
    config: Config, contract: Contract, augment: Augment | None, *, any_order: bool = False
) -> Callable[[Batch, Array], Masked]:
    """The traceable function from a raw batch and a key to patches and masks.

    With `any_order` the numbers in a patch stand in the order of `patch_order.cut`, not in the model's.
    """
    cut = patch_order.cut if any_order else None
    prepare = {prefix: make_prepare(config, part, augment, cut=cut) for prefix, part in contract.each.items()}
    joint = config.masking.strategy in JOINT
    count, sensors = config.model.num_patches, len(config.model.modalities)
    visible = masking.num_visible(count, config.masking)
    # Masked patches come in random order, so the first of them are a random choice. Without augmentation the
    # loss is one to compare, and is of all of them.
    kept = count if augment is None else visible + masking.num_decoded(count, config.masking)
    slots = num_slots(count, sensors, config.masking)

    def masked(batch: Batch, key: Array) -> Masked:
        parts = []
        for prefix, to_patches in prepare.items():
            rows = {name.removeprefix(prefix): x for name, x in batch.items() if name.startswith(prefix)}
            # By global position, not by row: neither devices nor micro-batches change what is drawn.
            geometry, mask = sample_keys(key, rows[POSITION])
            parts.append((to_patches(rows, geometry), mask))
        patches, mask = parts[0] if len(parts) == 1 else jax.tree.map(interleave, *parts)
        patch_valid = {name: p.any_valid for name, p in patches.items()}
        if not joint:
            order = masking.sample_order(mask, patch_valid, config.masking)
            return Masked(patches, {name: ids[:, :kept] for name, ids in order.items()}, visible)
        if config.model.fusion.absent == 'zero_image':
            # The mean image of a sensor that is not there is as good as any other.
            gone = {name: ~jnp.any(v, axis=1, keepdims=True) for name, v in patch_valid.items()}
            patch_valid = {name: v | gone[name] for name, v in patch_valid.items()}
        return Masked(patches, {}, slots, sample_slots(mask, patch_valid, config.masking, slots))

    return masked


def interleave(*parts: Array) -> Array:
    """Rows of several arrays joined device by device, so that no row has to move to another device."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    split = [x.reshape(devices, -1, *x.shape[1:]) for x in parts]
    joined = jnp.concatenate(split, axis=1)
    return joined.reshape(-1, *joined.shape[2:])


def reconstructions(
    config: Config, contract: Contract, augment: Augment | None, dtype: DTypeLike, *, any_order: bool = False
) -> Callable[[Params, Batch, Array], tuple[Masked, dict[str, Array]]]:
    """The traceable function (params, batch, key) -> masked inputs and predictions (b, m, p).

    Predictions of a joint sequence are those of all patches in raster order. With `any_order` the numbers in
    patches and predictions stand in the order of `patch_order.cut`, not in the model's.
    """
    inputs = masked_inputs(config, contract, augment, any_order=any_order)
    graphdef = fusmae.graph(config.model, dtype)

    def forward(params: Params, batch: Batch, key: Array) -> tuple[Masked, dict[str, Array]]:
        masked = inputs(batch, key)
        model = nnx.merge(graphdef, patch_order.matched(params, config.model) if any_order else params)
        if masked.slots is None:
            predictions, _ = model(masked.patches, masked.order, masked.visible)
        else:
            predictions, _ = model.joint(masked.patches, masked.slots)
        return masked, predictions

    return forward


class Weight(NamedTuple):
    """What means over the masked numbers of a modality divide by."""

    valid: Array  # how many of them count
    hidden: Array  # the share of its patches that are masked, of those that `Masked.targets` has


def weight_of(targets: Patches, hidden: Array | None) -> Weight:
    """The weight of what `Masked.targets` gives."""
    share = jnp.float32(1) if hidden is None else jnp.mean(hidden, dtype=jnp.float32)
    return Weight(jnp.sum(targets.valid, dtype=jnp.float32), share)


def error_sums(
    config: Config,
    masked: Masked,
    predictions: Mapping[str, Array],
    counted: Array | None = None,
    hidden: Mapping[str, Array] | None = None,
) -> tuple[Sums, dict[str, Array]]:
    """Squared error (sum, weight) of each modality, and the share of its masked numbers that count.

    `counted` (b,) leaves out the rows where it is False; `hidden` are shares of masked patches to divide by
    in place of those of `masked` (`Weight.hidden`).
    """
    norm, together = config.loss.norm_pix, dict[str, Array]()
    if norm and config.model.fusion.encoder == 'stack':
        together = losses.normalise_together({name: masked.targets(name)[0] for name in predictions})
    sums, shares = {}, {}
    for name, predicted in predictions.items():
        targets, here = masked.targets(name)
        values = losses.normalise_patches(targets) if norm and not together else targets.values
        values = together.get(name, values)
        valid = targets.valid if counted is None else targets.valid & counted[:, None, None]
        sums[name] = losses.squared_error(predicted, values, valid)
        shares[name] = jnp.mean(valid, dtype=jnp.float32)
        if here is not None:
            # The mean is of all patches, so that it has to be set against those that are hidden.
            share = hidden[name] if hidden else weight_of(targets, here).hidden
            shares[name] /= jnp.maximum(share, 1 / here.size)
    return sums, shares


def reconstruction(
    config: Config, contract: Contract, augment: Augment | None, dtype: DTypeLike
) -> Objective:
    """Masked reconstruction, the paper's objective.

    Metrics: `loss`, `loss/<modality>` (NaN where no masked number of the batch is valid), and
    `valid/<modality>`, the share of masked numbers that count. With `loss.balance='uncertainty'` also
    `weight/<modality>`, what the error of a modality is multiplied with; `loss` is without these weights.
    """
    forward = reconstructions(config, contract, augment, dtype, any_order=True)
    loss_weights = {name: m.loss_weight for name, m in config.model.modalities.items()}
    balanced = config.loss.balance == 'uncertainty'

    def loss(
        params: Params, extra: Any, batch: Batch, key: Array, weights: Mapping[str, Weight] | None = None
    ) -> tuple[Array, tuple[Metrics, Any]]:
        hidden = None if weights is None else {name: w.hidden for name, w in weights.items()}
        sums, shares = error_sums(config, *forward(params, batch, key), hidden=hidden)
        if weights is not None:
            sums = {name: (error, weights[name].valid) for name, (error, _) in sums.items()}
        total, means = losses.combine(sums, loss_weights)
        # The gradient of nothing at all is 0 and good; the loss is said to be NaN rather than a perfect 0.
        nothing = jnp.all(jnp.isnan(jnp.stack(list(means.values()))))
        metrics = {'loss': jnp.where(nothing, jnp.nan, total)}
        metrics |= {f'loss/{name}': mean for name, mean in means.items()}
        metrics |= {f'valid/{name}': share for name, share in shares.items()}
        if balanced:
            total = balance.weighted(means, extra[balance.EXTRA], loss_weights)
            metrics |= balance.weights(extra[balance.EXTRA])
        return total, (metrics, extra)

    # In the same order as for `loss`, so that the compiler sees that both prepare the same.
    inputs = masked_inputs(config, contract, augment, any_order=True)

    def weights(batch: Batch, key: Array) -> dict[str, Weight]:
        masked = inputs(batch, key)
        return {name: weight_of(*masked.targets(name)) for name in config.model.modalities}

    fresh = balance.start(loss_weights) if balanced else dict[str, Any]()

    def init(key: Array) -> tuple[Params, Any]:
        return fusmae.init_params(config.model, key, dtype), jax.tree.map(jnp.zeros_like, fresh)

    def shapes() -> tuple[Params, Any]:
        return fusmae.param_shapes(config.model, dtype), fresh

    def settle(extra: Any, metrics: Metrics) -> tuple[Any, Metrics]:
        return balance.step(extra, metrics, config.loss.balance_rate), metrics

    base = Objective(init, loss, tuple(fields(config, contract)), weights, shapes=shapes)
    return base._replace(settle=settle) if balanced else base
