"""What is denied when nothing else is configured; data only.

It never holds code: an operator may copy it into ``[policy] deny`` and change it.
"""

from __future__ import annotations

_SHELL = ("system", "bg_system", "bgsystem", "spawn", "bg_spawn", "spawn_stream", "bg_spawn_stream")
_SHUTDOWN = (
    "fsctl shutdown",
    "fsctl crash",
    "fsctl abort",
    "fsctl threaded_system_exec",
    "shutdown",
    "...",
)
_SCRIPTS = (
    "lua",
    "luarun",
    "js",
    "jsrun",
    "jsapi",
    "javascript",
    "python",
    "python3",
    "pyrun",
    "perl",
    "perlrun",
    "java",
    "javarun",
    "managed",
    "managedrun",
    "managedreload",
    "ruby",
    "rubyrun",
    "yang",
    "basic",
)
# A file name that is a shell command (mod_shell_stream).
_FILES = ("text:*shell_stream://*",)
# mod_event_socket replaces any command whose header block holds both words by an unload of itself.
_UNLOAD_TRAP = (
    "unload mod_event_socket",
    "reload mod_event_socket",
    "text:*unload*mod_event_socket*",
    "text:*mod_event_socket*unload*",
    "text:*reload*mod_event_socket*",
    "text:*mod_event_socket*reload*",
)

DEFAULT_DENY: tuple[str, ...] = _SHELL + _SHUTDOWN + _SCRIPTS + _FILES + _UNLOAD_TRAP
