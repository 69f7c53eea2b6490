"""The core loss, target rules, teachers and presets."""
