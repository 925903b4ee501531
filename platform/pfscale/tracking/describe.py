"""A registered version as text for the terminal: its card, metrics, lineage and the champions of its model."""

from __future__ import annotations

import json
from pathlib import Path

from pfscale.physics.bootstrap import Estimate
from pfscale.tracking.card import CARD_FILE
from pfscale.tracking.champion import champion_history
from pfscale.tracking.lineage import ancestors, described
from pfscale.tracking.registry import ModelVersion, download, resolve


def describe(tracking_uri: str, reference: str) -> str:
    """What a version is, in the order in which one asks: which it is, its card, where it comes from, who was champion.

    Raises:
        ModelNotFoundError, TrackingError: as `resolve` and `download`.
    """
    version = resolve(tracking_uri, reference)
    folder = download(version)
    head = [version.uri, f"aliases: {', '.join(version.aliases) or 'none'}", f"run: {version.run_id}", f"files: {folder}"]
    chain = [described(version.uri, version.tags), *ancestors(tracking_uri, version.tags.get("parent", ""))]
    champions = [f"- {record}" for record in champion_history(tracking_uri, version.name)]
    promotes = "" if version.tags.get("verb") == "downstream" else f"; pfscale models promote {version.name}@candidate"
    parts = [
        "\n".join(head),
        _card(folder, version),
        "\n".join(["lineage, newest first:", *(f"- {ancestor}" for ancestor in chain)]),
        "\n".join(["champions:", *(champions or ["- none yet" + promotes])]),
    ]
    return "\n\n".join(parts)


def _card(folder: Path, version: ModelVersion) -> str:
    """The model card; a downstream head has none, its tags and metrics stand for it."""
    if (folder / CARD_FILE).is_file():
        return (folder / CARD_FILE).read_text().strip()
    lines = [f"{key}: {value}" for key, value in sorted(version.tags.items())]
    card = folder / "model_card.json"
    metrics = json.loads(card.read_text()).get("metrics", {}) if card.is_file() else {}
    for name, value in sorted(metrics.items()):
        if not name.endswith("_error"):
            lines.append(f"{name}: {Estimate(value, metrics.get(f'{name}_error', float('nan')))}")
    return "\n".join(lines)
