"""What readers need who see little, or not in color, or in the dark: pictures with words, and arrows of dropdowns.

Picture(png(figure), width=960, words=alt_text(figure))
framed(w.HBox([dropdown, slider]), page)
"""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass

import ipywidgets as w

_WHITE_ARROW = (  # of dropdowns: that of ipywidgets is black, in a dark theme as well
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'><path fill='white' d='M5 7l4 4 4-4z'/></svg>"
)


@dataclass(frozen=True)
class Picture:
    """A PNG with words for readers who do not see it, in HTML: JupyterLab would not give the `alt` of a PNG to a screen
    reader. Where HTML is not trusted, the PNG is shown.
    """

    data: bytes
    width: int
    words: str

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, dict[str, object]]]:
        code, words = base64.b64encode(self.data).decode(), html.escape(self.words)
        shown = f'<img src="data:image/png;base64,{code}" width="{self.width}" style="max-width:100%" alt="{words}">'
        bundle = {"image/png": code, "text/html": shown, "text/plain": self.words}
        return bundle, {"image/png": {"width": self.width, "alt": self.words}}


def framed(*parts: w.Widget) -> w.VBox:
    """The parts below each other, with arrows of dropdowns that can be seen in a dark theme."""
    arrow = base64.b64encode(_WHITE_ARROW.encode()).decode()
    where = "[data-jp-theme-light=false] .jupyter-widgets"
    style = f"<style>{where} {{--jp-widgets-dropdown-arrow:url(data:image/svg+xml;base64,{arrow})}}</style>"
    return w.VBox([*parts, w.HTML(style, layout=w.Layout(display="none"))])
