r"""Finds particle-flow candidates in ROOT files with a registered model.

ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/reconstruct.py \
    models:/mlpf-clic@candidate "$PWD/root/*.root" --output $PWD/candidates --tracking-uri sqlite:///$PWD/mlflow.db

Expected on two cores: a second for the real CLD event in tests/data, 57 candidates with the demo's mlpf-cld. Repeated, it goes on;
exit code 3 where files were set aside, which reconstruction.json lists beside what was made. --format root for ROOT files.
"""

import sys

from pfscale.cli import run

if __name__ == "__main__":
    sys.exit(run(["reconstruct", *sys.argv[1:]]))
