"""The command `leaks`: how many records of a split a checkpoint has learned from."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from fusmae_jax.checkpoints.checkpoints import open_step
from fusmae_jax.errors import InputError
from fusmae_jax.input.seen import Seen, count, digest, from_bytes, read_records

_WORDS = {
    'id': 'by their own name, in the same data set and not on other ground',
    'twin': 'as the BigEarthNet v1 patch of the same acquisition',
    'cell': 'on the same ground: MGRS tile and grid cell, on any day',
    'place': 'on overlapping ground, by EPSG and corner, on any day',
    'content': 'by their pixels: an image of a sensor that is the same to the last bit',
    'any': 'in one of these ways',
}


def seen_by(checkpoint: epath.PathLike, step: int | None = None) -> tuple[Seen, int]:
    """What a checkpoint has learned from, and its step.

    Raises:
        InputError: no checkpoint there, or one that does not say.
    """
    checkpoints, step = open_step(checkpoint, step)
    try:
        packed = checkpoints.seen(step)
    finally:
        checkpoints.close()
    if packed is None:
        raise InputError(
            f'{checkpoint}: checkpoint {step} was written without the list of records that it learned from; '
            'nothing can be said of it'
        )
    return from_bytes(packed, f'{checkpoint}: checkpoint {step}'), step


def run(checkpoint: str, data: str, split: str, as_json: bool = False) -> int:
    """Prints how many records of a split were seen; returns the exit code 0, whatever the number.

    Args:
        checkpoint: a working directory, its checkpoints folder, or one checkpoint.
        data: the folder of a converted data set.
        split: the split that is evaluated on; an alias or a part of one too.
        as_json: print JSON instead of text.
    """
    seen, step = seen_by(checkpoint)
    source, records = read_records(data, split)
    result = {
        'checkpoint': checkpoint,
        'step': step,
        'sources': list(seen.sources),
        'digest': digest(seen),
        'records_seen_in_training': len(seen.names.id),
        'seen_with': {way: len(names) for way, names in seen.names._asdict().items()},
        'dataset': source.contract.dataset,
        'version': source.contract.version,
        'split': split,
        **count(records, seen),
    }
    print(json.dumps(result, indent=2) if as_json else text(result))
    return 0


def text(result: Mapping[str, Any]) -> str:
    """The result as a person reads it."""
    total = result['records']
    lines = [f'{result["checkpoint"]}, step {result["step"]}, has learned from']
    lines += [f'  {line}' for line in result['sources']]
    lines.append(
        f'{result["dataset"]} {result["version"]}, split {result["split"]}: of {total:,} records were seen'
    )
    for way, words in _WORDS.items():
        lines.append(f'  {result[way]:>9,} ({result[way] / total:7.2%})  {words}')
    for way, words in (
        ('with_twin', 'no record has a BigEarthNet v1 name'),
        ('with_cell', 'no record has an MGRS tile and grid cell'),
        ('with_place', 'no record has an EPSG code and corner'),
        ('with_content', 'no record has digests of its images (converted before there were any)'),
    ):
        if not result[way]:
            lines.append(f'{words}: that way nothing can be recognised here')
    for way, words in (('place', 'places'), ('content', 'digests of images')):
        if not result['seen_with'][way]:
            lines.append(f'the checkpoint does not list {words}: that way nothing can be recognised here')
    lines.append(
        'Results on this split are not results on unseen records.'
        if result['any']
        else 'Not one of these records was recognised as seen.'
    )
    return '\n'.join(lines)
