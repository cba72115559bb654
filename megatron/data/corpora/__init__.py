"""Corpora that prepare_data.py knows by name: one class each, registered as kind "corpus"."""
