r"""Runs a sweep on all of the cluster; submitted again, it goes on.

ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/sweep.py \
    search_spaces/transfer_rates.yaml data.shards=$PWD/shards/cld \
    run.storage=$PWD/runs run.tracking_uri=sqlite:///$PWD/mlflow.db

Expected on two cores: a table of 12 trials, 25 minutes by estimate (not run at this size yet; --dry-run prints the plan).
"""

import sys

from pfscale.cli import run

if __name__ == "__main__":
    sys.exit(run(["sweep", *sys.argv[1:]]))
