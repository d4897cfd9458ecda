"""What the fixture ``open_page`` gives."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page

OpenPage = Callable[..., Page]
