"""Replayers: they bring a journal into the backends that people look at, exactly once.

`replayers.target` is the protocol of a target, `replayers.replay` the loop that all targets share.
"""
