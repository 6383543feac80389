"""What stands beside the code: templates that can be filled in, and versions that agree with the package's.

Their commands are parsed in test_commands.py; `make deploy-lint` runs the linters.
"""

import math
import os
import re
import shlex
import string
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

import fusmae_jax
from fusmae_jax.cli import options  # `cli` registers the commands
from fusmae_jax.config.files import load_config

yaml = pytest.importorskip('yaml')

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
EXTRAS = PROJECT['optional-dependencies']
FOLDERS = ('.github/workflows', '.github/ISSUE_TEMPLATE', 'deploy')
FILES = sorted(p for folder in FOLDERS for p in (ROOT / folder).glob('*.y*ml'))
FILES += [ROOT / name for name in ('.pre-commit-config.yaml', '.yamllint', 'CITATION.cff')]


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_yaml_can_be_read(file):
    assert yaml.safe_load(file.read_text())


def test_the_job_of_gke_filled_in_as_it_says():
    """A pod for each host, all chips of the slice, and exit codes that restart or do not."""
    text = text_of('deploy/gke-tpu.yaml')
    given = dict(re.findall(r'\b([A-Z]+)=(\S+)', ''.join(re.findall(r'#     export .*\n', text))))
    job = yaml.safe_load(string.Template(text).substitute(given))['spec']['replicatedJobs'][0]
    job, pod = job['template']['spec'], job['template']['spec']['template']['spec']
    container = pod['containers'][0]
    chips = math.prod(map(int, pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')))
    assert job['parallelism'] * container['resources']['limits']['google.com/tpu'] == chips
    assert job['completions'] == job['parallelism'] and job['backoffLimit'] == 0
    ends = job['podFailurePolicy']['rules'][0]['onExitCodes']
    assert ends['containerName'] == container['name'] and pod['restartPolicy'] == 'Never'
    command = options.parse(shlex.split(container['args'][0])[2:])[1]
    config = load_config(command.config, command.config_settings)
    assert config['checkpoint']['preempt_exit_code'] not in {0, *ends['values']}


def stub(folder: Path, **programs: str) -> dict[str, str]:
    """An environment in which programs, given as lines of bash, stand before those of the machine."""
    for name, lines in programs.items():
        (folder / name).write_text(f'#!/bin/bash\n{lines}\n')
        (folder / name).chmod(0o755)
    return os.environ | {'PATH': f'{folder}:{os.environ["PATH"]}', 'HOME': str(folder)}


@pytest.mark.parametrize(('code', 'again'), [(0, ''), (2, ''), (75, 'requeue 7\n')])
def test_a_slurm_job_queues_itself_again_after_a_preemption_alone(code, again, tmp_path):
    """The code is that of the command, if it asks for the one that the script knows."""
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin/activate').touch()
    asked = f'[[ "$*" == *--config.checkpoint.preempt_exit_code=75 ]] && exit {code}'
    environment = stub(tmp_path, srun=asked, scontrol='echo "$@"') | {'SLURM_JOB_ID': '7'}
    done = subprocess.run(
        ['bash', ROOT / 'deploy/slurm.sbatch'],
        env=environment | {'VENV': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, again, '')


def test_a_run_on_tpu_vms_starts_detached_and_is_stopped_by_its_number(tmp_path):
    """The remote commands, run here: each with the quotes that it has left on the host."""
    (tmp_path / 'venv/bin').mkdir(parents=True)
    environment = stub(tmp_path, gcloud='cd ~ && remote=${!#} && bash -c "${remote#--command=}"')
    stub(
        tmp_path / 'venv/bin', fusmae='echo "$@"; trap "echo saved; exit" TERM; while :; do sleep 0.05; done'
    )
    environment |= {'ZONE': 'z', 'BUCKET': 'b'}
    log = tmp_path / 'run.log'
    for command, last in (('run', 'pretrain'), ('stop', 'saved')):
        subprocess.run(['bash', ROOT / 'deploy/tpu_vm.sh', command], env=environment, check=True, timeout=10)
        for _ in range(100):
            if log.exists() and last in log.read_text():
                break
            time.sleep(0.05)
    words = log.read_text().splitlines()
    assert words[0].endswith('--workdir=gs://b/runs/vit_h --config.data.path=gs://b/bigearthnet_mm/1.0.0')
    assert words[-1] == 'saved'


def test_the_image_is_built_from_what_there_is():
    text = text_of('deploy/Dockerfile')
    ignored = text_of('.dockerignore').splitlines()
    for words in re.findall(r'^COPY (?!--)(.*)', text, re.MULTILINE):
        for name in words.split()[:-1]:
            assert (ROOT / name).exists()
            assert name == '.' or f'!{name.split("/")[0]}' in ignored
    for extras in re.findall(r'EXTRA=(\S+)', text):
        assert set(extras.split(',')) <= set(EXTRAS)
    for command in re.findall(r'docker run .* IMAGE (\S.*)', text):
        assert options.parse(shlex.split(command))


def test_versions_stand_in_pyproject():
    hooks = yaml.safe_load(text_of('.pre-commit-config.yaml'))['repos']
    revisions = {repo['repo']: repo['rev'] for repo in hooks}
    ruff = next(name for name in EXTRAS['dev'] if name.startswith('ruff=='))
    assert revisions['https://github.com/astral-sh/ruff-pre-commit'] == ruff.replace('ruff==', 'v')
    workflow = yaml.safe_load(text_of('.github/workflows/ci.yml'))
    named = {re.fullmatch(r'Programming Language :: Python :: (3\.\d+)', c) for c in PROJECT['classifiers']}
    assert set(workflow['jobs']['checks']['strategy']['matrix']['python']) == {m[1] for m in named if m}
    citation = yaml.safe_load(text_of('CITATION.cff'))
    assert citation['version'] == fusmae_jax.__version__ and citation['license'] == PROJECT['license']
