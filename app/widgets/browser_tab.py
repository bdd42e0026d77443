"""The invisible part of a page: its title, its shortcuts, and the secret its tab is known by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import panel as pn
import param
from panel.custom import JSComponent


class BrowserTab(JSComponent):
    """Names the tab, sends the keys of `keys` while nobody types, and the tab's secret once.

    Args:
        pressed: called with the key. identified: called with the secret.
    """

    keys = param.List(item_type=str, doc='Keys as the browser names them: "a", "ArrowDown", "?".')

    heading = param.String(doc="What the browser writes on the tab.")

    known = param.Boolean(False, doc="The secret has arrived.")

    _esm = Path(__file__).parent / "browser_tab.js"

    def __init__(
        self, pressed: Callable[[str], None], identified: Callable[[str], None], **params: Any
    ) -> None:
        super().__init__(**params)
        self._pressed, self._identified = pressed, identified

    def _handle_msg(self, data: Any) -> None:
        """Take what the browser sends; anything unexpected is ignored."""
        if not isinstance(data, dict) or not pn.state.loaded:  # what is answered before is lost
            return
        key, secret = data.get("key"), data.get("secret")
        if isinstance(key, str) and key in self.keys:
            self._pressed(key)
        if isinstance(secret, str) and 16 <= len(secret) <= 64 and not self.known:
            self.known = True
            self._identified(secret)
