"""The tabular recipe: one model for many tables with text, adapted to a table of yours."""
