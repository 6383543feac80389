"""Measures how often the doctor finds each fault, and writes the tables into docs/doctor.md.

    python -m tests.support.doctor_table            (five minutes on one core)

All seeds and strengths are those that the rules were not developed on.
"""

import dataclasses
import re
import warnings
from pathlib import Path

import numpy as np

from fusmae_jax.shipped.data.doctor.checks import examine
from tests.support.doctor_checks import FAULTS, checks_for, only, spoilt
from tests.support.faults import LAYOUTS, SEEDS, clean, found

DOCUMENT = Path(__file__).parents[2] / 'docs' / 'doctor.md'
TITLES = {
    'bigearthnet': 'BigEarthNet',
    'sen12ms': 'SEN12MS',
    'ssl4eo_s12_1.1': 'SSL4EO v1.1',
    'ssl4eo_s12_1.0': 'SSL4EO v1.0',
    'paired_folder': 'own GeoTIFFs',
}
GROUPS = {1: 24, 16: 12, 64: 3}  # patches -> samples of so many that are drawn from all seeds


def some(evidence, first, count):
    """The evidence of `count` of its patches."""
    at = slice(first, first + count)
    sensors = {
        m: dataclasses.replace(s, images=s.images[at], grids=s.grids[at]) for m, s in evidence.sensors.items()
    }
    labels = {field: values[at] for field, values in evidence.labels.items()}
    return dataclasses.replace(evidence, names=evidence.names[at], sensors=sensors, labels=labels)


def without_pixels(evidence):
    """What is left when no image is opened."""
    sensors = {m: dataclasses.replace(s, images=()) for m, s in evidence.sensors.items()}
    return dataclasses.replace(evidence, sensors=sensors)


def rate(fault, strength, evidences):
    """Share of the samples in which a fault is found."""
    hits = [
        found(fault, examine(spoilt(only(one, fault), fault, strength, seed), checks_for(fault)))
        for seed, one in enumerate(evidences)
    ]
    return float(np.mean(hits))


def percent(value):
    return f'{value:.0%}'.replace('%', ' %')


def needs_table(sets):
    """For each fault, in the layout of BigEarthNet: the least that it takes, and the rates."""
    lines = [
        '| fault | strength | takes | 1 patch | 16 | 64 | marginal | 64 patches |',
        '|---|---|---|---|---|---|---|---|',
    ]
    per_seed = {count: number // len(sets) for count, number in GROUPS.items()}
    samples = {n: [some(e, i * n, n) for e in sets for i in range(per_seed[n])] for n in GROUPS}
    for fault in FAULTS:
        strengths = fault.judged
        bare = [without_pixels(fault.apply(e, strengths.plain, np.random.default_rng(0))) for e in sets]
        rates = {n: rate(fault, strengths.plain, samples[n]) for n in GROUPS}
        if all(found(fault, examine(one)) for one in bare):
            takes = 'metadata'
        else:
            takes = next((f'{n} patch{"es" * (n > 1)}' for n in GROUPS if rates[n] == 1), 'more')
        marginal = ('', '')
        if strengths.marginal is not None:
            marginal = (f'{strengths.marginal:g}', percent(rate(fault, strengths.marginal, samples[64])))
        plain = f'{strengths.plain:g} {fault.unit}' if fault.unit else ''
        cells = [fault.name, plain, takes, *(percent(rates[n]) for n in GROUPS), *marginal]
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def layout_table(sets):
    """Plain / marginal rates with 64 patches for each fault and layout."""
    lines = [
        f'| fault | {" | ".join(TITLES[layout] for layout in LAYOUTS)} |',
        f'|---|{"---|" * len(LAYOUTS)}',
    ]
    for fault in FAULTS:
        cells = []
        for layout in LAYOUTS:
            if layout not in fault.layouts:
                cells.append('')
                continue
            wanted = [s for s in fault.judged if s is not None]
            cells.append(' / '.join(percent(rate(fault, s, sets[layout])) for s in wanted))
        lines.append(f'| {fault.name} | {" | ".join(cells)} |')
    return lines


def write(name, lines):
    """Replaces the part of the document between the two marks of that name."""
    text = DOCUMENT.read_text()
    part = f'<!-- {name} -->\n' + '\n'.join(lines) + f'\n<!-- end of {name} -->'
    DOCUMENT.write_text(
        re.sub(rf'<!-- {name} -->.*?<!-- end of {name} -->', lambda _: part, text, flags=re.S)
    )


def main():
    warnings.simplefilter('ignore', RuntimeWarning)  # NaN is expected here
    sets = {layout: [clean(layout, seed) for seed in SEEDS['judged']] for layout in LAYOUTS}
    write('needs', needs_table(sets['bigearthnet']))
    write('layouts', layout_table(sets))


if __name__ == '__main__':
    main()
