"""The outlines of every kind of object: polygons in the unit square, to be filled or cut out."""

from __future__ import annotations

from functools import cache

import numpy as np

Outline = list[
    tuple[np.ndarray, bool]
]  # (points (K, 2) with y downwards, True: fill, False: cut out), in drawing order


def _arc(radius: float, start: float, stop: float, count: int = 40, centre: tuple[float, float] = (0, 0)) -> np.ndarray:
    angles = np.radians(np.linspace(start, stop, count))
    return np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)


def _circle(radius: float = 0.5, centre: tuple[float, float] = (0, 0)) -> np.ndarray:
    return _arc(radius, 0, 360, 48, centre)[:-1]


def _points(*pairs: tuple[float, float]) -> np.ndarray:
    return np.array(pairs, dtype=np.float64)


def _star(tips: int = 5, inner: float = 0.22) -> np.ndarray:
    angles = np.radians(-90 + np.arange(2 * tips) * 180 / tips)
    radius = np.where(np.arange(2 * tips) % 2 == 0, 0.5, inner)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1) / 33


def _moon() -> np.ndarray:
    # The outer arc of one circle, back along the arc of another that cuts its right side.
    outer = _arc(0.5, 55, 305, 44)
    tip = outer[0]
    centre, radius = 0.26, float(np.hypot(tip[0] - 0.26, tip[1]))
    edge = float(np.degrees(np.arctan2(tip[1], tip[0] - centre)))
    inner = _arc(radius, 360 - edge, edge, 36, (centre, 0))
    return np.concatenate([outer, inner])


def _fish() -> np.ndarray:
    body = _arc(1.0, 325, 35, 40) * (0.38, 0.28) + (-0.12, 0)
    return np.concatenate([body, _points((0.46, -0.32), (0.38, 0.0), (0.46, 0.32))])


@cache
def outline(kind: str) -> Outline:
    """The polygons of a kind, upright, about the origin, roughly within [-0.5, 0.5]².

    Raises:
        KeyError: no such kind.
    """
    third = 1 / 6
    shapes: dict[str, Outline] = {
        "circle": [(_circle(), True)],
        "square": [(_points((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)), True)],
        "triangle": [(_points((0, -0.46), (0.52, 0.44), (-0.52, 0.44)), True)],
        "star": [(_star(), True)],
        "heart": [(_heart(), True)],
        "cross": [
            (
                _points(
                    (-third, -0.5),
                    (third, -0.5),
                    (third, -third),
                    (0.5, -third),
                    (0.5, third),
                    (third, third),
                    (third, 0.5),
                    (-third, 0.5),
                    (-third, third),
                    (-0.5, third),
                    (-0.5, -third),
                    (-third, -third),
                ),
                True,
            )
        ],
        "ring": [(_circle(), True), (_circle(0.28), False)],
        "moon": [(_moon(), True)],
        "fish": [(_fish(), True), (_circle(0.05, (-0.33, -0.06)), False)],
        "house": [
            (
                _points(
                    (0, -0.5),
                    (0.2, -0.32),
                    (0.2, -0.46),
                    (0.32, -0.46),
                    (0.32, -0.22),
                    (0.52, -0.04),
                    (0.4, -0.04),
                    (0.4, 0.48),
                    (-0.4, 0.48),
                    (-0.4, -0.04),
                    (-0.52, -0.04),
                ),
                True,
            ),
            (_points((-0.26, 0.14), (-0.04, 0.14), (-0.04, 0.48), (-0.26, 0.48)), False),
            (_points((0.1, 0.08), (0.28, 0.08), (0.28, 0.26), (0.1, 0.26)), False),
        ],
    }
    return shapes[kind]
