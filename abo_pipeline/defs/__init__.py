"""Dagster's view of the pipeline: thin, and without logic of its own.

One file for each of Dagster's nouns; an asset takes its inputs, calls one function of the domain, and reports numbers.
"""
