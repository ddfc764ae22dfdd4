"""What programs build and derive from: fields, hooks, servers, handlers.

All of it is inert until it is served: what changes is in the engine's run. It must not know
where handlers run when that is not a task.
"""
