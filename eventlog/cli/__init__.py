"""The ``eventlog`` command: data to stdout, talk to stderr, documented exit codes."""
