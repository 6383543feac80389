"""The faults of all sensors, and how the doctor is asked about one."""

import dataclasses

import numpy as np

from fusmae_jax.shipped.data.doctor import registration
from fusmae_jax.shipped.data.doctor.checks import CHECKS
from fusmae_jax.shipped.data.doctor.findings import SEVERITIES
from tests.support.faults_both import BOTH
from tests.support.faults_s1 import S1
from tests.support.faults_s2 import S2

FAULTS = (*S1, *S2, *BOTH)


# The only check that takes long; it matters for faults of registration alone.
QUICK = tuple(check for check in CHECKS if check is not registration.check)


def grave(findings):
    return [f for f in findings if SEVERITIES.index(f.severity) > SEVERITIES.index('note')]


def spoilt(evidence, fault, strength, seed):
    return fault.apply(evidence, strength, np.random.default_rng(seed))


def checks_for(fault):
    return CHECKS if any(code.startswith('pair') for code in fault.codes) else QUICK


def only(evidence, fault):
    """The evidence without the sensor that a fault leaves alone; for speed."""
    modality = {**dict.fromkeys(S1, 's1'), **dict.fromkeys(S2, 's2')}.get(fault)
    sensors = {m: s for m, s in evidence.sensors.items() if modality in (None, m)}
    return dataclasses.replace(evidence, sensors=sensors)
