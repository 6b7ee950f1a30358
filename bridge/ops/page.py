"""The web page's files and the rules that a browser has to keep with them.

This room is text only; whatever comes from outside reaches the document as text, never as markup.
"""

from __future__ import annotations

from importlib.resources import files

_FILES = files("bridge.ops") / "static"

PAGE = (_FILES / "page.html").read_text("utf-8")

# Name -> content type and bytes of what the page loads from /static/.
STATIC = {
    "page.css": ("text/css", (_FILES / "page.css").read_bytes()),
    "page.js": ("text/javascript", (_FILES / "page.js").read_bytes()),
}

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
