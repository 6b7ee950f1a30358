"""A FreeSWITCH that is not there: speaks ESL as the real one does, for demo, tests and users' own tests."""

from bridge.simulator.faults import FAULTS, Fault, FaultKind, Faults, FaultSyntaxError, parse_fault
from bridge.simulator.replay import ReplayError
from bridge.simulator.server import SimulatedSwitch
from bridge.simulator.users import User

__all__ = [
    "FAULTS",
    "Fault",
    "FaultKind",
    "FaultSyntaxError",
    "Faults",
    "ReplayError",
    "SimulatedSwitch",
    "User",
    "parse_fault",
]
