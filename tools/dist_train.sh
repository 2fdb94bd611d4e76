#!/usr/bin/env bash
# Trains on several GPUs of one machine, or of NNODES machines:
#
#     tools/dist_train.sh CONFIG GPUS [options of train.py]
#
# On several machines, run it on each with NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR
# (the address of machine 0) and PORT set in the environment. Two runs on one machine
# need different PORTs.
set -euo pipefail

if (($# < 2)); then
    echo "usage: $0 CONFIG GPUS [options of train.py]" >&2
    exit 2
fi
config=$1
gpus=$2
shift 2
tools=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --nproc_per_node="$gpus" \
    --master_port="${PORT:-29500}" \
    "$tools/train.py" "$config" --launcher pytorch "$@"
