"""Memory of a device as a straight line over its rows of a micro-batch, and the most rows that fit."""

from typing import NamedTuple

MARGIN = 0.05  # share of the memory that is left free: for the fit's error and for what is outside the step


class Line(NamedTuple):
    """Bytes of one device = fixed + per_row * rows."""

    fixed: float
    per_row: float

    def at(self, rows: float) -> float:
        """Bytes at a number of rows."""
        return self.fixed + self.per_row * rows


def through(first: tuple[int, float], second: tuple[int, float]) -> Line:
    """The line through two points (rows, bytes) with different rows."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return Line(first[1] - slope * first[0], slope)


def largest(line: Line, limit: float) -> int | None:
    """Most rows whose bytes stay under the limit less the margin; None where memory does not grow."""
    if line.per_row <= 0:
        return None
    return max(0, int((limit * (1 - MARGIN) - line.fixed) // line.per_row))


def second_point(rows: int, total: float, fixed: float, limit: float) -> int:
    """Rows to compile next: near where the memory is full if all but `fixed` bytes grow with the rows.

    So the largest batch is read off between or close to two compiled sizes, and not far beyond them. At
    most eight times and at least an eighth of `rows`, and never `rows` itself.
    """
    room = (limit * (1 - MARGIN) - fixed) * rows / max(total - fixed, 1.0)
    guess = int(min(max(room, rows / 8, 1), rows * 8))
    if guess != rows:
        return guess
    return rows // 2 if rows > 1 else 2
