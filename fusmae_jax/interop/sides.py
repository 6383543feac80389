"""One batch through both frameworks: stages, gradients and training losses under common names and orders.

Stages are brought to our order before they are compared: visible patches first, in the order of the mask,
CLS last.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fusmae_jax.config.run import Config
from fusmae_jax.input.prepare import Patches, patchify
from fusmae_jax.interop.weights.layouts import reference_rules
from fusmae_jax.interop.weights.rules import flatten, to_ours, to_theirs
from fusmae_jax.models import fusmae, masking
from fusmae_jax.parallel.rules import Params
from fusmae_jax.train import losses
from fusmae_jax.train.objective import Masked, error_sums
from fusmae_jax.train.optimizer import make_optimizer, schedule

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """A batch with its masks, the same for both frameworks."""

    images: Arrays  # modality -> (b, c, H, W) float64, normalised
    order: Arrays  # modality -> (b, n) int64, visible patches first
    visible: int


@dataclasses.dataclass
class SideOutcome:
    """What one framework makes of a case."""

    stages: Arrays
    gradients: Arrays  # our flat paths


def make_case(config: Config, batch: int, seed: int) -> Case:
    """Standard normal images and random masks of the configured strategy."""
    rng, model = np.random.default_rng(seed), config.model
    shape = {name: (batch, len(m.bands), *model.image_size) for name, m in model.modalities.items()}
    first = [rng.permutation(model.num_patches) for _ in range(batch)]
    consistent = config.masking.strategy == 'consistent'
    order = {
        name: np.stack(first if consistent else [rng.permutation(model.num_patches) for _ in range(batch)])
        for name in shape
    }
    return Case(
        {name: rng.standard_normal(s) for name, s in shape.items()},
        order,
        masking.num_visible(model.num_patches, config.masking),
    )


def fresh_params(config: Config, seed: int, dtype: Any) -> Params:
    """Initial parameters plus normal noise of 0.02 on every one, so that no zero hides a difference."""
    params = fusmae.init_params(config.model, jax.random.key(seed), dtype)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(0.02 * rng.standard_normal(x.shape), x.dtype), params)


def masked_case(config: Config, case: Case, dtype: Any) -> Masked:
    """A case as our model takes it."""
    wide = jnp.promote_types(dtype, jnp.float32)
    values = {
        name: patchify(jnp.asarray(x.transpose(0, 2, 3, 1), wide), config.model.patch_size)
        for name, x in case.images.items()
    }
    patches = {name: Patches(x, jnp.ones(x.shape, bool)) for name, x in values.items()}
    return Masked(patches, {name: jnp.asarray(x) for name, x in case.order.items()}, case.visible)


def _jax_loss(config: Config, dtype: Any, visible: int) -> Any:
    graphdef = fusmae.graph(config.model, dtype)
    weights = {name: m.loss_weight for name, m in config.model.modalities.items()}

    def loss(params: Params, patches: Any, order: Any) -> tuple[Any, Any]:
        predictions, stages = nnx.merge(graphdef, params)(patches, order, visible, capture=True)
        sums, _ = error_sums(config, Masked(patches, order, visible), predictions)
        total, means = losses.combine(sums, weights)
        stages |= {'loss': total} | {f'loss/{name}': mean for name, mean in means.items()}
        return total, stages

    return loss


def jax_side(config: Config, visible: int, dtype: Any) -> Callable[[Case, Params], SideOutcome]:
    """(case, params) -> stages and gradients of our model, compiled once; `dtype` is the compute type."""
    compute = jax.jit(jax.grad(_jax_loss(config, dtype, visible), has_aux=True))

    def run(case: Case, params: Params) -> SideOutcome:
        masked = masked_case(config, case, dtype)
        gradients, captured = compute(params, masked.patches, masked.order)
        captured = {name: np.asarray(x) for name, x in captured.items()}
        return SideOutcome(_our_stages(config, captured), flatten(gradients))

    return run


def run_jax(config: Config, case: Case, params: Params, dtype: Any) -> SideOutcome:
    """Stages and gradients of our model on one case."""
    return jax_side(config, case.visible, dtype)(case, params)


def _our_stages(config: Config, captured: Arrays) -> Arrays:
    """The captured intermediates, those of stacked blocks one by one, without CLS in the decoders."""
    model = config.model
    stages: Arrays = {}
    for prefix in ('patch', 'tokens'):
        stages |= {f'{prefix}/{name}': captured[f'{prefix}/{name}'] for name in model.modalities}
    stages['block 1'] = captured['block1'][:, :-1] if model.fusion.encoder == 'xae' else captured['block1']
    stages |= {f'block {i + 2}': x for i, x in enumerate(captured.get('blocks/x', ()))}
    stages |= {f'latents/{name}': captured[f'latents/{name}'] for name in model.modalities} | {
        'cls': captured['cls']
    }
    for name in model.modalities:
        at = f'decoders/{name}'
        if model.fusion.decoder == 'xad':
            stages[f'xad/{name}'] = captured[f'xad/{name}']
        stages[f'{at}/tokens'] = captured[f'{at}/tokens'][:, : model.num_patches]
        for i, x in enumerate(captured.get(f'{at}/blocks/x', ())):
            stages[f'{at}/block {i + 1}'] = x[:, : model.num_patches]
        stages[f'{at}/predictions'] = captured[f'{at}/predictions']
        stages[f'loss/{name}'] = captured[f'loss/{name}']
    return stages | {'loss': captured['loss']}


def run_torch(config: Config, case: Case, params: Params, dtype: str) -> SideOutcome:
    """Stages and gradients of the PyTorch reference; 'bfloat16' is float32 weights under autocast."""
    model = torch_model(config, params, dtype)
    images, ids, keep = torch_inputs(case, dtype)
    # Autocast leaves weights and norms in float32 and makes products bfloat16, as our compute type does.
    with _autocast(dtype):
        loss, captured = model(images, ids, keep)
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    raw = {name: x.detach().double().numpy() for name, x in captured.items()}
    return SideOutcome(_common_stages(config, case, raw), to_ours(reference_rules(config.model), gradients))


def _common_stages(config: Config, case: Case, raw: Arrays) -> Arrays:
    """The reference's stages under our names and in our order."""
    model, k = config.model, case.visible
    stages: Arrays = {}

    def ordered(x: np.ndarray, name: str, part: slice = slice(None)) -> np.ndarray:
        return np.take_along_axis(x, case.order[name][:, part, None], axis=1)

    for ours, theirs in (('patch', 'patch'), ('tokens', 'positions')):
        for name in model.modalities:
            stages[f'{ours}/{name}'] = ordered(raw[f'{theirs}/{name}'], name, slice(k))
    if model.fusion.encoder == 'xae':
        stages['block 1'] = np.concatenate([raw[f'xae/{name}'] for name in model.modalities], axis=1)
    for i in range(1, model.depth + 1):
        if f'block{i}' in raw:
            stages[f'block {i}'] = raw[f'block{i}']
    for i, name in enumerate(model.modalities):
        stages[f'latents/{name}'] = raw['latents'][:, i * k : (i + 1) * k]
    stages['cls'] = raw['latents'][:, -1]
    for name in model.modalities:
        ours, theirs = f'decoders/{name}', f'decoder/{name}'
        if model.fusion.decoder == 'xad':
            stages[f'xad/{name}'] = raw[f'xad/{name}']
        stages[f'{ours}/tokens'] = ordered(raw[f'{theirs}/tokens'], name)
        for i in range(1, model.decoder.depth + 1):
            stages[f'{ours}/block {i}'] = ordered(raw[f'{theirs}/block{i}'], name)
        stages[f'{ours}/predictions'] = ordered(raw[f'{theirs}/prediction'], name, slice(k, None))
        stages[f'loss/{name}'] = raw[f'loss/{name}']
    return stages | {'loss': raw['loss']}


