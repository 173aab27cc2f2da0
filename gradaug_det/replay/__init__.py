"""Steps whose losses were not finite: written down as they were, and run again."""
