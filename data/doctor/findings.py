"""Findings of the doctor, each with its severity, the evidence and the remedy."""

import dataclasses
from collections.abc import Iterable
from typing import Literal, get_args

Severity = Literal['cannot tell', 'note', 'warning', 'error']
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # ascending

# What a check has to look at before it can speak.
Needs = Literal['metadata', 'one patch', '64 patches']
FEW, ENOUGH = 16, 64  # patches: below FEW a statistic over patches is no more than a hint

EXIT_CODES: dict[Severity, int] = {'cannot tell': 0, 'note': 0, 'warning': 3, 'error': 4}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that the doctor has to say."""

    code: str  # short and stable, such as 's1.order'; for programs
    severity: Severity
    what: str  # in plain words
    evidence: str  # with numbers
    remedy: str = ''
    needs: Needs = 'one patch'


def worst(findings: Iterable[Finding]) -> Severity:
    """The highest severity; 'note' for no findings at all."""
    return max((f.severity for f in findings), key=SEVERITIES.index, default='note')


def exit_code(findings: Iterable[Finding]) -> int:
    """0 for notes at most, 3 with a warning, 4 with an error (2 is a command that cannot run)."""
    return EXIT_CODES[worst(findings)]


def by_amount(patches: int, full: Severity) -> Severity:
    """The severity of a statistic over patches: full from ENOUGH on, one step less from FEW, else a note."""
    if patches >= ENOUGH:
        return full
    lower: Severity = 'warning' if full == 'error' else 'note'
    return lower if patches >= FEW else 'note'


def share(count: float, total: float) -> str:
    """'3 of 64 (4.7 %)'."""
    return f'{count:,.0f} of {total:,.0f} ({count / max(total, 1):.2%})'
