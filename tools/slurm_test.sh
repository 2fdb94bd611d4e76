#!/usr/bin/env bash
# Tests a checkpoint under Slurm:
#
#     [GPUS=8] tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]
#
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS are those of slurm_train.sh.
set -euo pipefail

if (($# < 4)); then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]" >&2
    exit 2
fi
partition=$1
job_name=$2
config=$3
checkpoint=$4
shift 4
tools=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
read -r -a srun_args <<<"${SRUN_ARGS:-}"

export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"
set -x
exec srun -p "$partition" \
    --job-name="$job_name" \
    --gres=gpu:"${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    "${PYTHON:-python}" -u "$tools/test.py" "$config" "$checkpoint" \
    --launcher=slurm "$@"
