"""What the headers of a user's files say: unnamed bands, other channels, files that are not alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data.doctor import tiffs
from data.doctor.findings import Finding
from data.doctor.tiffs import Header
from fusmae_jax.geo.bands import SKIP

TITLES = {'s1': 'Sentinel-1', 's2': 'Sentinel-2'}
KINDS: Mapping[str, Callable[[Header], Any]] = {
    'type': lambda head: head.dtype,
    'pixel size': lambda head: round(abs(head.grid.step_x), 6),
    'scale': lambda head: head.scales,
    'nodata value': lambda head: str(head.nodata),  # NaN is not equal to itself
}


def check(headers: Sequence[Header], modality: str) -> Iterator[Finding]:
    """Findings about the files of one sensor."""
    yield from [_guessed(modality, head) for head in headers if not head.named][:1]
    yield from [_stacked(modality, head) for head in headers if _others(head)][:1]
    yield from _unlike(modality, headers)
    if modality == 's2':
        yield from _offsets(headers)


def _guessed(modality: str, head: Header) -> Finding:
    return Finding(
        f'{modality}.names',
        'note',
        f'{TITLES[modality]}: files do not name their bands',
        f'{head.file.name}: taken for {", ".join(head.bands)} by their number',
        'describe the bands in the files (rio edit-info --bidx 1 --description VV FILE.tif), or '
        'name the files after them',
        needs='metadata',
    )


def _others(head: Header) -> list[str]:
    """The channels that are not looked at: those of the other sensor, and those that are no band."""
    return [
        text.strip() or f'channel {number}'
        for number, (band, text) in enumerate(zip(head.whole.bands, head.whole.descriptions), 1)
        if not band
    ]


def _stacked(modality: str, head: Header) -> Finding:
    setting = ', '.join(f"'{band or SKIP}'" for band in head.whole.bands)
    return Finding(
        f'{modality}.stack',
        'note',
        f'{TITLES[modality]}: files hold other channels too',
        f'{head.file.name}: {", ".join(head.bands)}, and not looked at for this sensor: '
        f'{", ".join(_others(head))}',
        f'for convert: {modality}_bands="({setting})"; the same for encode as config.{modality}.bands',
        needs='metadata',
    )


def _unlike(modality: str, headers: Sequence[Header]) -> Iterator[Finding]:
    """Files of the same bands have to be alike; those of native resolutions have other bands each."""
    for what, of in KINDS.items():
        cases: dict[tuple[str, ...], dict[Any, str]] = {}
        for head in headers:
            cases.setdefault(head.bands, {}).setdefault(of(head), head.file.name)
        if several := next((case for case in cases.values() if len(case) > 1), None):
            yield Finding(
                f'{modality}.unlike',
                'warning',
                f'{TITLES[modality]}: files differ in their {what}',
                ', '.join(f'{name}: {value}' for value, name in [*several.items()][:4]),
                'write them alike, or convert them apart; `convert` takes no such mixture',
                needs='metadata',
            )


def _offsets(headers: Sequence[Header]) -> Iterator[Finding]:
    if stated := offsets(headers):
        yield Finding(
            's2.offset_tags',
            'error',
            'Sentinel-2: files state different offsets',
            ', '.join(
                f'{value:g} in {len(some):,} files, such as {some[0]}' for value, some in stated.items()
            ),
            'convert them apart, or give each its offset in the table of `convert`',
            needs='metadata',
        )


def offsets(headers: Sequence[Header]) -> dict[float, list[str]]:
    """Offset -> files of Sentinel-2, if several are stated; else nothing."""
    cases: dict[float, list[str]] = {}
    for head in headers:
        if (stated := tiffs.stated_offset(head)) is not None:
            cases.setdefault(stated, []).append(head.file.name)
    return cases if len(cases) > 1 else {}
