"""Sockets to FreeSWITCH: connections, the supervised event link, the pool of command connections. Knows no bus."""
