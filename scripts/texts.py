"""Functions on texts that configs name."""


def utf8_bytes(text: str) -> list[int]:
    """A token for each byte, below 256."""
    return list(text.encode())
