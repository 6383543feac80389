"""The result file of the OMBRIA experiment, and its numbers as a CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import lines
from benchmarks.lines import Line
from benchmarks.ombria_config import BATCH
from benchmarks.ombria_swap import DRAWS, Split
from fusmae_jax.eval.intervals import Interval

MASKED, FLOOD = 'masked S2', 'flood probe'
HEAD = ('part', 'system', 'inputs', 'metric', 'estimate', 'low', 'high', 'regions', 'images')
TEXT = """# OMBRIA: what the radar image is worth

Real Sentinel-1 / Sentinel-2 pairs in 8 bits (one radar band, three optical ones), 128 x 128 px of 10 m, each
region once before and once after a flood. Regions by split: {sizes}.

A region stands in one split as a whole; regions of one flood may stand in two, and the intervals do not know
of that.

    python benchmarks/ombria.py --npz=ombria_train.npz --workdir=runs/ombria{options}

Settings `{digest}` (seed {seed}; `benchmarks/ombria_config.py`), fixed before anything was measured on
the test regions: 64 x 64 model pixels of 20 m, 8 x 8 tokens, 128 wide, 4 deep, decoders 64 wide and 2 deep,
75 % masked, {steps:,} steps of {batch} pairs. One pretraining seed. The S2-only MAE sees as many images in
as many steps; with half of the tokens it costs about half as much. Intervals: 95 %, bootstrap over the test
regions, 1,000 resamples, differences paired.

## Masked optical patches

Mean squared error over the hidden optical patches of the test regions, in z-scores, {draws} masks an image.
The optical masks are the same in all rows. `S1 of another region`: the radar image of another test region
from the same side of the flood, under the same radar mask. `training mean` predicts the mean of each band.
The first difference is what the content of the radar image is worth; the last is what XAE gains over the
S2-only MAE even with a wrong radar image, which is no use of radar.

{masked}

## Flooded patches

A linear head on the tokens of one patch of 16 x 16 px (160 m): is more than half of it flooded? Images after
the flood only: {patches} test patches, {share} of them flooded, which is the average precision of a random
score. Nothing is masked. Heads: standardised features, 20 epochs, learning rate (3e-4 to 0.1) settled on the
validation regions, mean over 3 seeds. Raw pixels: those of the patch, normalised, on the grid of the model. A
token of an encoder has seen the whole image, the raw pixels are of the patch alone.

{flood}
"""


def line(part: str, system: str, inputs: str, metric: str, one: Interval, images: int) -> Line:
    """One line of the CSV."""
    return dict(
        zip(HEAD, (part, system, inputs, metric, one.estimate, one.low, one.high, one.clusters, images))
    )


def write(
    folder: Path,
    found: Sequence[Line],
    splits: Mapping[str, Split],
    digest: str,
    seed: int,
    options: str,
    steps: int,
) -> str:
    """Writes `ombria.csv` and `ombria.md`; returns the text of the latter."""
    test = splits['test']
    labels = test.flooded[test.after]
    text = TEXT.format(
        sizes=', '.join(
            f'{name} {len(set(one.region.tolist()))} ({len(one.region):,} pairs)'
            for name, one in splits.items()
        ),
        digest=digest,
        seed=seed,
        options=options,
        steps=steps,
        batch=BATCH,
        draws=DRAWS,
        share=f'{labels.mean():.3f}',
        patches=f'{labels.size:,}',
        masked=table([one for one in found if one['part'] == MASKED]),
        flood=table([one for one in found if one['part'] == FLOOD]),
    )
    lines.write(folder, 'ombria', text, HEAD, found)
    return text


def table(found: Sequence[Line]) -> str:
    """Lines as a Markdown table; differences with their sign."""
    about = ['system', *(['inputs'] if len({one['inputs'] for one in found}) > 1 else [])]
    rows = [[*about, found[0]['metric'], '95 % interval']]
    for one in found:
        sign = '+' if ' minus ' in one['system'] else ''
        rows.append([*(one[name] for name in about), *lines.interval(one, sign)])
    return lines.markdown(rows)
