"""The parts of `tools/bench`: one thing that is measured to a module.

Everything is measured in rounds, and within a round in turn (A B A B), so that what the machine
does meanwhile falls on all ways alike; what is told are ratios by round.
"""
