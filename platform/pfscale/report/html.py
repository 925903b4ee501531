"""One self-contained HTML page: text, tables, figures and code, without scripts or anything that is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import matplotlib

from pfscale.report.style import Drawn

GENERATOR = "pfscale report"  # by which a page is known to be ours
TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class PageFigure:
    """A figure with a caption.

    Attributes:
        image: its data address.
        numbers: JSON that can be saved from the page; empty: none.
        is_wide: scrolled sideways on narrow screens.
    """

    name: str
    caption: str
    image: str
    numbers: str = ""
    is_wide: bool = False

    @property
    def download(self) -> str:
        """The data address of the numbers."""
        return _data_address("application/json", self.numbers.encode())


@dataclass(frozen=True)
class PageTable:
    """Rows of text under a header; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class PageCode:
    """Lines to copy; folded where they are long."""

    title: str
    text: str
    is_folded: bool = False


@dataclass(frozen=True)
class PageSection:
    """A heading, and below it in this order: paragraphs, tables, figures, code."""

    heading: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[PageTable] = ()
    figures: Sequence[PageFigure] = ()
    code: Sequence[PageCode] = ()


@dataclass(frozen=True)
class Page:
    """A report: what was asked, what came out, and all that is behind it."""

    title: str
    question: str
    answers: Sequence[str]
    warnings: Sequence[str] = ()
    sections: Sequence[PageSection] = field(default_factory=tuple)
    footer: str = ""


def render_page(page: Page) -> str:
    """The page as HTML; every text is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text()).render(page=page, generator=GENERATOR)


def page_figure(name: str, drawn: Drawn, caption: str, *, is_wide: bool = False) -> PageFigure:
    """A drawn figure for the page: as vectors with letters as outlines, so that it looks the same everywhere and prints sharply."""
    figure, numbers = drawn
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # without it, the same figure gives another file every time
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    image = _data_address("image/svg+xml", buffer.getvalue().encode())
    return PageFigure(name, caption, image, json.dumps(numbers, indent=1, allow_nan=False), is_wide)


def logged_figure(name: str, png: bytes, caption: str, *, numbers: str = "") -> PageFigure:
    """A figure that a run has logged as PNG, with its numbers (JSON) where it has logged those too."""
    return PageFigure(name, caption, _data_address("image/png", png), numbers)


def _data_address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
