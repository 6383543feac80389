"""What a working directory says about the run in it: config.json, the model card, the record of skips."""

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from etils import epath

from fusmae_jax import __version__
from fusmae_jax.config import Config
from fusmae_jax.config_build import to_dict
from fusmae_jax.dino_config import DinoConfig, build_any
from fusmae_jax.errors import InputError, raise_all

CONFIG = 'config.json'
SKIPPED = 'skipped_steps.jsonl'
# What may change between two sittings of one run without making it another run.
FREE = (
    'name',
    'log',
    'checkpoint',
    'parallel',
    'data.path',
    'data.threads',
    'data.prefetch',
    'train.max_skips',
)


def flatten(values: Any, prefix: str = '') -> dict[str, Any]:
    """Nested mappings to one level with dotted keys; sequences count as values."""
    if not isinstance(values, Mapping):
        return {prefix: list(values) if isinstance(values, tuple | list) else values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f'{prefix}.{key}' if prefix else key)
    return flat


def write_config(workdir: epath.Path, config: Config) -> None:
    """Writes config.json, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    part = workdir / f'{CONFIG}.part'
    part.write_text(json.dumps(to_dict(config), indent=2))
    part.replace(workdir / CONFIG)


def check_same_run(config: Config, stored: Mapping[str, Any], where: str) -> None:
    """Raises InputError with every setting that matters and differs from the one stored in a checkpoint."""
    here, there = flatten(json.loads(json.dumps(to_dict(config)))), flatten(stored)
    problems = []
    for key in sorted(here.keys() | there.keys()):
        free = any(key == name or key.startswith(f'{name}.') for name in FREE)
        free |= key.startswith('data.mixture.') and key.endswith('.path')
        if not free and here.get(key) != there.get(key):
            problems.append(f'{key}: the run has {there.get(key)!r}, this command {here.get(key)!r}')
    raise_all(
        f'{where} belongs to a run with another configuration; use another --workdir, or these settings',
        problems,
    )


def read_config(workdir: epath.Path) -> Config:
    """The configuration of the run in a working directory."""
    file = workdir / CONFIG
    if not file.exists():
        raise InputError(f'{file}: not found; --workdir must be that of a pretraining run')
    return build_any(_load(file))


def _load(file: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f'{file}: not valid JSON ({error}); remove it or restore it') from error


def note_skip(workdir: epath.Path, step: int, records: Mapping[str, Any]) -> None:
    """Adds the record names of a step whose update was not finite."""
    file = workdir / SKIPPED
    before = file.read_text() if file.exists() else ''
    file.write_text(before + json.dumps({'step': step, **records}) + '\n')


CARD = """# {title}

| | |
|---|---|
| model | {model} |
| parameters | {parameters:,} |
| objective | {objective} |
| input | {modalities}; model grid {rows} x {columns} px, patch {patch} |
| data | {dataset} {version}, split `{split}`, {examples:,} pairs, fingerprint `{fingerprint}` |
| normalisation | {normalisation} |
| optimisation | AdamW, peak learning rate {learning_rate:g}, batch {batch_size}, {steps:,} steps |
| compute type | {dtype} |
| code | fusmae_jax {code}, jax {jax} |
| final training loss | {loss} |
| best held-out loss | {val_loss} |

## Intended use

Frozen or fine-tuned features of Sentinel-1 (VV, VH in dB) and Sentinel-2 (L2A digital numbers) images at
10 m, of either sensor alone or both. Load with `fusmae_jax.load(DIR)`.

## Limits

Trained on the data named above and nothing else. Inputs in other units, other band orders or with the
processing-baseline offset of 2022 must be converted first. *To be filled in: evaluation results, known
failures, who to ask.*

## Reproduce

`config.json` beside this file is the whole configuration; seed {seed}.
"""


def model_card(
    setup: Any, examples: int, parameters: int, losses: Mapping[str, str], versions: Mapping[str, str]
) -> str:
    """The text of MODEL_CARD.md for a run."""
    config, contract = setup.config, setup.contract
    model = config.model
    return CARD.format(
        title=f'Fus-MAE, {config.name}',
        model=f'ViT-{model.size} ({model.width} wide, {model.depth} deep, {model.heads} heads)',
        parameters=parameters,
        objective=_objective(config),
        modalities='; '.join(f'{name}: {", ".join(m.bands)}' for name, m in model.modalities.items()),
        rows=model.image_size[0],
        columns=model.image_size[1],
        patch=model.patch_size,
        dataset=contract.dataset,
        version=contract.version,
        split=config.data.train_split,
        examples=examples,
        fingerprint=contract.fingerprint,
        normalisation='[mean - 2 std, mean + 2 std] to [-1, 1]'
        if config.data.normalisation == 'mean_2sigma'
        else f'z-scores, clipped to +-{config.data.clip:g}',
        steps=setup.total_steps,
        dtype=str(setup.dtype),
        seed=config.seed,
        learning_rate=config.optimizer.learning_rate,
        batch_size=config.train.batch_size,
        **losses,
        **versions,
    )


def _objective(config: Config) -> str:
    if isinstance(config, DinoConfig):
        return 'DINO-MM: self-distillation over crops of the stacked sensors, one of them dropped at times'
    fusion, masking = config.model.fusion, config.masking
    return (
        f'masked reconstruction, {masking.strategy} masks, {masking.ratio:.0%} hidden; fusion in the encoder '
        f'`{fusion.encoder}`, in the decoder `{fusion.decoder}`, absent sensor `{fusion.absent}`'
    )


def versions() -> dict[str, str]:
    """Versions of this code and of what its numbers depend on."""
    known = {'fusmae_jax': __version__}
    return known | {name: metadata.version(name) for name in ('jax', 'flax', 'optax', 'orbax-checkpoint')}
