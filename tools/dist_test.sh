#!/usr/bin/env bash
# Tests a checkpoint on several GPUs of one machine, or of NNODES machines:
#
#     tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
#
# NNODES, NODE_RANK, MASTER_ADDR and PORT are those of dist_train.sh.
set -euo pipefail

if (($# < 3)); then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3
tools=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --nproc_per_node="$gpus" \
    --master_port="${PORT:-29500}" \
    "$tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
