"""`pfscale scaling`: records in, a folder with the answer out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pfscale.errors import ConfigError
from pfscale.report.html import render_page
from pfscale.studies.records import read_records, read_runs, write_records
from pfscale.studies.scaling import Prices
from pfscale.studies.scaling_answer import ScalingAnswer, answer_of
from pfscale.tracking.runs import jsonable

PAGE, ANSWER, RECORDS = "scaling.html", "answer.json", "records.parquet"


def scaling(
    source: str,
    output: Path,
    *,
    metric: str = "validation_loss",
    budgets: Sequence[float] = (),
    prices: Prices | None = None,
    money: float = 0.0,
    tracking_uri: str,
) -> ScalingAnswer:
    """Fits what `source` holds and writes page, numbers, records and figures into `output`.

    Args:
        source: an MLflow experiment, a sweep's run, or a Parquet file of records where the name ends in .parquet.
        budgets: operations of training to be divided between model and data.
        money: with `prices`: what there is to be spent.

    Raises:
        ConfigError: a file without the columns of records, money without prices.
        ModelNotFoundError: no such experiment, nor a run.
        NotEnoughDataError: too few trainings for any law.
    """
    if money and not (prices and (prices.event or prices.flop)):
        raise ConfigError("a budget in money needs prices", hint="--event-price and --flop-price")
    records, left_out = (read_records(Path(source)), []) if source.endswith(".parquet") else read_runs(tracking_uri, source)
    answer = answer_of(records, left_out, metric=metric, budgets=budgets, prices=prices, money=money)
    output.mkdir(parents=True, exist_ok=True)
    write_records(output / RECORDS, records)
    page = answer.page(question=f"What do {len(records)} trainings of {source} say of scale?", command=["pfscale", *sys.argv[1:]])
    (output / PAGE).write_text(render_page(page))
    numbers = {**answer.numbers, "sentences": answer.sentences, "doubts": answer.doubts, "left_out": [vars(run) for run in answer.left_out]}
    (output / ANSWER).write_text(json.dumps(jsonable(numbers), indent=1))
    for name, (figure, drawn) in answer.figures.items():
        figure.savefig(output / f"{name}.png")
        (output / f"{name}.json").write_text(json.dumps(drawn, indent=1))
    return answer
