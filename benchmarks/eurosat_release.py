"""Weights for teaching, from a finished EuroSAT benchmark: a file that `fusmae_jax.load` opens, and its card.

    python benchmarks/eurosat_release.py --workdir=runs/eurosat --out=release/eurosat

writes the encoder of seed 0 (fixed, not the best one) as `model.safetensors`, compared with the run that it
is of; `README.md`, with licence, results and limits; `contract.json`, what its numbers mean; and the rows of
the benchmark, `eurosat.csv` of all seeds and `rows-linear.jsonl`, `rows-knn.jsonl` of this one.
"""

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import eurosat_config, eurosat_report, lines  # noqa: E402
from benchmarks.command import exit_code  # noqa: E402
from benchmarks.eurosat_config import NAME, Plan  # noqa: E402
from fusmae_jax import storage  # noqa: E402
from fusmae_jax.config.build import to_dict  # noqa: E402
from fusmae_jax.encoders import hub  # noqa: E402
from fusmae_jax.encoders.inputs import describe  # noqa: E402
from fusmae_jax.eval.cells import ROWS  # noqa: E402
from fusmae_jax.export import card  # noqa: E402
from fusmae_jax.export.command import run_export  # noqa: E402
from fusmae_jax.export.source import open_source  # noqa: E402

TITLE = f'{NAME}: weights for teaching'
KNOWN = """

**For teaching: to have something real to load, probe and fine-tune. This is no foundation model.** It is
{parameters:,} parameters that saw {images:,} images of 64 x 64 px in 8 bits for {passes:.1f} passes;
expect no more of it than the rows below say.

Licence: that of fusmae_jax, Apache-2.0. The images are EuroSAT (Helber et al. 2019), MIT.

Input: red, green, blue (B04, B03, B02) scaled to 8 bits as EuroSAT scales them, 10 m a pixel. Reflectance or
digital numbers are another unit and are refused.

Top-1 accuracy on the test images of the benchmark, mean over the seeds ({seeds}), 95 % interval and range of
the seeds; these are the weights of seed {seed}. Splits are random, so neighbours on the ground may stand in
two.
`python benchmarks/eurosat.py`, then `python benchmarks/eurosat_release.py`, makes all of this again.

{tables}
"""


def release(workdir: Path, out: Path, plan: Plan) -> None:
    """Writes the folder.

    Raises:
        InputError: the benchmark has not finished.
    """
    measurements = list(eurosat_report.measured(workdir, plan))
    seed = plan.seeds[0]
    folder = workdir / f'seed-{seed}'
    checkpoint = str(folder / 'pretrain')
    out.mkdir(parents=True, exist_ok=True)
    run_export(checkpoint, 'safetensors', str(out / hub.FILE), lambda: None)
    source = open_source(checkpoint)
    images = eurosat_report.records(workdir)[0]
    known = KNOWN.format(
        parameters=source.card['parameters'],
        images=images,
        passes=plan.steps * plan.batch / images,
        seeds=', '.join(map(str, plan.seeds)),
        seed=seed,
        tables='\n\n'.join(
            eurosat_report.table(measurements, name) for name in eurosat_report.METHODS.values()
        ),
    )
    # Of the card of the run what is known: its limits are those above.
    source = source._replace(text=source.text.partition('## Limits')[0])
    text = card.readme(source, describe(source.model), hub.FILE, TITLE, known)
    lines.write_csv(out / 'eurosat.csv', eurosat_report.HEAD, measurements)
    for method in ('linear', 'knn'):
        shutil.copyfile(folder / 'frozen' / ROWS.format(method), out / ROWS.format(method))
    storage.write_json(out / 'contract.json', to_dict(source.model.contract))
    # Last: a folder with a README is whole.
    storage.write_text(out / 'README.md', text)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--workdir', required=True, type=Path, help='of benchmarks/eurosat.py')
    parser.add_argument('--out', required=True, type=Path, help='the folder to write')
    parser.add_argument('--quick', action='store_true', help='the workdir is of a run with --quick')
    given = parser.parse_args()
    plan = eurosat_config.QUICK if given.quick else eurosat_config.FULL

    def everything() -> None:
        release(given.workdir, given.out, plan)
        print(f"{given.out}: fusmae_jax.load('{given.out / hub.FILE}') opens it")

    return exit_code(everything)


if __name__ == '__main__':
    sys.exit(main())
