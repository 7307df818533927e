#!/bin/sh
# Cloud TPU VM: makes a slice unless it is there, copies this checkout to all hosts, and trains.
#
#     NAME=train ZONE=us-central1-a scripts/launchers/tpu_vm.sh \
#         scripts/train.py configs/digits.yaml --source.data-dir=gs://BUCKET/datasets \
#         --checkpoint-dir=gs://BUCKET/runs/digits
#
# Untried on a TPU. Two local processes with a local metadata server join each other, as the hosts of
# a slice do (tests/test_launchers.py). The slice costs money until you delete it:
#
#     gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE"
set -eu
: "${NAME:?is the name of the slice}" "${ZONE:?is the zone of the slice}"
type=${TYPE:-v5litepod-16}
image=${VERSION:-v2-alpha-tpuv5-lite}

state=$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format='value(state)' \
    2>/dev/null || true)
# A spot slice that was taken away remains as a name. Nothing on it can be used again.
if [ "$state" = PREEMPTED ] || [ "$state" = TERMINATED ]; then
    gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet
    state=
fi
if [ -z "$state" ]; then
    gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$type" \
        --version="$image" ${SPOT:+--spot}
fi

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

# Only what is committed: scp would copy environments and data, too.
checkout=$(mktemp -d)
trap 'rm -r "$checkout"' EXIT
git archive --format=tar.gz --output="$checkout/train.tar.gz" HEAD
gcloud compute tpus tpu-vm scp "$checkout/train.tar.gz" "$NAME":train.tar.gz --zone="$ZONE" \
    --worker=all
# uv brings a Python of its own, because that of the image may be older than 3.11.
on_all_hosts 'mkdir -p train && tar -xzf train.tar.gz -C train && cd train &&
    python3 -m pip install --quiet --user uv && export PATH="$HOME/.local/bin:$PATH" &&
    (test -d .env || uv venv --quiet --python 3.13 .env) &&
    uv pip install --quiet --python .env/bin/python -c constraints.txt ".[tpu,train]"'

# All hosts start the same program at the same time. JAX asks the metadata server of each host for
# the others, so nothing is set here. Started again after a preemption, it continues from its last
# checkpoint, which must be in a bucket: the disks of a slice go with it.
on_all_hosts "cd train && exec .env/bin/python $*"
