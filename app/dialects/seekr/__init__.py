"""Seekr's wire."""
