"""What a working directory says about the run in it: config.json, the model card, the record of skips."""

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
from etils import epath

from fusmae_jax import __version__, leak
from fusmae_jax.checkpoint import Checkpoints
from fusmae_jax.config import Config
from fusmae_jax.config_build import to_dict
from fusmae_jax.dino_config import DinoConfig, build_any
from fusmae_jax.errors import InputError, raise_all
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.contract import Contract

CONFIG = 'config.json'
SKIPPED = 'skipped_steps.jsonl'
CARD_FILE = 'MODEL_CARD.md'
COMPLETE = 'COMPLETE'
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
    'train.accumulation',
    'train.compilation_cache',
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


def checkpoint_meta(
    setup: Any, seen: leak.Seen, best_val: float | None, loss: float | None, good: int | None
) -> dict[str, Any]:
    """What a checkpoint says of its run.

    Args:
        setup: a `train.setup.Setup`.
        seen: the records that the model learns from.
        best_val: lowest held-out loss so far.
        loss: of the last step.
        good: the newest checkpoint that no skipped update precedes; None if there is none.
    """
    meta = {
        'config': to_dict(setup.config),
        'contract': to_dict(setup.contract),
        'dtype': str(setup.dtype),
        'best_val': best_val,
        'loss': loss,
        'good': good,
        'versions': versions(),
        'seen': {'digest': leak.digest(seen), 'from': seen.sources},
    }
    # Through JSON, so that tuples come back from every checkpoint as the same lists.
    return json.loads(json.dumps(meta))


def checked_meta(checkpoints: Checkpoints, step: int, setup: Any) -> dict[str, Any]:
    """What a checkpoint says of its run; raises InputError if that is another one than `setup`."""
    meta, config = checkpoints.meta(step), setup.config
    where = f'{checkpoints.directory / str(step)}'
    check_same_run(config, meta['config'], where)
    for name, stored, here in (
        ('data fingerprint', _contract(meta, where).digest, setup.contract.digest),
        ('compute type', meta['dtype'], str(setup.dtype)),
    ):
        if stored != here:
            raise InputError(
                f'{where} belongs to a run with {name} {stored}, this one has {here} '
                f'(data.path={config.data.path}); use another --workdir, or what it was made with'
            )
    return meta


def _contract(meta: Mapping[str, Any], where: str) -> Contract:
    return contracts.from_values(meta['contract'], f'{where}: contract')


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


def write_card(
    workdir: epath.Path, setup: Any, examples: int, loss: float | None, best_val: float | None
) -> None:
    """Writes MODEL_CARD.md of a run over `examples` records; `loss` is None while it goes on."""
    config, contract = setup.config, setup.contract
    model, known = config.model, versions()
    text = CARD.format(
        title=f'Fus-MAE, {config.name}',
        model=f'ViT-{model.size} ({model.width} wide, {model.depth} deep, {model.heads} heads)',
        parameters=sum(x.size for x in jax.tree.leaves(setup.abstract_state()['params'])),
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
        loss='still training' if loss is None else f'{loss:.4f}',
        val_loss='not measured' if best_val is None else f'{best_val:.4f}',
        code=known['fusmae_jax'],
        jax=known['jax'],
    )
    (workdir / CARD_FILE).write_text(text)


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
