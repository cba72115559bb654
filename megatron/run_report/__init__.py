"""The report of a run or of several: a page for the browser and pictures, made from the files that runs leave.

It needs neither torch nor the program's other parts, so that it starts at once on any machine.
"""
