"""Frameworks that log to eventlog: each module is imported only where its framework is used."""
