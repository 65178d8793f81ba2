"""The mechanisms, one room each, and the registry that knows them all."""
