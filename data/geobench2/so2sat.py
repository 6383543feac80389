"""so2sat of GEO-Bench-2: its container, from the table to checked records.

Patches of 32 x 32 pixels of 10 m, one of 17 local climate zones each (So2Sat LCZ42), without a place and
without a time. Of the eight channels of Sentinel-1 that So2Sat has, the benchmark's program took two: the
real parts of the complex VH and VV, in the order of their names, `01 - VH.Real` and `03 - VV.Real`. Its
loader calls them VV, VH. They have both signs and a mean of 0; power, and so dB, would need the imaginary
parts, which are not in the file. Sentinel-2 is reflectance at the top of the atmosphere.
"""

import functools
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fusmae_jax.errors import nearest
from fusmae_jax.geo import raster
from fusmae_jax.input.contract import Group, Product

from ..geotiff import refused, stack_of
from ..records import Field, Item, Record, RecordError, RecordSource, Schema
from .listing import ORDERS, SPLIT, SPLITS, Level, check_order, items_of, list_rows
from .tortilla import AGAIN, FORMAT, ID, LENGTH, OFFSET, Row, Span, member, read_bytes, read_table, whole

NAME = 'so2sat'
PUBLISHED = {'train': 19_992, 'val': 986, 'test': 986}
SIZE, RESOLUTION = (32, 32), 10.0
AMPLITUDE = 'real part of amplitude'  # a unit that nothing else has, so that no model takes it for dB
CLASSES = (
    *('Compact high-rise', 'Compact middle-rise', 'Compact low-rise', 'Open high-rise', 'Open middle-rise'),
    *('Open low-rise', 'Lightweight low-rise', 'Large low-rise', 'Sparsely built', 'Heavy industry'),
    *('Dense Trees', 'Scattered trees', 'Bush, scrub', 'Low plants', 'Bare rock or paved'),
    *('Bare soil or sand', 'Water'),
)
LABELS = 'climate_zone'
S1 = Group('s1', ('VV', 'VH'), SIZE, 'float32', AMPLITUDE, RESOLUTION)
S2_BANDS = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')
S2 = Group('s2', S2_BANDS, SIZE, 'float32', 'reflectance', RESOLUTION)
MOST_BYTES = 2**22  # of an image; as plain numbers it takes 41 kB
SCHEMA = Schema(
    name='geobench2_so2sat',
    version='1.0.0',
    groups={'s1': S1, 's2': S2},
    fields={
        'name': Field('text', 'patch_id of the sample; unique, the key of the record'),
        LABELS: Field('uint8', '1 for the local climate zone of the patch', (len(CLASSES),)),
        'sample': Field('text', 'name of the sample in the container'),
        'official_split': Field(
            'text', 'train, val or test of the benchmark, where val is called validation'
        ),
    },
    key='name',
    products={
        's1': Product(
            description='real parts of the calibrated complex VH and VV of Sentinel-1 SLC, as So2Sat has '
            'them; the container has VH first, the records have VV first',
            platforms=('S1A', 'S1B'),
        ),
        's2': Product(
            description='Sentinel-2 L1C, reflectance at the top of the atmosphere, a cloud-free mosaic of a '
            'season; bands of 20 m were brought to 10 m by the authors of So2Sat',
            platforms=('S2A', 'S2B'),
            level='L1C',
        ),
    },
    classes={LABELS: CLASSES},
    split_aliases={'validation': 'val'},
    description='so2sat of GEO-Bench-2: 21,964 patches of So2Sat LCZ42 of 320 m x 320 m, Sentinel-1 and '
    'Sentinel-2, one of 17 local climate zones each, as many of each zone in every split.',
    homepage='https://github.com/The-AI-Alliance/GEO-Bench-2',
    citation='Zhu, X. X., Hu, J., Qiu, C., Shi, Y., Kang, J., Mou, L., Bagheri, H., Haberle, M., Hua, Y., '
    'Huang, R., Hughes, L., Li, H., Sun, Y., Zhang, G., Han, S., Schmitt, M., Wang, Y.: So2Sat LCZ42: A '
    'Benchmark Data Set for the Classification of Global Local Climate Zones. IEEE Geoscience and Remote '
    'Sensing Magazine 8(3), 2020. doi 10.1109/MGRS.2020.2964708',
    license='CC-BY-4.0',
)
_INDEX = {name: index for index, name in enumerate(CLASSES)}


