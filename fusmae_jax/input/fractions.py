"""The label fractions of a split: which of its records are the 1 % and the 10 %, read as they were stored.

They are drawn once, when a data set is converted (`data/fractions.py`), so that every evaluation of it uses
the same ones. Four kinds:

`random`      records ranked by a hash of their name and the seed; the first 10 %, and of those the first 1 %.
`stratified`  iterative stratification: the shares of all classes are kept; the 1 % is drawn from the 10 %.
`dino_mm`     3,000 draws with replacement, as the linear evaluation of DINO-MM makes them: some records
              stand in the list twice.
"""

import hashlib

import numpy as np
from etils import epath

from fusmae_jax.errors import InputError, nearest
from fusmae_jax.input import contract as contracts
from fusmae_jax.input.source import read_index
from fusmae_jax.storage import read_npz

FILE = 'fractions-{split}.npz'
DIGEST = 'digest'  # of the names of the split's records in their order
PERCENT = (10, 1)  # each drawn from the one before
SEEDS = (0, 1, 2, 3, 4)
DRAWS = ('random', 'stratified')
DINO_MM = 'dino_mm'
DINO_MM_FRACTION, DINO_MM_SEED, DINO_MM_DRAWS = 0.01, 42, 3000


def list_name(draw: str, percent: int, seed: int) -> str:
    """The name of a stored list, such as `random_10_0`."""
    return f'{draw}_{percent}_{seed}'


def digest(names: np.ndarray) -> str:
    """16 hexadecimal digits that change with the records of a split and with their order."""
    return hashlib.blake2b(b'\0'.join(names.tolist()), digest_size=8).hexdigest()


def read_fraction(
    path: epath.PathLike, split: str, fraction: float, draw: str = 'random', seed: int = 0
) -> np.ndarray:
    """Positions of the records of a label fraction in their split, int32.

    Ascending, without repeats; for `dino_mm` in the order of the draws, with repeats.

    Args:
        path: the folder of a converted data set.
        split: a split as it is stored, or an alias of one.
        fraction: 0.01, 0.1 or 1.0 (all records, whatever the draw).
        draw: 'random', 'stratified' or 'dino_mm' (fraction 0.01 and seed 42 only).
        seed: 0 to 4.

    Raises:
        InputError: no such list, an empty one, or lists of other records than those of the data set.
    """
    split = contracts.read(path).split_aliases.get(split, split)
    if '+' in split or '[' in split:
        raise InputError(f'{path}: label fractions are of whole splits, such as train; {split!r} is none')
    key = contracts.read(path).key
    names = read_index(path, split, [key])[key]
    wanted = _wanted(fraction, draw, seed)
    if wanted is None:
        return np.arange(len(names), dtype=np.int32)
    file = epath.Path(path) / FILE.format(split=split)
    positions = _read(file, wanted, names)
    if not positions.size:
        raise InputError(
            f'{file}: {fraction:.0%} of {len(names):,} records is none; take a larger fraction or data set'
        )
    return positions


def _wanted(fraction: float, draw: str, seed: int) -> str | None:
    """The name of a stored list; None for all records."""
    if draw not in (*DRAWS, DINO_MM):
        raise InputError(f'draw={draw!r}; {nearest(draw, (*DRAWS, DINO_MM))}')
    if draw == DINO_MM:
        if (fraction, seed) != (DINO_MM_FRACTION, DINO_MM_SEED):
            raise InputError(
                f'fraction={fraction:g}, seed={seed}: draw={DINO_MM!r} is one list, that of '
                f'fraction={DINO_MM_FRACTION:g}, seed={DINO_MM_SEED}'
            )
        return DINO_MM
    if fraction == 1:
        return None
    percents = [percent for percent in PERCENT if fraction == percent / 100]
    if not percents:
        stored = ', '.join(f'{percent / 100:g}' for percent in sorted(PERCENT))
        raise InputError(f'fraction={fraction:g} is not stored; there are {stored} and 1')
    if seed not in SEEDS:
        raise InputError(f'seed={seed}: the stored draws have the seeds {SEEDS[0]} to {SEEDS[-1]}')
    return list_name(draw, percents[0], seed)


def _read(file: epath.Path, wanted: str, names: np.ndarray) -> np.ndarray:
    if not file.exists():
        raise InputError(f'{file}: the label fractions of the split are missing; convert the data set again')
    with read_npz(file, 'convert the data set again') as archive:
        lists = {name: archive[name] for name in (DIGEST, wanted) if name in archive}
    if str(lists.get(DIGEST)) != digest(names):
        raise InputError(
            f'{file}: drawn from other records than those of the index; convert the data set again'
        )
    if wanted not in lists:
        raise InputError(f"{file}: no list {wanted!r}: the data set has no labels; use draw='random'")
    positions = lists[wanted]
    if (
        positions.ndim != 1
        or positions.dtype.kind != 'i'
        or not np.isin(positions, np.arange(len(names))).all()
    ):
        raise InputError(
            f'{file}: {wanted}: not positions of the {len(names):,} records of the split; convert the data '
            'set again'
        )
    return positions
