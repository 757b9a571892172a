"""Planned sampling: schedules and multistep rules fitted to a model."""

if not __name__.startswith("accel."):
    raise ImportError(f"import accel.{__name__}, not {__name__}: a second copy shares no state")

METHODS: dict[str, type] = {}
