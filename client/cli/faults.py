"""Everything that is wrong with a command line, told at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from common.errors import GugusError, invalid, several

T = TypeVar("T")


class Faults:
    """Gathers errors. What is read within `gathered` and fails is left out, and the reading goes on behind it."""

    def __init__(self) -> None:
        self.found = list[GugusError]()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep the GugusError that ends the block."""
        try:
            yield
        except GugusError as error:
            self.found.append(error)

    def tell(self) -> None:
        """Raise GugusError with every fault if there are any."""
        if self.found:
            raise several(self.found)


def each(read: Callable[[str], T], texts: Sequence[str]) -> list[T]:
    """Read what was given several times. Raises GugusError with every fault, and of which of the texts it is."""
    read_ones, faults = list[T](), Faults()
    for text in texts:
        with faults.gathered():
            try:
                read_ones.append(read(text))
            except GugusError as error:
                raise error if len(texts) == 1 else _of(text, error) from None
    faults.tell()
    return read_ones


def _of(text: str, error: GugusError) -> GugusError:
    """Return an error that names the text it is about, unless it begins with it."""
    named = f'"{text}"'
    faults = [
        invalid(one.field, one.message if one.message.startswith(named) else f"{named}: {one.message}")
        for one in error.violations
    ]
    told = several(faults) if faults else error
    told.remedy = error.remedy
    return told