def train_jax(
    config: Config, cases: list[Case], params: Params, dtype: Any, steps: int, warmup: int
) -> list[float]:
    """The loss before each of `steps` updates, over the cases in turn."""
    settings = dataclasses.replace(config.optimizer, warmup_steps=warmup)
    optimizer = make_optimizer(settings, schedule(settings, steps, len(cases), 1))
    gradient = jax.value_and_grad(_jax_loss(config, dtype, cases[0].visible), has_aux=True)

    @jax.jit
    def step(params: Params, state: Any, patches: Any, order: Any) -> Any:
        (loss, _), gradients = gradient(params, patches, order)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    inputs, state, curve = [masked_case(config, case, dtype) for case in cases], optimizer.init(params), []
    for i in range(steps):
        batch = inputs[i % len(inputs)]
        params, state, loss = step(params, state, batch.patches, batch.order)
        curve.append(float(loss))
    return curve


def train_torch(
    config: Config, cases: list[Case], params: Params, dtype: str, steps: int, warmup: int
) -> list[float]:
    """The same with the PyTorch reference."""
    from fusmae_jax.interop.reference.train import TorchTrainer

    trainer = TorchTrainer(torch_model(config, params, dtype), config.optimizer, steps, warmup)
    inputs = [torch_inputs(case, dtype) for case in cases]
    with _autocast(dtype):
        return [trainer.step(*inputs[i % len(inputs)]) for i in range(steps)]


def torch_model(config: Config, params: Params, dtype: str) -> Any:
    """The PyTorch reference with our parameters."""
    import torch

    from fusmae_jax.interop.reference.model import build

    kind = torch.float64 if dtype == 'float64' else torch.float32
    model = build(config.model, config.loss, kind)
    state = to_theirs(reference_rules(config.model), params, 'parameters do not fit the model')
    model.load_state_dict({name: torch.tensor(x, dtype=kind) for name, x in state.items()})
    return model


def torch_inputs(case: Case, dtype: str) -> tuple[Any, Any, dict[str, int]]:
    """A case as the reference takes it: images, ids, and how many of them are visible."""
    import torch

    kind = torch.float64 if dtype == 'float64' else torch.float32
    images = {name: torch.tensor(x, dtype=kind) for name, x in case.images.items()}
    ids = {name: torch.tensor(x, dtype=torch.int64) for name, x in case.order.items()}
    return images, ids, dict.fromkeys(images, case.visible)


def _autocast(dtype: str) -> Any:
    import torch

    return torch.autocast('cpu', torch.bfloat16) if dtype == 'bfloat16' else contextlib.nullcontext()
