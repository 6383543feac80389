"""The fusion x masking study: what can be, that it goes on, and that its report comes out the same."""

import numpy as np
import pytest

from benchmarks import fusion_masking, fusion_masking_report
from fusmae_jax.eval import intervals
from fusmae_jax.eval.row import ResultRow
from fusmae_jax.shipped.configs import tables
from fusmae_jax.tables import recipes
from fusmae_jax.tables.config import check
from fusmae_jax.tables.run import run_tables
from tests.support.result_rows import VALUES

BOTH = ('s1', 's2')


def test_what_cannot_be_together_is_told_by_the_rules_of_the_settings():
    refused = {key: why for key, why in tables.cells().items() if why}
    assert len(tables.cells()) == 35 and len(refused) == 8
    assert all(key[0] in ('stack', 'late') for key in refused)
    assert "so they are hidden together; use 'consistent'" in refused['stack', 'modality']
    assert 'needs two modalities or more' in refused['late', 'dirichlet']
    assert 'the same as independent' in refused['late', 'consistent']


@pytest.fixture
def few(monkeypatch):
    """Three kinds of fusion and two masks: 2 + 0 + 1 cells."""
    monkeypatch.setattr(tables, 'FUSIONS', {name: tables.FUSIONS[name] for name in ('xae', 'stack', 'late')})
    monkeypatch.setattr(tables, 'STRATEGIES', ('independent', 'modality'))
    monkeypatch.setattr(tables, 'ENCODERS', {'xae': 'xae', 'stack': 'late', 'late': 'late'})
    tables.cells.cache_clear()
    yield
    tables.cells.cache_clear()


def settled(calls):
    """Stands for an evaluation: rows and resamples that depend on the encoder's name."""

    def evaluate(command, config, folder, features):
        calls.append(folder.name)
        estimate = {'XAE, independent': 0.7, 'XAE, modality': 0.65, 'XAE, untrained': 0.6}
        lines, cells = [], []
        for names in config.encoder.modalities:
            value = estimate.get(config.encoder.name, 0.5) + 0.1 * (len(names) > 1)
            row = VALUES | {'modalities': names, 'system': config.encoder.name, 'estimate': value}
            row |= {'low': value - 0.05, 'high': value + 0.05}
            spread = np.linspace(-0.05, 0.05, 21)
            draws = value + (0.3 if config.encoder.name == 'XAE, modality' else -1) * spread
            lines.append(ResultRow(**row).to_json())
            cells.append((row, intervals.Replicates({'ap_micro': value}, {'ap_micro': draws}, 4, 'x')))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'rows-linear.jsonl').write_text('\n'.join(lines))
        intervals.write_replicates(cells, folder, 'linear')
        return True

    return evaluate


def test_a_finished_cell_is_skipped_and_the_report_is_the_same_byte_by_byte(few, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(recipes, 'evaluate', settled(calls))
    monkeypatch.setattr(recipes, 'pretrain', lambda config, folder: calls.append(folder.name) or True)

    def made(layout, pairs, seed, folder, workers):
        (folder / layout / '1.0.0').mkdir(parents=True)

    study = fusion_masking.studies(tmp_path)['generated']
    check(study)
    assert run_tables(study, tmp_path / 'generated', made) == 0
    first = list(calls)
    assert first.count('xae_independent-0') == 2 and 'late_untrained-0' in first  # trained, evaluated
    assert run_tables(study, tmp_path / 'generated', made) == 0 and calls == first
    text = fusion_masking.report(tmp_path, tmp_path / 'one')
    assert fusion_masking.report(tmp_path, tmp_path / 'two') == text
    for name in ('md', 'csv', 'png'):
        one, two = (tmp_path / part / f'fusion_masking.{name}' for part in ('one', 'two'))
        assert one.read_bytes() == two.read_bytes()
    assert '| XAE | independent | 70.0 [65.2, 74.8] |' in text and '| **+10.0 [' in text
    assert '3 of 6\ncombinations can be' in text and '- stacked bands, modality: ' in text
    # The data set that is not there leaves its cells empty.
    assert '| not run | not run | not run | - |' in text


def test_a_gain_is_bold_where_its_interval_excludes_0():
    number = fusion_masking_report.Number(0.1, 0.05, 0.15, None, None, 1, 1)
    assert fusion_masking_report.words(number, signed=True) == '**+10.0 [+5.0, +15.0]**'
    assert fusion_masking_report.words(number._replace(low=-0.01), signed=True) == '+10.0 [-1.0, +15.0]'
    assert fusion_masking_report.words('begun') == 'begun' and fusion_masking_report.words(None) == '-'
