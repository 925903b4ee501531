"""What makes a model folder one that plain MLflow can load: an `MLmodel` file that names the loader and the columns in and out.

MLflow's python_function flavour imports the loader by name, so nothing is pickled, and needs no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlflow.types import Schema

MLMODEL = "MLmodel"
Dtype = Literal["any", "boolean", "integer", "long", "float", "double"]


@dataclass(frozen=True)
class Column:
    """One column of a model's input or output table; `any`: whatever the user has, integers or strings."""

    name: str
    dtype: Dtype
    required: bool = True


@dataclass(frozen=True)
class Pyfunc:
    """How plain MLflow runs a model.

    Attributes:
        loader_module: a module whose `_load_pyfunc(folder)` gives an object with `predict(table, params)`.
        inputs, outputs: columns of the tables.
        params: switches of `predict` with their defaults.
    """

    loader_module: str
    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]
    params: Mapping[str, bool] = field(default_factory=dict)


def write_mlmodel(folder: Path, pyfunc: Pyfunc, *, run_id: str) -> Path:
    """The `MLmodel` file in a model folder, with the documented signature."""
    from mlflow import pyfunc as flavour
    from mlflow.models import Model, ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    params = ParamSchema([ParamSpec(name, DataType.boolean, default) for name, default in pyfunc.params.items()])
    model = Model(run_id=run_id, signature=ModelSignature(_schema(pyfunc.inputs), _schema(pyfunc.outputs), params))
    flavour.add_to_model(model, loader_module=pyfunc.loader_module)
    model.save(str(folder / MLMODEL))
    return folder / MLMODEL


def _schema(columns: tuple[Column, ...]) -> Schema:
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    kinds = {column.name: AnyType() if column.dtype == "any" else DataType[column.dtype] for column in columns}
    return Schema([ColSpec(kinds[column.name], column.name, required=column.required) for column in columns])
