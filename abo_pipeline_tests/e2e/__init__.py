"""The whole thing as a person runs it: Dagster's webserver and daemon as processes, driven from outside."""
