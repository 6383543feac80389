"""The command `tables`: runs or resumes what is missing, then shows every table with what there is."""

from collections.abc import Mapping

from absl import logging
from etils import epath

from fusmae_jax import storage
from fusmae_jax.config.build import to_dict
from fusmae_jax.errors import DivergedError, InputError
from fusmae_jax.tables import render
from fusmae_jax.tables.collect import collect
from fusmae_jax.tables.config import Tables, check
from fusmae_jax.tables.plan import Make, StudyPlan
from fusmae_jax.tables.render import protocol
from fusmae_jax.tables.stages import Stage, changes, state
from fusmae_jax.tables.stages import run as run_stage

SETTINGS, FILE = 'settings-tables.json', 'tables.{}'  # .md, .csv, .tex


def run_tables(config: Tables, workdir: epath.PathLike, make: Make) -> int:
    """Runs the stages that are missing, writes and prints the tables; returns the exit code.

    Into the workdir: `data/`, `pretrain/`, a folder for each task, `tables.md`, `tables.csv`, `tables.tex`.
    A stage that cannot be run is told and leaves its cells empty, the others go on.

    Args:
        config: the study.
        workdir: where its stages are kept.
        make: (layout, pairs, seed, folder, workers) -> folder of a data set; makes up an archive and
            converts it.

    Returns:
        0, or 1 if a stage failed.

    Raises:
        InputError: settings that cannot be used.
    """
    check(config)
    plan, workdir = StudyPlan(config, workdir, make), epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    print(f'study {plan.digest} in {workdir}')
    storage.write_json(workdir / SETTINGS, {'digest': plan.digest} | to_dict(config))
    failed: dict[str, str] = {}
    stages = list(plan.stages())
    for number, stage in enumerate(stages, start=1):
        if stage.kind not in config.run or not _ready(stage):
            continue
        print(f'\n--- stage {number} of {len(stages)}: {stage.name}', flush=True)
        try:
            done = run_stage(stage)
        # What a stage cannot do is a note in its cells; an error of the program ends the study.
        except (InputError, DivergedError) as error:
            failed[stage.name] = str(error)
            print(f'failed: {error}', flush=True)
            continue
        if not done:
            print(f'{stage.name}: stopped on request; the same command goes on from there')
            return 0
        # What there is survives an interruption.
        _write(plan, failed, workdir)
    text = _write(plan, failed, workdir)
    print(f'\n{text}\n')
    for kind in ('md', 'csv', 'tex'):
        print(f'{kind:<4} {workdir / FILE.format(kind)}')
    return 1 if failed else 0


def _ready(stage: Stage) -> bool:
    """Whether a stage is to be run now."""
    if state(stage) in ('complete', 'changed') or stage.blocked:
        return False
    return all(state(needed) == 'complete' for needed in stage.needs)


def _write(plan: StudyPlan, failed: Mapping[str, str], workdir: epath.Path) -> str:
    """Writes the three files, each whole or not at all; returns the Markdown."""
    config, results = plan.config, collect(plan, failed)
    grids, texts, tex = [], [], []
    for name, table in config.tables.items():
        kinds = [('numbers', render.grid(config, table, results))]
        kinds += [('difference', render.minus(config, table, results))] if table.against else []
        kinds += [('fusion', render.fusion(config, table, results))] if table.fusion else []
        for kind, grid in kinds:
            signed = kind != 'numbers'
            grids.append((name, kind, grid))
            texts.append(f'## {grid.title}\n\n{render.markdown(config, grid, signed)}')
            tex.append(f'% {grid.title}\n{render.latex(config, grid, signed)}')
    texts.append('## Protocol\n\n' + protocol(config, results))
    if missing := _missing(plan, failed):
        texts.append('## What is missing\n\n' + '\n'.join(f'- {line}' for line in missing))
    title = f'# Study {plan.digest}\n\n{ABOUT}'
    text = '\n\n'.join([title, *texts])
    for kind, content in (
        ('md', f'{text}\n'),
        ('csv', render.to_csv(grids)),
        ('tex', '\n\n'.join(tex) + '\n'),
    ):
        storage.write_text(workdir / FILE.format(kind), content)
    return text


ABOUT = (
    'Percent: estimate [95 % interval by cluster bootstrap over the test split] (lowest to highest of the '
    'single runs: pretraining seeds x label subsets x head seeds). docs/evaluation.md says how to read them.'
)


def _missing(plan: StudyPlan, failed: Mapping[str, str]) -> list[str]:
    """Why cells are empty, a line for each stage at fault."""
    lines = []
    for stage in plan.stages():
        progress = state(stage)
        if progress == 'changed':
            about = '; '.join(changes(stage))
            lines.append(f'{stage.name}: settings changed ({about}); remove {stage.folder} to make it anew')
        elif stage.name in failed:
            lines.append(f'{stage.name}: failed: {failed[stage.name]}')
        elif progress != 'complete' and stage.blocked:
            lines.append(f'{stage.name}: not run: {stage.blocked}')
        elif progress != 'complete':
            lines.append(f'{stage.name}: {"begun, not complete" if progress == "begun" else "not run"}')
    logging.info('%d of %d stages are missing', len(lines), len(list(plan.stages())))
    return lines
