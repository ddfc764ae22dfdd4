"""The log as values of JSON, for programs that read it.

It must know no server: whatever is on a record is written, and nothing that it cannot write is lost
without a trace.
"""
