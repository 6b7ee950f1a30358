"""Operations: metrics, health, logs, HTTP. Only observes, never decides."""
