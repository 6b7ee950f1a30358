"""The Event Socket language: bytes in, values out. Never touches a socket, a clock, a loop or a log."""
