"""What happens while a server serves: accept, admit, serve, settle, drain, report.

One run, from bind to close. It must not know any class that programs derive from, and asks
its server through protocols.
"""
