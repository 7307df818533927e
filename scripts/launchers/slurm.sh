#!/bin/sh
# Slurm: trains, and continues after a preemption, the failure of a node or the time limit.
#
#     . .env/python3.11/bin/activate     # sbatch hands your environment to the job
#     sbatch scripts/launchers/slurm.sh scripts/train.py configs/digits.yaml
#
# Tried with Slurm 22.05, two tasks on one node, by tests/test_installed_launchers.py. Untried on
# several nodes.
#
#SBATCH --job-name=train
#SBATCH --output=%x-%j.log
#SBATCH --nodes=1
#
# With GPUs, either one task for each node, which takes all of its GPUs (--ntasks-per-node=1
# --gpus-per-node=8), or one for each GPU (--ntasks-per-node=8 --gpus-per-node=8). The batches are
# the same.
#SBATCH --ntasks-per-node=2
#
# As long as the partition allows: a longer training is continued.
#SBATCH --time=04:00:00
#
# SIGTERM to all tasks 120 s before the time limit: the program saves and ends with status 75. Leave
# time for a step and a save.
#SBATCH --signal=TERM@120
#
# After a preemption or the failure of a node, Slurm starts the job again, with the same log. A
# preempted program has the GraceTime of its partition to save, or KillWait (30 s, unless your site
# has set it).
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
echo "$(date): job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1))"
# A log is read by people: one line of progress every 10 s.
export TQDM_MININTERVAL="${TQDM_MININTERVAL:-10}"

# With 1, Slurm would kill the other tasks when the first one ends with 75, and report 143. If a task
# fails, this library ends the others.
srun --kill-on-bad-exit=0 python "$@"
status=$?

# 75: stopped by a signal, and saved. After a preemption Slurm has queued the job again already.
if [ "$status" = 75 ]; then
    echo "$(date): stopped before the end of the training, so the job is queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
