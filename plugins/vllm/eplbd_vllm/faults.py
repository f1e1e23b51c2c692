"""An error as the one line of the engine's log that it may cost. It must not know what follows."""


def sentence(error: Exception) -> str:
    """Return what `error` says, on one line; its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
