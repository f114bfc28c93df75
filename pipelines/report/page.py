"""Pages that ask for nothing from anywhere, out of templates beside this module; the same facts give the same bytes."""

from __future__ import annotations

import itertools
import pathlib
import re
from typing import Any

import jinja2
import markupsafe

from pipelines.report.plots import ID

_FOLDER = pathlib.Path(__file__).parent


def fill(template: str, **facts: Any) -> str:
    """The page of a template. All texts are escaped; only plots are put in as they are."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    style = markupsafe.Markup((_FOLDER / "style.css").read_text())
    page = environment.from_string((_FOLDER / template).read_text()).render(style=style, **facts)
    numbers = itertools.count(1)
    return re.sub("<svg .*?</svg>", lambda svg: svg[0].replace(ID, f"p{next(numbers)}-"), page, flags=re.DOTALL)
