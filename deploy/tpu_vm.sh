#!/usr/bin/env bash
# Pretraining on TPU VMs, without a cluster around them:
#
#     deploy/tpu_vm.sh create     # the slice
#     deploy/tpu_vm.sh install    # this checkout, on every host
#     deploy/tpu_vm.sh run        # starts, or goes on from the newest checkpoint
#     deploy/tpu_vm.sh log        # what the first host prints
#     deploy/tpu_vm.sh stop       # SIGTERM: saves, and ends
#     deploy/tpu_vm.sh delete     # the slice costs until then
#
# Needs gcloud, logged in, with a project; its Cloud TPU API knows TPUs up to v6e. Not tried on a TPU.
set -euo pipefail
case ${1:-} in
  create | install | run | log | stop | delete) ;;
  *) sed -n '4,9s/^# *//p' "$0" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."

# To set, here or in the environment.
POD=${POD:-vit-h}
ZONE=${ZONE:?the zone of the TPU, such as us-west4-a}
BUCKET=${BUCKET:?the bucket of data and runs, without gs://}
TYPE=${TYPE:-v5litepod-256}
# v5e; v6e: v2-alpha-tpuv6e, v5p: v2-alpha-tpuv5, v4: tpu-ubuntu2204-base
IMAGE=${IMAGE:-v2-alpha-tpuv5-lite}
DATA=${DATA:-gs://$BUCKET/bigearthnet_mm/1.0.0}
RUN=${RUN:-gs://$BUCKET/runs/vit_h}

on_hosts() {
  gcloud compute tpus tpu-vm ssh "$POD" --zone="$ZONE" --worker="$1" --command="$2"
}

create() {
  gcloud compute tpus tpu-vm create "$POD" --zone="$ZONE" --accelerator-type="$TYPE" --version="$IMAGE"
}

# The same wheel and versions everywhere: the processes compare them before the first step. The Python of
# the machine may be too old, so uv brings the one that requirements-lock.txt was written with.
install() {
  local wheels
  wheels=$(mktemp -d)
  python3 -m pip wheel --quiet --no-deps --wheel-dir "$wheels" .
  gcloud compute tpus tpu-vm scp "$wheels"/fusmae_jax-*.whl requirements-lock.txt "$POD:" \
    --zone="$ZONE" --worker=all
  on_hosts all "set -e
    python3 -m pip install --quiet --user uv
    ~/.local/bin/uv venv --clear --python 3.11 venv
    ~/.local/bin/uv pip install --python venv/bin/python -c requirements-lock.txt \
      \"./\$(ls -t fusmae_jax-*.whl | head -1)[geo,plot,tpu]\""
}

# Detached, so that a lost connection does not end it. After a maintenance of the machines: `run` again.
run() {
  # On a line of its own, as the test reads it that parses every command of this repository
  local command="
    fusmae pretrain --config=configs/tpu_v5e_256.py --workdir=$RUN --config.data.path=$DATA
  "
  on_hosts all "PATH=~/venv/bin:\$PATH
    nohup ${command//$'\n'/} > run.log 2>&1 < /dev/null & echo \$! > run.pid"
}

log() {
  on_hosts 0 'tail -n 50 -f run.log'
}

# One host would do: all of them agree on the step at which they leave.
stop() {
  on_hosts all 'xargs kill -TERM < run.pid'
}

delete() {
  gcloud compute tpus tpu-vm delete "$POD" --zone="$ZONE"
}

"$1"
