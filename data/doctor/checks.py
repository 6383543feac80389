"""All checks, in the order in which a report tells them."""

from collections.abc import Callable, Iterator, Sequence

from data.doctor import bands, contracts, offset, optical, pairs, pixels, radar, registration, splits
from data.doctor.evidence import Evidence
from data.doctor.findings import SEVERITIES, Finding

Check = Callable[[Evidence], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    contracts.check,
    bands.check,
    radar.check,
    optical.check,
    offset.check,
    pixels.check,
    pairs.check,
    registration.check,
    splits.check,
)


def examine(evidence: Evidence, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Everything there is to say about the evidence, the gravest first."""
    findings = [*evidence.findings, *(finding for check in checks for finding in check(evidence))]
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))
