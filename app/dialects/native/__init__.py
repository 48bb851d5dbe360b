"""Whence's own routes: stored explanations, the registry of models, health."""
