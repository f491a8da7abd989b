"""What is checked: a module a section, each with ``run(place, report)``."""
