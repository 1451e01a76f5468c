"""A fuzzer's bytes as a sequence of choices, and the other way round.

Owns:      how a choice is read from bytes (`Choices`), and written for seeds (`Script`).
Not here:  what is chosen (the targets).

A choice takes one or two bytes from the front, so that bytes that are changed, left out or repeated by the fuzzer
change one choice, and the rest stays what it was. After the end every choice is 0.
"""


class Choices:
    """Reads choices."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def left(self) -> bool:
        """There is more."""
        return self._position < len(self._data)

    def below(self, count: int) -> int:
        """Choose one of at most 256."""
        return self.number(1) % count

    def number(self, size: int) -> int:
        """Choose a number of so many bytes."""
        return int.from_bytes(self.bytes(size))

    def bytes(self, size: int) -> bytes:
        """Take so many bytes, or what is left."""
        begin = self._position
        self._position += size
        return self._data[begin : self._position]

    def piece(self) -> bytes:
        """Take at most 255 bytes: first their number."""
        return self.bytes(self.number(1))


class Script:
    """Writes choices; every method that adds some returns the script."""

    def __init__(self) -> None:
        self.data = b""

    def choose(self, *choices: int) -> "Script":
        """Add choices below 256."""
        self.data += bytes(choices)
        return self

    def number(self, value: int, size: int) -> "Script":
        self.data += value.to_bytes(size)
        return self

    def piece(self, data: bytes) -> "Script":
        self.data += bytes([len(data)]) + data
        return self
