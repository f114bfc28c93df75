"""Beam's options of which a view is made once: Beam asks for one with each transform, and makes a parser for it."""

from __future__ import annotations

from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions, PipelineOptionsT

_VIEWS = "_views_made"


class CachedOptions(PipelineOptions):
    """PipelineOptions; all views share their values, so that one is as good as another."""

    def view_as(self, cls: type[PipelineOptionsT]) -> PipelineOptionsT:
        """The view that was made before, or a new one."""
        views: dict[type, Any] = self.__dict__.setdefault(_VIEWS, {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]

    def __getstate__(self) -> Any:
        """Without the views, which are made again."""
        return {name: value for name, value in super().__getstate__().items() if name != _VIEWS}
