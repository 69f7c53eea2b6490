"""The core loss, target rules, teachers and presets: "One equation" of docs/objectives.md.

`settings` and `catalogue` are light (no torch); everything that computes is imported from its own module:
`objective.build_objective`, `embeddings.Embeddings`, `teacher.EmaTeacher`.
"""
