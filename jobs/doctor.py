r"""What is wrong with the cluster, seen from inside a job.

ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/doctor.py run.storage=$PWD/runs run.tracking_uri=sqlite:///$PWD/mlflow.db

Expected: "nothing is wrong"; the job fails where something is.
"""

import sys

from pfscale.cli import run

if __name__ == "__main__":
    sys.exit(run(["doctor", *sys.argv[1:]]))
