"""Remedies that name a command of rio: each is run as it stands, and cures what it is for."""

import re
import shlex

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from rasterio.enums import ColorInterp
from rasterio.rio.main import main_group
from rasterio.transform import Affine

from fusmae_jax.errors import InputError
from fusmae_jax.shipped.data.paired_folder import pairs
from tests.support.paired_folder_files import archive, optical, pair, put, radar

# Of rio itself, with a newer affine and a newer pyparsing.
pytestmark = [
    pytest.mark.filterwarnings('ignore::PendingDeprecationWarning'),
    pytest.mark.filterwarnings('ignore:.* deprecated - use:DeprecationWarning'),
]
NAMES = {'s1_bands': ('VV', 'VH'), 's2_bands': ('B02', 'B03', 'B04', 'B08')}


def run(folder, text, **values):
    """Runs the first command in a text, and those behind && after it; returns OUT.tif, in `folder`."""
    command = re.search(r"rio ((?:warp|convert|calc|edit-info) (?:'[^']*'|[^(;,'])*)", text)[1]
    out = folder / 'OUT.tif'
    for each in command.split(' && rio '):
        words = [str(out) if word == 'OUT.tif' else _with(values, word) for word in shlex.split(each)]
        done = CliRunner().invoke(main_group, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return out


def _with(values, word):
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def refusal(folder, **settings):
    with pytest.raises(InputError) as error:
        pairs.source(archive(folder, **settings))
    return str(error.value)


CURES = {
    'degrees': {'epsg': 4326, 'step': 1e-4, 'left': 10.0, 'top': 47.0},
    'not square': {'transform': Affine(10, 0, 5e5, 0, -20, 5e6)},
    'rotated': {'transform': Affine(10, 1, 5e5, 1, -10, 5e6)},
    'float64': {'array': radar().astype(np.float64)},
}


@pytest.mark.parametrize('case', CURES)
def test_what_convert_refuses_is_cured_by_the_command_that_it_names(case, tmp_path):
    put(tmp_path / 's1' / 'a b.tif', **({'array': radar(), 'bands': ('VV', 'VH')} | CURES[case]))
    alone = {'s2_root': '', 's1_bands': NAMES['s1_bands']}
    out = run(tmp_path, refusal(tmp_path, **alone))
    out.replace(tmp_path / 's1' / 'a b.tif')
    assert pairs.source(archive(tmp_path, **alone)).splits['train']


def test_a_pair_is_brought_onto_the_same_ground_and_what_is_missing_is_nan(tmp_path):
    pair(tmp_path, s1={'left': 500_100.0})
    out = run(tmp_path, refusal(tmp_path))
    with rasterio.open(out) as dataset:
        pixels = dataset.read()
    assert np.isnan(pixels[:, :, :10]).all()
    np.testing.assert_array_equal(pixels[:, :, 10:], radar()[:, :, :-10])
    out.replace(tmp_path / 's1' / 'a.tif')
    assert pairs.source(archive(tmp_path, **NAMES)).splits['train']


def test_a_wrong_geotransform_is_corrected_in_place(tmp_path):
    pair(tmp_path, s2={'step': 60.0})
    message = refusal(tmp_path)
    assert 'one geotransform is wrong' in message and 'rio warp' not in message
    # The second command is for the leader of the pair, which is the wrong one here.
    run(tmp_path, message.split('if 10 m is right: ')[1])
    assert pairs.source(archive(tmp_path)).splits['train']


def test_a_mask_goes_into_the_pixels(tmp_path):
    pair(tmp_path)
    for name, pixels in (('s1', radar()), ('s2', optical())):
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK='YES'),
            rasterio.open(tmp_path / name / 'a.tif', 'r+') as dataset,
        ):
            dataset.write_mask(np.arange(48 * 48).reshape(48, 48) >= 480)
        out = run(tmp_path, refusal(tmp_path, **NAMES), VALUE='0')
        with rasterio.open(out) as dataset:
            masked = dataset.read(masked=True)
        assert masked.mask[:, :10].all() and not masked.mask[:, 10:].any()
        np.testing.assert_array_equal(masked[:, 10:], pixels[:, 10:])
        out.replace(tmp_path / name / 'a.tif')
    assert pairs.source(archive(tmp_path, **NAMES)).splits['train']


def test_an_alpha_channel_goes_into_the_pixels(tmp_path):
    file, alpha = tmp_path / 's1' / 'a.tif', np.full((1, 48, 48), 255, np.float32)
    alpha[:, :10] = 0
    put(file, np.concatenate([radar(), alpha]), ('VV', 'VH', None))
    with rasterio.open(file, 'r+') as dataset:
        dataset.colorinterp = [ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha]
    alone = {'s2_root': '', 's1_bands': ('VV', 'VH', '-')}
    out = run(tmp_path, refusal(tmp_path, **alone), VALUE='-9999')
    with rasterio.open(out) as dataset:
        hidden = dataset.read([1, 2], masked=True)
    assert hidden.mask[:, :10].all() and not hidden.mask[:, 10:].any()
    np.testing.assert_array_equal(hidden[:, 10:], radar()[:, 10:])
    out.replace(file)
    assert pairs.source(archive(tmp_path, **alone)).splits['train']


def test_nodata_is_stated_in_place(tmp_path):
    file = tmp_path / 's1' / 'a.tif'
    pair(tmp_path, s1={'array': radar().astype(np.int16), 'nodata': 0})
    run(tmp_path, refusal(tmp_path, s1_scale=0.1, s1_nodata=(0.5,)), VALUE='-9999')
    with rasterio.open(file) as dataset:
        assert dataset.nodata == -9999 and dataset.descriptions == ('VV', 'VH')
