"""All checks, in the order in which a report tells them."""

from collections.abc import Callable, Iterator, Sequence

from . import bands, contracts, optical, pixels, radar, registration, splits
from .evidence import Evidence
from .findings import SEVERITIES, Finding

Check = Callable[[Evidence], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    contracts.check,
    bands.check,
    radar.check,
    optical.check,
    optical.check_offset,
    pixels.check,
    splits.check_pairs,
    registration.check,
    splits.check_splits,
)


def examine(evidence: Evidence, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Everything there is to say about the evidence, the gravest first."""
    findings = [*evidence.findings, *(finding for check in checks for finding in check(evidence))]
    # The sort is stable: of one severity, findings stay in the order of the checks.
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))
