"""What keeps the project: not part of the library, and not in its wheel."""
