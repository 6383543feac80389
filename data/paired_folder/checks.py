"""Values that cannot be what was declared: refused where there is no doubt, with the setting to change.

What only a set of tiles can show, such as an offset left in or swapped polarisations, is not decided here.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.records import RecordError
from fusmae_jax.input import ranges
from fusmae_jax.input.contract import Group

_RAW = 'digital numbers of a product that is not calibrated? calibrate it first'
_TWICE = 'the offset is off already? set s2_offset=0'
# Unit and kind of `ranges.Problem` -> what to do; those without an entry say it themselves.
_ADVICE = {
    ('dB', 'below'): 'dB times a factor? set s1_scale, such as 0.01',
    ('dB', 'above'): f"linear? set s1_unit='linear'; {_RAW}",
    (
        'dB',
        'sign',
    ): "linear power or digital numbers? set s1_unit, or s1_nodata=(0.0,) if 0 fills the file's borders",
    ('linear', 'below'): "dB? set s1_unit='dB'",
    ('linear', 'above'): _RAW,
    ('amplitude', 'below'): "dB? set s1_unit='dB'",
    ('amplitude', 'above'): _RAW,
    ('DN', 'below'): _TWICE,
    ('DN', 'small'): "reflectance? set s2_unit='reflectance', or s2_scale",
    ('reflectance', 'below'): _TWICE,
    ('reflectance', 'above'): "digital numbers? set s2_unit='DN'",
}


def check_values(file: Path, images: Mapping[str, np.ndarray], groups: Mapping[str, Group]) -> None:
    """Raises RecordError if the images of one sensor cannot be in the unit that their groups say."""
    problem = ranges.check_image(images, groups)
    if problem is None:
        return
    group = groups[next(iter(images))]
    advice = _ADVICE.get((group.unit, problem.kind), problem.advice)
    if problem.kind == 'tail':
        advice = (
            f'a fill value for what was not measured? Set {group.modality}_nodata, or the tag of the files'
        )
    raise RecordError(file, f'{group.modality} {problem.band or "unit"}', problem.found, advice)
