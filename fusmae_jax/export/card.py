"""The README of a model repository on the hub: front matter, what the encoder is, how to feed it."""

import json
from collections.abc import Mapping
from typing import Any

from fusmae_jax.export.source import Source

TEXT = """---
library_name: fusmae_jax
pipeline_tag: image-feature-extraction
tags:
- remote-sensing
- earth-observation
{sensors}
- masked-autoencoder
- jax
---

# {title}

{objective}

| | |
|---|---|
| model | {model} |
| parameters of the encoder | {parameters:,} |
| data | {data} |
| step | {step} |

## Features in two lines

```python
import fusmae_jax

encoder = fusmae_jax.load('{address}')
features = encoder.encode({images}, units={units})  # .cls, .pooled, .tokens
```

Arrays are (images, rows, columns, bands). `python main.py export --checkpoint={address} --to=onnx` makes
StableHLO, ONNX or a PyTorch module of it.

## What it has to be given

| input | bands | unit | metres a pixel | pixels |
|---|---|---|---|---|
{inputs}

Missing: {missing}. Inside: {inside}.

## Limits

Trained on the data named above and nothing else; values in other units or band orders must be converted
first. The header of `model.safetensors` holds the whole configuration and the input contract. {known}
"""
UNKNOWN = '*To be filled\nin: licence, evaluation results, known failures, who to ask.*'


def readme(
    source: Source, described: Mapping[str, Any], address: str, title: str = '', known: str = UNKNOWN
) -> str:
    """The text, with the model card of the run below it.

    Args:
        source: the encoder.
        described: what `function.describe` says of it.
        address: where it will be, 'hf://ORG/NAME'.
        title: instead of that of the run.
        known: licence, results and failures; by default that they are missing.
    """
    card, units = source.card, {entry['sensor']: entry['unit'] for entry in described['inputs'].values()}
    data = '; '.join(
        f'{name} {about["version"]}, fingerprint `{about["fingerprint"]}`'
        for name, about in card['data'].items()
    )
    text = TEXT.format(
        sensors='\n'.join(f'- {_tag(name)}' for name in described['sensors']),
        title=title or card['title'],
        objective=card.get('objective', 'An imported encoder.'),
        model=card['model'],
        parameters=card['parameters'],
        data=data or 'not recorded',
        step=card.get('step', 'not recorded'),
        address=address,
        images='{' + ', '.join(f"'{name}': {name}" for name in described['sensors']) + '}',
        units=json.dumps(units).replace('"', "'"),
        inputs='\n'.join(_input(field, entry) for field, entry in described['inputs'].items()),
        missing=described['missing'],
        inside=described['inside'],
        known=known,
    )
    # Its headings one level down: they stand under the one above.
    below = source.text.replace('\n#', '\n##').replace('# ', '## ', 1)
    return f'{text}\n{below}' if below else text


def _tag(name: str) -> str:
    return {'s1': 'sentinel-1', 's2': 'sentinel-2'}.get(name, name)


def _input(field: str, entry: Mapping[str, Any]) -> str:
    rows, columns = entry['shape'][1:3]
    metres = entry['metres_a_pixel'] or 'any'
    return f'| `{field}` | {", ".join(entry["bands"])} | {entry["unit"]} | {metres} | {rows} x {columns} |'
