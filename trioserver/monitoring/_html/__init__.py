"""What is seen, as a document of HTML: for a browser, without a script, and from nowhere else.

Pure functions of the data. It must know no other view but the words that text uses, too.
"""
