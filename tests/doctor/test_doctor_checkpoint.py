"""The doctor on checkpoints: the contract they carry, their weights, and data that they shall be used on."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusmae_jax.checkpoints.checkpoints import Checkpoints
from fusmae_jax.config.build import to_dict
from fusmae_jax.input.contract import Contract, Statistics
from fusmae_jax.sensors import SENSORS
from fusmae_jax.shipped.data.bigearthnet_mm.schema import GROUPS, SCHEMA
from fusmae_jax.shipped.data.doctor.checks import examine
from fusmae_jax.shipped.data.doctor.command import run
from fusmae_jax.shipped.data.doctor.evidence import Evidence
from fusmae_jax.shipped.data.synthetic import write
from tests.support.helpers import weights
from tests.support.tiny import tiny_config


def statistics(**changes):
    """Those of BigEarthNet-MM, with some bands changed: band -> (mean, std, minimum)."""
    result = {}
    for field, group in GROUPS.items():
        columns = []
        for band in group.bands:
            known = SENSORS[group.modality].bands[band]
            low = -35.0 if group.modality == 's1' else 1.0
            columns.append(changes.get(band, (known.mean, known.std, low)))
        mean, std, low = zip(*columns)
        pixels = (10**6,) * len(group.bands)
        high = tuple(m + 5 * s for m, s in zip(mean, std))
        result[field] = Statistics(mean, std, low, high, pixels, (0,) * len(pixels))
    return result


def contract(**changes):
    return Contract(
        dataset='bigearthnet_mm',
        version='1.0.0',
        groups=GROUPS,
        products=SCHEMA.products,
        statistics=changes.pop('statistics', statistics()),
        **changes,
    )


@pytest.fixture(scope='module')
def save(tmp_path_factory):
    """Writes a checkpoint of a tiny model with a contract, and maybe with damaged weights."""
    config = tiny_config()
    params = jax.tree.map(np.asarray, weights(config.model))

    def write_checkpoint(about, damage=False):
        stored = jax.tree.map(lambda x: np.full_like(x, np.nan), params) if damage else params
        folder = tmp_path_factory.mktemp('run')
        checkpoints = Checkpoints(folder, keep=1)
        meta = {'config': to_dict(config), 'contract': to_dict(about), 'dtype': 'float32'}
        state = {'params': stored, 'step': jnp.int32(7), 'opt_state': {'count': jnp.zeros(1)}}
        checkpoints.save(state, json.loads(json.dumps(meta)))
        checkpoints.close()
        return folder

    return write_checkpoint


def report(capsys, *paths):
    code = run([str(path) for path in paths], as_json=True)
    findings = [f for one in json.loads(capsys.readouterr().out) for f in one['findings']]
    return code, {f['code']: f for f in findings if f['severity'] in ('warning', 'error')}, findings


def test_a_sound_checkpoint(save, capsys):
    code, findings, every = report(capsys, save(contract()))
    assert code == 0 and findings == {} and 's1.calibration' in {f['code'] for f in every}


def test_a_checkpoint_of_swapped_bands(save, capsys):
    swapped = statistics(VV=(-19.36, 5.5, -40.0), VH=(-12.63, 5.1, -35.0))
    code, findings, _ = report(capsys, save(contract(statistics=swapped)))
    assert code == 4 and findings.keys() == {'s1.order'}


@pytest.mark.parametrize(
    ('changes', 'code'),
    [
        # As in a public benchmark: VH and VV the other way round; and negative dB wrapped into uint16.
        ({'VV': (-19.36, 5.5, -40.0), 'VH': (-12.63, 5.1, -35.0)}, 's1.order'),
        ({'VV': (60197.8, 9000.0, 0.0), 'VH': (65496.9, 900.0, 0.0)}, 's1.unit'),
        ({'VV': (0.06, 0.05, 0.0), 'VH': (0.012, 0.01, 0.0)}, 's1.unit'),
        ({'B05': (0.0, 0.0, 0.0)}, 'contract.statistics'),
        (dict.fromkeys(SENSORS['s2'].bands, (0.12, 0.1, 0.0)), 's2.scale'),
        ({b: (s.mean + 1000, s.std, 1001.0) for b, s in SENSORS['s2'].bands.items()}, 's2.offset'),
    ],
)
def test_statistics_give_faults_away_without_a_pixel(changes, code):
    evidence = Evidence('run', 'checkpoint', contract=contract(statistics=statistics(**changes)))
    findings = {f.code: f for f in examine(evidence)}
    assert findings[code].severity == 'error' and findings[code].needs == 'metadata'


def test_weights_that_are_not_finite(save, capsys):
    code, findings, _ = report(capsys, save(contract(), damage=True))
    assert code == 4 and findings.keys() == {'checkpoint.weights'}


def test_checkpoint_and_data(save, tmp_path, capsys):
    """A second path: what of the data differs from what the model learned from."""
    data = write(tmp_path, 4, seed=5)
    code, findings, every = report(capsys, save(contract()), data)
    assert code == 0 and findings == {} and any(f['code'].startswith('fit.') for f in every)
    flattened = dataclasses.replace(SCHEMA.products['s1'], calibration='gamma0')
    trained = dataclasses.replace(contract(), products={**SCHEMA.products, 's1': flattened})
    code, findings, _ = report(capsys, save(trained), data)
    assert code == 3 and findings.keys() == {'fit.calibration'}
    assert 'accept' in findings['fit.calibration']['remedy']