class Sample(NamedTuple):
    """A sample as listed, before any of its images is opened."""

    name: str
    begin: int  # of its container in the file
    length: int
    patch_id: str
    split: str  # train, val or test
    zone: int  # index of CLASSES


class Images(NamedTuple):
    """The images of a sample as they are stored."""

    s1: np.ndarray  # (32, 32, 2) float32, in the order of the file
    s2: np.ndarray  # (32, 32, 10) float32


def source(file: Path, official: bool, order: str, on_error: Literal['fail', 'skip']) -> RecordSource:
    """The container as the converter takes it; raises as that of benv2 does."""
    samples, skips = list_samples(file, on_error)
    level = Level(lambda sample: wider(read_images(file, sample).s1), 'has the larger spread')
    check_order(file, samples, order, level)
    return RecordSource(
        schema=SCHEMA,
        splits=items_of(samples, official, keep_empty=on_error == 'fail'),
        read=functools.partial(read_item, file=str(file), order=order),
        inputs={'path': str(file), 'splits': 'official' if official else 'one', 's1_order': order},
        skips=skips,
        published=PUBLISHED if official else {},
        notes=(
            f'Sentinel-1 lies in the file as {order}; the records have VV, VH',
            'Sentinel-1 is the real part of an amplitude, no backscatter in dB: only models that learned '
            'from this set can read it',
        ),
    )


def is_one(file: Path) -> bool:
    """Whether a container is of this set: its labels are one word, those of benv2 a list."""
    try:
        return bool(read_table(whole(file), {'labels': str}))
    except RecordError:
        return False


def list_samples(
    file: Path, on_error: Literal['fail', 'skip'] = 'fail'
) -> tuple[list[Sample], list[dict[str, str]]]:
    """The samples of a container, and the skips for rows that cannot be used, as `list_rows` does."""
    return list_rows(file, {'labels': str}, _sample, on_error)


def _sample(file: Path, number: int, row: Row) -> Sample:
    if row['labels'] not in _INDEX:
        message = f'row {number}: {row["labels"]!r} is not one of the {len(CLASSES)} climate zones'
        raise RecordError(file, 'labels', message, nearest(row['labels'], CLASSES))
    place = (row[ID], row[OFFSET], row[LENGTH])
    return Sample(*place, row['patch_id'], SPLITS[row[SPLIT]], _INDEX[row['labels']])


def read_item(item: Item, file: str, order: str) -> Record:
    """The record of a listed sample; raises RecordError for anything damaged or contradictory."""
    sample = Sample(*item.values)
    images = read_images(Path(file), sample)
    return {
        's1': np.ascontiguousarray(images.s1[..., list(ORDERS[order])]),
        's2': images.s2,
        'name': sample.patch_id,
        LABELS: np.eye(len(CLASSES), dtype=np.uint8)[sample.zone],
        'sample': sample.name,
        'official_split': sample.split,
    }


def read_images(file: Path, sample: Sample) -> Images:
    """Both images of a sample as they are stored."""
    container = Span(file, sample.begin, sample.length, sample.name)
    rows = read_table(container, {'patch_id': str, 'labels': int})
    members = [(row[ID], row[FORMAT], row['patch_id'], row['labels']) for row in rows]
    expected = [(name, 'GTiff', sample.patch_id, sample.zone) for name in ('s1', 's2')]
    if members != expected:
        raise RecordError(container.title, 'table', f'{members}, expected {expected}', AGAIN)
    return Images(*(_image(member(container, row), group) for row, group in zip(rows, (S1, S2))))


def _image(span: Span, group: Group) -> np.ndarray:
    title = Path(span.title)
    if span.length > MOST_BYTES:
        raise RecordError(title, 'length', f'{span.length:,} bytes, at most {MOST_BYTES:,}', AGAIN)
    with (
        refused(title, group.modality, AGAIN),
        raster.opened_bytes(read_bytes(span), **raster.KEYS) as dataset,
    ):
        return stack_of(title, group, dataset)


def wider(image: np.ndarray) -> float:
    """The spread of the first channel of a Sentinel-1 image over that of the second, in dB.

    Above 0 the first one is VV: over land and sea VV is the brighter one. 0 without a pixel that has both.
    """
    both = image[np.isfinite(image).all(-1)].astype(np.float64)
    first, second = both.std(axis=0) if len(both) else (0.0, 0.0)
    return float(20 * np.log10(first / second)) if first > 0 and second > 0 else 0.0
