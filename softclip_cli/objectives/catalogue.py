"""Presets as documents, for `softclip objectives list|show`."""

from __future__ import annotations

from typing import Any

from softclip_cli.config import describe
from softclip_cli.objectives.settings import MARKS, ObjectiveSettings, ResolvedObjective, find_preset, presets


def list_presets() -> list[dict[str, Any]]:
    """One flat row a preset: name, title, teacher, rule, mix, when, reference."""
    rows = []
    for preset in presets().values():
        choice = ResolvedObjective.model_validate(
            {"name": preset.name} | {key: value for key, (value, _) in preset.choices.items()}
        )
        rows.append(
            {
                "name": preset.name,
                "title": preset.title,
                "teacher": choice.teacher,
                "rule": choice.rule if choice.loss == "softmax" else "sigmoid",
                "mix": choice.mix if choice.has_soft_targets else "",
                "when": preset.when,
                "reference": preset.reference,
            }
        )
    return rows


def describe_preset(name: str) -> dict[str, Any]:
    """Formula, choices with value, mark and help, and the settings that stay at their defaults.

    Raises:
        UsageError: no such preset; names the nearest.
    """
    preset = find_preset(name)
    helps = {key: text for key, _, text in describe(ObjectiveSettings)}
    defaults = {
        key: info.default
        for key, info in ResolvedObjective.model_fields.items()
        if key not in preset.choices and key not in ("name", "teacher_model")
    }
    return {
        "name": preset.name,
        "title": preset.title,
        "formula": preset.formula,
        "when": preset.when,
        "reference": preset.reference,
        "choices": [
            {"setting": f"objective.{key}", "value": value, "mark": mark, "meaning": MARKS[mark], "help": helps[key]}
            for key, (value, mark) in preset.choices.items()
        ],
        "defaults": [
            {"setting": f"objective.{key}", "value": value, "help": helps[key]} for key, value in defaults.items()
        ],
    }
