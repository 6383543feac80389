"""The model card of a run: what it was trained on, from the configuration and the contract of its data."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from fusmae_jax.config.run import Config, Modality
from fusmae_jax.input.contract import Contract
from fusmae_jax.run.workdir import versions
from fusmae_jax.train.setup import Setup

FILE = 'MODEL_CARD.md'
UNITS = {
    'dB': 'backscatter in dB',
    'linear': 'backscatter as power',
    'amplitude': 'backscatter as amplitude',
    'DN': 'digital numbers (reflectance x 10,000)',
    'reflectance': 'reflectance',
}
TEXT = """# {title}

| | |
|---|---|
| model | {model} |
| parameters | {parameters:,} |
| objective | {objective} |
| input | {modalities}; model grid {rows} x {columns} px, patch {patch} |
| data | {dataset} {version}, split `{split}`, {examples:,} records, fingerprint `{fingerprint}` |
| normalisation | {normalisation} |
| optimisation | AdamW, peak learning rate {learning_rate:g}, batch {batch_size}, {steps:,} steps |
| compute type | {dtype} |
| initial weights | {initial} |
| code | fusmae_jax {code}, jax {jax} |
| final training loss | {loss} |
| best held-out loss | {val_loss} |

## Intended use

Frozen or fine-tuned features of images of {footprint}:

{sensors}

{use}

## Limits

Trained on the data named above and nothing else. Inputs in other units or band orders{offset} must be
converted first. *To be filled in: evaluation results, known failures, who to ask.*

## Reproduce

`config.json` beside this file is the whole configuration; seed {seed}.
"""


def facts(setup: Setup, examples: int) -> dict[str, Any]:
    """What a run of `examples` records is, as the card has it and whoever else lists runs."""
    config, contract, known = setup.config, setup.contract, versions()
    model = config.model
    return {
        'title': setup.recipe.title(config),
        'model': f'ViT-{model.size} ({model.width} wide, {model.depth} deep, {model.heads} heads)',
        'parameters': sum(x.size for x in jax.tree.leaves(setup.abstract_state()['params'])),
        'objective': setup.recipe.describe(config),
        'dataset': contract.dataset,
        'version': contract.version,
        'fingerprint': contract.fingerprint,
        'examples': examples,
        'steps': setup.total_steps,
        'dtype': str(setup.dtype),
        'code': known['fusmae_jax'],
        'jax': known['jax'],
    }


def write(
    workdir: epath.Path,
    setup: Setup,
    examples: int,
    loss: float | None,
    best_val: float | None,
    initial: Mapping[str, Any] | None = None,
) -> None:
    """Writes the card of a run over `examples` records.

    Args:
        workdir: of the run.
        setup: the run.
        examples: records that it learns from.
        loss: of the last step, NaN if it was not measured; None while the run goes on.
        best_val: lowest held-out loss of a checkpoint that is kept; None if none was measured.
        initial: what `run.initial.begin` says of the weights that it started from; None: random ones.
    """
    config, contract = setup.config, setup.contract
    model = config.model
    optical = any(m.unit in ('DN', 'reflectance') for m in model.modalities.values())
    text = TEXT.format(
        **facts(setup, examples),
        modalities='; '.join(f'{name}: {", ".join(m.bands)}' for name, m in model.modalities.items()),
        rows=model.image_size[0],
        columns=model.image_size[1],
        patch=model.patch_size,
        split=', '.join(p.train_split for p in config.data.mixture.values()) or config.data.train_split,
        normalisation='[mean - 2 std, mean + 2 std] to [-1, 1]'
        if config.data.normalisation == 'mean_2sigma'
        else f'z-scores, clipped to +-{config.data.clip:g}',
        seed=config.seed,
        learning_rate=config.optimizer.learning_rate,
        batch_size=config.train.batch_size,
        loss='still training' if loss is None else 'not measured' if math.isnan(loss) else f'{loss:.4f}',
        val_loss='not measured' if best_val is None else f'{best_val:.4f}',
        initial=_initial(initial),
        footprint=_footprint(contract),
        sensors='\n'.join(_sensor(name, m, contract) for name, m in model.modalities.items()),
        use=_use(config),
        offset=', or with the offset that Sentinel-2 products have since processing baseline 04.00,'
        * optical,
    )
    (workdir / FILE).write_text(text)


def _initial(record: Mapping[str, Any] | None) -> str:
    if not record:
        return 'random'
    unknown = (
        '' if record['seen_known'] else '; what it has seen is not known, so `leaks` is of this run alone'
    )
    return f'{record["title"]} (`{record["fingerprint"]}`): {record["summary"]}; see init.json{unknown}'


def _sensor(name: str, modality: Modality, contract: Contract) -> str:
    """One line on what a modality is, as far as the contract says it."""
    parts = contract.each.values()
    stored = [g for part in parts for g in part.groups.values() if g.modality == name]
    metres = sorted({f'{g.resolution:g}' for g in stored if set(g.bands) & set(modality.bands)})
    products = [part.products[name] for part in parts if name in part.products]
    facts = [', '.join(filter(None, (p.level, p.calibration, p.description))) for p in products]
    about = '; '.join(dict.fromkeys(filter(None, facts))) or 'product not recorded'
    sensor = {'s1': 'Sentinel-1, ', 's2': 'Sentinel-2, '}.get(modality.sensor or name, '')
    unit = UNITS.get(modality.unit, modality.unit or 'unit not recorded')
    return (
        f'- `{name}`: {sensor}{about}; {unit}; {", ".join(modality.bands)}, stored at {", ".join(metres)} m'
    )


def _footprint(contract: Contract) -> str:
    """The ground that one image covers."""
    covered = {
        (g.size[0] * g.resolution, g.size[1] * g.resolution)
        for part in contract.each.values()
        for g in part.groups.values()
    }
    return ' or '.join(f'{rows:g} x {columns:g} m' for rows, columns in sorted(covered))


def _use(config: Config) -> str:
    """How to get features out of the model, and of which sensors."""
    names = list(config.model.modalities)
    which = f'Of any of {", ".join(f"`{name}`" for name in names)} alone, or together. ' * (len(names) > 1)
    return f'{which}Load with `fusmae_jax.load(DIR)`.'
