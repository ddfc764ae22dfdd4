"""What runs, as renderables of rich: for programs that show it with that library.

Pure functions of the data. It must know no terminal and no program; rich is loaded with the first
call, as nothing else here needs it.
"""
