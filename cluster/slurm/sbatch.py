r"""Writes the Slurm script of a job, and submits it.

python cluster/slurm/sbatch.py --account hep --partition gpu --nodes 2 --gpus-per-node 4 --cpus-per-node 64 --time 24:00:00 \
    --environment /shared/venv -- pretrain jobs/configs/pretrain/clic_small.yaml run.num_workers=8 run.use_gpu=true ...

--dry-run prints the script. Five minutes before the limit (`--notice`) the training writes a checkpoint and ends; the job is queued again
and goes on from there.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

JOBS = Path(__file__).parents[2] / "jobs"
TIME = re.compile(r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$")
STOPPED = (130, 143)  # what a verb that was asked to stop exits with, its checkpoint written

TEMPLATE = r"""#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --account={account}
#SBATCH --partition={partition}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={cpus}
{accelerators}#SBATCH --time={time}
#SBATCH --signal=B:TERM@{notice}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.log
set -uo pipefail
cd {folder} || exit 1
# shellcheck source=/dev/null
source {environment}/bin/activate
export RAY_USAGE_STATS_ENABLED=0 DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true

# A secret of this job, that all of its nodes read from the shared folder.
state=".slurm-$SLURM_JOB_ID"
(umask 077 && mkdir -p "$state" && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$state/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/$state/token" PFSCALE_PID_FILE="$PWD/$state/pid"
trap 'rm -rf -- "$PWD/$state"' EXIT

# This script runs on the first node, and so does the job's driver: asked to end, it is told, and writes a checkpoint.
head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
asked=0
trap 'asked=1; [[ -s "$PFSCALE_PID_FILE" ]] && kill -TERM "$(<"$PFSCALE_PID_FILE")"' TERM
# shellcheck disable=SC2016
srun --nodes={nodes} --ntasks={nodes} --cpus-per-task={cpus} \
  ray symmetric-run --address "$head:{port}" --min-nodes {nodes} --num-cpus={cpus} -- \
  bash -c 'echo $$ >"$PFSCALE_PID_FILE"; exec python "$@"' driver {command} &
running=$!
wait "$running"; code=$?
while kill -0 "$running" 2>/dev/null; do wait "$running"; code=$?; done   # a signal ends `wait` before what it waits for
if ((asked)) && [[ " {stopped} " == *" $code "* ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def script(given: argparse.Namespace) -> str:
    """The text of the script.

    Raises:
        SystemExit: an empty or impossible field, with all mistakes at once.
    """
    empty = [name for name, value in vars(given).items() if isinstance(value, str) and not value.strip()]
    mistakes = [f"--{name.replace('_', '-')} is empty" for name in empty]
    verb = given.arguments[0] if given.arguments else ""
    if not (JOBS / f"{verb}.py").is_file():
        known = ", ".join(sorted(path.stem for path in JOBS.glob("*.py")))
        mistakes.append(f"no job named '{verb}': the verb and its arguments come after --, there are {known}")
    if given.time.strip() and not TIME.match(given.time):
        mistakes.append(f"--time {given.time}: [days-]hours:minutes:seconds")
    mistakes += [f"--{name} must be at least 1" for name in ("nodes", "cpus-per-node") if getattr(given, name.replace("-", "_")) < 1]
    if mistakes:
        raise SystemExit("\n".join(f"sbatch.py: {mistake}" for mistake in mistakes))
    return TEMPLATE.format(
        name=f"pfscale-{verb}",
        account=given.account,
        partition=given.partition,
        nodes=given.nodes,
        cpus=given.cpus_per_node,
        accelerators=f"#SBATCH --gpus-per-node={given.gpus_per_node}\n" if given.gpus_per_node else "",
        time=given.time,
        notice=given.notice,
        folder=shlex.quote(str(JOBS.parent)),
        environment=shlex.quote(given.environment),
        port=given.port,
        command=shlex.join([f"jobs/{verb}.py", *given.arguments[1:]]),
        stopped=" ".join(map(str, STOPPED)),
    )


def main() -> int:
    """Prints or submits the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--account", required=True)
    parser.add_argument("--partition", required=True)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=0)
    parser.add_argument("--cpus-per-node", type=int, required=True)
    parser.add_argument("--time", required=True, help="[days-]hours:minutes:seconds")
    parser.add_argument("--notice", type=int, default=300, help="seconds before the limit at which the training is asked to stop")
    parser.add_argument("--environment", required=True, help="virtual environment with pfscale, that all nodes see")
    parser.add_argument("--port", type=int, default=6379, help="of Ray's head")
    parser.add_argument("--dry-run", action="store_true", help="print the script only")
    parser.add_argument("arguments", nargs="*", metavar="VERB ARGUMENT", help="after --: a job and what it takes")
    given = parser.parse_args()
    text = script(given)
    if given.dry_run:
        print(text, end="")
        return 0
    return subprocess.run(["sbatch"], input=text, text=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
