"""The report of the doctor, as text for people and as JSON for programs."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from .evidence import Evidence, Sensor
from .findings import SEVERITIES, Finding, exit_code, worst

WIDTH = 100


def as_text(evidence: Evidence, findings: Sequence[Finding]) -> str:
    """The report as a person reads it: findings by severity, then a table of the bands."""
    lines = [f'{evidence.path}', f'  {evidence.kind}; {looked_at(evidence)}', '']
    for finding in findings:
        lines += _finding(finding)
    for sensor in evidence.sensors.values():
        if sensor.images:
            lines += ['', *_table(sensor)]
    return '\n'.join([*lines, '', verdict(findings)])


def looked_at(evidence: Evidence) -> str:
    """How much of the data was looked at."""
    if not evidence.names:
        return 'no images'
    total = '' if evidence.total is None else f' of {evidence.total:,}'
    if ' window ' in evidence.names[0]:
        return f'{len(evidence.names):,} windows looked at'
    return f'{len(evidence.names):,}{total} records looked at'


def verdict(findings: Sequence[Finding]) -> str:
    """One line: how many findings of each severity."""
    counts = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    return (
        f'{counts["error"]} errors, {counts["warning"]} warnings, {counts["note"]} notes; '
        f'{counts["cannot tell"]} questions that cannot be told from this'
    )


def _finding(finding: Finding) -> list[str]:
    head = f'{finding.severity.upper():<12}{finding.what}  [{finding.code}; from {finding.needs}]'
    body = [finding.evidence] + [f'-> {finding.remedy}'] * bool(finding.remedy)
    return [
        *textwrap.wrap(head, WIDTH, subsequent_indent=' ' * 12),
        *(
            line
            for text in body
            for line in textwrap.wrap(text, WIDTH, initial_indent=' ' * 12, subsequent_indent=' ' * 12)
        ),
    ]


def _table(sensor: Sensor) -> list[str]:
    rows = band_rows(sensor)
    lines = [
        f'  {sensor.modality}   '
        f'{"dtype":<9}{"min":>10}{"1 %":>10}{"median":>10}{"99 %":>10}{"max":>10}{"unusable":>10}'
    ]
    for row in rows:
        numbers = ''.join(f'{_short(row[key]):>10}' for key in ('minimum', 'p01', 'p50', 'p99', 'maximum'))
        lines.append(f'  {row["band"]:<5}{row["dtype"]:<9}{numbers}{row["unusable"]:>10.2%}')
    return lines


def band_rows(sensor: Sensor) -> list[dict[str, Any]]:
    """A row for each band, over the whole sample, of stored values."""
    summary, rows = sensor.summary, []
    for i, band in enumerate(sensor.declared.bands):
        values = summary.pooled(i)
        if not values.size:
            rows.append(
                {'band': band, 'dtype': summary.dtypes[i], **dict.fromkeys(_NUMBERS, None), 'unusable': 1.0}
            )
            continue
        p01, p50, p99 = np.percentile(values, (1, 50, 99)).tolist()
        rows.append(
            {
                'band': band,
                'dtype': summary.dtypes[i],
                'minimum': float(np.nanmin(summary.minimum[:, i])),
                'p01': p01,
                'p50': p50,
                'p99': p99,
                'maximum': float(np.nanmax(summary.maximum[:, i])),
                'unusable': float(1 - summary.usable[:, i].sum() / max(summary.pixels[:, i].sum(), 1)),
            }
        )
    return rows


_NUMBERS = ('minimum', 'p01', 'p50', 'p99', 'maximum')


def _short(value: float | None) -> str:
    return '-' if value is None else f'{value:.5g}'


def as_json(evidence: Evidence, findings: Sequence[Finding]) -> dict[str, Any]:
    """The report as plain data."""
    return {
        'path': evidence.path,
        'kind': evidence.kind,
        'looked_at': len(evidence.names),
        'total': evidence.total,
        'severity': worst(findings),
        'exit_code': exit_code(findings),
        'findings': [dataclasses.asdict(finding) for finding in findings],
        'bands': {m: band_rows(sensor) for m, sensor in evidence.sensors.items() if sensor.images},
        'splits': {name: split.records for name, split in evidence.splits.items()},
    }
