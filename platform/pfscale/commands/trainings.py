"""Verbs that train: pretrain, finetune, downstream; and their configs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from pfscale.commands.terminal import ConfigPath, Overrides, out, print_run, say_progress
from pfscale.config import Config, load_config

config_app = typer.Typer(no_args_is_help=True, help="Configs, resolved and checked.")


def pretrain(config: ConfigPath, overrides: Overrides = None) -> None:
    """Pre-trains a particle-flow model and registers it; repeated, it resumes."""
    from pfscale.training import pretrain as stage

    say_progress()
    print_run(stage.pretrain(load_config(stage.PretrainConfig, config, overrides or ())))


def finetune(config: ConfigPath, overrides: Overrides = None) -> None:
    """Transfers a registered model to another detector: zero-shot, heads, full or scratch."""
    from pfscale.training import finetune as stage

    say_progress()
    print_run(stage.finetune(load_config(stage.FinetuneConfig, config, overrides or ())))


def downstream(config: ConfigPath, overrides: Overrides = None) -> None:
    """Trains a downstream head on a registered model's latents."""
    from pfscale.training import downstream as stage

    print_run(stage.downstream(load_config(stage.DownstreamConfig, config, overrides or ())))


@config_app.command("show")
def config_show(verb: str, config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]")] = None, overrides: Overrides = None) -> None:
    """The resolved config of VERB as YAML, with what every key means (without CONFIG: the defaults)."""
    out.print("\n".join(_annotated(_resolved(verb, config, overrides))), markup=False)


@config_app.command("check")
def config_check(verb: str, config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]")] = None, overrides: Overrides = None) -> None:
    """Says whether the config of VERB is right, with all mistakes at once."""
    _resolved(verb, config, overrides)
    out.print(f"no mistakes in {config or f'the defaults of {verb}'}")


def _resolved(verb: str, path: Path | None, overrides: list[str] | None) -> Config:
    """The config of a learning verb; the first argument after the verb may already be an override."""
    from pfscale.training.verbs import find_verb

    config_class = find_verb(verb).config_class
    if path is not None and "=" in path.name and not path.exists():
        return load_config(config_class, None, [str(path), *(overrides or ())])
    return load_config(config_class, path, overrides or ())


def _annotated(config: Config, indent: str = "") -> Iterator[str]:
    """Lines of YAML that `load_config` reads back, each with its field's description."""
    import yaml

    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        comment = f"  # {info.description}" if info.description else ""
        if isinstance(value, Config):
            yield f"{indent}{name}:{comment}"
            yield from _annotated(value, indent + "  ")
            continue
        plain = config.model_dump(mode="json", include={name})[name]
        yield f"{indent}{name}: {yaml.safe_dump(plain, default_flow_style=True, width=1000).splitlines()[0]}{comment}"
