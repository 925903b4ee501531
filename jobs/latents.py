r"""Candidates, jets and latents of all events of a data set, for any number of downstream trainings; submitted again, it goes on.

ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/latents.py \
    models:/mlpf-cld@candidate $PWD/shards/cld --storage $PWD/runs --tracking-uri sqlite:///$PWD/mlflow.db

Time on a data set of real size: not measured.
"""

import sys

from pfscale.cli import run

if __name__ == "__main__":
    sys.exit(run(["latents", *sys.argv[1:]]))
