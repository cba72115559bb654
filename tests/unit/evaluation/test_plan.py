"""What shares a forward pass, and in which order."""

import random

from megatron.evaluation.plan import merge, pack, rounds, unpack
from megatron.evaluation.texts import Question


def questions(count: int) -> list[Question]:
    """Many of them begin alike."""
    drawn = random.Random(1)
    texts = [[drawn.randrange(2) for _ in range(drawn.randint(1, 9))] for _ in range(count)]
    return [
        Question(text, [drawn.randrange(5) for _ in range(drawn.randint(1, len(text)))]) for text in texts
    ]


def row_length(row) -> int:
    return len(row.inputs)


def answers(rows) -> dict[int, set[tuple]]:
    """For every question: (all tokens up to a target, the target)."""
    found: dict[int, set[tuple]] = {}
    for row in rows:
        ends = [place for _, place in row.owners[1:]] + [len(row.targets)]
        for (number, place), end in zip(row.owners, ends, strict=True):
            found[number] = {
                (tuple(row.inputs[: row.positions[n] + 1]), row.targets[n]) for n in range(place, end)
            }
    return found


def test_every_question_is_answered_with_just_the_tokens_before_each_target():
    asked = questions(200)
    rows = merge(asked)
    expected = {
        number: {
            (tuple(inputs[: len(inputs) - len(targets) + n + 1]), target) for n, target in enumerate(targets)
        }
        for number, (inputs, targets) in enumerate(asked)
    }
    assert answers(rows) == expected


def test_no_row_is_the_beginning_of_another():
    inputs = [tuple(row.inputs) for row in merge(questions(200))]
    assert len(inputs) > 20
    assert not any(a != b and b[: len(a)] == a for a in inputs for b in inputs)
    assert len(set(inputs)) == len(inputs)


def test_answers_of_one_token_to_a_question_are_one_row():
    assert len(merge([Question([1, 2, 3], [answer]) for answer in range(4)])) == 1


def test_rounds_are_sorted_by_length_and_short_texts_come_in_larger_ones():
    rows = merge([Question([number] * length, [0]) for number, length in enumerate([8] * 5 + [2] * 40)])
    planned = list(rounds(rows, row_length, batch_size=2, replicas=2, max_length=8))
    assert [len(planned_rows) for planned_rows in planned] == [4, 4, 16, 16, 5]
    lengths = [len(row.inputs) for planned_rows in planned for row in planned_rows]
    assert lengths == sorted(lengths, reverse=True) and len(lengths) == 45


def test_what_is_packed_comes_out_again():
    planned = list(rounds(merge(questions(50)), row_length, 2, 1, 16))
    again = unpack(pack(planned))
    bare = [[(row.inputs, row.positions, row.targets) for row in rows] for rows in planned]
    assert [[(row.inputs, row.positions, row.targets) for row in rows] for rows in again] == bare
