"""A fine-tuned model is calibrated by its validation split: temperature, calibration error, label sets."""

import functools
import json

import jax
import numpy as np
import pytest
from etils import epath

from fusmae_jax.checkpoints.checkpoints import FOLDER
from fusmae_jax.encoders.settings import EncoderSettings
from fusmae_jax.eval import calibration, calibration_report
from fusmae_jax.eval.config import Calibration, Intervals, Task
from fusmae_jax.eval.dense.stored import store_temperature, write_head
from fusmae_jax.eval.finetune import command
from fusmae_jax.eval.finetune.config import Finetune
from fusmae_jax.eval.finetune.point import RESULT, TEST_SCORES, VAL_SCORES, forget
from fusmae_jax.eval.finetune.stored import ENCODER, HEAD, keep
from fusmae_jax.eval.metrics import values
from fusmae_jax.eval.task import read_task
from tests.support.probe_fixtures import NO_RADAR, checkpoint
from tests.support.result_rows import rows_of

LINES, PICTURE = 'calibration-finetune.jsonl', 'calibration-finetune.png'
ALPHA = 0.3


def test_the_report_is_that_of_the_scores_of_validation_and_test(data, tmp_path, monkeypatch, capsys):
    # One device compiles in a fraction of the time of eight.
    monkeypatch.setattr(command, 'Trainer', functools.partial(command.Trainer, devices=jax.devices()[:1]))
    # What is drawn is looked at in the tests of linear heads.
    monkeypatch.setattr(calibration_report, 'figure', lambda lines: b'picture of %d' % len(lines))
    run = checkpoint(tmp_path / 'run', data, depth=1, modalities=('s1',))
    plain = Finetune(
        data=Task(path=str(data), labels='labels', threads=1),
        encoder=EncoderSettings(checkpoint=run, modalities=(('s1',),), baselines=('prior',), batch=30),
        intervals=Intervals('scene', 20),
        learning_rates=(3e-3,),
        epochs=2.0,
        batch_size=32,
    )
    work = tmp_path / 'work'
    assert command.run_finetune(plain, work) == 0
    before = (work / 'rows-finetune.jsonl').read_text()
    assert not (work / LINES).exists() and not (work / PICTURE).exists()
    capsys.readouterr()
    # It is no part of what is learned: the same points answer, and the rows stay.
    (result,) = work.rglob('result.json')
    trained, written = result.read_text(), result.stat().st_mtime_ns
    config = Finetune(**{**vars(plain), 'calibration': Calibration(alpha=ALPHA)})
    assert command.run_finetune(config, work) == 0
    assert (result.read_text(), result.stat().st_mtime_ns) == (trained, written)
    assert (work / 'rows-finetune.jsonl').read_text() == before
    assert (work / PICTURE).read_bytes() == b'picture of 1'
    assert 'promised 70%' in capsys.readouterr().out

    (line,) = map(json.loads, (work / LINES).read_text().splitlines())
    task = read_task(config.data, 'scene', 'scene')
    val, test = (np.load(result.parent / name)['scores'] for name in (VAL_SCORES, TEST_SCORES))
    valid = task.val.keys != NO_RADAR.encode()
    assert valid.sum() == len(val) - 1
    labels = task.val.labels[valid]
    temperature = calibration.fit_temperature(val[valid], labels, 'multi_label')
    assert line['temperatures'] == [pytest.approx(temperature)] and line['promised'] == 1 - ALPHA
    with_the_blind = calibration.fit_temperature(val, task.val.labels, 'multi_label')
    assert abs(with_the_blind - temperature) > 1e-4 * temperature
    p = calibration.probabilities(val[valid], 'multi_label')
    threshold = calibration.set_threshold(calibration.misfit(p, labels), task.val.clusters[valid], ALPHA)
    assert line['thresholds'] == [pytest.approx(threshold)] and line['abstained'] == 0
    ece = values(calibration.reliability(test, task.test.labels, 'multi_label', temperature))['ece']
    assert line['metrics']['ece_after']['estimate'] == pytest.approx(ece)
    sets = calibration.label_sets(calibration.probabilities(test, 'multi_label'), threshold)
    held = values(calibration.coverage(sets, task.test.labels, task.test.clusters))
    for name, value in held.items():
        assert line['metrics'][name]['estimate'] == pytest.approx(value)
    assert line['method'] == 'finetune' and line['metrics']['coverage']['low'] is not None
    (row,) = [
        r
        for r in rows_of(work, 'finetune')
        if (r.metric, r.averaging, r.method) == ('ap', 'micro', 'finetune')
    ]
    assert line['system'] == row.system


def test_a_point_that_is_trained_anew_keeps_nothing_of_before(tmp_path):
    folder, files = epath.Path(tmp_path), (RESULT, TEST_SCORES, VAL_SCORES, ENCODER, HEAD)

    def fill():
        (folder / FOLDER / '7').mkdir(parents=True, exist_ok=True)
        for name in files:
            (folder / name).touch()

    fill()
    forget(folder, weights_only=True)
    assert {path.name for path in folder.iterdir()} == {*files}
    fill()
    forget(folder, weights_only=False)
    assert not [*folder.iterdir()]


@pytest.mark.parametrize('missing', [ENCODER, HEAD])
def test_an_encoder_without_its_head_is_written_again(missing, tmp_path, monkeypatch):
    """A run may be killed between the two files."""
    monkeypatch.setattr('fusmae_jax.eval.finetune.stored.weights', lambda *given: 'weights')
    folder, written = epath.Path(tmp_path), []
    (folder / FOLDER / '7').mkdir(parents=True)
    for name in {ENCODER, HEAD} - {missing}:
        (folder / name).touch()
    for _ in range(2):
        keep(None, lambda *given: written.append((given[2] / missing).touch()), None, 7, folder, True)
    assert len(written) == 1


def test_a_head_keeps_no_temperature_of_a_run_that_was_calibrated(tmp_path):
    folder = epath.Path(tmp_path)
    (folder / ENCODER).touch()
    write_head(folder / HEAD, {'kernel': np.ones((1, 2, 3)), 'seed': np.zeros(1)}, {'format': 1})
    store_temperature(folder / HEAD, 2.5)
    keep(None, None, None, 7, folder, calibrated=True)
    assert np.load(folder / HEAD)['temperature'] == [2.5]
    keep(None, None, None, 7, folder)
    with np.load(folder / HEAD) as left:
        assert sorted(left.files) == ['about', 'kernel', 'seed'] and (left['kernel'] == 1).all()
