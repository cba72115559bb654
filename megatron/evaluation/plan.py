"""Which questions share a forward pass, and which passes go together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from megatron.evaluation.texts import Question

# A round of short texts may have this many times the rows of one of full length.
MOST_ROWS = 64

T = TypeVar("T")


@dataclass
class Row:
    """One text of a batch, and what is asked of it.

    Attributes: inputs: token ids; positions, targets: of each wanted log-probability, the position that predicts it and
    the token; owners: (number of a question, where its targets begin among those).
    """

    inputs: list[int]
    positions: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    owners: list[tuple[int, int]] = field(default_factory=list)

    def ask(self, number: int, question: Question) -> None:
        self.owners.append((number, len(self.targets)))
        end = len(question.inputs)
        self.positions.extend(range(end - len(question.targets), end))
        self.targets.extend(question.targets)


def merge(questions: Sequence[Question]) -> list[Row]:
    """Rows that answer all questions: one whose inputs are the beginning of another's needs no row of its own.

    So the answers of one token to the same context are one row, however many there are.
    """
    # As bytes they compare fast, and a beginning sorts just before what begins with it.
    keys = [np.asarray(question.inputs, dtype=np.int32).tobytes() for question in questions]
    rows: list[Row] = []
    last = b""
    for number in sorted(range(len(questions)), key=keys.__getitem__, reverse=True):
        if not rows or not last.startswith(keys[number]):
            rows.append(Row(questions[number].inputs))
            last = keys[number]
        rows[-1].ask(number, questions[number])
    return rows


def rounds(
    items: Iterable[T], length: Callable[[T], int], batch_size: int, replicas: int, max_length: int
) -> Iterator[list[T]]:
    """Items of similar length that are computed at once, the longest first, so that memory runs out at once or never.

    Args: length: tokens of an item; batch_size: items of full length on one replica; shorter ones may be as many more
    as they are shorter.
    """
    ordered = sorted(items, key=length, reverse=True)
    first = 0
    while first < len(ordered):
        shorter = min(MOST_ROWS, max(1, max_length // length(ordered[first])))
        count = batch_size * shorter * replicas
        yield ordered[first : first + count]
        first += count


def pack(chunk: list[list[Row]]) -> list[int]:
    """Rounds as whole numbers, for the other ranks."""
    numbers = [len(chunk)]
    for rows in chunk:
        numbers.append(len(rows))
        for row in rows:
            numbers += [len(row.inputs), len(row.targets), *row.inputs, *row.positions, *row.targets]
    return numbers


def unpack(numbers: list[int]) -> list[list[Row]]:
    """Counterpart of pack; nobody owns the rows."""
    place = 0

    def take(count: int) -> list[int]:
        nonlocal place
        place += count
        return numbers[place - count : place]

    def row() -> Row:
        length, wanted = take(2)
        return Row(take(length), take(wanted), take(wanted))

    return [[row() for _ in range(take(1)[0])] for _ in range(take(1)[0])]
