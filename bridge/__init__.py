"""esl-bridge: the message-bus bridge between FreeSWITCH's Event Socket and Redis or NATS."""

__version__ = "0.1.0"
