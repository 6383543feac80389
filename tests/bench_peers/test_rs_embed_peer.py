"""The model entry of rs-embed through its own API, with a provider that gives a real image.

The image is a BigEarthNet v2 sample of GEO-Bench-2; nothing is fetched.
"""

import importlib
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

import fusmae_jax
from fusmae_jax.shipped.data.geobench2 import samples
from fusmae_jax.shipped.data.geobench2.images import read_images
from tests.support.peers import clone

pytestmark = [pytest.mark.bench_peers, pytest.mark.filterwarnings('ignore')]
ACCEPT = ('order', 'offset', 'level', 'fill', 'floor', 'brightness')
S2 = ('B1', 'B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B9', 'B11', 'B12')


@pytest.fixture(scope='module')
def image():
    """A real pair: s1 (VV, VH) in dB and s2 in digital numbers, (channels, rows, columns)."""
    file = clone('GEO-Bench-2') / 'tests/data/benv2/benv2.tortilla'
    pair = read_images(file, samples.list_samples(file)[0][0])
    return {
        's1': np.moveaxis(pair.s1[..., ::-1], -1, 0).astype(np.float32),
        's2': np.moveaxis(pair.s2, -1, 0).astype(np.float32),
    }


@pytest.fixture(scope='module')
def rs_embed(image):
    """The package, with the entry and a provider that knows one image."""
    folder = clone('rs-embed') / 'src'
    for name in ('torch', 'xarray'):
        pytest.importorskip(name)
    sys.path[:0] = [str(folder), str(Path(__file__).parents[2] / 'integrations')]
    package = importlib.import_module('rs_embed')
    importlib.import_module('fusmae_rs_embed')
    from rs_embed.providers import register_provider
    from rs_embed.providers.base import ProviderBase

    class Stored(ProviderBase):
        name = 'stored'

        def ensure_ready(self):
            pass

        def fetch_sensor_patch_chw(self, *, sensor, **about):
            assert tuple(sensor.bands) == S2 and sensor.collection == 'COPERNICUS/S2_SR_HARMONIZED'
            return image['s2']

        def fetch_s1_vvvh_raw_chw_with_meta(self, *, use_float_linear, **about):
            linear = 10 ** (image['s1'] / 10)
            return (linear if use_float_linear else image['s1']), {'s1_iw_applied': True}

    register_provider('stored', Stored)
    yield package
    del sys.path[:2]
    for name in [x for x in sys.modules if x.split('.')[0] in ('rs_embed', 'fusmae_rs_embed')]:
        del sys.modules[name]


def asked(rs_embed, folder, **more):
    place = rs_embed.PointBuffer(lon=24.0, lat=60.2, buffer_m=600)
    when = rs_embed.TemporalSpec.range('2024-06-01', '2024-07-01')
    return rs_embed.get_embedding(
        'fusmae', spatial=place, temporal=when, backend='stored', device='cpu', folder=folder, **more
    )


@pytest.mark.parametrize('modality', ['s1', 's2', 'both'])
def test_what_the_api_gives_is_what_the_encoder_gives(modality, rs_embed, exported, image):
    encoder = fusmae_jax.load(exported[0])
    names = ('s1', 's2') if modality == 'both' else (modality,)
    plain = [f'B{int(b[1:]):02d}' if b[1:].isdigit() else b for b in S2]
    order = [plain.index(b) for b in encoder.config.model.modalities['s2'].bands]
    given = {'s1': image['s1'], 's2': image['s2'][order]}
    ours = encoder.encode(
        {name: np.moveaxis(given[name], 0, -1)[None] for name in names},
        units={'s1': 'dB', 's2': 'DN'},
        accept=ACCEPT,
    )
    theirs = asked(rs_embed, exported[1], modality=modality)
    assert np.abs(theirs.data - ours.pooled[0]).max() < 2e-4 * np.abs(ours.pooled).max()
    assert theirs.meta['sensors'] == list(names) and theirs.meta['model'] == 'fusmae'
    grid = asked(rs_embed, exported[1], modality=modality, output=rs_embed.OutputSpec.grid()).data
    tokens = encoder.config.model.num_patches
    assert grid.dims == ('d', 'y', 'x') and grid.shape[1] * grid.shape[2] == tokens
    # All patches were measured, so that the vector is the mean of the map.
    np.testing.assert_allclose(grid.mean(('y', 'x')), theirs.data, rtol=1e-3, atol=1e-4)


def test_a_rectangle_is_cut_out_of_the_square_that_was_fetched(rs_embed, exported):
    from rs_embed.core.specs import BBox

    wide = BBox(minlon=24.0, minlat=60.2, maxlon=24.02, maxlat=60.204)
    when = rs_embed.TemporalSpec.range('2024-06-01', '2024-07-01')
    common = {'spatial': wide, 'temporal': when, 'backend': 'stored', 'folder': exported[1]}
    grid = rs_embed.get_embedding('fusmae', output=rs_embed.OutputSpec.grid(), **common).data
    assert grid.shape[1] < grid.shape[2]
    pooled = rs_embed.get_embedding('fusmae', **common).data
    np.testing.assert_allclose(pooled, grid.mean(('y', 'x')), rtol=1e-4, atol=1e-5)


def test_linear_radar_becomes_decibels_and_exchanged_channels_are_refused(rs_embed, exported, image):
    from rs_embed.core.errors import ModelError
    from rs_embed.core.specs import SensorSpec

    def run(pixels, **about):
        from rs_embed.core.registry import get_embedder_cls

        place = rs_embed.PointBuffer(lon=24.0, lat=60.2, buffer_m=600)
        sensor = SensorSpec('', (), modality='s1', **about)
        return get_embedder_cls('fusmae')().get_embedding(
            spatial=place,
            temporal=None,
            sensor=sensor,
            output=rs_embed.OutputSpec.pooled(),
            backend='tensor',
            input_chw=pixels,
            model_config={'folder': exported[1]},
        )

    decibels = run(image['s1'], use_float_linear=False).data
    np.testing.assert_allclose(run(10 ** (image['s1'] / 10)).data, decibels, rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match='exchanged; give VV, then VH'):
        run(image['s1'][::-1], use_float_linear=False)
    with pytest.raises(ModelError, match='not in dB'):
        run(10 ** (image['s1'] / 10), use_float_linear=False)
    with pytest.raises(ModelError, match='expected 2 channels'):
        run(image['s2'])
    # Fill of a provider changes nothing but where it is.
    filled = image['s1'].copy()
    filled[:, :30, :30] = 0
    assert np.isfinite(run(filled, use_float_linear=False).data).all()


def test_capabilities_are_those_of_the_methods(rs_embed):
    from rs_embed.core.registry import get_embedder_cls
    from rs_embed.core.types import CAPABILITY_FIELD_BY_METHOD_PARAM, declared_capability

    cls = get_embedder_cls('fusmae')
    for method, parameter in CAPABILITY_FIELD_BY_METHOD_PARAM:
        there = parameter in inspect.signature(getattr(cls, method)).parameters
        assert declared_capability(cls, method, parameter) == there, (method, parameter)
