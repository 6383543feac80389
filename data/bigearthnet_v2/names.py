"""Names of BigEarthNet v2 patches, and the folders that they lie in.

    S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57   Sentinel-2: time, baseline, orbit, tile, cell H_V
    S1B_IW_GRDH_1SDV_20170612T165809_33UUP_26_57         Sentinel-1: as in version 1
    S2A_MSIL2A_20170613T101031_26_57                     the patch of version 1 that covers the same ground

H and V have two digits in the first name, as many as they need in the others. The times are right here;
those in version 1 names are up to eight seconds off in 18 of 100.
"""

import re
from pathlib import Path
from typing import NamedTuple

from ..bigearthnet_mm.lists import parse_name, parse_time
from ..records import RecordError, inside

_S2 = re.compile(r'S2[AB]_MSIL2A_(\d{8}T\d{6})_N\d{4}_R\d{3}_T(\d{2}[A-Z]{3})_(\d{2,3})_(\d{2,3})')


class PatchName(NamedTuple):
    """What the name of a Sentinel-2 patch says."""

    time: int  # Unix seconds, UTC
    tile: str  # MGRS tile, without the T
    cell: tuple[int, int]  # H (column) and V (row) within the tile


def parse_patch_id(name: str) -> PatchName:
    """Parses the name of a Sentinel-2 patch; raises ValueError for any other name."""
    match = _S2.fullmatch(name)
    if not match:
        raise ValueError(f'{name!r} is not the name of a BigEarthNet v2 patch')
    stamp, tile, h, v = match.groups()
    return PatchName(parse_time(stamp), tile, (int(h), int(v)))


def check_names(patch_id: str, s1_name: str, s2v1_name: str) -> None:
    """Raises ValueError unless the three names are well formed and of one cell of one tile."""
    patch = parse_patch_id(patch_id)
    for name, form in ((s1_name, 'S1'), (s2v1_name, 'S2')):
        parsed = parse_name(name)
        if not name.startswith(form):
            raise ValueError(f'{name!r} is not the name of a Sentinel-{form[1]} patch')
        if parsed.cell != patch.cell or parsed.tile not in ('', patch.tile):
            raise ValueError(f'{name} is of another tile or cell than {patch_id}')


def s2_scene(patch_id: str) -> str:
    """The Sentinel-2 product that a patch was cut from, which also names the folder around it."""
    return patch_id.rsplit('_', 2)[0]


def patch_folder(root: Path, name: str) -> Path:
    """The folder of a patch: `<root>/<product>/<name>`.

    A product is a name without tile and cell for Sentinel-1, without cell for Sentinel-2. Raises RecordError
    if there is no such folder, or only one outside `root`.
    """
    product = name.rsplit('_', 3 if name.startswith('S1') else 2)[0]
    folder = inside(root, f'{product}/{name}')
    if not folder.is_dir():
        raise RecordError(folder, 'folder', 'the patch is missing', 'unpack the archives in full')
    return folder
